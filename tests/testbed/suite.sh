#!/bin/bash
# suite.sh unit|services|cluster|faults|soak|bench|policy [SUITE...]: run one test suite where it belongs and show pytest's own words;
# policy: only count the tests that judge jobs and policies.
# ARGS='-k name': more arguments for pytest. GUESTS=N: cluster, faults and soak in N clusters for each SUITE.
set -uo pipefail
kind=$1; shift
# none at all would be a suite that passes without a test
[[ ${GUESTS:-1} =~ ^[1-9][0-9]?$ ]] || { echo "suite.sh: GUESTS is a number from 1, not '$GUESTS'" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
cd "$top"
export CI=${CI:-}
ARGS=${ARGS:-}
failed=0
# Those whose subject is the kernel, Vault, LDAP, files or our own rules, and those that mostly wait: once, beside one Slurm or
# the other. EVERYTHING=1: beside both. What is asked of Slurm, and how it answers, is tested on both in tests/services/slurm.
declare -A ONCE=(
  [trixie]="scratch test_reaper.py test_identity.py test_freeze.py test_blame.py test_vault_failover.py test_canary.py test_place.py test_doctor.py test_cloud_nodes.py test_from_nothing.py"
  [sid]="test_head_reaper.py test_role_loss.py test_selectors.py test_two_heads.py test_segments.py test_mounts.py test_break_glass.py test_revoke.py test_many.py test_soak.py test_hookd.py test_explain.py test_faults.py"
)
run() { echo "== $*"; }
declare -A pids
blamed=()
start() {  # name, command: in the background, with its words kept
  mkdir -p build
  "${@:2}" > "build/$1.log" 2>&1 &
  pids[$1]=$!
}
finish() {  # name, title, what not to show: wait for it, and show its words; 5 is pytest's for no test of the name in ARGS
  local status=0
  wait "${pids[$1]}" || status=$?
  [ $status = 0 ] || [ $status = 5 -a -n "$ARGS" ] || { failed=1; blamed+=("$1"); }
  run "$2"
  if [ -n "${3:-}" ]; then grep -v "$3" "build/$1.log"; else cat "build/$1.log"; fi
}
blame() {  # what failed once more, last and in few lines: who keeps only the end of a long output has the reason
  local name
  for name in "${blamed[@]}"; do
    run "FAILED: $name"
    grep -aE -m 6 '^(FAILED|ERROR) |no result' "build/$name.log" | cut -c1-240
    # a guest without a result ran out of its time: the test that it was at
    [ -e "build/${name#cluster-}/rc" ] || grep -as . "build/${name#cluster-}/now" | sed 's/^/last begun: /'
    grep -aE -m 8 '^E  ' "build/$name.log" | cut -c1-240
  done
}

case $kind in
unit)
  for s in ${@:-trixie sid}; do
    # the linters are of one release everywhere: with the newest Python and with this machine's is enough
    linters=
    [ "$s" != trixie ] || linters=--ignore=tests/unit/test_linters.py
    start "unit-$s" "$here/chroot.sh" "$s" sh -c "cd /src && exec python3 -m pytest tests/unit -p no:cacheprovider -q $linters $ARGS"
  done
  if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    # the filter's tests run in a real Lua; the two roots have it
    lua5.1 -e 'require "socket.unix"' 2>/dev/null || {
      apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends lua5.1 lua-socket
    } >&2
    venv=${SECURE_SLURM_CACHE:-/var/cache/secure-slurm}/venv-$(cat requirements/test.lock <(python3 --version) | sha256sum | cut -c1-12)
    if [ ! -e "$venv/.complete" ]; then
      rm -rf "$venv"
      python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --require-hashes -r requirements/test.lock && : > "$venv/.complete"
    fi
    start unit-here env PYTHONPYCACHEPREFIX=/tmp/secure-slurm-pyc "$venv/bin/python" -m pytest tests/unit -p no:cacheprovider -q $ARGS
  fi
  for s in ${@:-trixie sid}; do finish "unit-$s" "unit tests on $s"; done
  [ -z "${pids[unit-here]:-}" ] || finish unit-here "unit tests on this machine's $(python3 --version)"
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
  # Each in network and process namespaces of its own. LDAP before Vault: the readers of a directory get a limit of memory, and
  # inherit what the many threads of the tests of Vault have mapped. What packages of their own are needed for is built meanwhile.
  services() { echo "cd /src && exec python3 -m pytest $* -p no:cacheprovider -q $ARGS"; }
  apart="bundle cloudformation parallelcluster slurm slurmdbd"
  start services-trixie "$here/chroot.sh" trixie sh -c "$(services tests/services $(printf -- '--ignore=tests/services/%s ' $apart))"
  start services-slurm "$here/chroot.sh" trixie sh -c "$(services tests/services/slurm tests/services/slurmdbd)"
  # beside the other Slurm what is asked of Slurm, and EVERYTHING=1 the rest
  start services-sid "$here/chroot.sh" sid sh -c "$(services $(printf 'tests/services/%s ' ${EVERYTHING:+imds ldap vault} slurm slurmdbd))"
  start services-parallelcluster env WITH=parallelcluster "$here/chroot.sh" trixie sh -c "$(services tests/services/parallelcluster)"
  start services-cloudformation env WITH=cloudformation "$here/chroot.sh" trixie sh -c "$(services tests/services/cloudformation)"
  start services-bundle "$here/bundle.sh" -q $ARGS
  finish services-trixie "service tests on trixie: OpenBao, slapd, Samba AD, nftables"
  finish services-slurm "service tests on trixie: slurmctld, slurmdbd"
  finish services-sid "service tests on sid: slurmctld, slurmdbd"
  finish services-parallelcluster "ParallelCluster's own schema and validators"
  finish services-cloudformation "service tests of the CloudFormation templates: cfn-lint, OpenBao"
  finish services-bundle "the offline bundle on Debian 12 and 13, without a route"
  ;;
