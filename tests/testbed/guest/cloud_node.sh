#!/bin/sh
# cloud_node.sh NODE: an instance that boots as ParallelCluster's do: its own disk, the node's daemons, then the last step of our
# custom action, doctor. Only where that is green slurmd starts; else the instance is given up. In namespaces of its own, as node.sh.
set -eu
node=$1
here=$(dirname "$0")
hostname "$node"
mount -t tmpfs -o mode=755 tmpfs /secure-scratch
mount -o remount,bind,ro /out
rm -rf /var/lib/secure-slurm/scratch-"$node" && mkdir -m 700 -p /var/lib/secure-slurm/scratch-"$node"
mount --bind /var/lib/secure-slurm/scratch-"$node" /var/lib/secure-slurm/scratch
mount --bind /etc/secure-slurm/places/"$node" /etc/secure-slurm/place
mount --bind /run/testbed/boot-"$node" /proc/sys/kernel/random/boot_id
for each in hand daemon hooks; do sh "$here/node_daemon.sh" "$node" $each; done
waited=0
until [ -S /run/secure-slurm/node-"$node"/daemon/node.sock ]; do
  [ $waited -lt 600 ] || { echo "the node daemon does not come up"; exit 1; }
  waited=$((waited + 1)); sleep 0.1
done
log=/var/log/doctor-$node.log tries=1
until /opt/secure-slurm/bin/secure-slurm doctor --role compute --node "$node" > "$log" 2>&1; do
  # a machine that stands still is asked again
  if [ $tries -ge 4 ] || ! grep -q "no answer within" "$log"; then
    echo "this node is not green, and takes no job"; grep -i -A1 fail "$log" || true; exit 1
  fi
  tries=$((tries + 1))
done
exec slurmd -D -b -N "$node"
