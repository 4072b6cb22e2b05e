"""``secure-slurm policy replay``: what a policy would have decided on the jobs that there were.

Before a policy is put in use, its author sees whose jobs it would have refused, and which it would have let in.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

from admin import sacct
from admin.members import load_members
from admin.output import printable, say, say_json, say_table
from admin.replay import KINDS, Change, Group, Kind, Replay
from admin.sacct_job import UNKNOWN
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError
from conf.policy import DEFAULT_PATH, Policy, load_policy
from conf.site import Site, load_site
from slurm_hooks.snapshot import Snapshot

DAYS = 7
MAX_DAYS = 3660
MAX_ROWS = 40
PROGRESS_EVERY = 0.5
"""Seconds."""


class Told(NamedTuple):
    """All that is told of one replay."""

    args: argparse.Namespace
    policy: Policy
    against: Policy | None
    replay: Replay
    changes: list[dict[str, str]]
    notes: list[str]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``policy replay``."""
    parser = commands.add_parser(
        "replay",
        help="judge the jobs of the accounting by a policy",
        description="Judge the jobs of the accounting by a policy, with the engine of the decision daemon and the "
        "group members of today, and show whose would be newly refused or newly allowed. Exit 0: nothing changes; "
        "1: a verdict does, or a job could not be judged; 3: a file cannot be used; 4: the accounting does not answer.",
        allow_abbrev=False,
    )
    parser.add_argument("policy", nargs="?", metavar="POLICY", default=DEFAULT_PATH, help="the policy (%(default)s)")
    parser.add_argument(
        "--against", metavar="OLD_POLICY", help="compare with this policy (default: with what happened, acceptance)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--days", type=_days, metavar="N", default=DAYS, help="the jobs of the last N days (%(default)s)"
    )
    source.add_argument("--jobs", metavar="FILE", help=f"a saved answer of sacct {sacct.JSON}")
    parser.add_argument("--members", metavar="SNAPSHOT", help="the members file (default: the one in use)")
    parser.add_argument("--list", action="store_true", help="show every job whose verdict changes")
    parser.add_argument("--json", action="store_true", help="print JSON, with every job whose verdict changes")
    parser.set_defaults(run=run_replay)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_DAYS)) and 0 < int(text) <= MAX_DAYS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days from 1 to {MAX_DAYS}")
    return int(text)


def run_replay(args: argparse.Namespace) -> int:
    """Judge and tell; 1 when a verdict changes. ConfigError: a file cannot be used."""
    policy = load_policy(args.policy)
    against = load_policy(args.against) if args.against else None
    site = None if args.jobs and args.members else load_site(args.config)
    now = time.time()
    notes: list[str] = []
    members = _members(args.members, site, now, notes)
    changes: list[dict[str, str]] = []

    def each(change: Change) -> None:
        if args.json:
            changes.append(_change(change))
        elif args.list:
            say(_line(change))

    replay = Replay(policy, against, members, now, each)
    progress = _Progress(replay, shown=sys.stderr.isatty() and (args.json or not args.list))
    try:
        if args.jobs:
            sacct.read(args.jobs, progress.take)
        elif site is not None:
            sacct.ask(site.cluster.slurm_bin, args.days, progress.take, now)
    finally:
        progress.end()
    if replay.unreadable and not replay.judged:
        raise ConfigError(
            f"none of the {replay.unreadable} entries is a job of the accounting",
            advice=f"write it again: sacct {sacct.JSON} --allusers --allocations --starttime=... > FILE",
        )
    told = Told(args, policy, against, replay, changes, [*notes, *_notes(replay, against)])
    if args.json:
        say_json(_as_json(told))
    else:
        _tell(told)
    differs = replay.kinds["newly refused"] or replay.kinds["newly allowed"] or replay.unreadable
    return EXIT_REFUSED if differs else EXIT_OK


def _members(path: str | None, site: Site | None, now: float, notes: list[str]) -> Snapshot:
    if path or site is None:
        return load_members(path or "")
    members = load_members(site.ldap.snapshot)
    if members.age(now) > site.ldap.max_age:
        notes.append(f"the members file is {members.age(now):.0f} s old: the daemon would refuse every tagged job")
    return members


class _Progress:
    """How far it is, on a terminal only, where nothing else is written."""

    def __init__(self, replay: Replay, *, shown: bool) -> None:
        self._replay = replay
        self._shown = shown
        self._next = time.monotonic() + PROGRESS_EVERY
        self._written = False

    def take(self, entry: object) -> None:
        """Hand an entry on."""
        self._replay.take(entry)
        if self._shown and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_EVERY
            sys.stderr.write(f"\r{self._replay.judged:,} jobs judged, {self._changed():,} change\r")
            sys.stderr.flush()
            self._written = True

    def end(self) -> None:
        """Leave the line as it was."""
        if self._written:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()

    def _changed(self) -> int:
        return self._replay.judged - self._replay.unchanged


