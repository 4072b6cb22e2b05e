"""Check audit files: is every line as it was written, in its place, and the last one still there?

Found: a changed line, missing lines, lines out of order or repeated, a torn or foreign line, an event outside the
schema, a cut tail (by the head file), a head that is missing or does not belong, a chain begun anew.
Not found: lines after the head that were cut before they were made durable, and a file rewritten whole together with
its head by someone who was root on the host (compare heads kept elsewhere for that).

Files of one host and writer (rotated ones included) are read as one chain, oldest first. Lines are streamed: only
gaps are remembered, so a large trail takes time but no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from audit import events
from audit.findings import Finding, Report
from audit.line import (
    FRAME,
    GENESIS,
    ZERO_HASH,
    Link,
    canonical,
    line_hash,
    parse_line,
    parse_link,
)
from audit.reading import (
    Base,
    Place,
    find_files,
    find_heads,
    identity,
    is_received,
    read_base,
    read_lines,
    side_file,
    unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


ADMIN = "admin"
"""The writer of root's own trail on the head node, about the trails themselves."""


class _Gap(NamedTuple):
    low: int
    high: int
    noticed: Place


class _Head:
    """What a head file promises, and where a line with its seq was met."""

    def __init__(self, link: Link, trail: Path) -> None:
        self.link = link
        self.trail = trail
        self.kept = False
        self.place: Place | None = None


def verify(paths: Iterable[Path]) -> Report:
    """Check every file; findings come in the order of the files. Raises ConfigError when a file cannot be read."""
    paths = list(paths)
    files = find_files(paths)
    groups: dict[tuple[str, bool], list[tuple[str, Path]]] = {}
    for path in files:
        name, first = identity(path)
        # a copy is a chain of its own beside the node's, where both can be read
        groups.setdefault((name, is_received(path)), []).append((first, path))
    findings = _orphans(paths, files)
    notes: list[Finding] = []
    count = 0
    bases: list[tuple[str, Base]] = []
    pruned: set[str] = set()
    for name, received in sorted(groups):
        walk = _Walk(name)
        walk.run([path for _, path in sorted(groups[name, received])])
        bases += [(path.name, base) for path, base in walk.bases]
        pruned |= walk.pruned
        findings += walk.findings
        notes += walk.notes
        count += walk.count
    if any(name.endswith(f"-{ADMIN}") for name, _ in groups):
        # root's own trail, which no daemon can write, tells of every deletion
        findings += [
            Finding("missing", file, 0, f"lines up to {base.link.seq} are gone, and no audit.pruned tells of that")
            for file, base in bases
            if base.manifest not in pruned
        ]
    return Report(len(files), count, sorted({name for name, _ in groups}), findings, notes)


def walk_part(name: str, files: Sequence[Path], before: Link) -> list[Finding]:
    """Check a part of a chain, ``files`` in their order, that follows the line ``before``."""
    walk = _Walk(name)
    walk.last = before
    walk.walk(files)
    walk.finish()
    return walk.findings


def _orphans(paths: Iterable[Path], files: Iterable[Path]) -> list[Finding]:
    """Head files in the given directories whose trail is gone altogether."""
    owned = {side_file(path) for path in files}
    return [
        Finding("truncated", str(head), 0, "the whole file that this head belongs to is gone")
        for head in find_heads(paths)
        if head not in owned
    ]


