"""``secure-slurm audit verify``: are the trails whole, do they say everything, and do Vault and Slurm say the same?

The first two need the files alone. Vault's side is a file that was brought here, Slurm's the accounting itself or what
``sacct --json`` wrote.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import attrs

from admin import audit_sacct, audit_vault, sacct
from admin.output import printable, say, say_json
from audit.facts import Facts, gather
from audit.findings import Finding, Report
from audit.gaps import Gap, find, open_keys
from audit.story import read_events
from audit.verify import verify
from conf.errors import EXIT_OK, EXIT_REFUSED, UsageError
from conf.site import Site, Vault, load_site

DAYS = 32
SHOWN = 200
"""Findings of each kind that are printed one by one; JSON has all."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit verify``."""
    check = commands.add_parser(
        "verify",
        help="find changed, missing, reordered, cut and foreign lines, and what the trails do not tell",
        description="Check audit files, offline. Exit 0: whole; 1: something was found; 3: a file cannot be read; "
        "4: the accounting does not answer.",
        allow_abbrev=False,
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument(
        "--gaps",
        action="store_true",
        help="also look for what is not told: jobs without a record, keys without an end, nodes without lines "
        "(always done without PATH, and with the options below)",
    )
    check.add_argument(
        "--vault-audit", action="append", type=Path, metavar="FILE", default=[], help="compare with Vault's audit log"
    )
    check.add_argument("--sacct", action="store_true", help="compare with Slurm's accounting, which is asked now")
    check.add_argument("--sacct-file", metavar="FILE", help="compare with what sacct --json wrote")
    check.add_argument("--days", type=_days, default=DAYS, metavar="N", help="with --sacct: so far back (%(default)s)")
    check.add_argument("--cluster", metavar="NAME", help="whose keys and jobs (default: cluster.name)")
    check.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="file or directory (default: audit.directory)"
    )
    check.set_defaults(run=run)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 3660):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Verify; 1 when anything was found. Raises ConfigError for what cannot be read."""
    if args.sacct and args.sacct_file:
        raise UsageError("--sacct and --sacct-file exclude each other", advice="the file is for an offline look")
    compared = bool(args.vault_audit or args.sacct or args.sacct_file)
    # offline, away from the cluster, there is no site file: then --cluster and the paths say it
    site = None if args.paths and (args.cluster or not compared) and not args.sacct else load_site(args.config)
    paths = args.paths or [Path(site.audit.directory)] if site else args.paths
    report = verify(paths)
    gaps: list[Gap] = []
    facts = None
    if compared or args.gaps or not args.paths:
        facts = gather(read_events(paths))
        gaps = find(facts) + _compared(args, site, facts)
    if args.json:
        say_json(_as_dict(report, gaps, facts))
    else:
        _show(report, gaps, facts)
    return EXIT_OK if report.whole and not gaps else EXIT_REFUSED


def _compared(args: argparse.Namespace, site: Site | None, facts: Facts) -> list[Gap]:
    cluster = args.cluster or (site.cluster.name if site else "")
    found: list[Gap] = []
    if args.vault_audit:
        mount = site.vault.transit_mount if site else attrs.fields(Vault).transit_mount.default
        found += audit_vault.compare(facts, audit_vault.read_log(args.vault_audit, str(mount), cluster))
    if args.sacct or args.sacct_file:
        now = time.time()
        accounts = audit_sacct.Accounts(cluster)
        if args.sacct_file:
            sacct.read(args.sacct_file, accounts.take)
            now = min(now, max((one.end or one.start for jobs in accounts.jobs.values() for one in jobs), default=0))
        elif site is not None:
            sacct.ask(site.cluster.slurm_bin, args.days, accounts.take, now)
        found += audit_sacct.compare(facts, accounts, now)
    return found


def _as_dict(report: Report, gaps: list[Gap], facts: Facts | None) -> dict[str, object]:
    return {
        "whole": report.whole,
        "events": report.events,
        "files": report.files,
        "writers": report.writers,
        "findings": [finding._asdict() for finding in report.findings],
        "notes": [note._asdict() for note in report.notes],
        "gaps": [gap._asdict() for gap in gaps],
        "open_keys": sorted(key.name for key in open_keys(facts)) if facts else [],
        "folded": facts.folded if facts else 0,
    }


def _show(report: Report, gaps: list[Gap], facts: Facts | None) -> None:
    for note in report.notes:
        say(_line(note, "note: "))
    for finding in report.findings:
        say(_line(finding, ""))
    shown: dict[str, int] = {}
    for gap in gaps:
        shown[gap.kind] = shown.get(gap.kind, 0) + 1
        if shown[gap.kind] <= SHOWN:
            about = f"job {gap.job}: " if gap.job else ""
            say(printable(f"{gap.kind}: {about}{gap.what}; look at: {gap.where}"))
    for kind, count in shown.items():
        if count > SHOWN:
            say(f"{kind}: and {count - SHOWN} more: --json")
    if facts is not None:
        running = len(open_keys(facts))
        if running:
            say(f"note: {_count(running, 'key')} without an end, of jobs whose end is not told: they may run")
        if facts.folded:
            say(f"note: {_count(facts.folded, 'refusal')} in folded lines, without a line of their own")
    say(_summary(report, gaps))


def _line(finding: Finding, prefix: str) -> str:
    place = f"{finding.file}:{finding.line}" if finding.line else finding.file
    return f"{printable(place)}: {prefix}{finding.kind}: {printable(finding.message)}"


def _summary(report: Report, gaps: list[Gap]) -> str:
    counted = f"{_count(report.events, 'event')} of {_count(len(report.writers), 'writer')} in"
    found = [_count(len(report.findings), "finding")] if report.findings else []
    found += [_count(len(gaps), "gap")] if gaps else []
    return f"{counted} {_count(report.files, 'file')}: {' and '.join(found) or 'whole'}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
