"""``secure-slurm audit prune``: delete audit files that are exported, whole in the export, and past their retention.

It shows what it would delete unless it is told to. A file that is being written, that no export has whole, whose export
is not what its manifest says, or that one line of it must be kept, stays. What is deleted is in root's own trail first,
and the verifier is told where the rest of the chain begins.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from admin.audit_export import admin_chain, signature_of
from admin.output import printable, say, say_json, say_table
from audit import bundle
from audit.line import BASE_SUFFIX, HEAD_SUFFIX, TRAIL_SUFFIX, Link, canonical, parse_line
from audit.reading import find_files, read_lines
from audit.retention import Retention, classes_of, keep_until
from audit.store import read_head, write_whole
from audit.story import read_events
from conf.errors import EXIT_OK, ConfigError, Refused
from conf.site import Site, load_site


class Exported(NamedTuple):
    """A verified export: its files by where they came from, and its manifest's SHA-256."""

    digest: str
    entries: dict[str, dict[str, Any]]


class Terms(NamedTuple):
    """What may go: older than ``rule`` says, and in ``exports``. ``classes``: of jobs. ``now``: Unix seconds."""

    rule: Retention
    classes: dict[int, set[str]]
    exports: list[Exported]
    now: float


class Candidate(NamedTuple):
    """One audit file. ``why`` is empty when it may go."""

    path: Path
    why: str
    digest: str
    last: Link


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit prune``."""
    one = commands.add_parser(
        "prune",
        help="delete audit files that are exported and past their retention (shows them first)",
        description="Show the audit files that are whole in an export, and past the time that audit.keep* sets. "
        "With --delete: delete them.",
        allow_abbrev=False,
    )
    one.add_argument(
        "--exported", required=True, action="append", type=Path, metavar="DIR", help="what 'audit export' wrote"
    )
    one.add_argument("--public-key", type=Path, metavar="FILE", help="exports must be signed with this key, PEM")
    one.add_argument("--delete", action="store_true", help="delete; without it nothing is changed")
    one.add_argument("--json", action="store_true", help="print JSON")
    one.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show or delete."""
    site = load_site(args.config)
    root = Path(site.audit.directory)
    exports = [_verified(folder, args.public_key) for folder in args.exported]
    found = candidates(root, _rule(site), exports, time.time())
    going = [one for one in found if not one.why]
    if args.delete:
        _delete(root, going)
    if args.json:
        say_json(
            {
                "deleted": args.delete,
                "files": [{"file": str(one.path), "kept_because": one.why, "export": one.digest} for one in found],
            }
        )
        return EXIT_OK
    rows = [[one.path.relative_to(root), one.why or ("deleted" if args.delete else "would go")] for one in found]
    say_table(["file", "what"], rows)
    say(f"{len(going)} of {len(found)} files {'deleted' if args.delete else 'would go: --delete deletes them'}")
    return EXIT_OK


def _rule(site: Site) -> Retention:
    return Retention(site.audit.keep, site.audit.keep_untagged, {one.name: one.keep for one in site.audit.keep_classes})


def _verified(folder: Path, public_key: Path | None) -> Exported:
    text, found = bundle.read_manifest(folder)
    findings = bundle.check(folder, found)
    if findings:
        raise Refused(
            "bundle.damaged",
            f"{folder} is not what its manifest says: {printable(findings[0].file)}: {findings[0].message}",
            advice=f"secure-slurm audit verify-export {folder}",
        )
    if public_key is not None and signature_of(folder, text, public_key) != "good":
        raise Refused(
            "bundle.signature",
            f"{folder} is not signed with that key",
            advice="name the right key (secure-slurm audit public-key), or export again while Vault answers",
        )
    entries = {entry["source"]: entry for entry in found["files"] if entry["whole"]}
    return Exported(hashlib.sha256(text).hexdigest(), entries)