class _Walk:
    """One chain from its first line to its last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []
        self.count = 0
        self.last = GENESIS
        self.last_place: Place | None = None
        self.boot = ""
        self.gaps: list[_Gap] = []
        self.torn: list[Place] = []
        self.heads: list[_Head] = []
        self.bases: list[tuple[Path, Base]] = []
        self.pruned: set[str] = set()

    def run(self, files: Sequence[Path]) -> None:
        """Read the files, which are of one host and writer and in their order."""
        for side in dict.fromkeys(map(side_file, files)):
            self._read_head(side, next(path for path in reversed(files) if side_file(path) == side))
        self._start(files)
        self.walk(files)
        self.finish()

    def _start(self, files: Sequence[Path]) -> None:
        """Where older files were deleted after an export, the chain goes on from what is said of them."""
        first = next((line for path in files[:1] for _, raw in read_lines(path) if (line := parse_line(raw))), None)
        base = read_base(files[0]) if files and first else None
        if first is None or base is None or int(str(first["seq"])) <= base.link.seq:
            return
        self.last = base.link
        self.bases.append((files[0], base))
        message = f"lines up to {base.link.seq} were deleted here; they are in the export {base.manifest}"
        self.notes.append(Finding("pruned", str(files[0]), 0, message))

    def walk(self, files: Sequence[Path]) -> None:
        """Read them, from what is known of the chain so far."""
        for path in files:
            fresh = True
            for place, raw in read_lines(path):
                line = parse_line(raw)
                if line is None or f"{line['host']}-{line['writer']}" != self.name:
                    self.torn.append(place)
                    continue
                self.count += 1
                self._line(place, raw, line, fresh=fresh)
                fresh = False
            self._settle_torn()

    def _find(self, kind: str, place: Place | None, message: str) -> None:
        self.findings.append(
            Finding(kind, place.file if place else self.name, place.line if place else 0, message),
        )

    def _read_head(self, side: Path, trail: Path) -> None:
        try:
            raw = side.read_bytes()
        except FileNotFoundError:
            self.findings.append(
                Finding("head", str(trail), 0, f"{side.name} is missing: a cut tail cannot be excluded")
            )
            return
        except OSError as error:
            raise unreadable(side, error) from error
        link = parse_link(raw)
        if link is None:
            self.findings.append(Finding("head", str(side), 1, "this is no head of an audit file"))
        else:
            self.heads.append(_Head(link, trail))

    def _line(self, place: Place, raw: bytes, line: dict[str, object], *, fresh: bool) -> None:
        link = Link(int(str(line["seq"])), str(line["hash"]))
        if not self._as_written(place, raw, line):
            # its seq cannot be trusted either: it holds the place where it stands, so that one change is one finding
            self._settle_torn()
            self._advance(place, Link(self.last.seq + 1, link.hash), str(line["boot"]))
            return
        self._check_schema(place, line)
        if line["event"] == "audit.pruned" and line["writer"] == ADMIN:
            self.pruned.add(str(line.get("digest")))
        self._settle_torn(line, place)
        if link.seq == 1 and line["prev"] == ZERO_HASH and self.last_place is not None:
            self._second_genesis(place, link, line, fresh=fresh)
        elif link.seq <= self.last.seq:
            self._out_of_order(place, link.seq)
        else:
            self._follows(place, link, line)

    def _as_written(self, place: Place, raw: bytes, line: dict[str, object]) -> bool:
        try:
            if canonical(line).encode("ascii") + b"\n" == raw and line_hash(line) == line["hash"]:
                return True
        except (ValueError, RecursionError):
            pass  # JSON of a kind that we never write: NaN, infinity, a thousand brackets
        self._find("changed", place, f"line {line['seq']} of the chain is not what was written (its hash differs)")
        return False

    def _check_schema(self, place: Place, line: dict[str, object]) -> None:
        fields = {name: value for name, value in line.items() if name not in FRAME}
        try:
            events.check(str(line["event"]), fields)
        except ValueError as error:
            self._find("schema", place, str(error))

    def _follows(self, place: Place, link: Link, line: dict[str, object]) -> None:
        expected = self.last.seq + 1
        if link.seq > expected:
            self.gaps.append(_Gap(expected, link.seq - 1, place))
        elif line["prev"] != self.last.hash:
            self._find(
                "changed",
                self.last_place or place,
                f"line {link.seq} of the chain names another line before it: the one that stands there was replaced",
            )
        self._advance(place, link, str(line["boot"]))

    def _advance(self, place: Place, link: Link, boot: str) -> None:
        for head in self.heads:
            if head.link.seq == link.seq:
                head.kept, head.place = head.kept or head.link.hash == link.hash, place
        self.last, self.last_place, self.boot = link, place, boot

    def _second_genesis(self, place: Place, link: Link, line: dict[str, object], *, fresh: bool) -> None:
        if line["boot"] == self.boot or not fresh:
            self._find("genesis", place, f"the chain begins anew after line {self.last.seq}, in one boot or one file")
        self._close_gaps()
        self._advance(place, link, str(line["boot"]))

    def _out_of_order(self, place: Place, seq: int) -> None:
        for index, gap in enumerate(self.gaps):
            if gap.low <= seq <= gap.high:
                parts = (_Gap(gap.low, seq - 1, gap.noticed), _Gap(seq + 1, gap.high, gap.noticed))
                self.gaps[index : index + 1] = [part for part in parts if part.low <= part.high]
                self._find("reordered", place, f"line {seq} of the chain stands after line {self.last.seq}")
                return
        self._find("repeated", place, f"line {seq} of the chain is there a second time")

    def _settle_torn(self, line: dict[str, object] | None = None, place: Place | None = None) -> None:
        """Lines that are none of ours: a note when the writer has told of exactly these bytes, else findings."""
        if not self.torn:
            return
        first, last = self.torn[0], self.torn[-1]
        told = -1
        if line is not None and place is not None and line["event"] == "audit.recovered" and line.get("lost") == 0:
            count = line.get("bytes")
            told = count if isinstance(count, int) and place.file == first.file else -1
        if told >= 0 and last.end - first.start in (told, told + 1):
            self.notes.append(Finding("torn", first.file, first.line, f"{told} bytes torn by a crash, and told of"))
        else:
            for torn in self.torn:
                self._find("foreign", torn, "this is not a whole audit line of this host and writer")
        self.torn = []

    def _close_gaps(self) -> None:
        for gap in self.gaps:
            which = f"line {gap.low}" if gap.low == gap.high else f"lines {gap.low} to {gap.high}"
            self._find("missing", gap.noticed, f"{which} of the chain missing before this one")
        self.gaps = []

    def finish(self) -> None:
        self._close_gaps()
        for head in self.heads:
            if head.kept:
                continue
            if head.place is not None:
                self._find("changed", head.place, f"the head file promises another line {head.link.seq}")
            elif head.link.seq > self.last.seq:
                lost = head.link.seq - self.last.seq
                line = self.last_place.line if self.last_place and self.last_place.file == str(head.trail) else 0
                message = f"the tail was cut: the head file promises line {head.link.seq}, {lost} more than are here"
                self.findings.append(Finding("truncated", str(head.trail), line, message))
