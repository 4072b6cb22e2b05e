"""``secure-slurm explain``: what the policy makes of a job, every step of it, without a submission.

The daemon is not asked: the same chain is walked here, over the policy and the members file as they are now. What only
slurmctld knows (the default partition, OverSubscribe, the submitting host, the script) is not in it; the login node's
``secure-sbatch --secure-explain`` asks the real one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pwd
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from admin.output import printable, say, say_json, say_table
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, Refused, SecureSlurmError, UsageError
from conf.policy import DEFAULT_PATH as POLICY
from conf.policy import Policy, load_policy
from conf.safefile import read_safely
from conf.site import load_site
from conf.units import format_size
from conf.yamlmarks import Document, parse
from slurm_hooks.decisiond import SNAPSHOT_USER
from slurm_hooks.dn import first_value, normalise
from slurm_hooks.explain import Explanation, Request, Section, Step, explain, nearest
from slurm_hooks.filters.verdict import Context
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot
from submit.merge import COMMAND_LINE, Source, merge

SOMEBODY = "somebody"
"""The name of the person of whom only the groups are given."""
NOBODY = 65534
# what the daemon would say, too; every other rule is about what this process may read
_AS_THE_DAEMON = frozenset({"directory.missing", "directory.stale", "directory.future"})


class Person(NamedTuple):
    """Whose job it is."""

    name: str
    uid: int


class Told(NamedTuple):
    """All that is told. ``nearest`` None: allowed, or nothing similar would be accepted."""

    path: str
    policy: Policy
    document: Document
    person: Person
    request: Request
    found: Explanation
    nearest: Request | None
    notes: list[str]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``explain``."""
    parser = subparsers.add_parser(
        "explain",
        help="say what the policy would make of a job",
        description="Say what the policy would make of a batch job, step by step, and the nearest one that it would "
        "accept. Nothing is submitted. Exit 0: allowed; 1: refused.",
        allow_abbrev=False,
    )
    parser.add_argument("--class", dest="klass", metavar="CLASS", required=True, help="the data class")
    parser.add_argument("--residency", metavar="NAME", help="the jurisdiction")
    parser.add_argument("--scratch", metavar="SIZE", help="encrypted scratch on each node, such as 200M")
    parser.add_argument("--partition", metavar="NAME", help="the partition, or several with commas between")
    parser.add_argument("--constraint", metavar="EXPR", help="as sbatch's")
    parser.add_argument("--prefer", metavar="EXPR", help="as sbatch's")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="USER", help="whose job it is (who calls)")
    who.add_argument(
        "--group", metavar="DN", action="extend", nargs="+", help="somebody's, who is in these groups alone"
    )
    parser.add_argument("--members", metavar="FILE", help="a members file of any age (default: the one in use)")
    parser.add_argument("--policy", metavar="FILE", default=POLICY, help="the policy file (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_explain)


def run_explain(args: argparse.Namespace) -> int:
    """Explain, and answer with the verdict. UsageError: no such request; ConfigError: a file cannot be used."""
    request = _request(args)
    policy, document = _policy(args.policy)
    notes: list[str] = []
    context = _context(args, policy, notes)
    person = _person(args, notes)
    if request.partition is None:
        notes.append("no partition is named, and the cluster's default one is not known here: name it")
    found = explain(request.fields(*person), context)
    other = None if found.allowed else nearest(request, *person, context)
    told = Told(args.policy, policy, document, person, request, found, other, notes)
    if args.json:
        say_json(_as_json(told))
    else:
        _tell(told)
    return EXIT_OK if found.allowed else EXIT_REFUSED


def _request(args: argparse.Namespace) -> Request:
    asked = {"class": args.klass, "residency": args.residency, "scratch": args.scratch}
    # as secure-sbatch reads it, so that what is refused there is refused here
    tag = merge([Source(COMMAND_LINE, {key: value for key, value in asked.items() if value is not None})])
    if tag is None:
        raise UsageError("the job has no tag", advice="name its class with --class")
    return Request(tag, args.partition or None, args.constraint or None, args.prefer or None)


def _policy(path: str) -> tuple[Policy, Document]:
    policy, data = load_policy(path), read_safely(path)
    if hashlib.sha256(data).hexdigest() != policy.hash:
        raise ConfigError(f"{path} changed while it was read", advice="try again")
    return policy, parse(data)


def _person(args: argparse.Namespace, notes: list[str]) -> Person:
    if args.group:
        return Person(SOMEBODY, NOBODY)
    if args.user is None:
        try:
            caller = pwd.getpwuid(os.getuid())
        except KeyError:
            raise UsageError("this machine has no name for who calls", advice="say who with --user") from None
        if caller.pw_uid == 0:
            raise UsageError("root has no roles, so there is nothing to explain", advice="say whose job with --user")
        return Person(caller.pw_name, caller.pw_uid)
    try:
        return Person(args.user, pwd.getpwnam(args.user).pw_uid)
    except (KeyError, ValueError):
        notes.append(f"this machine knows no user {args.user!a}; slurmctld must, or it refuses the job (rbac.user)")
        return Person(args.user, NOBODY)


def _context(args: argparse.Namespace, policy: Policy, notes: list[str]) -> Context:
    if args.group:
        if args.members:
            raise UsageError("--group says who is in which group, and so does --members", advice="give one of them")
        return Context(policy, _of_groups(args.group, policy, notes))
    if args.members:
        try:
            members = Snapshot.load(args.members, _owner(args.members), max_age=float("inf"), now=time.time())
        except Refused as error:
            raise ConfigError(str(error), advice="name a members file that you or its service wrote") from None
        notes.append(f"the members file is {members.age(time.time()):.0f} s old; its age is not judged here")
        return Context(policy, members)
    site = load_site(args.config)
    path = site.ldap.snapshot
    try:
        return Context(policy, Snapshot.load(path, _owner(path), max_age=site.ldap.max_age, now=time.time()))
    except Refused as error:
        if error.rule in _AS_THE_DAEMON:
            return Context(policy, None, str(error), error.advice)
        raise ConfigError(
            str(error), advice="call it as root or as a user who may read that file, or give --members or --group"
        ) from None


def _owner(path: str) -> int:
    """The one account besides root that may own a members file: the service's, or who calls, if it is theirs."""
    try:
        service = pwd.getpwnam(SNAPSHOT_USER).pw_uid
    except KeyError:
        return os.geteuid()
    try:
        return os.geteuid() if os.lstat(path).st_uid == os.geteuid() else service
    except (OSError, ValueError):
        return service


def _of_groups(asked: list[str], policy: Policy, notes: list[str]) -> Snapshot:
    wanted = {_normal(dn): dn for dn in asked}
    known = {_normal(dn): dn for dn in policy.groups()}
    notes.extend(f"no role names the group {printable(dn)}" for key, dn in wanted.items() if key not in known)
    groups = {
        dn: Group(first_value(dn) or dn, frozenset({SOMEBODY}) if key in wanted else frozenset())
        for key, dn in known.items()
    }
    return Snapshot(time.time(), "--group", groups)


def _normal(dn: str) -> str:
    try:
        return normalise(dn)
    except SecureSlurmError as error:
        raise UsageError(f"--group: {error}", advice="write it as in the policy: cn=name,ou=groups,dc=...") from None


def _lines(sections: tuple[Section, ...], document: Document) -> list[tuple[str, int]]:
    """Each section as the policy writes it (``classes[1].max_scratch``), and its line."""
    return [(_dotted(section), document.key_mark(section).line) for section in sections]


def _dotted(section: Section) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in section).lstrip(".")


