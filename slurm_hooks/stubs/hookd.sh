# Read by prolog and epilog: the way to the hook server, whose Python has started already. Builtins of sh alone.
# through_hookd HOOK NAME=value ... ends the stub with the hook's own exit status. It returns when no server did the hook,
# and the stub starts Python then: no server, none in this mount namespace, none ready, another version, no sense.
# How the two FIFOs are used, and why nothing here waits for a process that is dead: docs/decisions/0028-hook-server.md.
through_hookd() {
  hook=$1; shift
  case "$RUN_DIR" in *%n*) door="${RUN_DIR%%%n*}${SLURMD_NODENAME:-}${RUN_DIR#*%n}/hookd" ;; *) door=$RUN_DIR/hookd ;; esac
  # a pipe holds 64 KiB; up to four bytes a character
  words="$*"; [ ${#words} -lt 15000 ] || return 0
  # the claim: a file that only one of us can make
  set -C
  slot=
  for ask in "$door"/*.ask; do
    [ -p "$ask" ] || continue
    slot=${ask%.ask}
    { true > "$slot.mine"; } 2> /dev/null && break
    slot=
  done
  set +C
  [ -n "$slot" ] || return 0
  server=${slot##*/}; server=${server%%-*}
  [ /proc/self/ns/mnt -ef "/proc/$server/ns/mnt" ] && [ -p "$slot.say" ] && [ -p "$slot.ask" ] || return 0
  # <> never waits. With 4 open 3 does not wait either; with 4 closed, 3 has come to its end once the server's is closed.
  { command exec 4<> "$slot.say" && command exec 3< "$slot.say"; } 2> /dev/null || return 0
  exec 4>&-
  printf '%s\000' "$hook" "$$" "$@" '' 1<> "$slot.ask"
  begun= mine="${SLURM_JOB_ID:-} $$"
  while IFS= read -r line <&3; do
    case $line in
      "begun $mine") begun=1 ;;
      "1 "*) printf '%s\n' "${line#??}" ;;
      "2 "*) printf '%s\n' "${line#??}" >&2 ;;
      "exit $mine 0") exit 0 ;;
      "exit $mine "*) exit 1 ;;
      *) break ;;
    esac
  done
  exec 3<&-
  [ -n "$begun" ] || return 0
  echo "secure-slurm $hook: job ${SLURM_JOB_ID:-}: the process of the hook server that ran this hook has died" >&2
  # as a hook that was killed: what it left is taken down by the Epilog, which begins once more by itself
  [ "$hook" = epilog ] || exit 1
}
