"""Audit files for the one who reads them: which there are, and every line with its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from audit.line import HEAD_SUFFIX, TRAIL_SUFFIX
from conf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
    return TRAIL_SUFFIX in path.name and not path.name.endswith(HEAD_SUFFIX) and not path.name.startswith(".")


def is_head(path: Path) -> bool:
    """Whether the name is that of a head file, and not of one that was being written."""
    return path.name.endswith(TRAIL_SUFFIX + HEAD_SUFFIX) and not path.name.startswith(".")


def side_file(path: Path) -> Path:
    """The head file of an audit file; a rotated one (``x.jsonl.1``) shares that of ``x.jsonl``."""
    return path.with_name(path.name.partition(TRAIL_SUFFIX)[0] + TRAIL_SUFFIX + HEAD_SUFFIX)


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
