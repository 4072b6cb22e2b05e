"""The story of one job, joined from the trails of every host and writer.

A decision at submission has no job id yet, only the nonce of the decision record; a tear-down may know the incarnation
only. So the ids that any line about the job carries are gathered first, and then every line that carries one of them
is told, in the order of time, with what became of the break-glass grants that they name. Job ids wrap in the end: the
story of a reused id shows both jobs, by their nonces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from audit.line import FRAME, TRAIL_SUFFIX, parse_line
from audit.reading import find_files, is_received, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

JOINING = ("nonce", "incarnation", "key")
Line = dict[str, object]


def read_events(paths: Iterable[Path]) -> Iterator[Line]:
    """Every audit line of the files, as it stands; what is no such line is left to the verifier."""
    files = find_files(paths)
    copied = {path.name for path in files if is_received(path)}
    # of a line that stands in a node's trail and in the head node's copy one is told; only these are remembered
    told: set[object] = set()
    for path in sorted(files, key=_in_order):
        for _, raw in read_lines(path):
            line = parse_line(raw)
            if line is None or line["hash"] in told:
                continue
            if copied:
                told.add(line["hash"])
            yield line


def _in_order(path: Path) -> tuple[bool, str, str, bool, str]:
    """The head node's copies last; of one trail the sealed files before the one that is written."""
    trail, _, rest = path.name.partition(TRAIL_SUFFIX)
    return is_received(path), str(path.parent), trail, not rest, rest


def story(lines: Iterable[Line], job: int | None) -> list[Line]:
    """The lines about ``job`` (None: all), oldest first."""
    everything = list(lines)
    if job is None:
        return sorted(everything, key=_when)
    # two rounds: the job leads to an incarnation, the incarnation to a key
    ids: set[tuple[str, object]] = {("job", job)}
    for _ in range(2):
        for line in everything:
            if _about(line, ids):
                ids |= {(name, line[name]) for name in JOINING if name in line}
    told = [line for line in everything if _about(line, ids)]
    # the grants that the job stood on, and of these not what other jobs did with them
    grants = {name for line in told for name in str(line.get("exemption", "")).split(",") if name}
    told += [line for line in everything if line.get("exemption") in grants and _of_grant(line) and line not in told]
    return sorted(told, key=_when)


def _of_grant(line: Line) -> bool:
    return str(line["event"]).startswith("glass.")


def _about(line: Line, ids: set[tuple[str, object]]) -> bool:
    return any((name, line[name]) in ids for name in ("job", *JOINING) if name in line)


def _when(line: Line) -> tuple[str, str, str, int]:
    return str(line["time"]), str(line["host"]), str(line["writer"]), int(str(line["seq"]))


def own_fields(line: Line) -> Line:
    """The fields of the event itself, without the frame of the chain."""
    return {name: value for name, value in line.items() if name not in FRAME}
