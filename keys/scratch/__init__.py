"""dm-crypt scratch: backing store, mapping, file system, and the way back. Standard library only (root hooks import it)."""
