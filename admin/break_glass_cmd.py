"""``secure-slurm break-glass``: ask for an exception, approve another's, end one, see them all.

Everything is said to secure-slurm-glassd, whom the kernel tells who says it, and nothing else does. What is checked
here spares people a wait; what counts is decided by the daemons, who know the members of the groups.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

from admin.output import printable, say, say_json, say_table
from conf.errors import EXIT_OK, Refused, UsageError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.policy import Policy, load_policy
from conf.quote import did_you_mean, quote
from conf.site import load_site
from conf.tag import is_name
from conf.units import format_duration, parse_duration
from slurm_hooks import breakglass_papers as papers
from slurm_hooks.breakglass import ROOT, Frame, Grant, judge
from slurm_hooks.breakglass_ask import ask, listing
from slurm_hooks.breakglass_live import Accounts
from slurm_hooks.record import safe_user
from slurm_hooks.snapshot import Snapshot
from slurm_hooks.wire import text

_COUNTS = "the daemons look every second; see 'secure-slurm break-glass list'"
_SEEN = "Whether everybody is in the group that they must be in was not checked: only root may read the members."


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``break-glass`` with its four commands."""
    glass = subparsers.add_parser("break-glass", help="ask for an exception from the policy, or approve one")
    commands = glass.add_subparsers(dest="glass_command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, more: str
    ) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=summary, description=more, allow_abbrev=False)
        parser.set_defaults(run=run)
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument("--policy", default=POLICY_PATH, metavar="FILE", help="the policy (%(default)s)")
        return parser

    request = command(
        "request",
        run_request,
        "ask for a role, or for the tag of a job",
        "Ask for a role for somebody, or to change the tag of one job.",
    )
    request.add_argument("--user", required=True, metavar="LOGIN", help="who shall get it")
    what = request.add_mutually_exclusive_group(required=True)
    what.add_argument("--role", help="the role of the policy that they shall hold")
    what.add_argument("--job", type=int, metavar="ID", help="the waiting job whose tag they may change")
    request.add_argument("--for", required=True, dest="length", metavar="TIME", help="for how long from now: 30m, 4h")
    approve = command(
        "approve",
        run_approve,
        "approve what somebody else has asked for",
        "Approve what somebody else has asked for, as it is now.",
    )
    end = command(
        "end",
        run_end,
        "end a grant, or withdraw a request",
        "End a grant, or withdraw a request: its requester, its approver or root.",
    )
    for parser in (approve, end):
        parser.add_argument("id", metavar="ID", help="the grant's id, as 'request' has said it")
    for parser in (request, approve, end):
        parser.add_argument("--reason", required=True, metavar="TEXT", help=f"why, in {papers.MAX_REASON} characters")
    command(
        "list",
        run_list,
        "show all requests, and what has become of them",
        "Show every request and what has become of it.",
    )


def run_request(args: argparse.Namespace) -> int:
    """Ask for something; says the id that it got."""
    path, policy = _socket(args), load_policy(args.policy)
    _as_oneself()
    seconds = parse_duration(args.length)
    if policy.break_glass is None:
        raise Refused("glass.off", "the policy of this cluster knows no break-glass", advice="see break_glass in it")
    if seconds < 1 or seconds > policy.break_glass.longest:
        most = format_duration(policy.break_glass.longest)
        raise Refused("glass.too-long", f"the policy gives {most} at most", advice=f"ask with --for {most} or less")
    if not safe_user(args.user) or (args.job is not None and args.job < 1):
        raise UsageError("that is no user or no job", advice="see 'secure-slurm break-glass request --help'")
    what = {"role": _role(args.role, policy) or ""} if args.job is None else {"job": str(args.job)}
    reason = _reason(args.reason)
    answer = ask(path, "request", user=args.user, seconds=str(int(seconds)), reason=reason, **what)
    name, until, digest = (text(answer, field) for field in ("id", "until", "sha256"))
    told = {"id": name, "until": _when(int(until)), "sha256": digest}
    _done(args, told, f"asked for as {name}; somebody else must run: secure-slurm break-glass approve {name}")
    return EXIT_OK


def run_approve(args: argparse.Namespace) -> int:
    """Approve the request as it is now: what is sent names its bytes."""
    path = _socket(args)
    _as_oneself()
    reason, found = _reason(args.reason), _request(args, path)
    asked = papers.parse_request(args.id, found.data)
    if _me() in {asked.by, Accounts().uid_of(asked.user)}:
        raise Refused(
            "glass.same-person",
            "nobody approves what they ask for or get themselves",
            advice="somebody else must do it",
        )
    digest = papers.digest(found.data)
    ask(path, "approve", id=args.id, sha256=digest, reason=reason)
    told = {"id": args.id, "until": _when(asked.until), "sha256": digest}
    what = f"{_what(asked)} for {asked.user}, until {told['until']}: {asked.reason}"
    _done(args, told, f"approved {args.id}: {what}\n{_COUNTS}")
    return EXIT_OK


