"""Keys and what they protect: Vault, grants, node identity, dm-crypt scratch."""
