"""The suite's version, a literal: reading package metadata costs 70 ms at every start."""

__version__ = "0.1.0"
