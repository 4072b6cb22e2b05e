#!/bin/sh
# compile.sh SOURCES OUT lua|ldap: compile what the offline bundle carries compiled. It needs no network.
#   lua    LuaSocket for each Lua whose headers are here, for this machine's architecture and, with a cross compiler, for ARM
#   ldap   a wheel of python-ldap for this system, its Python (PYTHON=python3.11 for another) and its libldap
# SOURCES holds the pinned archives (bundle/sources.txt, requirements/ldap.lock). The same sources and compiler give the same bytes.
set -eu
umask 022
sources=$(cd "$1" && pwd) out=$2 part=$3 python=${PYTHON:-python3}
export SOURCE_DATE_EPOCH=315532800 LC_ALL=C TZ=UTC
mkdir -p "$out"; out=$(cd "$out" && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
hard="-O2 -g0 -fPIC -fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -ffile-prefix-map=$work=."
links="-Wl,-z,relro,-z,now -Wl,--build-id=none"
NEWEST=2.28  # glibc of the oldest system that ParallelCluster supports (RHEL 8)

older() {  # file: no symbol newer than NEWEST
  newest=$(objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
  [ "$(printf '%s\nGLIBC_%s\n' "$newest" "$NEWEST" | sort -V | tail -n 1)" = "GLIBC_$NEWEST" ] || {
    echo "compile.sh: $1 needs $newest, and there are systems with glibc $NEWEST" >&2; exit 1
  }
}

case $part in
lua)
  tar -xzf "$sources"/luasocket_*.orig.tar.gz -C "$work" --strip-components 1
  shared="buffer.c auxiliar.c options.c timeout.c io.c usocket.c compat.c"
  done=
  for lua in 5.1 5.3 5.4; do
    [ -e "/usr/include/lua$lua/lua.h" ] || continue
    for pair in "$(uname -m):gcc" aarch64:aarch64-linux-gnu-gcc; do
      cc=${pair#*:} to=$out/lua/$lua/${pair%%:*}
      command -v "$cc" >/dev/null || continue
      [ ! -e "$to/socket/core.so" ] || rm -r "$to"
      mkdir -p "$to/socket"
      # Debian's lua.h is the same for every architecture; the cross compiler must not see the other headers beside it
      mkdir -p "$work/include/$lua"; cp "/usr/include/lua$lua"/*.h "$work/include/$lua/"
      for config in /usr/include/*-linux-gnu/lua"$lua"-deb-multiarch.h; do
        [ ! -e "$config" ] || cp "$config" "$work/include/$lua/"
      done
      (
        cd "$work/src"
        # shellcheck disable=SC2086
        $cc $hard $links -DLUASOCKET_NODEBUG -I"$work/include/$lua" -shared -o "$to/socket/core.so" \
          luasocket.c inet.c except.c select.c tcp.c udp.c $shared
        # shellcheck disable=SC2086
        $cc $hard $links -DLUASOCKET_NODEBUG -I"$work/include/$lua" -shared -o "$to/socket/unix.so" \
          unix.c unixstream.c unixdgram.c $shared
      )
      older "$to/socket/core.so"; older "$to/socket/unix.so"
      cp "$work/src/socket.lua" "$to/socket.lua"
      done="$done $lua/${pair%%:*}"
    done
  done
  cp "$work/LICENSE" "$out/lua/LICENSE.luasocket"
  [ -n "$done" ] || { echo "compile.sh: no headers of any Lua" >&2; exit 1; }
  echo "LuaSocket for$done"
  ;;
ldap)
  # shellcheck disable=SC1091
  . /etc/os-release
  to=$out/ldap/$ID-${VERSION_ID%%.*}/$(uname -m)
  mkdir -p "$to"
  # the hardening flags of the distribution's Python stay; what would tell where and when it was built goes
  CFLAGS="-g0 -ffile-prefix-map=$work=." LDFLAGS="-Wl,--build-id=none" TMPDIR=$work "$python" -m pip wheel --quiet --no-deps --no-index \
    --no-build-isolation --disable-pip-version-check --no-cache-dir --wheel-dir "$to" "$sources"/python[-_]ldap-*.tar.gz
  echo "python-ldap for $ID ${VERSION_ID%%.*}: $(cd "$to" && ls)"
  ;;
*) echo "compile.sh: lua or ldap?" >&2; exit 2 ;;
esac
