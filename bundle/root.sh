#!/bin/bash
# root.sh build|ami bookworm|trixie: make (or find) a Debian root, and print its path.
#   build: compilers and headers, and the pinned sources of what bundle/compile.sh compiles
#   ami:   what a machine has before secure-slurm comes: Slurm, Python without pip and venv, openssl; no LuaSocket, no python-ldap
# Like tests/testbed/root.sh it lies outside the checkout, under a name made from everything that went into it.
set -euo pipefail
kind=${1:?usage: root.sh build|ami bookworm|trixie} suite=${2:?usage: root.sh build|ami bookworm|trixie}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/.." && pwd)
cache=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}
case $suite in bookworm|trixie) ;; *) echo "root.sh: unknown suite $suite" >&2; exit 2 ;; esac
case $kind in
  build)
    packages=gcc,libc6-dev,binutils,make,patch,python3-dev,python3-venv,python3-setuptools,python3-wheel,python3-pip,libldap-dev,libsasl2-dev,ca-certificates
    # LuaSocket is compiled once, on the older glibc
    [ "$suite" = trixie ] || packages+=,liblua5.1-0-dev,liblua5.3-dev,liblua5.4-dev,gcc-aarch64-linux-gnu,libc6-dev-arm64-cross,binutils-aarch64-linux-gnu
    recipe=("$here/sources.txt" "$top/requirements/ldap.lock")
    ;;
  ami)
    packages=slurm-wlm,slurmctld,slurmd,munge,cryptsetup-bin,dmsetup,e2fsprogs,iproute2,nftables,procps,util-linux,openssl,ca-certificates
    packages+=,python3,lua5.1,lua5.3,lua5.4
    [ "$suite" = bookworm ] && packages+=,libldap-2.5-0 || packages+=,libldap2
    recipe=()
    ;;
  *) echo "root.sh: unknown kind $kind" >&2; exit 2 ;;
esac
key=$(cat "${BASH_SOURCE[0]}" "${recipe[@]}" /dev/null | sha256sum | cut -c1-12)
root=$cache/bundle-$kind-$suite-$key
mkdir -p "$cache"
exec 9>"$cache/bundle-$kind-$suite.lock"
flock 9
[ -e "$root/.complete" ] && { echo "$root"; exit 0; }

say() { printf '[root %s %s] %s\n' "$kind" "$suite" "$*" >&2; }
command -v mmdebstrap >/dev/null || {
  say "installing mmdebstrap"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap debian-archive-keyring; } >&2
}
rm -rf "${root:?}" "$root.part"
# the mirror that this machine itself is configured to use
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -E '/debian/?$' | sort -u | head -n 1)
[ -n "$mirror" ] || { say "no Debian mirror in this machine's apt configuration: run apt-get update"; exit 1; }
say "downloading and unpacking"
mmdebstrap --variant=minbase --mode=root --quiet \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --include="$packages" "$suite" "$root.part" "deb $mirror $suite main" >&2
mkdir -p "$root.part/src" "$root.part/out"

if [ "$kind" = build ]; then
  # LuaSocket from Debian's archive, as its authors released it; python-ldap from the package index
  say "fetching the pinned sources"
  mkdir -p "$root.part/sources"
  cp "$here/sources.txt" "$top/requirements/ldap.lock" "$root.part/sources/"
  # apt and pip inside the root use this machine's certificates and settings, visible only while they run
  unshare -m --propagation private bash -euc '
    root=$1
    mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    touch "$root/etc/resolv.conf"; mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
    for f in /etc/pip.conf; do [ -e $f ] && { touch "$root$f"; mount --bind $f "$root$f"; }; done
    mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/tmp"
    chroot "$root" sh -euc "
      cd /sources
      while read -r hash name; do
        /usr/lib/apt/apt-helper -qq download-file \"$2/pool/main/l/luasocket/\$name\" \"\$name\" SHA256:\$hash
      done < sources.txt
      python3 -m venv --system-site-packages /tmp/venv
      /tmp/venv/bin/pip download --quiet --no-cache-dir --require-hashes --no-deps --no-build-isolation -r ldap.lock -d .
      sha256sum --check --quiet sources.txt
    "
  ' _ "$root.part" "${mirror%/}" >&2
fi
: > "$root.part/.complete"
mv "$root.part" "$root"
find "$cache" -maxdepth 1 -name "bundle-$kind-$suite-*" -not -name "$(basename "$root")" -mmin +600 -exec rm -rf {} + || true
echo "$root"
