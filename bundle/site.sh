#!/bin/sh
# site.sh KEY FOLDER SERIAL OUT: pack and sign a site's configuration for the custom actions: OUT and OUT.sig. Prints the public key.
# FOLDER holds what belongs into /etc/secure-slurm of every machine, by the names of the list below and no other: what is
# secret does not travel through a bucket. SERIAL is a number that grows: a machine refuses a lower one than it has seen. OUT is
# called site.tar.gz, or site-SERIAL.tar.gz, which ties the cluster's configuration to just this archive.
set -eu
umask 022
[ $# = 4 ] || { echo "usage: site.sh KEY FOLDER SERIAL OUT" >&2; exit 2; }
key=$1 folder=$2 serial=$3 out=$4
fail() { echo "site.sh: $1" >&2; exit 1; }
case $serial in ''|0*|*[!0-9]*) fail "SERIAL is no number: $serial" ;; esac
case ${out##*/} in site.tar.gz|site-"$serial".tar.gz) ;; *) fail "OUT is called site.tar.gz or site-$serial.tar.gz" ;; esac
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir "$work/site"
(cd "$folder" && find . -mindepth 1 ! -type d | sed 's|^\./||' | sort) > "$work/names"
while read -r name; do
  # the same list is in conf/parallelcluster/actions/secure-slurm-action.sh
  case $name in
    secure-slurm.yaml|policy.yaml|policy-tests.yaml|vault-ca.crt|ldap-ca.crt|link-ca.crt|nodes-ca.crt|place|manifest.pub|ec2/*.pem|enrol/*.pem) ;;
    *) fail "$name does not belong into a bucket, or is no configuration: take it out of $folder" ;;
  esac
  [ -f "$folder/$name" ] && [ ! -L "$folder/$name" ] || fail "$name is no plain file"
  ! grep -q 'PRIVATE KEY' "$folder/$name" || fail "$name holds a private key"
  mkdir -p "$(dirname "$work/site/$name")"
  cp "$folder/$name" "$work/site/$name"
done < "$work/names"
for needed in secure-slurm.yaml policy.yaml; do
  [ -f "$work/site/$needed" ] || fail "there is no $needed in $folder"
done
echo "$serial" > "$work/site/SERIAL"
chmod -R u=rwX,go=rX "$work/site"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@315532800 --format=ustar -C "$work" -cf - site | gzip -n -9 > "$out.part"
mv "$out.part" "$out"
"$(dirname "$0")/sign.sh" "$key" "$out"
