# A bare guest: what is here, and how long did it take to come up?
cat /proc/uptime; uname -r; ls /opt/secure-slurm /opt/secure-slurm/bin; dmsetup targets; slurmctld -V
result 0
