#!/bin/bash
# venv.sh NAME: build (or find) the virtual environment of requirements/NAME.lock for the Python of the trixie root, and
# print its path. It lies outside the checkout, under a name made from its lock file and this one; in a root it belongs at
# /venv/NAME, where WITH=NAME has chroot.sh put it. For packages that tests ask as they are, and that must not get into
# the environment of the suite.
set -euo pipefail
name=${1:?usage: venv.sh NAME}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}
lock=$top/requirements/$name.lock
root=$("$here/root.sh" trixie)
key=$(cat "${BASH_SOURCE[0]}" "$lock" <(basename "$root") | sha256sum | cut -c1-12)
venv=$cache/venv-$name-$key
exec 9>"$cache/venv-$name.lock"
flock 9
[ -e "$venv/.complete" ] && { touch "$venv"; echo "$venv"; exit 0; }

printf '[venv %s] downloading and unpacking (about a minute)\n' "$name" >&2
rm -rf "${venv:?}"
mkdir -p "$venv"
cp "$lock" "$venv/requirements.lock"
# an overlay: the root stays as it is. pip reads the index with this machine's certificates and settings
unshare -m --propagation private bash -euc '
  root=$1 venv=$2 name=$3
  work=$(mktemp -d); mount -t tmpfs tmpfs "$work"; mkdir "$work/upper" "$work/work" "$work/root"
  mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" "$work/root"
  root=$work/root
  mkdir -p "$root/venv/$name"; mount --bind "$venv" "$root/venv/$name"
  for f in /etc/ssl/certs/ca-certificates.crt /etc/resolv.conf /etc/pip.conf; do
    [ ! -e $f ] || { touch "$root$f"; mount --bind $f "$root$f"; }
  done
  mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/tmp"
  chroot "$root" python3 -m venv "/venv/$name"
  chroot "$root" "/venv/$name/bin/pip" install --quiet --no-cache-dir --no-compile --only-binary :all: --require-hashes \
    -r "/venv/$name/requirements.lock"
  # compiled is what the tests import, and not a hundred megabytes beside it
  [ ! -e "$venv/lib/python3"*/site-packages/pcluster ] || env -u PYTHONDONTWRITEBYTECODE -u PYTHONPYCACHEPREFIX \
    chroot "$root" "/venv/$name/bin/python" -c "import pcluster.schemas.cluster_schema"
' _ "$root" "$venv" "$name" >&2
: > "$venv/.complete"
find "$cache" -maxdepth 1 -name "venv-$name-*" -not -name "$(basename "$venv")" -mmin +600 -exec rm -rf {} + || true
echo "$venv"
