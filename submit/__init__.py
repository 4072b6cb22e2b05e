"""secure-sbatch, secure-srun and secure-salloc."""
