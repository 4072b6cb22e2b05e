#!/bin/sh
# install.sh [--prefix /opt/secure-slurm] [--source DIR] [--offline]
#   Lays secure-slurm out for root: PREFIX/lib (packages, compiled), PREFIX/hooks (what Slurm calls), PREFIX/bin (commands),
#   PREFIX/venv (the dependencies, locked with hashes). --offline: the virtual environment is there already.
set -eu
umask 022
prefix=/opt/secure-slurm offline= source=$(cd "$(dirname "$0")" && pwd)
while [ $# -gt 0 ]; do
  case $1 in
    --prefix) prefix=$2; shift 2 ;;
    --source) source=$2; shift 2 ;;
    --offline) offline=1; shift ;;
    -h|--help) sed -n '2,4s/^# *//p' "$0"; exit 0 ;;
    *) echo "install.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
done
[ "$(id -u)" = 0 ] || { echo "install.sh: run it as root: what Slurm runs as root must belong to root" >&2; exit 1; }
sh "$source/requirements/accounts.sh"
if [ -z "$offline" ]; then
  # python-ldap comes from the distribution, everything else from the lock file
  python3 -c 'import ldap' 2>/dev/null || { apt-get install -y python3-ldap || dnf install -y python3-ldap; }
  python3 -m venv --system-site-packages "$prefix/venv"
  "$prefix/venv/bin/pip" install --quiet --require-hashes -r "$source/requirements/runtime.lock"
fi
[ -x "$prefix/venv/bin/python3" ] || { echo "install.sh: no virtual environment in $prefix/venv" >&2; exit 1; }
rm -rf "$prefix/lib.new"
mkdir -p "$prefix/lib.new" "$prefix/hooks" "$prefix/bin"
for room in admin audit conf keys slurm_hooks submit; do
  cp -r "$source/$room" "$prefix/lib.new/"
done
find "$prefix/lib.new" -name __pycache__ -prune -exec rm -rf {} +
chown -R root:root "$prefix/lib.new"
chmod -R go-w,a+rX "$prefix/lib.new"
rm -rf "$prefix/lib"; mv "$prefix/lib.new" "$prefix/lib"
# compiled at installation: a hook must not spend its time compiling, and the tree may be read-only
"$prefix/venv/bin/python3" -I -m compileall -q --invalidation-mode unchecked-hash "$prefix/lib"
for stub in prolog epilog prolog_slurmctld epilog_slurmctld task_prolog; do
  sed "s|@PREFIX@|$prefix|g" "$source/slurm_hooks/stubs/$stub" > "$prefix/hooks/$stub"
  chmod 755 "$prefix/hooks/$stub"
done
cp "$source/slurm_hooks/job_submit.lua" "$prefix/hooks/job_submit.lua"
command() {  # name, module, function
  {
    printf '#!%s/venv/bin/python3 -I\n' "$prefix"
    printf 'import sys\nsys.path.insert(0, "%s/lib")\nfrom %s import %s\nsys.exit(%s())\n' "$prefix" "$2" "$3" "$3"
  } > "$prefix/bin/$1"
  chmod 755 "$prefix/bin/$1"
}
command secure-slurm admin.main main
command secure-sbatch submit.main sbatch
command secure-srun submit.main srun
command secure-salloc submit.main salloc
command secure-slurm-decisiond slurm_hooks.decisiond main
command secure-slurm-lifecycled slurm_hooks.lifecycled main
command secure-slurm-noded slurm_hooks.noded main
command secure-slurm-ldapd slurm_hooks.ldapd main
install -d -m 755 /etc/secure-slurm
install -d -m 755 /var/log/secure-slurm
echo "secure-slurm is in $prefix; next: /etc/secure-slurm/secure-slurm.yaml, then 'secure-slurm conf check'"
