#!/bin/bash
# make.sh: `make bundle`. Everything of the offline bundle into build/bundle/secure-slurm-VERSION.tar.gz, and beside it what else
# the bucket holds. KEY=FILE signs with an Ed25519 private key (openssl genpkey -algorithm ed25519). EXTRA=DIR adds what
# bundle/compile.sh made on other systems (DIR/ldap/SYSTEM/ARCHITECTURE/*.whl). OUT=DIR for another folder. FRESH=1 compiles
# again what the cache has compiled.
# The network is used for packages that are not in the cache yet, and for nothing else. The same input gives the same bytes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/.." && pwd)
cache=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}
out=${OUT:-$top/build/bundle}
PYTHONS="3.11 3.12 3.13 3.14" ARCHITECTURES="x86_64 aarch64" SYSTEMS="bookworm trixie"
say() { printf '[bundle] %s\n' "$*" >&2; }
mkdir -p "$cache" "$out"
exec 8>"$cache/bundle.lock"
flock 8

# -- wheels: for each Python and architecture, for glibc 2.28 and later, each against its hash in a lock file -------------------
key=$({ echo "$PYTHONS" "$ARCHITECTURES"; cat "$top"/requirements/{runtime,ldap,pip}.lock; } | sha256sum | cut -c1-12)
wheels=$cache/bundle-wheels-$key
if [ ! -e "$wheels/.complete" ]; then
  rm -rf "$wheels"; mkdir -p "$wheels"
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$top/requirements/pip.lock"
  # python-ldap has no wheel, and is compiled; what it needs has
  sed '/^python-ldap==/,$d' "$top/requirements/ldap.lock" > "$work/ldap.lock"
  for python in $PYTHONS; do
    for arch in $ARCHITECTURES; do
      say "wheels for Python $python on $arch"
      "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-cache-dir --require-hashes --no-deps --only-binary=:all: \
        --implementation cp --python-version "$python" --abi "cp${python/./}" --abi abi3 --abi none \
        --platform "manylinux_2_28_$arch" --platform "manylinux_2_17_$arch" --platform "manylinux2014_$arch" \
        -r "$top/requirements/runtime.lock" -r "$work/ldap.lock" -r "$top/requirements/pip.lock" -d "$wheels"
    done
  done
  echo "Python $(echo "$PYTHONS" | sed 's/ /, /g') on $(echo "$ARCHITECTURES" | sed 's/ / and /g')" > "$wheels/FOR"
  : > "$wheels/.complete"
fi

# -- compiled: in the Debian roots, without a network ---------------------------------------------------------------------------
compiled=$out/compiled
rm -rf "$compiled"
for suite in $SYSTEMS; do
  root=$(SECURE_SLURM_CACHE=$cache "$here/root.sh" build "$suite")
  made=$cache/bundle-compiled-$(basename "$root")-$(sha256sum < "$here/compile.sh" | cut -c1-12)
  if [ -n "${FRESH:-}" ] || [ ! -e "$made/.complete" ]; then
    say "compiling in Debian's $suite"
    rm -rf "$made"; mkdir -p "$made"
    "$here/in_root.sh" "$root" "$made" /src/bundle/compile.sh /sources /out ldap
    [ "$suite" != bookworm ] || "$here/in_root.sh" "$root" "$made" /src/bundle/compile.sh /sources /out lua
    : > "$made/.complete"
  fi
  mkdir -p "$compiled"
  (cd "$made" && find . -type f -not -name .complete -print0 | tar --null -cf - -T -) | tar -xf - -C "$compiled"
done

# -- the archive, what lies beside it, and the signatures --------------------------------------------------------------------------
(cd "$top" && python3 -B -m bundle.pack "$top" "$wheels" "$compiled" "$out" ${EXTRA:+--extra "$EXTRA"})
rm -rf "$compiled"
mkdir -p "$out/actions"
cp "$top/conf/parallelcluster/actions/secure-slurm-action.sh" "$out/actions/"
if [ -n "${KEY:-}" ]; then
  "$here/sign.sh" "$KEY" "$out"/secure-slurm-*.tar.gz "$out/actions/secure-slurm-action.sh"
else
  say "not signed: KEY=FILE signs, or later bundle/sign.sh FILE ARCHIVE; without a signature no node takes it"
fi