def run_end(args: argparse.Namespace) -> int:
    """End it, for good."""
    path = _socket(args)
    reason = _reason(args.reason)
    _request(args, path)
    ask(path, "end", id=args.id, reason=reason)
    _done(args, {"id": args.id}, f"ended {args.id}; {_COUNTS}")
    return EXIT_OK


def run_list(args: argparse.Namespace) -> int:
    """Every grant with its state, judged as the daemons do it; without the members where they may not be read."""
    policy, shown, now = load_policy(args.policy), listing(_socket(args)), time.time()
    members = _members(args, now)
    frame = Frame(policy, members, Accounts(), now)
    grants = [judge(name, found, frame) for name, found in sorted(shown.papers.items())]
    if args.json:
        odd = [{"file": each.name, "uid": each.owner, "problem": each.what} for each in shown.odd]
        say_json({"grants": [_as_json(each) for each in grants], "ignored": odd, "members": members is not None})
        return EXIT_OK
    accounts = frame.people
    rows = []
    for each in grants:
        asked = each.request
        about = ("", "") if asked is None else (asked.user, _what(asked))
        people = [
            str(accounts.name_of(uid) or uid) if uid is not None else "" for uid in (each.requester, each.approver)
        ]
        rows.append([each.id, _state(each), *about, *people, "" if asked is None else asked.reason])
    say_table(["ID", "STATE", "FOR", "WHAT", "ASKED BY", "APPROVED BY", "REASON"], rows)
    for each_odd in shown.odd:
        say(printable(f"ignored: {quote(each_odd.name)} of uid {each_odd.owner} {each_odd.what}"))
    if members is None:
        say(_SEEN)
    return EXIT_OK


def _state(grant: Grant) -> str:
    if grant.state == "in-force" and grant.request is not None:
        return f"in force until {_when(grant.request.until)}"
    if grant.state == "waiting":
        return "waiting for an approval"
    return f"{grant.state}: {grant.reason}" + (f" ({grant.rule})" if grant.state == "refused" else "")


def _as_json(grant: Grant) -> dict[str, object]:
    asked = grant.request
    return {
        "id": grant.id,
        "state": grant.state,
        "rule": grant.rule,
        "reason": "" if asked is None else asked.reason,
        "said": grant.reason,
        "user": None if asked is None else asked.user,
        "role": None if asked is None else asked.role,
        "job": None if asked is None else asked.job,
        "until": None if asked is None else asked.until,
        "requester": grant.requester,
        "approver": grant.approver,
        "sha256": grant.digest,
    }


def _what(asked: papers.Request) -> str:
    return f"role {asked.role}" if asked.role is not None else f"the tag of job {asked.job}"


def _when(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _done(args: argparse.Namespace, told: dict[str, str], words: str) -> None:
    if args.json:
        say_json(told)
    else:
        say("\n".join(printable(line) for line in words.split("\n")))


def _me() -> int:
    """Who says it, as the daemon will see it."""
    return os.geteuid()


def _as_oneself() -> None:
    if _me() == ROOT:
        raise Refused(
            "glass.requester", "root is nobody: it must be said by you", advice="run it as yourself, without sudo"
        )


def _reason(given: str) -> str:
    if not papers.is_reason(given):
        raise UsageError(
            f"--reason must be printable, on one line, and of 1 to {papers.MAX_REASON} characters", advice="shorten it"
        )
    return given


def _role(name: str | None, policy: Policy) -> str | None:
    if name is None or (is_name(name) and name in policy.roles):
        return name
    raise UsageError(f"the policy has no role {quote(name)}{did_you_mean(name, policy.roles)}", advice="name one of it")


def _socket(args: argparse.Namespace) -> str:
    return load_site(args.config).controller.break_glass_socket


def _request(args: argparse.Namespace, path: str) -> papers.Paper:
    if not papers.is_id(args.id):
        raise UsageError(f"{quote(args.id)} is no grant's id", advice="see 'secure-slurm break-glass list'")
    shown = listing(path, args.id)
    found = shown.papers.get(args.id, {}).get("request")
    if found is not None:
        return found
    if odd := next((each for each in shown.odd if each.name == f"{args.id}.request"), None):
        raise Refused("glass.file", f"the request {quote(args.id)} {odd.what}", advice="it must be made anew")
    raise UsageError(f"there is no request {quote(args.id)}", advice="see 'secure-slurm break-glass list'")


def _members(args: argparse.Namespace, now: float) -> Snapshot | None:
    """The members, for whoever may read them."""
    ldap = load_site(args.config).ldap
    try:
        return Snapshot.load(ldap.snapshot, os.lstat(ldap.snapshot).st_uid, max_age=ldap.max_age, now=now)
    except (OSError, Refused):
        return None
