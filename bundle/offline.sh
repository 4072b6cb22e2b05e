# Read by install.sh: the virtual environment from the wheels beside it, without a package index, a resolver of names or a pip
# of the machine's own. Made anew each time, tried, and then put in the old one's place.
# Needs: source, prefix, head, python, fail, swap, fresh (install.sh).
arch=$(uname -m)
wheels() {  # what pip is told: requirements or files
  # shellcheck disable=SC2086
  env -i PATH=/usr/bin:/bin HOME=/nonexistent LC_ALL=C.UTF-8 PIP_CONFIG_FILE=/dev/null "$prefix/venv.new/bin/python3" \
    "$(echo "$source"/wheels/pip-*.whl)/pip" --isolated --disable-pip-version-check --no-cache-dir --quiet \
    install --no-index --find-links "$source/wheels" --no-deps --ignore-installed --root-user-action=ignore "$@"
}
works() { "$prefix/venv.new/bin/python3" -I -c "import $1" 2>/dev/null; }
environment() {  # options of venv
  rm -rf "$prefix/venv.new"
  mkdir -p "$prefix"
  "$python" -I -m venv --without-pip "$@" "$prefix/venv.new"
  wheels --require-hashes -r "$source/requirements/runtime.lock" \
    || fail "the bundle has no wheels for $("$python" -V) on $arch: it has those for $(cat "$source/wheels/FOR")"
}
system() {  # what the folders of compiled python-ldap are called by; those that rebuild RHEL are RHEL
  # shellcheck disable=SC1091
  ( . /etc/os-release; case $ID in rocky|almalinux|centos|ol) ID=rhel ;; esac; case $ID in ubuntu) echo "$ID-$VERSION_ID" ;; *) echo "$ID-${VERSION_ID%%.*}" ;; esac )
}

environment
works 'attrs, cattrs, cryptography, hvac, yaml, rich' || fail "what the bundle's wheels hold cannot be loaded by $("$python" -V)"
if [ -n "$head" ]; then
  tag=$("$python" -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  for wheel in "$source/ldap/$(system)/$arch"/*-"$tag"-*.whl; do
    [ ! -e "$wheel" ] || wheels "$wheel" "$source"/wheels/pyasn1-*.whl "$source"/wheels/pyasn1_modules-*.whl
  done
  works ldap || {
    # the distribution's package, if it is there for this Python
    environment --system-site-packages
    works ldap || fail "nothing to read the directory with: the bundle has python-ldap for $(cd "$source" && echo ldap/*/*/*.whl), this is $(system)
  with $("$python" -V) on $arch. It needs the system's libldap, and a wheel from bundle/compile.sh, or the distribution's python3-ldap."
  }
fi
swap "$prefix/venv"

if [ -n "$head" ] && [ -d "$source/lua" ]; then
  for lua in "$source"/lua/*/"$arch"; do
    [ -d "$lua" ] || continue
    version=${lua%/*}; version=${version##*/}
    mkdir -p "$prefix/lua/$version/socket"
    # each beside its place and then into it: slurmctld may have the old one mapped
    for file in socket.lua socket/core.so socket/unix.so; do
      fresh "$prefix/lua/$version/$file" 644 < "$lua/$file"
    done
  done
fi
