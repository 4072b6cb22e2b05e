#!/bin/sh
# head.sh HOST: a second head node in a mount and UTS namespace of its own (unshare -m -u): its name, its configuration, its /run.
# What head nodes share is shared: slurmctld's StateSaveLocation and the folders below /var/lib/secure-slurm. It only waits;
# what runs there is put into its namespaces.
set -eu
host=$1
hostname "$host"
mount --bind /run/testbed/"$host"/etc /etc/secure-slurm
mount -t tmpfs -o mode=755 tmpfs /run/slurm
chown slurm /run/slurm
mkdir -p /run/testbed/"$host"/run
# the folders of the first head node with their owners and modes, and nothing that is in them
(cd /run/secure-slurm && find decision lifecycle snapshot glass -maxdepth 0 -type d | tar -cf - --no-recursion -T -) \
  | tar -xpf - -C /run/testbed/"$host"/run
mount --bind /run/testbed/"$host"/run /run/secure-slurm
# its own machine's log folder has its own copies of the nodes' audit lines: two daemons must not append to the same files
install -d -o secure-life -g secure-life -m 755 /var/log/secure-slurm/lifecycle/nodes /run/testbed/"$host"/nodes
mount --bind /run/testbed/"$host"/nodes /var/log/secure-slurm/lifecycle/nodes
exec sleep infinity