def _notes(replay: Replay, against: Policy | None) -> Iterator[str]:
    if not replay.judged:
        yield "there is no job at all, so this says nothing about the policy"
    if replay.unreadable:
        yield f"{replay.unreadable} entries could not be judged: they are no jobs, or their decision record is damaged"
    if against is None:
        yield "the accounting has accepted jobs only: what would be newly allowed is seen with --against OLD_POLICY"
    if replay.tags["record"]:
        yield (
            f"the tags of {replay.tags['record']} jobs are from their decision records, whose MAC was not checked: "
            "the daemons alone have its key"
        )
    if replay.tags["submit line"]:
        yield (
            f"{replay.tags['submit line']} jobs have no decision record in the accounting, which gets it at a job's "
            "end: their tags are from their submit lines"
        )
    if replay.without_partition:
        yield f"{replay.without_partition} jobs have no partition in the accounting, so it counts as unknown"
    if replay.under_this_policy:
        yield (
            f"{replay.under_this_policy} of the newly refused were accepted under this very policy: "
            "their user's groups, a date, or the job itself has changed since"
        )
    if replay.kinds["in shadow"]:
        yield "a rule in shadow refuses nothing yet; 'in shadow' is what it would refuse"


def _change(change: Change) -> dict[str, str]:
    return {
        "job": change.job.name,
        "user": change.job.user,
        "change": change.kind,
        "before": change.before.rule,
        "after": change.after.rule,
        "message": change.told.message,
        "advice": change.told.advice,
        "accepted_under": change.job.policy,
        "tag_from": change.job.tag_from,
    }


def _line(change: Change) -> str:
    rules = change.told.rule if change.kind != "other rule" else f"{change.before.rule} -> {change.after.rule}"
    return printable(
        f"{change.kind}: job {change.job.name} of {_user(change.job.user)} ({rules}) {change.told.message}".rstrip()
    )


def _user(name: str) -> str:
    return name or "(unknown)"


def _counts(replay: Replay) -> dict[str, int]:
    kinds = {kind.replace(" ", "_"): replay.kinds[kind] for kind in KINDS}
    return {"judged": replay.judged, **kinds, "unchanged": replay.unchanged, "unreadable": replay.unreadable}


def _as_json(told: Told) -> dict[str, object]:
    args, replay, against = told.args, told.replay, told.against
    return {
        "policy": {"file": args.policy, "hash": told.policy.hash},
        "against": None if against is None else {"file": args.against, "hash": against.hash},
        "jobs_from": {"file": args.jobs} if args.jobs else {"days": args.days},
        "counts": _counts(replay),
        "accepted_under": [{"policy": name, "jobs": count} for name, count in replay.policies.most_common()],
        "groups": [
            {
                "change": kind,
                "rule": rule,
                "user": user,
                "jobs": group.jobs,
                "examples": group.examples,
                "message": group.told.message,
                "advice": group.told.advice,
            }
            for (kind, rule, user), group in replay.sorted_groups()
        ],
        "changes": told.changes,
        "unknown": list(UNKNOWN),
        "notes": told.notes,
    }


def _tell(told: Told) -> None:
    args, replay, against = told.args, told.replay, told.against
    where = args.jobs or f"the last {_many(args.days, 'day')}"
    other = f"{args.against} ({against.hash[:16]})" if against else "what happened"
    if args.list and replay.judged != replay.unchanged:
        say()
    say(printable(f"{_many(replay.judged, 'job')} of {where}: {args.policy} ({told.policy.hash[:16]}) against {other}"))
    say(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in list(_counts(replay).items())[1:]))
    groups = replay.sorted_groups()
    if groups:
        say()
        rows = [
            (kind, rule, _user(user), each.jobs, _some(each.examples, each.jobs)) for (kind, rule, user), each in groups
        ]
        say_table(("CHANGE", "RULE", "USER", "JOBS", "SUCH AS"), rows[:MAX_ROWS])
        if len(rows) > MAX_ROWS:
            say(f"... and {len(rows) - MAX_ROWS} more rows: --json has them all")
        say()
        for line in _reasons(replay):
            say(printable(line))
    say()
    say("A job is judged as it ended up: with the partition, constraint, account, QOS, nodes and time that it got.")
    say("The accounting does not know, so this was not judged:")
    for each in UNKNOWN:
        say(f"  - {each}")
    for note in told.notes:
        say(printable(f"Note: {note}"))


def _some(examples: list[str], jobs: int) -> str:
    return ", ".join(examples) + (", ..." if jobs > len(examples) else "")


def _reasons(replay: Replay) -> Iterator[str]:
    """For each change and rule: how many, and one job in the engine's own words."""
    rules: dict[tuple[Kind, str], list[tuple[str, Group]]] = {}
    for (kind, rule, user), group in replay.sorted_groups():
        rules.setdefault((kind, rule), []).append((user, group))
    for (kind, rule), found in rules.items():
        user, group = found[0]
        jobs = sum(each.jobs for _, each in found)
        yield f"{kind}, {rule}: {_many(jobs, 'job')} of {_many(len(found), 'user')}"
        if group.told.message:
            yield f"    job {group.examples[0]} of {_user(user)}: {group.told.message}"
        if group.told.advice and kind != "newly allowed":
            yield f"    {group.told.advice}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
