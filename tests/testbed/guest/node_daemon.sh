#!/bin/sh
# node_daemon.sh NODE hand|daemon|hooks: one of a node's own daemons in the background, as the units start it. For node.sh, and
# for tests that have killed one; inside the node's namespaces.
set -eu
node=$1 bin=/opt/secure-slurm/bin
case $2 in
  hand)
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 $bin/secure-slurm-handd --node "$node" \
      </dev/null >> /var/log/handd-"$node".log 2>&1 &
    ;;
  hooks)
    # with the capabilities that its unit leaves it, so that every test of a hook is one of that list as well
    unit=/opt/secure-slurm/lib/conf/systemd/secure-slurm-hookd.service
    bounding=-all$(sed -n 's/^CapabilityBoundingSet=//p' "$unit" | tr 'A-Z' 'a-z' | sed 's/cap_/,+/g; s/ //g')
    setpriv --bounding-set="$bounding" --inh-caps=-all --no-new-privs \
      env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 $bin/secure-slurm-hookd --node "$node" \
      </dev/null >> /var/log/hookd-"$node".log 2>&1 &
    ;;
  daemon)
    setpriv --reuid secure-node --regid secure-node --clear-groups --inh-caps=-all --bounding-set=-all \
      env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 $bin/secure-slurm-noded --node "$node" \
      </dev/null >> /var/log/noded-"$node".log 2>&1 &
    ;;
esac
