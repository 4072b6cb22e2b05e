#!/bin/bash
# bundle.sh [PYTEST-ARGS...]: the tests of the offline bundle (tests/services/bundle). The bundle is made twice, the second time with everything
# compiled anew, and installed in Debian 12 and 13 as a machine finds itself before secure-slurm comes (bundle/root.sh ami).
# pytest runs in the trixie root of the test bed, and finds at /bundle: first, second (the bundles), bookworm and trixie (the roots), s3 (clients).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
mkdir -p "$top/build"
# where none is there yet, all four at once, beside the wheels: they wait for mirrors more than they work
for kind in build ami; do
  for suite in bookworm trixie; do "$top/bundle/root.sh" "$kind" "$suite" >/dev/null & done
done
OUT=$top/build/bundle-first "$top/bundle/make.sh"
FRESH=1 OUT=$top/build/bundle-second "$top/bundle/make.sh"
binds="$top/build/bundle-first:/bundle/first $top/build/bundle-second:/bundle/second"
for suite in bookworm trixie; do binds+=" $("$top/bundle/root.sh" ami "$suite"):/bundle/$suite"; done
# the clients of S3 that such machines have, as plain files: they are pure Python
s3=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}/bundle-s3-$(sha256sum < "$top/requirements/s3.lock" | cut -c1-12)
if [ ! -e "$s3/.complete" ]; then
  rm -rf "$s3"; mkdir -p "$s3"
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --require-hashes --no-deps --no-compile \
    --target "$s3" -r "$top/requirements/s3.lock"
  : > "$s3/.complete"
fi
binds+=" $s3:/bundle/s3"
[ $# -gt 0 ] || set -- -q
BINDS=$binds OUT=${OUT:-$top/build/bundle-tests} "$here/chroot.sh" trixie \
  sh -c 'cd /src && exec python3 -m pytest tests/services/bundle -p no:cacheprovider "$@"' _ "$@"