cluster)
  BINDS=$("$here/offer.sh") || exit 1
  export BINDS
  # Two clusters for each Slurm, side by side: they wait as much as they work, and one that does nothing takes a fifth of a slow
  # processor, so more of them are slower on two. Those of one Slurm share its modules (tests/cluster/conftest.py), so whatever is
  # named nowhere runs all the same.
  memory=$(awk '/^MemAvailable/ {print $2}' /proc/meminfo)
  guests=$((memory / 1250000 / $#))
  guests=${GUESTS:-$((guests < 1 ? 1 : guests > 2 ? 2 : guests))}
  for s in "$@"; do
    what=tests/cluster
    for other in "$@"; do
      [ "$other" = "$s" ] || [ -n "${EVERYTHING:-}" ] || for name in ${ONCE[$other]:-}; do what+=,--ignore=tests/cluster/$name; done
    done
    rm -rf "build/$s-shared"; mkdir -p "build/$s-shared"
    for ((n = 1; n <= guests; n++)); do
      start "cluster-$s-$n" env "SLOT=$n" LIMIT=$((1500 + 4500 / guests)) "OUT=$top/build/$s-$n" "SHARED=$top/build/$s-shared" \
        "$here/uml.sh" "$s" pytest "CI_RUN=${CI:-}" "ARGS=$what,-q,--color=no${ARGS:+,${ARGS// /,}}"
    done
    # the units, under a real systemd: its version is Debian's and not Slurm's, so beside one of them
    [ "$s" != trixie ] || start cluster-units env LIMIT=1200 OUT="$top/build/trixie-units" "$here/uml.sh" trixie systemd \
      "CI_RUN=${CI:-}" "ARGS=tests/systemd,-q,--color=no${ARGS:+,${ARGS// /,}}"
  done
  [ -z "${pids[cluster-units]:-}" ] || finish cluster-units "the units, in a guest whose init is systemd" '^sysrq:\|^reboot:'
  for s in "$@"; do
    for ((n = 1; n <= guests; n++)); do finish "cluster-$s-$n" "cluster tests on $s, $n of $guests" '^sysrq:\|^reboot:'; done
  done
  ;;
faults|soak)
  # the guests share the work; what they say is shown as it comes
  mkdir -p build
  rm -rf build/"$kind"-*/ "build/$kind.json"
  part=0 parts=$(($# * ${GUESTS:-1}))
  jobs=${SOAK_JOBS:-1000}
  for s in $(for ((n = 0; n < ${GUESTS:-1}; n++)); do echo "$@"; done); do
    part=$((part + 1))
    case $kind in
    faults) words=("FAULTS=${FAULTS:-all}" "FAULTS_PART=$part/$parts") ;;
    soak) words=("SOAK_JOBS=$((jobs * part / parts - jobs * (part - 1) / parts))" ${SOAK_SEED:+"SOAK_SEED=$((SOAK_SEED + part))"}) ;;
    esac
    LIMIT=${LIMIT:-14400} OUT=$top/build/$kind-$s-$part SLOT=$part "$here/uml.sh" "$s" pytest "CI_RUN=${CI:-}" "${words[@]}" \
      "ARGS=tests/cluster/test_$kind.py,-q,--tb=short,--color=no" 2>&1 | tee "build/$kind-$s-$part.log" | sed -u "s/^/$s $part: /" &
    pids[$part]=$!
  done
  for ((n = 1; n <= parts; n++)); do wait "${pids[$n]}" || failed=1; done
  PYTHONDONTWRITEBYTECODE=1 python3 -m tests.faults.join "build/$kind.json" build/"$kind"-*/"$kind.json" || failed=1
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
  run "revocation, in the guest"
  OUT=$top/build/bench "$here/uml.sh" trixie bench_revocation || failed=1
  run "together: build/bench.json"
  PYTHONDONTWRITEBYTECODE=1 python3 -m bench.join build/bench build/bench.json || failed=1
  ;;
*) echo "suite.sh: unknown suite $kind" >&2; exit 2 ;;
esac
blame
exit $failed
