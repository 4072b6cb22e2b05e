"""Builds the offline bundle (`make bundle`), with the standard library alone and nothing of the product."""
