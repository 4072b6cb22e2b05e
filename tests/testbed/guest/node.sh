#!/bin/sh
# node.sh NODE [slurmd options]: one "node": a slurmd, its node daemon, its hand and its hook server in a mount and UTS namespace of their own (unshare -m -u), so that
# four of them on one kernel share neither mounts nor scratch folders. Mapper names and loop devices stay common.
set -eu
node=$1
shift
hostname "$node"
mount -t tmpfs -o mode=755 tmpfs /secure-scratch
# the machine below the guest: to a node that is a writable file system of another machine, and no job may have it
mount -o remount,bind,ro /out
mkdir -m 700 -p /var/lib/secure-slurm/scratch-"$node"
mount --bind /var/lib/secure-slurm/scratch-"$node" /var/lib/secure-slurm/scratch
mount --bind /etc/secure-slurm/places/"$node" /etc/secure-slurm/place
# a node that was rebooted (tests/faults/bed.py): the kernel below is the same, its boot is not
[ ! -e /run/testbed/boot-"$node" ] || mount --bind /run/testbed/boot-"$node" /proc/sys/kernel/random/boot_id
here=$(dirname "$0")
sh "$here/node_daemon.sh" "$node" hand
sh "$here/node_daemon.sh" "$node" daemon
sh "$here/node_daemon.sh" "$node" hooks
exec slurmd "$@" -N "$node"
