"""dm-crypt scratch: backing store, mapping, file system, and the way back.

Standard library only: the root hooks import it under ``python3 -IS``.
"""
