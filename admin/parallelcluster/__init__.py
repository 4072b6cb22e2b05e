"""``secure-slurm parallelcluster``: a configuration is written (render) and judged (check and rules) without AWS."""
