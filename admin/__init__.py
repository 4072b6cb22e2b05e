"""The secure-slurm command; each subcommand is one module."""
