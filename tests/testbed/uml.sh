#!/bin/bash
# uml.sh SUITE TASK [NAME=VALUE...]: boot a user-mode Linux guest from the suite's root and run guest/TASK.sh in it.
# The checkout is /src in the guest (read-only), $OUT is /out. The result is what the guest wrote to /out/rc: the
# kernel's own exit status says nothing. A missing result is a failure.
# TTY=1: the guest's console is this terminal.  MEM=4G  LIMIT=1500 (seconds)  SHARED=FOLDER: is /out/shared in the guest,
# and in others that get the same one.  BINDS="FROM:/mnt/NAME ...": more folders, read-only.
# SLOT=0: which of this machine's processors the guest stays on, counted round; those side by side get different ones.
set -euo pipefail
suite=$1 task=$2; shift 2
for word in "$@"; do
  # they travel on the kernel's command line, which is split at blanks: the guest would hang with half of the word as its script
  [[ $word != *[[:space:]]* ]] || { echo "uml.sh: a blank in '$word': write '.' in a pattern, ',' in ARGS" >&2; exit 64; }
done
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
root=$("$here/root.sh" "$suite")
out=${OUT:-$top/build/$suite}
# what an earlier run left must not be taken for this one's
mkdir -p "$out"; rm -f "$out/rc" "$out/now"
export ROOT=$root SRC=$top OUT_DIR=$out SHARED=${SHARED:-} BINDS=${BINDS:-}
# A guest has one processor, and its kernel and its processes wake each other thousands of times a second: across two of the
# machine's, each time is an interrupt, and takes twice the time (docs/decisions/0010).
mapfile -t processors < <(awk '/^Cpus_allowed_list/ {
  n = split($2, ranges, ",")
  for (i = 1; i <= n; i++) { split(ranges[i] "-" ranges[i], ends, "-"); for (c = ends[1]; c <= ends[2]; c++) print c }
}' /proc/self/status)
console=null,fd:1 foreground=
[ -n "${TTY:-}" ] && { console=fd:0,fd:1; foreground=--foreground; }
taskset -c "${processors[${SLOT:-$$} % ${#processors[@]}]}" \
  timeout $foreground -k 5 "${LIMIT:-1500}" unshare -m -p -f --propagation private --kill-child bash -euc '
  mount -t proc proc "$ROOT/proc"
  mount -t tmpfs -o size=12g tmpfs "$ROOT/dev/shm" 2>/dev/null || { mkdir -p "$ROOT/dev/shm"; mount -t tmpfs -o size=12g tmpfs "$ROOT/dev/shm"; }
  mount -t tmpfs tmpfs "$ROOT/tmp"; mount --bind /dev/pts "$ROOT/dev/pts"
  mount --bind "$SRC" "$ROOT/src"; mount -o remount,bind,ro "$ROOT/src"
  mount --bind "$OUT_DIR" "$ROOT/out"
  mount -t tmpfs tmpfs "$ROOT/mnt"
  for pair in ${BINDS:-}; do
    mkdir -p "$ROOT${pair#*:}"; mount --bind "${pair%%:*}" "$ROOT${pair#*:}"; mount -o remount,bind,ro "$ROOT${pair#*:}"
  done
  [ -z "$SHARED" ] || { mkdir -p "$ROOT/out/shared"; mount --bind "$SHARED" "$ROOT/out/shared"; }
  exec env -i HOME=/tmp TMPDIR=/dev/shm PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM="${TERM:-dumb}" chroot "$ROOT" linux.uml "$@"
' _ mem="${MEM:-4G}" root=/dev/root rootfstype=hostfs rootflags=/ ro init=/bin/sh seccomp=on con=null con0="$console" quiet \
  TASK="$task" "$@" -- /src/tests/testbed/guest/stage1.sh || true
if [ -t 1 ]; then stty sane 2>/dev/null || true; fi
[ -e "$out/rc" ] || { echo "uml.sh: the guest left no result (task $task on $suite)" >&2; exit 70; }
exit "$(cat "$out/rc")"
