#!/bin/bash
# The guest's userland: kernel file systems, modules, network, the project as an installation would lay it, then $TASK.
export PATH=/opt/secure-slurm/bin:/opt/secure-slurm/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root
mkdir -p /dev/shm /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm; mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=755 tmpfs /run; mkdir -m 1777 -p /run/lock; mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir -p /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
V=$(uname -r); mkdir -p /lib/modules/$V; mount --bind /usr/lib/uml/modules/$V /lib/modules/$V
modprobe -a loop dm_mod dm_crypt xts dummy 2>/dev/null || { depmod -a; modprobe -a loop dm_mod dm_crypt xts dummy; }
echo '|/bin/false' > /proc/sys/kernel/core_pattern
ip link set lo up; ip link add dummy0 type dummy; ip addr add 10.99.0.1/24 dev dummy0; ip link set dummy0 up
ln -sf /proc/self/fd /dev/fd; ln -sf fd/0 /dev/stdin; ln -sf fd/1 /dev/stdout; ln -sf fd/2 /dev/stderr
hostname head
{ echo 127.0.0.1 localhost; echo "10.99.0.1 head ldap.test vault.test dc1.ad.test n1 n2 n3 n4"; } > /etc/hosts; : > /etc/resolv.conf
sh /src/install.sh --offline --prefix /opt/secure-slurm --source /src >/dev/null || echo "stage2: installation failed"
mkdir -p /opt/tests; cp -r /src/tests /src/bench /src/setup.cfg /src/ruff.toml /opt/tests/
cd /opt/tests
export PYTHONPATH=/opt/secure-slurm/lib:/opt/tests PYTHONPYCACHEPREFIX=/tmp/pyc
result() { echo "$1" > /out/.rc && mv /out/.rc /out/rc; }
. /src/tests/testbed/guest/$TASK.sh
sync; echo o > /proc/sysrq-trigger; sleep 5
