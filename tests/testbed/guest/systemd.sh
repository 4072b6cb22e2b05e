# PID 1 of this guest becomes systemd, and the tests of tests/systemd run under it. ARGS: pytest's arguments, with ',' for spaces.
# What the second stage installed without systemd goes away: the tests install it under systemd, as an admin does.
rm -rf /run/secure-slurm /var/log/secure-slurm /var/lib/secure-slurm /etc/secure-slurm
rm -rf /opt/secure-slurm/lib /opt/secure-slurm/hooks /opt/secure-slurm/bin
rm -rf /etc/systemd/system/*.wants
# the guest's terminals and network are the bed's; its Slurm and its directory are started by the tests
for unit in getty.target systemd-networkd.service systemd-remount-fs.service systemd-logind.service; do
  ln -sf /dev/null "/etc/systemd/system/$unit"
done
# systemd sets what the kernel does with cores anew, and no secured job starts where they are in clear
echo 'kernel.core_pattern=|/bin/false' > /etc/sysctl.d/testbed.conf
# it names the machine by this file
echo head > /etc/hostname
# the root is as it was packed: no caches to make anew
touch /etc/.updated /var/.updated
mkdir -p /etc/systemd/system/multi-user.target.wants /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' > /etc/systemd/journald.conf.d/testbed.conf
systemd-machine-id-setup > /dev/null 2>&1 || head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > /etc/machine-id
cat > /etc/systemd/system/testbed.service <<END
[Unit]
Description=the tests of the units
[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
WorkingDirectory=/opt/tests
Environment=CI=$CI_RUN PATH=$PATH LANG=C.UTF-8 HOME=/root PYTHONPATH=$PYTHONPATH PYTHONPYCACHEPREFIX=$PYTHONPYCACHEPREFIX "ARGS=${ARGS//,/ }"
ExecStart=/bin/bash /src/tests/testbed/guest/systemd_tests.sh
END
ln -sf ../testbed.service /etc/systemd/system/multi-user.target.wants/testbed.service
# to the node, which is this whole guest, that is a writable file system of another machine, and no job may have it
mount -o remount,bind,ro /out
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /usr/lib/systemd/systemd --system --unit=multi-user.target --show-status=no --log-target=journal-or-kmsg
