"""The chain that sets what a tagged job needs and then judges it: small pure functions, no I/O."""
