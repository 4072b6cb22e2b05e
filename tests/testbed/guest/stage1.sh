#!/bin/sh
# PID 1 on the read-only root: lay a tmpfs overlay over it and move in, so that every boot starts clean.
# `mount --move` and not a plain chroot: user namespaces and Slurm's namespace plugins refuse a chrooted root.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
modules=/usr/lib/uml/modules/$(uname -r)
mount -t tmpfs tmpfs /run
insmod "$(find "$modules" -name 'overlay.ko*' | head -n 1)" || echo "stage1: no overlay module"
mkdir -p /run/ov; mount -t tmpfs -o size=3g,mode=755 tmpfs /run/ov; mkdir -p /run/ov/u /run/ov/w /run/ov/m
mount -t overlay overlay -o lowerdir=/,upperdir=/run/ov/u,workdir=/run/ov/w /run/ov/m || echo "stage1: no overlay"
new=/run/ov/m
mount -t hostfs -o ro,hostfs=/src none $new/src
mount -t hostfs -o hostfs=/out none $new/out
mount -t proc proc $new/proc; mount -t sysfs sys $new/sys; mount -t devtmpfs dev $new/dev
cd $new; mount --make-rprivate /; umount /proc
mount --move . / && exec chroot . /bin/bash /src/tests/testbed/guest/stage2.sh </dev/console >/dev/console 2>&1
echo "stage1: could not move to the new root"
