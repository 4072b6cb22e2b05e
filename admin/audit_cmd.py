"""``secure-slurm audit verify`` and ``secure-slurm audit show``."""

from __future__ import annotations

import argparse
from pathlib import Path

from admin.output import printable, say, say_json, say_table
from audit.story import Line, own_fields, read_events, story
from audit.verify import Finding, Report, verify
from conf.errors import EXIT_OK, EXIT_REFUSED
from conf.site import load_site


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit verify`` and ``audit show``."""
    audit = subparsers.add_parser("audit", help="verify the audit trail, or show what happened to a job")
    commands = audit.add_subparsers(dest="audit_command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "verify",
        help="find changed, missing, reordered, cut and foreign lines",
        description="Check audit files. Exit 0: whole; 1: something was found; 3: a file cannot be read.",
        allow_abbrev=False,
    )
    check.set_defaults(run=run_verify)
    show = commands.add_parser(
        "show",
        help="what happened, in the order of time",
        description="Show audit lines of all hosts and writers. Nothing is verified here: see 'audit verify'.",
        allow_abbrev=False,
    )
    show.add_argument("--job", type=_job, metavar="N", help="only what belongs to this job id")
    show.set_defaults(run=run_show)
    for parser in (check, show):
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "paths", nargs="*", type=Path, metavar="PATH", help="file or directory (default: audit.directory)"
        )


def _job(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job id")
    return int(text)


def _paths(args: argparse.Namespace) -> list[Path]:
    return args.paths or [Path(load_site(args.config).audit.directory)]


def run_verify(args: argparse.Namespace) -> int:
    """Verify; 1 when anything was found. Raises ConfigError for what cannot be read."""
    report = verify(_paths(args))
    if args.json:
        say_json(_as_dict(report))
    else:
        for note in report.notes:
            say(_line(note, "note: "))
        for finding in report.findings:
            say(_line(finding, ""))
        say(_summary(report))
    return EXIT_OK if report.whole else EXIT_REFUSED


def _as_dict(report: Report) -> dict[str, object]:
    return {
        "whole": report.whole,
        "events": report.events,
        "files": report.files,
        "writers": report.writers,
        "findings": [finding._asdict() for finding in report.findings],
        "notes": [note._asdict() for note in report.notes],
    }


def _line(finding: Finding, prefix: str) -> str:
    place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    return f"{printable(place)}: {prefix}{finding.kind}: {printable(finding.message)}"


def _summary(report: Report) -> str:
    counted = f"{_count(report.events, 'event')} of {_count(len(report.writers), 'writer')} in"
    verdict = "whole" if report.whole else _count(len(report.findings), "finding")
    return f"{counted} {_count(report.files, 'file')}: {verdict}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


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
