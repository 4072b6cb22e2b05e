"""Audit files for the one who reads them: which there are, and every line with its place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from audit.line import BASE_SUFFIX, HEAD_SUFFIX, TRAIL_SUFFIX, Link, parse_line, parse_link
from conf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

RECEIVED = "nodes"
"""The folder, in the lifecycle daemon's, with what the nodes have sent."""
LINE_LIMIT = 65536
"""Bytes; a longer line is none of ours."""


class Place(NamedTuple):
    """Where a line is: ``start`` and ``end`` are its bytes in the file."""

    file: str
    line: int
    start: int
    end: int


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The audit files among ``paths``; a directory stands for every ``*.jsonl*`` in it and below it.

    Raises ConfigError for what cannot be read: a folder that is passed over would look like one that is whole.
    """
    found: list[Path] = []
    for path in paths:
        found += _below(path, is_trail) if path.is_dir() else [path]
    if not found:
        raise ConfigError(
            "there is no audit file to read", advice="Name a file, or a directory that holds *.jsonl files."
        )
    return list(dict.fromkeys(found))


def find_heads(paths: Iterable[Path]) -> list[Path]:
    """The head files in the directories among ``paths``."""
    return [head for path in paths if path.is_dir() for head in _below(path, is_head)]


def _below(directory: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    def fail(error: OSError) -> NoReturn:
        raise unreadable(Path(error.filename or directory), error)

    walk = os.walk(directory, onerror=fail)
    return sorted(path for folder, _, names in walk for name in names if wanted(path := Path(folder, name)))


def is_trail(path: Path) -> bool:
    """Whether the name is that of an audit file, rotated or not."""
    other = path.name.endswith((HEAD_SUFFIX, BASE_SUFFIX)) or path.name.startswith(".")
    return TRAIL_SUFFIX in path.name and not other


def is_head(path: Path) -> bool:
    """Whether the name is that of a head file, and not of one that was being written."""
    return path.name.endswith(TRAIL_SUFFIX + HEAD_SUFFIX) and not path.name.startswith(".")


def is_received(path: Path) -> bool:
    """Whether it is the head node's copy of a node's trail: below ``nodes``, in a folder that is called as the node."""
    folder = path.parent
    return folder.parent.name == RECEIVED and path.name.startswith(f"{folder.name}-")


def side_file(path: Path) -> Path:
    """The head file of an audit file; a rotated one (``x.jsonl.1``) shares that of ``x.jsonl``."""
    return path.with_name(path.name.partition(TRAIL_SUFFIX)[0] + TRAIL_SUFFIX + HEAD_SUFFIX)


class Base(NamedTuple):
    """The last line that was deleted after an export, and the SHA-256 of the manifest of that."""

    link: Link
    manifest: str


def base_file(path: Path) -> Path:
    """Where that stands, of an audit file."""
    return path.with_name(path.name.partition(TRAIL_SUFFIX)[0] + TRAIL_SUFFIX + BASE_SUFFIX)


def read_base(path: Path) -> Base | None:
    """What was deleted before an audit file; None: nothing, or nothing that can be understood."""
    try:
        raw = base_file(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(base_file(path), error) from error
    link = parse_link(raw)
    found = json.loads(raw).get("manifest") if link is not None else None
    return Base(link, found) if link is not None and isinstance(found, str) else None


def identity(path: Path) -> tuple[str, str]:
    """The ``host-writer`` that a file is of and the time of its first line; by its name when it has no such line."""
    for _, raw in read_lines(path):
        line = parse_line(raw)
        if line is not None:
            return f"{line['host']}-{line['writer']}", str(line["time"])
    return path.name.partition(TRAIL_SUFFIX)[0], ""


def unreadable(path: Path, error: OSError) -> ConfigError:
    """The error for a file that the caller may not read or that is not there."""
    return ConfigError(
        f"cannot read {path}: {error.strerror or error}",
        advice="Run as root or as a member of the audit files' group.",
    )


def read_lines(path: Path) -> Iterator[tuple[Place, bytes]]:
    """Every line of a file with its place; the last may lack its line feed. ConfigError if unreadable."""
    try:
        with path.open("rb") as file:
            number = start = 0
            while raw := file.readline(LINE_LIMIT):
                number += 1
                yield Place(str(path), number, start, start + len(raw)), raw
                start += len(raw)
    except OSError as error:
        raise unreadable(path, error) from error
