#!/bin/bash
# chroot.sh SUITE COMMAND...: run a command natively in the suite's root, in mount, process and network namespaces of its
# own: a throw-away overlay over the root, loopback and 10.99.0.1 and no way out, the checkout at /src, $OUT at /out.
# WITH=NAME: the environment of requirements/NAME.lock at /venv/NAME.
# BINDS="FROM:TO ...": more folders, read-only.
set -euo pipefail
suite=$1; shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
export ROOT SRC=$top OUT_DIR=${OUT:-$top/build/$suite} BINDS=${BINDS:-}
ROOT=$("$here/root.sh" "$suite")
mkdir -p "$OUT_DIR"
export WITH=${WITH:-} VENV=
[ -z "$WITH" ] || VENV=$("$here/venv.sh" "$WITH")
exec unshare -m -p -f -n -u --propagation private --kill-child bash -euc '
  work=$(mktemp -d); mount -t tmpfs -o size=6g tmpfs "$work"; mkdir "$work/upper" "$work/work" "$work/root"
  mount -t overlay overlay -o "lowerdir=$ROOT,upperdir=$work/upper,workdir=$work/work" "$work/root"
  root=$work/root
  mount -t proc proc "$root/proc"; mount -t sysfs -o ro sysfs "$root/sys"
  mount -t tmpfs tmpfs "$root/tmp"; mount -t tmpfs -o mode=755 tmpfs "$root/run"
  mkdir -p "$root/dev/shm" "$root/dev/pts"
  for d in null zero full urandom random tty; do [ -e "$root/dev/$d" ] || touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
  mount -t tmpfs tmpfs "$root/dev/shm"; mount --bind /dev/pts "$root/dev/pts"
  [ -e "$root/dev/fd" ] || ln -s /proc/self/fd "$root/dev/fd"
  mount --bind "$SRC" "$root/src"; mount -o remount,bind,ro "$root/src"; mount --bind "$OUT_DIR" "$root/out"
  [ -z "$VENV" ] || { mkdir -p "$root/venv/$WITH"; mount --bind "$VENV" "$root/venv/$WITH"; mount -o remount,bind,ro "$root/venv/$WITH"; }
  for pair in ${BINDS:-}; do
    mkdir -p "$root${pair#*:}"; mount --bind "${pair%%:*}" "$root${pair#*:}"; mount -o remount,bind,ro "$root${pair#*:}"
  done
  ip link set lo up; ip addr add 10.99.0.1/24 dev lo
  hostname head; printf "127.0.0.1 localhost\n10.99.0.1 head ldap.test vault.test dc1.ad.test\n" > "$root/etc/hosts"; : > "$root/etc/resolv.conf"
  exec env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" CI="${CI:-}" SECURE_SLURM_REQUIRE_SERVICES=1 \
    PATH=/opt/secure-slurm/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONPYCACHEPREFIX=/tmp/pyc PYTHONPATH=/src \
    chroot "$root" "$@"
' _ "$@"
