#!/bin/sh
# uninstall.sh [--purge] [--force] [--prefix /opt/secure-slurm]
#   Takes secure-slurm off this machine: its units, commands and program. Configuration, keys, state and the audit trail stay;
#   with --purge they go too, and the accounts with them.
#   Refused while there is scratch of a job here or instance store is taken over, while the head node has tagged jobs, and while Slurm
#   still names the hooks: a node whose Prolog is missing drains at its next job. --force: none of that is asked, because you know.
set -eu
umask 022
prefix=/opt/secure-slurm purge= force= etc=/etc/secure-slurm
fail() { echo "uninstall.sh: $1" >&2; exit "${2:-1}"; }
while [ $# -gt 0 ]; do
  case $1 in
    --purge) purge=1 ;;
    --force) force=1 ;;
    --prefix) [ $# -gt 1 ] || fail "--prefix needs a value" 2; prefix=$2; shift ;;
    -h|--help) sed -n '2,6s/^# *//p' "$0"; exit 0 ;;
    *) fail "unknown option $1 (see --help)" 2 ;;
  esac
  shift
done
case $prefix in /*[!A-Za-z0-9._/-]*|[!/]*|''|/) fail "not a usable prefix: $prefix" 2 ;; esac
[ "$(id -u)" = 0 ] || fail "run it as root"
# all of it is removed, so it must be ours
[ ! -e "$prefix" ] || [ -e "$prefix/lib/conf/version.py" ] || fail "there is no secure-slurm in $prefix"

# -- what would be hurt ----------------------------------------------------------------------------------------------
running_dir() {  # where the lifecycle daemon keeps what runs, by the site's own file
  [ -e "$etc/secure-slurm.yaml" ] && [ -e "$prefix/lib" ] || return 0
  "$prefix/venv/bin/python3" -I -c 'import sys
sys.path.insert(0, sys.argv[1])
from conf.site import load_site
print(load_site(sys.argv[2]).lifecycle.running_dir)' "$prefix/lib" "$etc/secure-slurm.yaml"
}
unhurt() {
  for mapping in /dev/mapper/secure-*-[0-9]*; do
    [ ! -e "$mapping" ] && [ ! -L "$mapping" ] || fail "a job has encrypted scratch here ($mapping): wait for it to end; secure-slurm node status says which"
  done
  for folder in /run/secure-slurm/node-*/journal; do
    for journal in "$folder"/[1-9]*.json; do
      [ -e "$journal" ] || continue
      grep -q '"state": *"destroyed"' "$journal" \
        || fail "there is scratch of job $(basename "$journal" .json) here: wait for it to end, or secure-slurm node clean $(basename "$journal" .json)"
    done
  done
  [ ! -e /etc/systemd/system/setup-ephemeral.service.d/50-secure-slurm.conf ] \
    || fail "the instance store is taken over, and nobody else could give it back: secure-slurm node store --release first"
  sites=$(running_dir) || fail "so it is not known whether tagged jobs run: set $etc/secure-slurm.yaml right"
  for folder in /var/lib/secure-slurm/lifecycle/running "$sites"; do
    for running in "$folder"/[1-9]*; do
      [ ! -e "$running" ] || fail "the tagged job $(basename "$running") has not ended: its key would stay in Vault. Wait until secure-slurm status shows nothing"
    done
  done
  for link in /opt/slurm/etc/scripts/prolog.d /opt/slurm/etc/scripts/epilog.d /etc/slurm/prolog.d /etc/slurm/epilog.d; do
    for each in "$link"/*; do
      case $(readlink "$each" 2>/dev/null || true) in
        "$prefix"/*) fail "Slurm still runs $each: remove it first (on the head node), when no node needs it" ;;
      esac
    done
  done
  for conf in /etc/slurm /etc/slurm-llnl /opt/slurm/etc; do
    [ -d "$conf" ] || continue
    # job_container.conf is read only where the plugin is set
    unread=--exclude=job_container.conf
    ! grep -rqsiE --include='*.conf' '^[[:space:]]*(JobContainerType|NamespaceType)[[:space:]]*=.*tmpfs' "$conf" || unread=
    # shellcheck disable=SC2086
    named=$(grep -rsl --include='*.conf' $unread "^[^#]*$prefix/hooks/" "$conf" 2>/dev/null | head -n 1) || true
    [ -z "$named" ] || fail "Slurm still runs the hooks in $prefix: take their lines out of $named first, and restart slurmctld and slurmd"
    # on a head node: a filter that is left finds neither its LuaSocket nor a daemon, and slurmctld does not start with it
    ! grep -qsx secure-slurm-decisiond "$prefix/UNITS" || ! head -n 1 "$conf/job_submit.lua" 2>/dev/null | grep -q "^-- secure-slurm's job_submit filter" \
      || fail "slurmctld still asks $conf/job_submit.lua: take lua out of JobSubmitPlugins, restart slurmctld, and remove that file first"
  done
}
[ -n "$force" ] || unhurt

# -- taking it off ---------------------------------------------------------------------------------------------------
if [ -x "$prefix/bin/secure-slurm" ] && [ -d "$(echo /run/secure-slurm/node-*)" ]; then
  # users get the metadata service back that a compute node had closed to them
  "$prefix/bin/secure-slurm" node imds --open || echo "uninstall.sh: warning: the metadata service stays closed until the next boot" >&2
fi
if [ -d /run/systemd/system ]; then
  for unit in /etc/systemd/system/secure-slurm-*; do
    case ${unit##*/} in *.service|*.timer|*.socket) systemctl disable --now --quiet "${unit##*/}" 2>/dev/null || true ;; esac
  done
fi
for pid in /run/secure-slurm-*.pid; do
  [ ! -e "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true
  rm -f "$pid"
done
rm -rf /etc/systemd/system/secure-slurm-* /etc/tmpfiles.d/secure-slurm.conf /run/secure-slurm
[ ! -d /run/systemd/system ] || systemctl daemon-reload
for command in secure-slurm secure-sbatch secure-srun secure-salloc; do
  case $(readlink "/usr/local/bin/$command" 2>/dev/null || true) in "$prefix"/*) rm -f "/usr/local/bin/$command" ;; esac
done
rm -rf "$prefix"
if [ -z "$purge" ]; then
  echo "secure-slurm is off this machine. Still here: $etc, /var/lib/secure-slurm, /var/log/secure-slurm and the accounts (--purge)"
  exit 0
fi
rm -rf "$etc" /var/lib/secure-slurm /var/log/secure-slurm
for name in secure-decide secure-life secure-ldap secure-glass secure-enrol secure-node; do
  ! getent passwd "$name" >/dev/null || userdel "$name"
  ! getent group "$name" >/dev/null || groupdel "$name"
done
for name in secure-record secure-break-glass; do
  ! getent group "$name" >/dev/null || groupdel "$name"
done
echo "secure-slurm is off this machine, with its configuration, its keys and its audit trail"
