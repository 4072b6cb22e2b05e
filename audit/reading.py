"""Audit files for the one who reads them: which there are, and every line with its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from audit.line import HEAD_SUFFIX, TRAIL_SUFFIX
from conf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LINE_LIMIT = 65536
"""Bytes; a longer line is none of ours."""


class Place(NamedTuple):
    """Where a line is: ``start`` and ``end`` are its bytes in the file."""

    file: str
    line: int
    start: int
    end: int


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The audit files among ``paths``; a directory stands for every ``*.jsonl*`` in it. ConfigError if unreadable."""
    found: list[Path] = []
    for path in paths:
        try:
            inside = sorted(path.iterdir()) if path.is_dir() else None
        except OSError as error:
            raise unreadable(path, error) from error
        if inside is None:
            found.append(path)
        else:
            found += [file for file in inside if TRAIL_SUFFIX in file.name and not _is_side_file(file)]
    if not found:
        raise ConfigError(
            "there is no audit file to read", advice="Name a file, or a directory that holds *.jsonl files."
        )
    return list(dict.fromkeys(found))


def side_file(path: Path) -> Path:
    """The head file of an audit file; a rotated one (``x.jsonl.1``) shares that of ``x.jsonl``."""
    return path.with_name(path.name.partition(TRAIL_SUFFIX)[0] + TRAIL_SUFFIX + HEAD_SUFFIX)


def _is_side_file(path: Path) -> bool:
    return path.name.endswith(HEAD_SUFFIX) or path.name.startswith(".")


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
