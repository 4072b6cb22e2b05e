#!/bin/bash
# What testbed.service runs when systemd is up: the tests, their result, and the end of the guest.
systemctl --version | head -n 1
# as an admin does it, on a machine that is up; what it says comes to the tests
sh /src/install.sh --offline --node n1 --prefix /opt/secure-slurm --source /src > /run/installed || echo "systemd_tests: the installation failed"
status=0
# shellcheck disable=SC2086
python3 -m pytest $ARGS -p no:cacheprovider --junitxml=/tmp/systemd.xml || status=$?
mount -o remount,bind,rw /out
cp /tmp/systemd.xml /out/
echo $status > /out/.rc && mv /out/.rc /out/rc
sync
echo o > /proc/sysrq-trigger
