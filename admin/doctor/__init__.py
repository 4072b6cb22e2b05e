"""What ``secure-slurm doctor`` looks at (facts), by which doors, and what it makes of it (checks)."""
