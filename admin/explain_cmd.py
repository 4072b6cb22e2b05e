"""``secure-slurm explain``: what the policy makes of a command line of sbatch, every step of it, without a submission.

The daemon is not asked: the same chain is walked here, over the policy and the members file as they are now. What only
slurmctld knows (the default partition, OverSubscribe, the submitting host) is not in it; the login node's
``secure-sbatch --secure-explain`` asks the real one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pwd
import time
from pathlib import Path
from typing import NamedTuple

from admin.output import printable, say, say_json
from admin.sbatch_fields import fields_of
from conf.errors import EXIT_OK, EXIT_REFUSED, ConfigError, Refused, SecureSlurmError, UsageError
from conf.policy import DEFAULT_PATH as POLICY
from conf.policy import Policy, load_policy
from conf.safefile import read_safely
from conf.site import load_site
from conf.tag import Tag
from conf.yamlmarks import Document, parse
from slurm_hooks.decisiond import SNAPSHOT_USER
from slurm_hooks.dn import first_value, normalise
from slurm_hooks.explain import explain
from slurm_hooks.explained import tell
from slurm_hooks.filters.verdict import Context
from slurm_hooks.membership import Group
from slurm_hooks.nearest import nearest
from slurm_hooks.request import Submission
from slurm_hooks.snapshot import Snapshot
from submit import explained, explaining, script
from submit.directives import read_directives
from submit.merge import COMMAND_LINE, Source, from_environment, merge
from submit.options import PREFIX, parse_own, split_argv
from submit.sbatch_args import Arguments, read, read_words

SOMEBODY = "somebody"
"""The name of the person of whom only the groups are given."""
NOBODY = 65534
TRIES = 2000
SECONDS = 5.0
# what the daemon would say, too; every other rule is about what this process may read
_AS_THE_DAEMON = frozenset({"directory.missing", "directory.stale", "directory.future"})
# somebody's session has these; what is in them, nobody looks at
_SESSION = {"PATH": "/usr/bin:/bin", "HOME": "/"}
_SHORTHANDS = {
    "klass": f"{PREFIX}class",
    "residency": f"{PREFIX}residency",
    "scratch": f"{PREFIX}scratch",
    "dataset": f"{PREFIX}dataset",
    "partition": "--partition",
    "constraint": "--constraint",
    "prefer": "--prefer",
}


class Person(NamedTuple):
    """Whose job it is."""

    name: str
    uid: int


class Asked(NamedTuple):
    """A command line, read: our own words, sbatch's, what they say, the script, and the tag of all of them."""

    own: list[str]
    rest: list[str]
    args: Arguments
    script: bytes
    tag: Tag | None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``explain``."""
    parser = subparsers.add_parser(
        "explain",
        help="say what the policy would make of a job",
        usage="%(prog)s [--user USER | --group DN ...] [--members FILE] [--policy FILE] [--json] --\n"
        "                    [--secure-class=NAME ...] [any option of sbatch ...] [script [argument ...]]",
        description="Say what the policy would make of a batch job, step by step, and the nearest command line that it "
        "would accept. Nothing is submitted. Exit 0: allowed; 1: refused.",
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="ARGUMENT", help="after --: as for secure-sbatch, or sbatch")
    for name, option in _SHORTHANDS.items():
        word = "class" if name == "klass" else name
        parser.add_argument(f"--{word}", dest=name, metavar="VALUE", help=f"the same as {option} after --")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", metavar="USER", help="whose job it is (who calls, and then in this environment)")
    who.add_argument("--group", metavar="DN", action="append", help="somebody's, who is in these groups alone")
    parser.add_argument("--members", metavar="FILE", help="a members file of any age (default: the one in use)")
    parser.add_argument("--policy", metavar="FILE", default=POLICY, help="the policy file (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_explain)


def run_explain(args: argparse.Namespace) -> int:
    """Explain, and answer with the verdict. UsageError: no such request; ConfigError: a file cannot be used."""
    notes: list[str] = []
    own_environ = dict(os.environ) if args.user is None and args.group is None else _SESSION
    asked = _asked(_words(args), own_environ)
    policy, document = _policy(args.policy)
    context = _context(args, policy, notes)._replace(now=time.time())
    person = _person(args, notes)
    fields = _submission(asked, person, own_environ, notes).fields()
    found = explain(fields, context)
    changes = None if found.allowed else nearest(fields, context, TRIES, SECONDS)
    tool = "sbatch" if asked.tag is None else "secure-sbatch"
    told = tell(found, (args.policy, policy), document, changes)
    command = explaining.shown_command("sbatch", [*asked.own, *asked.rest])
    told |= {
        "user": person.name,
        "command": command if asked.tag is not None else command.removeprefix("secure-"),
        "notes": notes,
    }
    if told["nearest"]:
        explaining.add_command(told, tool.removeprefix("secure-"), asked.own, asked.rest, own_environ)
    if args.json:
        say_json(told)
    else:
        for line in explained.lines(told):
            say(line)
    return EXIT_OK if found.allowed else EXIT_REFUSED


def _words(args: argparse.Namespace) -> list[str]:
    short = [f"{option}={getattr(args, name)}" for name, option in _SHORTHANDS.items() if getattr(args, name)]
    words: list[str] = args.words
    if words and Path(words[0]).name in {"sbatch", "secure-sbatch"}:
        words = words[1:]
    if not short and not words:
        raise UsageError(
            "no job is named", advice="name one as for secure-sbatch: secure-slurm explain -- --secure-class=phi job.sh"
        )
    return [*short, *words]


def _asked(words: list[str], environ: dict[str, str]) -> Asked:
    own, rest = split_argv(words)
    values = parse_own(own).values
    line, end = read_words(rest, COMMAND_LINE)
    if rest[end : end + 1] == [":"]:
        raise UsageError("a heterogeneous job is several jobs", advice="ask about each component")
    wrapped = next((given.value for given in reversed(line) if given.name == "wrap"), None)
    if wrapped is not None:
        text = f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{wrapped}\n".encode(
            "utf-8", "surrogateescape"
        )
    else:
        # stdin is left alone: it may be anything's, and who asks about a job need not have it
        text = script.read_script(rest[end]) if end < len(rest) else b""
    sources = [Source(COMMAND_LINE, values)]
    if wrapped is None:
        sources.append(Source("the script", read_directives(text)))
    # as secure-sbatch reads it, so that what is refused there is refused here
    tag = merge([*sources, from_environment(environ)])
    args = read(rest, text, environ)
    if tag is not None and args.last("extra") is not None:
        raise UsageError("--extra is where the tag travels; yours would replace it", advice="remove --extra")
    return Asked(own, rest, args, text, tag)


def _submission(asked: Asked, person: Person, environ: dict[str, str], notes: list[str]) -> Submission:
    name = Path(asked.rest[asked.args.end]).name if asked.args.end < len(asked.rest) else "sbatch"
    said = fields_of(asked.args, environ, str(Path.cwd()), "wrap" if asked.args.last("wrap") else name)
    notes.extend(f"not judged here: {each}" for each in said.unread)
    if asked.tag is None:
        notes.append("no class, residency or dataset is named anywhere: judged as a plain sbatch, without a tag")
    if "partition" not in said.texts:
        notes.append("no partition is named, and the cluster's default one is not known here: name it")
    if asked.args.last("wrap") is None and asked.args.end >= len(asked.rest):
        notes.append("no script is named: judged without #SBATCH and #SECURE lines")
    if any(char.isdigit() for char in said.texts.get("dependency", "")):
        notes.append("not judged here: whose jobs --dependency names")
    tag = {} if asked.tag is None else {"extra": asked.tag.to_extra()}
    return Submission(
        uid=person.uid,
        user=person.name,
        texts={**said.texts, **tag},
        numbers=dict(said.numbers),
        script=asked.script,
        environment=said.environment,
    )


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
    return _members(args, policy, notes)._replace(now=time.time())


def _members(args: argparse.Namespace, policy: Policy, notes: list[str]) -> Context:
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
