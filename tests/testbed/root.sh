#!/bin/bash
# root.sh SUITE: build (or find) the Debian root that the test cluster boots from, and print its path.
# SUITE is trixie (Slurm 24.11) or sid (Slurm 26.05). The root lies outside the checkout, under a name made from
# everything that went into it, so that a changed recipe or lock file builds a new one and never patches an old one.
set -euo pipefail
suite=${1:?usage: root.sh trixie|sid}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}

packages=slurm-wlm,slurmctld,slurmd,munge,slapd,ldap-utils,cryptsetup-bin,dmsetup,e2fsprogs,xfsprogs,lvm2,kmod,udev
packages+=,iproute2,nftables,procps,psmisc,util-linux,lua5.1,lua-socket,python3,python3-venv,python3-ldap,ca-certificates,openssl,user-mode-linux
# accounting for the tests of policy replay; the core package is the server without its service and its clients
packages+=,slurmdbd,mariadb-server-core
[ "$suite" = trixie ] && packages+=,samba-ad-dc,samba-ad-provision,samba-dsdb-modules,samba-common-bin,winbind

# all that becomes part of the root: a new account or package makes a new one
recipe=("${BASH_SOURCE[0]}" "$top/requirements/test.lock" "$top/requirements/accounts.sh")
key=$(cat "${recipe[@]}" | sha256sum | cut -c1-12)
root=$cache/$suite-$key
mkdir -p "$cache"
exec 9>"$cache/$suite.lock"
flock 9
# in use: what another checkout still boots from is not old
[ -e "$root/.complete" ] && { touch "$root"; echo "$root"; exit 0; }

say() { printf '[root %s] %s\n' "$suite" "$*" >&2; }
# one apt-get at a time: the other suite's root may be built beside this one
exec 8>"$cache/apt.lock"
flock 8
missing=()
for tool in mmdebstrap:mmdebstrap ip:iproute2 hostname:hostname unshare:util-linux; do
  command -v "${tool%%:*}" >/dev/null || missing+=("${tool##*:}")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing ${missing[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" debian-archive-keyring; } >&2
fi
exec 8>&-
rm -rf "${root:?}" "$root.part"
# the mirror that this machine itself is configured to use
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' | grep -E '/debian/?$' | sort -u | head -n 1)
[ -n "$mirror" ] || { say "no Debian mirror in this machine's apt configuration: run apt-get update"; exit 1; }
options=(--variant=minbase --mode=root --quiet
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "3"'
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*'
  --include="$packages")
# sid's Release file may be past its date on a mirror; its signature is still checked
sid="deb [check-valid-until=no] $mirror sid main"
say "downloading and unpacking Debian $suite (about a minute)"
if [ "$suite" = sid ]; then
  mmdebstrap "${options[@]}" sid "$root.part" "$sid" >&2
else
  # the user-mode kernels of Debian 12 and 13 do not boot on current CPUs; sid's does
  mmdebstrap "${options[@]}" \
    --setup-hook='mkdir -p "$1/etc/apt/preferences.d"; printf "Package: *\nPin: release n=sid\nPin-Priority: -1\n\nPackage: user-mode-linux\nPin: release n=sid\nPin-Priority: 990\n" > "$1/etc/apt/preferences.d/uml"' \
    trixie "$root.part" "deb $mirror trixie main" "$sid" >&2
fi

say "creating the accounts and the virtual environment"
mkdir -p "$root.part/src" "$root.part/out" "$root.part/secure-scratch"
cp "$top/requirements/test.lock" "$root.part/opt/test.lock"
cp "$top/requirements/accounts.sh" "$root.part/opt/accounts.sh"
# pip inside the root reads the package index with this machine's certificates and settings, visible only while it runs
unshare -m --propagation private bash -euc '
  root=$1
  mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  touch "$root/etc/resolv.conf"; mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
  for f in /etc/pip.conf; do [ -e $f ] && { touch "$root$f"; mount --bind $f "$root$f"; }; done
  mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/tmp"
  chroot "$root" sh /opt/accounts.sh
  for user in alice bob carol oper; do chroot "$root" useradd -m -s /bin/bash "$user"; done
  chroot "$root" python3 -m venv --system-site-packages /opt/secure-slurm/venv
  chroot "$root" /opt/secure-slurm/venv/bin/pip install --quiet --no-cache-dir --require-hashes -r /opt/test.lock
' _ "$root.part" >&2
V=$(ls "$root.part/usr/lib/uml/modules"); mkdir -p "$root.part/lib/modules/$V"
: > "$root.part/.complete"
mv "$root.part" "$root"
# roots of older recipes are of no use to anybody
find "$cache" -maxdepth 1 -name "$suite-*" -not -name "$(basename "$root")" -mmin +600 -exec rm -rf {} + || true
echo "$root"
