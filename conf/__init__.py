"""YAML schema, loader and shipped defaults: what an admin tunes. Imports nothing of ours."""
