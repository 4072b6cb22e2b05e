"""Notes of ended jobs, on disk before anything else happens: SlurmUser writes them, the lifecycle daemon removes them.

One file a job, ``<job>.<random>``, holding its nodes one a line. The folder belongs to the lifecycle daemon and is
writable by SlurmUser's group; the content is checked like any input. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import NamedTuple

from conf.slurmnames import is_node_name

_NAME = re.compile(r"([1-9][0-9]{0,9})\.[0-9a-f]{16}")
_LIMIT = 2 * 1024 * 1024


class EndedJob(NamedTuple):
    """A job that Slurm called ended, and the note that says so. No nodes: wherever it has grants."""

    job: int
    nodes: tuple[str, ...]
    path: str


def write(folder: str, job: int, nodes: tuple[str, ...]) -> None:
    """Leave a note that survives a power cut. Raises OSError when it cannot."""
    name = f"{job}.{os.urandom(8).hex()}"
    temporary = f"{folder}/.{name}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
            # SlurmUser writes it, the daemon reads it; nobody else gets into the folder, and node names are no secret
            os.fchmod(file.fileno(), 0o644)
            file.write("\n".join(nodes) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, f"{folder}/{name}")  # noqa: PTH104  pathlib is too heavy for a hook
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: str, job: int | None = None) -> list[EndedJob]:
    """The notes there are, or those of one job, the lowest number first. Raises OSError when the folder cannot be read.

    What is not a proper note (a link, a pipe, a folder, a file too large or with anything but nodes' names in it) is
    left alone and not returned.
    """
    found = []
    for name in sorted(os.listdir(folder)):  # noqa: PTH208
        match = _NAME.fullmatch(name)
        if match and job in (None, int(match[1])):
            nodes = _nodes(f"{folder}/{name}")
            if nodes is not None:
                found.append(EndedJob(int(match[1]), nodes, f"{folder}/{name}"))
    return sorted(found)


def _nodes(path: str) -> tuple[str, ...] | None:
    """The nodes in a note; None for what is not a note, a cut or an empty file among it."""
    try:
        # without O_NONBLOCK a pipe would be waited for, and with it every key that is to be destroyed
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with os.fdopen(descriptor, encoding="ascii", closefd=False) as file:
            text = file.read(_LIMIT + 1)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    # a note that was cut could end in the name of another node
    lines = text.split()
    whole = len(text) <= _LIMIT and text.endswith("\n")
    return tuple(lines) if whole and all(is_node_name(line) for line in lines) else None


def remove(note: EndedJob) -> None:
    """Take a note away, once Vault has confirmed, so that it stays away.

    One that a power cut brought back would end the job's next start: who reads it then cannot know that it is old.
    """
    try:
        os.unlink(note.path)  # noqa: PTH108
    except FileNotFoundError:
        return
    _sync(os.path.dirname(note.path))  # noqa: PTH120
