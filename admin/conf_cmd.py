"""``secure-slurm conf check``, ``conf show`` and ``conf render``."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import NamedTuple

import attrs

from admin.output import printable, say, say_json, say_table
from conf import render
from conf.budget import complaints
from conf.errors import EXIT_CONFIG, EXIT_OK, ConfigError, SecureSlurmError
from conf.hookconf import HOOKS_JSON, read_hook_config
from conf.policy import DEFAULT_PATH as POLICY
from conf.policy import load_policy
from conf.safefile import read_safely
from conf.site import load_site
from conf.units import format_duration
from conf.yamlmarks import Document, Where, parse
from keys.process import run

# which keys tell the two kinds of file apart when the name does not
_SITE_KEYS = {"cluster", "controller", "lifecycle", "node", "vault", "ldap", "scratch", "audit"}
_POLICY_KEYS = {"jurisdictions", "classes", "roles", "partitions"}
SCONTROL = 10.0
"""Seconds for slurmctld to say what its configuration is."""
_PLACED = re.compile(r"(?P<file>.+?):(?P<line>\d+):(?P<column>\d+): (?P<message>.*)")


class Setting(NamedTuple):
    """One setting in force and where it comes from: ``default`` or ``file:line``."""

    name: str
    value: str
    origin: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``conf check``, ``conf show`` and ``conf render``."""
    conf = subparsers.add_parser("conf", help="check, show and render the configuration")
    commands = conf.add_subparsers(dest="conf_command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="every mistake, with its line",
        description="Check the site file and the policy, or the given files. Exit 0: no mistake; 3: there are some.",
        allow_abbrev=False,
    )
    check.add_argument("files", nargs="*", metavar="FILE", help="site or policy file (default: both)")
    check.set_defaults(run=run_check)
    show = commands.add_parser("show", help="the settings in force, and where each comes from", allow_abbrev=False)
    show.set_defaults(run=run_show)
    make = commands.add_parser(
        "render",
        help="write what the hooks read",
        description="Check both files, then write hooks.json, hooks.sh and job_submit.conf.lua. Repeat it on every "
        "node.",
        allow_abbrev=False,
    )
    make.add_argument("--directory", default="/etc/secure-slurm", help="where to (%(default)s)")
    make.set_defaults(run=run_render)
    for parser in (check, make):
        parser.add_argument("--policy", metavar="FILE", default=POLICY, help="the policy file (%(default)s)")
    for parser in (check, show, make):
        parser.add_argument("--json", action="store_true", help="print JSON")


def run_check(args: argparse.Namespace) -> int:
    """Report every mistake in every file; 3 if there is one."""
    files = args.files or [args.config, args.policy]
    mistakes = [mistake for file in files for mistake in _mistakes(file)]
    stale = "" if args.files or mistakes else _stale()
    short = [] if args.files or mistakes else _too_short(args.config)
    if args.json:
        told = {"files": files, "mistakes": [_placed(mistake) for mistake in mistakes], "stale": stale or None}
        say_json({**told, "slurm": short})
    else:
        for mistake in mistakes:
            say(printable(mistake))
        if not mistakes:
            say(f"no mistake in {', '.join(map(printable, files))}")
        if stale:
            say(printable(stale))
        for line in short:
            say(printable(f"note: {line}"))
        if not mistakes and any(map(_proves_nothing, files)):
            say("note: node.proof is none: every tagged job is refused; choose ec2, manifest or file")
    return EXIT_CONFIG if mistakes else EXIT_OK


def _mistakes(file: str) -> list[str]:
    try:
        if _is_policy(file):
            load_policy(file)
        else:
            load_site(file)
    except ConfigError as error:
        return str(error).split("\n")
    return []


def _is_policy(file: str) -> bool:
    keys = parse(read_safely(file)).data.keys()
    policy, site = len(keys & _POLICY_KEYS), len(keys & _SITE_KEYS)
    return policy > site if policy != site else "policy" in Path(file).name


def _proves_nothing(file: str) -> bool:
    return not _is_policy(file) and load_site(file).node.proof == "none"


def _stale() -> str:
    """Why the hooks do not use what was checked, or nothing; a machine without hooks has nothing to be stale."""
    if not os.path.lexists(HOOKS_JSON):
        return ""
    try:
        read_hook_config(HOOKS_JSON)
    except ConfigError as error:
        return f"note: {error}; {error.advice}"
    return ""


def _too_short(config: str) -> list[str]:
    """What slurm.conf leaves the hooks too little time for; nothing where no slurmctld answers."""
    site = load_site(config)
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        answer = run([f"{site.cluster.slurm_bin}/scontrol", "show", "config"], timeout=SCONTROL, env_extra=where)
    except SecureSlurmError:
        return []
    printed = answer.stdout.decode("utf-8", "replace")
    return complaints(printed, site.node.prolog_deadline, site.lifecycle.start_deadline)


def _placed(mistake: str) -> dict[str, object]:
    found = _PLACED.fullmatch(mistake)
    if found is None:
        return {"file": None, "line": None, "column": None, "message": mistake}
    return {
        "file": found["file"],
        "line": int(found["line"]),
        "column": int(found["column"]),
        "message": found["message"],
    }


def run_show(args: argparse.Namespace) -> int:
    """Show the site's settings. Secrets are in files of their own, whose names alone are here."""
    site = load_site(args.config)
    document = parse(read_safely(args.config))
    settings = list(_settings(site, (), document, args.config))
    if args.json:
        say_json([setting._asdict() for setting in settings])
    else:
        say_table(["setting", "value", "from"], settings)
    return EXIT_OK


def _settings(section: attrs.AttrsInstance, where: Where, document: Document, path: str) -> list[Setting]:
    found: list[Setting] = []
    for field in attrs.fields(type(section)):
        if not field.metadata.get("in_file", True):
            continue
        value, here = getattr(section, field.name), (*where, field.name)
        if attrs.has(type(value)):
            found += _settings(value, here, document, path)
            continue
        mark = document.keys.get(here)
        origin = f"{path}:{mark.line}" if mark else "default"
        found.append(Setting(".".join(map(str, here)), _text(value), origin))
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_duration(value)  # every float in the site file is a duration in seconds
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value)


def run_render(args: argparse.Namespace) -> int:
    """Render; nothing is written when either file has a mistake."""
    written = render.render(args.config, args.policy, args.directory)
    short = _too_short(args.config)
    if args.json:
        say_json({"written": [str(path) for path in written], "slurm": short})
    else:
        for path in written:
            say(f"wrote {path}")
        for line in short:
            say(printable(f"note: {line}"))
    return EXIT_OK
