"""``secure-slurm audit show``, and the door to the other commands about the trail, each in a module of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from admin import audit_export, audit_prune, audit_verify, certificate_cmd
from admin.output import say, say_json, say_table
from audit.story import Line, own_fields, read_events, story
from conf.errors import EXIT_OK
from conf.site import load_site


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit`` and its commands."""
    audit = subparsers.add_parser("audit", help="verify the audit trail, or show what happened to a job")
    commands = audit.add_subparsers(dest="audit_command", required=True, metavar="COMMAND")
    audit_verify.add_to(commands)
    show = commands.add_parser(
        "show",
        help="what happened, in the order of time",
        description="Show audit lines of all hosts and writers. Nothing is verified here: see 'audit verify'.",
        allow_abbrev=False,
    )
    show.add_argument("--job", type=_job, metavar="N", help="only what belongs to this job id")
    show.set_defaults(run=run_show)
    certificate_cmd.add_to(commands)
    audit_export.add_to(commands)
    audit_prune.add_to(commands)
    show.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="file or directory (default: audit.directory)"
    )


def _job(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job id")
    return int(text)


def _paths(args: argparse.Namespace) -> list[Path]:
    return args.paths or [Path(load_site(args.config).audit.directory)]


def run_show(args: argparse.Namespace) -> int:
    """Show. A job that the trail does not know is no error: it may have had no tag."""
    lines = story(read_events(_paths(args)), args.job)
    if args.json:
        say_json(lines)
    elif lines:
        say_table(["time", "host", "writer", "event", "what"], [_row(line) for line in lines])
    else:
        say("nothing" if args.job is None else f"the audit trail has nothing about job {args.job}")
    return EXIT_OK


def _row(line: Line) -> list[object]:
    what = " ".join(f"{name}={_value(value)}" for name, value in own_fields(line).items())
    return [line["time"], line["host"], line["writer"], line["event"], what]


def _value(value: object) -> str:
    text = str(value)
    return repr(text) if " " in text else text
