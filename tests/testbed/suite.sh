#!/bin/bash
# suite.sh unit|services|cluster|bench|policy [SUITE...]: run one test suite where it belongs and show pytest's own words;
# policy: only count the tests that judge jobs and policies.
# ARGS='-k name': more arguments for pytest.
set -uo pipefail
kind=$1; shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"
export CI=${CI:-}
ARGS=${ARGS:-}
failed=0
run() { echo "== $*"; }

case $kind in
unit)
  for suite in "${@:-trixie sid}"; do
    for s in $suite; do
      run "unit tests on $s"
      "$here/chroot.sh" "$s" sh -c "cd /src && exec python3 -m pytest tests/unit -p no:cacheprovider -q $ARGS" || failed=1
    done
  done
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    run "unit tests on this machine's $(python3 --version)"
    # the filter's tests run in a real Lua; the two roots have it
    lua5.1 -e 'require "socket.unix"' 2>/dev/null || {
      apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends lua5.1 lua-socket
    } >&2
    venv=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}/venv-$(cat requirements/test.lock <(python3 --version) | sha256sum | cut -c1-12)
    if [ ! -e "$venv/.complete" ]; then
      rm -rf "$venv"
      python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --require-hashes -r requirements/test.lock && : > "$venv/.complete"
    fi
    PYTHONPYCACHEPREFIX=/tmp/secure-slurm-pyc "$venv/bin/python" -m pytest tests/unit -p no:cacheprovider -q $ARGS || failed=1
  fi
  ;;
policy)
  mkdir -p build
  # what judges jobs and policies: pytest collects, and the last line is the number alone
  "$here/chroot.sh" trixie sh -c 'cd /src && exec python3 -m pytest --collect-only -q -p no:cacheprovider \
    tests/unit/policy tests/unit/glass/test_glass_judge.py tests/unit/glass/test_glass_use.py \
    tests/unit/decision/test_submit_rules.py tests/unit/decision/test_modify_rules.py \
    tests/unit/decision/test_constraint.py tests/unit/hooks/test_start.py tests/unit/admin/test_policy_cases.py \
    tests/unit/admin/test_policy_lint.py tests/unit/conf/test_policy.py' >"$top/build/policy-tests.txt"
  failed=$?
  cat "$top/build/policy-tests.txt"
  sed -n '$s/^\([0-9][0-9]*\) tests collected.*/\1/p' "$top/build/policy-tests.txt"
  ;;
services)
  run "service tests on trixie: OpenBao, slapd, Samba AD, slurmctld, nftables, slurmdbd"
  "$here/chroot.sh" trixie sh -c "cd /src && exec python3 -m pytest tests/services -p no:cacheprovider -q $ARGS" || failed=1
  run "service tests on sid: OpenBao, slapd, slurmctld, slurmdbd"
  "$here/chroot.sh" sid sh -c "cd /src && exec python3 -m pytest tests/services/vault tests/services/imds tests/services/ldap tests/services/slurm tests/services/slurmdbd -p no:cacheprovider -q $ARGS" || failed=1
  ;;
cluster)
  # two guests of one processor each, side by side: this machine class has two
  mkdir -p build
  declare -A pids
  for s in "$@"; do
    "$here/uml.sh" "$s" pytest "CI_RUN=${CI:-}" "ARGS=tests/cluster,-q,--color=no${ARGS:+,${ARGS// /,}}" > "build/cluster-$s.log" 2>&1 &
    pids[$s]=$!
  done
  for s in "$@"; do
    wait "${pids[$s]}" || failed=1
    run "cluster tests on $s ($(grep -o 'slurm-wlm [0-9.]*' "build/cluster-$s.log" | head -n 1))"
    grep -v '^sysrq:\|^reboot:' "build/cluster-$s.log"
  done
  ;;
bench)
  mkdir -p build/bench
  # what an earlier run left must not be taken for this one's
  rm -f build/bench/*.json build/bench.json
  run "submission path, native"
  OUT=$top/build/bench "$here/chroot.sh" trixie sh -c 'cd /src && sh install.sh --offline --prefix /opt/secure-slurm --source /src >/dev/null &&
    exec python3 -m bench.submission /out/submission.json' || failed=1
  run "scratch, in the guest"
  OUT=$top/build/bench MEM=6G "$here/uml.sh" trixie bench || failed=1
  run "together: build/bench.json"
  PYTHONDONTWRITEBYTECODE=1 python3 -m bench.join build/bench build/bench.json || failed=1
  ;;
*) echo "suite.sh: unknown suite $kind" >&2; exit 2 ;;
esac
exit $failed
