"""``secure-slurm parallelcluster vpc-check``: what in a CloudFormation template leads out of the VPC."""