def _command(request: Request) -> str:
    return shlex.join(["secure-sbatch", *(f"{name}={value}" for name, value in request.options().items())])


def _differences(request: Request, other: Request) -> list[str]:
    before, after = request.options(), other.options()
    return [
        f"leave {name} out" if name not in after else f"{'add' if name not in before else 'say'} {name}={after[name]}"
        for name in dict.fromkeys([*after, *before])
        if before.get(name) != after.get(name)
    ]


def _as_json(told: Told) -> dict[str, object]:
    found, other = told.found, told.nearest
    return {
        "allowed": found.allowed,
        "rule": found.rule,
        "message": found.message,
        "advice": found.advice,
        "user": told.person.name,
        "policy": {"file": told.path, "hash": told.policy.hash},
        "request": told.request.options(),
        "steps": [_step_json(step, told.document) for step in found.steps],
        "set": dict(found.changes),
        "nearest": None
        if other is None
        else {
            "options": other.options(),
            "command": _command(other),
            "changes": _differences(told.request, other),
        },
        "notes": told.notes,
    }


def _step_json(step: Step, document: Document) -> dict[str, object]:
    return {
        "step": step.name,
        "part": step.part,
        "verdict": step.verdict,
        "rule": step.rule,
        "message": step.message,
        "advice": step.advice,
        "policy": [{"section": section, "line": line} for section, line in _lines(step.sections, document)],
        "set": dict(step.changes),
    }


def _tell(told: Told) -> None:
    say(printable(f"{told.person.name}: {_command(told.request)}"))
    say(printable(f"policy {told.path}, {told.policy.hash[:16]}"))
    say()
    say_table(("STEP", "VERDICT", "POLICY", "SETS"), [_row(step, told) for step in told.found.steps])
    say()
    for line in _verdict(told):
        say(printable(line))
    for note in told.notes:
        say(printable(f"Note: {note}"))


def _row(step: Step, told: Told) -> tuple[str, str, str, str]:
    file = Path(told.path).name
    return (
        step.name,
        step.rule if step.verdict == "refuse" else "ok",
        ", ".join(f"{file}:{line} {section}" for section, line in _lines(step.sections, told.document)),
        ", ".join(f"{name}={value}" for name, value in step.changes.items()),
    )


def _verdict(told: Told) -> Iterator[str]:
    found, other = told.found, told.nearest
    if found.allowed:
        given = None if found.tag is None else found.tag.scratch
        yield "ALLOWED" if given is None else f"ALLOWED, with {format_size(given)} of encrypted scratch on each node"
        return
    yield f"REFUSED ({found.rule}): {found.message}"
    if found.advice:
        yield f"What to do: {found.advice}"
    if other is None:
        yield (
            "No similar request with as much protection would be accepted; "
            "partitions that the policy does not name were not tried."
        )
    else:
        yield f"Would be accepted: {_command(other)}"
        yield f"  ({'; '.join(_differences(told.request, other))})"
