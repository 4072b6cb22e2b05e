#!/bin/sh
# node.sh NODE [slurmd options]: one "node": a slurmd and its node daemon in a mount and UTS namespace of their own (unshare -m -u), so that
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
setpriv --reuid secure-node --regid secure-node --clear-groups --inh-caps=-all --bounding-set=-all \
  env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 /opt/secure-slurm/bin/secure-slurm-noded --node "$node" \
  >> /var/log/noded-"$node".log 2>&1 &
exec slurmd "$@" -N "$node"
