#!/bin/sh
# install.sh [--role head|login|compute|all] [--node NAME] [--prefix /opt/secure-slurm] [--source DIR] [--python FILE] [--offline]
#   Lays secure-slurm out for root: PREFIX/lib (packages, compiled), PREFIX/hooks (what Slurm calls), PREFIX/bin (commands),
#   PREFIX/venv (the dependencies, locked with hashes); and, for the role of this machine, accounts, folders, systemd units,
#   and in /etc/secure-slurm what is not there yet. It starts nothing and may be run again at any time.
#   --node: this node's name in Slurm, where it is not the short host name. --offline: the virtual environment is there.
#   With a folder "wheels" beside it (the offline bundle) the dependencies come from there, and nothing from any network.
set -eu
umask 022
prefix=/opt/secure-slurm offline= role=all node= python= source=$(cd "$(dirname "$0")" && pwd)
etc=/etc/secure-slurm
fail() { echo "install.sh: $1" >&2; exit "${2:-1}"; }
while [ $# -gt 0 ]; do
  case $1 in
    --offline) offline=1; shift; continue ;;
    -h|--help) sed -n '2,7s/^# *//p' "$0"; exit 0 ;;
    --role|--node|--prefix|--source|--python) [ $# -gt 1 ] || fail "$1 needs a value" 2 ;;
    *) fail "unknown option $1 (see --help)" 2 ;;
  esac
  case $1 in --role) role=$2 ;; --node) node=$2 ;; --prefix) prefix=$2 ;; --source) source=$2 ;; --python) python=$2 ;; esac
  shift 2
done
head= compute=
case $role in
  all) head=1 compute=1 ;;
  head) head=1 ;;
  compute) compute=1 ;;
  login) ;;
  *) fail "no such role: $role (head, login, compute or all)" 2 ;;