def candidates(root: Path, rule: Retention, exports: list[Exported], now: float) -> list[Candidate]:
    """Every audit file below ``root``, and why it stays. ``now``: Unix seconds.

    Of one chain only the oldest files may go: a gap in the middle would look like a loss.
    """
    terms = Terms(rule, classes_of(read_events([root])), exports, now)
    found: list[Candidate] = []
    stopped: set[tuple[Path, str]] = set()
    for path in sorted(find_files([root]), key=_by_chain):
        chain = path.parent, path.name.partition(TRAIL_SUFFIX)[0]
        one = _judge(path, root, terms)
        if not one.why and chain in stopped:
            one = one._replace(why="an older file of its chain stays")
        if one.why:
            stopped.add(chain)
        found.append(one)
    return found


def _by_chain(path: Path) -> tuple[str, str, str]:
    first = next((str(line["time"]) for _, raw in read_lines(path) if (line := parse_line(raw))), "")
    return str(path.parent), path.name.partition(TRAIL_SUFFIX)[0], first


def _judge(path: Path, root: Path, terms: Terms) -> Candidate:
    source, nothing = path.relative_to(root).as_posix(), Link(0, "")
    if path.name.endswith(TRAIL_SUFFIX):
        return Candidate(path, "it is being written", "", nothing)
    having = [(one.digest, one.entries[source]) for one in terms.exports if source in one.entries]
    if not having:
        return Candidate(path, "no export has it whole", "", nothing)
    digest, last, until = hashlib.sha256(), nothing, 0.0
    for _, raw in read_lines(path):
        digest.update(raw)
        line = parse_line(raw)
        if line is not None:
            last = Link(int(str(line["seq"])), str(line["hash"]))
            until = max(until, keep_until(line, terms.rule, terms.classes))
    same = next((manifest for manifest, entry in having if entry["sha256"] == digest.hexdigest()), "")
    if not same:
        return Candidate(path, "it is not what was exported", "", last)
    if until > terms.now:
        day = time.strftime("%Y-%m-%d", time.gmtime(min(until, 2.0**33)))
        return Candidate(path, f"a line of it is kept until {day}", same, last)
    return Candidate(path, "", same, last)


def _delete(root: Path, going: list[Candidate]) -> None:
    digests = sorted({one.digest for one in going})
    chain = admin_chain(root) if going else None
    for digest in digests:
        count = sum(one.digest == digest for one in going)
        # before the act: what cannot be told is not deleted
        if chain is not None:
            chain.append("audit.pruned", durable=True, digest=digest, count=count)
    for one in going:
        _delete_one(root, one)


def _delete_one(root: Path, one: Candidate) -> None:
    try:
        if not one.path.parent.resolve(strict=True).is_relative_to(root.resolve(strict=True)):
            raise Refused(
                "bundle.source",
                f"{one.path.parent} leads out of the audit directory",
                advice="find out who put a link there; nothing is deleted in it",
            )
        folder = os.open(one.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            trail = one.path.name.partition(TRAIL_SUFFIX)[0] + TRAIL_SUFFIX
            _write_base(folder, trail, one)
            os.unlink(one.path.name, dir_fd=folder)
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{one.path} cannot be deleted: {error.strerror}") from None
    sys.stderr.write(printable(f"secure-slurm: deleted {one.path}") + "\n")


def _write_base(folder: int, trail: str, one: Candidate) -> None:
    """Say where the chain goes on. The owner of the trail must be able to read it, and to replace it never needs."""
    temporary = f".{trail}{BASE_SUFFIX}.{os.getpid()}"
    head = read_head(folder, trail + HEAD_SUFFIX)
    if head is None or head.seq < one.last.seq:
        # the chain was begun anew since: what goes is of an earlier machine, and nothing follows it
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644, dir_fd=folder)
    try:
        content = {"seq": one.last.seq, "hash": one.last.hash, "manifest": one.digest}
        write_whole(fd, canonical(content).encode("ascii") + b"\n", 0)
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(temporary, trail + BASE_SUFFIX, src_dir_fd=folder, dst_dir_fd=folder)
