"""What Slurm calls: the job_submit filter, the hook stubs and the daemons behind them."""