esac
# both become part of files that root reads
case $prefix in /*[!A-Za-z0-9._/-]*|[!/]*|''|/) fail "not a usable prefix: $prefix" 2 ;; esac
case $node in *[!A-Za-z0-9.-]*|[.-]*) fail "not the name of a node that can be protected: $node" 2 ;; esac
[ "$(id -u)" = 0 ] || fail "run it as root: what Slurm runs as root must belong to root"
[ "$role" = login ] || sh "$source/requirements/accounts.sh"
[ -z "$head" ] || getent group slurm >/dev/null || fail "there is no group slurm: install Slurm first"

# -- the program -----------------------------------------------------------------------------------------------------
# Hooks and daemons run while this does: each file and folder is made beside its place and takes it in one step.
fresh() {  # file, mode: its new content is standard input
  rm -f "$1.new"; cat > "$1.new"
  [ -s "$1.new" ] || fail "nothing to write into $1"  # an empty hook would let every job pass
  chmod "$2" "$1.new"; mv -f "$1.new" "$1"
}
swap() {  # folder: what is in folder.new takes its place
  if [ -e "$1" ]; then
    # renameat2(2), RENAME_EXCHANGE: an overlay has none, and there is a moment without the folder then
    "$python" -I -c 'import ctypes, os, sys
sys.exit(ctypes.CDLL(None).renameat2(-100, os.fsencode(sys.argv[1] + ".new"), -100, os.fsencode(sys.argv[1]), 2) != 0)' "$1" 2>/dev/null \
      || { rm -rf "$1.old"; mv "$1" "$1.old"; mv "$1.new" "$1"; }
    rm -rf "$1.new" "$1.old"
  else
    mv "$1.new" "$1"
  fi
}
# -I everywhere: root may stand in a folder of anybody's, and "-c" and "-m" look for modules there first
recent() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if [ -n "$offline" ]; then
  python=$prefix/venv/bin/python3
  [ -x "$python" ] || fail "no virtual environment in $prefix/venv"
elif [ -n "$python" ]; then
  recent "$python" || fail "$python is no Python, or older than 3.11"
else
  for python in python3 python3.14 python3.13 python3.12 python3.11 ''; do
    [ -n "$python" ] || fail "there is no Python 3.11 or later: install one (its package, or in the machine's image), or name it with --python"
    ! recent "$python" || break
  done
fi
if [ -d "$source/wheels" ] && [ -z "$offline" ]; then
  # shellcheck source=bundle/offline.sh
  . "$source/bundle/offline.sh"
elif [ -z "$offline" ]; then
  # python-ldap comes from the distribution, everything else from the lock file
  "$python" -I -c 'import ldap, ensurepip' 2>/dev/null || apt-get install -y python3-ldap python3-venv || dnf install -y python3-ldap
  "$python" -I -m venv --system-site-packages "$prefix/venv"
  "$prefix/venv/bin/python3" -I -m pip install --quiet --require-hashes -r "$source/requirements/runtime.lock"
fi
rm -rf "$prefix/lib.new"
mkdir -p "$prefix/lib.new" "$prefix/hooks" "$prefix/bin" "$etc" /usr/local/bin
for room in admin audit conf keys slurm_hooks submit; do
  cp -r "$source/$room" "$prefix/lib.new/"
done
find "$prefix/lib.new" -name __pycache__ -prune -exec rm -rf {} +
chown -R root:root "$prefix/lib.new"
chmod -R go-w,a+rX "$prefix/lib.new"
# compiled at installation: a hook must not spend its time compiling, and the tree may be read-only
"$prefix/venv/bin/python3" -I -m compileall -q --invalidation-mode unchecked-hash -s "$prefix/lib.new" -p "$prefix/lib" "$prefix/lib.new"
swap "$prefix/lib"
for stub in prolog epilog prolog_slurmctld epilog_slurmctld task_prolog reaper private_tmp hookd.sh; do
  case $stub in *.sh) mode=644 ;; *) mode=755 ;; esac
  sed "s|@PREFIX@|$prefix|g" "$source/slurm_hooks/stubs/$stub" | fresh "$prefix/hooks/$stub" $mode
done
sed "s|/opt/secure-slurm|$prefix|g" "$source/slurm_hooks/job_submit.lua" | fresh "$prefix/hooks/job_submit.lua" 644
launcher() {  # name, module, function
  {
    printf '#!%s/venv/bin/python3 -I\n' "$prefix"
    printf 'import sys\nsys.path.insert(0, "%s/lib")\nfrom %s import %s\nsys.exit(%s())\n' "$prefix" "$2" "$3" "$3"
  } | fresh "$prefix/bin/$1" 755
}
launcher secure-slurm admin.main main
launcher secure-sbatch submit.main sbatch
launcher secure-srun submit.main srun
launcher secure-salloc submit.main salloc
launcher secure-slurm-decisiond slurm_hooks.decisiond main
launcher secure-slurm-lifecycled slurm_hooks.lifecycled main
launcher secure-slurm-requeued slurm_hooks.requeued main
launcher secure-slurm-noded slurm_hooks.noded main
launcher secure-slurm-handd slurm_hooks.handd main
launcher secure-slurm-hookd slurm_hooks.hookd main
launcher secure-slurm-ldapd slurm_hooks.ldapd main
launcher secure-slurm-glassd slurm_hooks.glassd main
launcher secure-slurm-enrold slurm_hooks.enrold main
fresh "$prefix/uninstall.sh" 755 < "$source/uninstall.sh"
ln -sf "$prefix/bin/secure-slurm" "$prefix/bin/secure-sbatch" "$prefix/bin/secure-srun" "$prefix/bin/secure-salloc" /usr/local/bin/
sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$source/conf/version.py" | fresh "$prefix/VERSION" 644
if [ "$role" = login ]; then
  echo "secure-slurm is in $prefix; next: secure-sbatch --secure-help"
  exit 0
fi

# -- configuration: only what is not there yet -----------------------------------------------------------------------
for file in secure-slurm.yaml policy.yaml; do
  [ -e "$etc/$file" ] || cp "$source/conf/$file" "$etc/$file"
done
if [ -n "$head" ] && [ ! -e "$etc/record.key" ]; then
  (umask 077; head -c 32 /dev/urandom > "$etc/record.key.new")
  chgrp secure-record "$etc/record.key.new"
  chmod 640 "$etc/record.key.new"
  mv "$etc/record.key.new" "$etc/record.key"
fi

# -- folders and units -----------------------------------------------------------------------------------------------
folders() {  # the lines of tmpfiles.d for this role
  case $role in
    head) sed '/^# part: compute/,$d' "$source/conf/tmpfiles/secure-slurm.conf" ;;
    compute) sed '/^# part: head/,/^# part: compute/d' "$source/conf/tmpfiles/secure-slurm.conf" ;;
    all) cat "$source/conf/tmpfiles/secure-slurm.conf" ;;
  esac
}
here="/^#/!s|%l|${node:-%l}|g; s|/opt/secure-slurm|$prefix|g"
units=
[ -z "$head" ] || units="secure-slurm-ldapd secure-slurm-decisiond secure-slurm-lifecycled secure-slurm-requeued secure-slurm-glassd secure-slurm-enrold"
[ -z "$compute" ] || units="$units secure-slurm-noded secure-slurm-handd secure-slurm-hookd secure-slurm-imds"
if [ -d /run/systemd/system ]; then
  folders | sed "$here" > /etc/tmpfiles.d/secure-slurm.conf
  for unit in $units; do
    sed "$here" "$source/conf/systemd/$unit.service" > "/etc/systemd/system/$unit.service"
  done
  # its service asks for it: nobody has to enable it
  [ -z "$head" ] || cp "$source/conf/systemd/secure-slurm-glassd.socket" /etc/systemd/system/
  if [ -n "$compute" ]; then
    for unit in secure-slurm-reaper.service secure-slurm-reaper.timer secure-slurm-reaper-boot.service; do
      sed "$here" "$source/conf/systemd/$unit" > "/etc/systemd/system/$unit"
    done
    units="$units secure-slurm-reaper.timer secure-slurm-reaper-boot"
  fi
  systemd-tmpfiles --create /etc/tmpfiles.d/secure-slurm.conf
  systemctl daemon-reload
  printf '%s\n' $units | fresh "$prefix/UNITS" 644
  start="systemctl enable --now $units"
else
  printf '%s\n' $units | fresh "$prefix/UNITS" 644
  name=${node:-$(hostname)}
  folders | sed "s|%l|${node:-${name%%.*}}|g" | while read -r type path mode owner group; do
    # what is there is left alone: root must not change the owner of what a daemon may have put in its place
    [ "$type" != d ] || [ -e "$path" ] || [ -L "$path" ] || install -d -m "$mode" -o "$owner" -g "$group" "$path"
  done
  start="start$(for unit in ${units% secure-slurm-imds}; do printf ' %s/bin/%s' "$prefix" "$unit"; done), each as its own account (conf/systemd)"
  [ -z "$compute" ] || start="$start; as root: $prefix/bin/secure-slurm node imds --close; every 20 s: $prefix/hooks/reaper ${node:-${name%%.*}}"
fi

# -- what is left to do ----------------------------------------------------------------------------------------------
[ -z "$compute" ] || for program in cryptsetup dmsetup mkfs.ext4; do
  command -v "$program" >/dev/null || echo "install.sh: warning: $program is not installed, which encrypted scratch needs" >&2
done
[ -z "$compute" ] || command -v nft >/dev/null || echo "install.sh: warning: nft is not installed, which closes the metadata service" >&2
cat <<END
secure-slurm is in $prefix (role: $role). Next, as docs/install.md explains:
  1. edit $etc/secure-slurm.yaml and policy.yaml; put in place the files that they name
  2. secure-slurm conf check && secure-slurm conf render
  3. $start
  4. add the lines of $prefix/lib/conf/slurm/slurm.conf.snippet to slurm.conf
END
