"""The audit trail: events, hash chain, verifier. Standard library only (root hooks import it)."""
