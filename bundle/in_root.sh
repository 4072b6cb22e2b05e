#!/bin/bash
# in_root.sh ROOT OUT COMMAND...: run a command in a root of bundle/root.sh: a throw-away overlay over it, namespaces of its own for
# mounts, processes, host name and network. The checkout is /src (read-only), OUT is /out. No route leads anywhere: there is
# loopback alone. BINDS="FROM:TO ...": more folders, read-only.
set -euo pipefail
export ROOT=$1 OUT_DIR=$2
SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export SRC
shift 2
mkdir -p "$OUT_DIR"
exec unshare -m -p -f -n -u --propagation private --kill-child bash -euc '
  work=$(mktemp -d); mount -t tmpfs -o size=3g tmpfs "$work"; mkdir "$work/upper" "$work/work" "$work/root"
  mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$work/upper,workdir=$work/work" "$work/root"
  root=$work/root
  mount -t proc proc "$root/proc"; mount -t sysfs -o ro sysfs "$root/sys"
  mount -t tmpfs tmpfs "$root/tmp"; mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mkdir -p "$root/dev/shm" "$root/dev/pts"
  for d in null zero full urandom random; do [ -e "$root/dev/$d" ] || touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
  mount -t tmpfs tmpfs "$root/dev/shm"
  [ -e "$root/dev/fd" ] || ln -s /proc/self/fd "$root/dev/fd"
  mount --bind "$SRC" "$root/src"; mount -o remount,bind,ro "$root/src"; mount --bind "$OUT_DIR" "$root/out"
  for pair in ${BINDS:-}; do
    mkdir -p "$root${pair#*:}"; mount --bind "${pair%%:*}" "$root${pair#*:}"; mount -o remount,bind,ro "$root${pair#*:}"
  done
  ip link set lo up
  hostname "${GUEST_NAME:-head}"; printf "127.0.0.1 localhost head ${GUEST_NAME:-head}\n" > "$root/etc/hosts"; : > "$root/etc/resolv.conf"
  exec env -i HOME=/root LC_ALL=C.UTF-8 TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" "$@"
' _ "$@"
