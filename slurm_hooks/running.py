"""Where tagged jobs run: one small file for each, written by the lifecycle daemon, read by the decision daemon.

What is submitted on a node where a tagged job of the same user runs may come from inside that job, and then it must
carry a tag at least as strong. slurmctld tells the filter from which host a job comes, not from which job.

A file that stays behind (an EpilogSlurmctld that never ran) only refuses more, and only to that user on those nodes.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from conf.errors import BackendUnavailable, UsageError
from conf.tag import Tag, parse_extra

LOG = logging.getLogger(__name__)
MAX_BYTES = 1024 * 1024
LOOK_EVERY = 0.1
"""Seconds between two looks of the decision daemon, and twice that what a start waits after it was written down."""


class Inside(NamedTuple):
    """A tagged job that runs on a node: whose it is, and its tag."""

    job: int
    uid: int
    tag: Tag


Places = Mapping[str, tuple[Inside, ...]]
"""Node names in lower case, and what runs there."""


def write(folder: str, job: int, uid: int, tag: Tag, nodes: tuple[str, ...]) -> None:
    """Say where a job runs, before it does. BackendUnavailable when that cannot be written: then it must not start."""
    text = json.dumps({"uid": uid, "tag": tag.to_extra(), "nodes": list(nodes)})
    temporary = Path(folder, f".{job}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o640)
            file.write(text)
        temporary.replace(Path(folder, str(job)))
    except OSError as error:
        raise BackendUnavailable(
            f"{folder}: where job {job} runs cannot be written: {error.strerror}",
            advice="it must belong to the lifecycle daemon's account, and have space (conf/tmpfiles)",
        ) from None


def remove(folder: str, job: int) -> None:
    """The job runs nowhere any more. May be repeated; what cannot be removed only refuses more."""
    try:
        Path(folder, str(job)).unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("%s: job %d still counts as running: %s", folder, job, error.strerror)


class Running:
    """The decision daemon's side: what was read last. :meth:`look` does file I/O, ``places`` is memory.

    Only files of the account ``writer`` count, and root's.
    """

    def __init__(self, folder: str, writer: str) -> None:
        self.places: Places = {}
        self._folder = folder
        try:
            self._owner = pwd.getpwnam(writer).pw_uid
        except KeyError:
            self._owner = 0
        self._seen: int | None = None
        self._jobs: dict[str, tuple[int, tuple[str, ...], Inside] | None] = {}

    def look(self) -> None:
        """Read what is new. A folder that is not there says that nothing runs; one that cannot be read changes nothing.

        Raises BackendUnavailable for a folder that belongs to somebody else.
        """
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self.places, self._jobs = {}, {}
            return
        except OSError as error:
            raise BackendUnavailable(f"{self._folder}: {error.strerror}") from None
        try:
            info = os.fstat(descriptor)
            if info.st_uid not in (self._owner, 0) or info.st_mode & stat.S_IWOTH:
                raise BackendUnavailable(f"{self._folder} belongs to uid {info.st_uid}, or others can write to it")
            if info.st_mtime_ns != self._seen:
                self._read(descriptor)
                self._seen = info.st_mtime_ns
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> None:
        jobs: dict[str, tuple[int, tuple[str, ...], Inside] | None] = {}
        for name in os.listdir(descriptor):
            if name.isascii() and name.isdigit() and len(name) <= 10:
                jobs[name] = self._one(descriptor, name)
        self._jobs = jobs
        places: dict[str, list[Inside]] = {}
        for _, nodes, inside in filter(None, jobs.values()):
            for node in nodes:
                places.setdefault(node.lower(), []).append(inside)
        self.places = {node: tuple(inside) for node, inside in places.items()}

    def _one(self, folder: int, name: str) -> tuple[int, tuple[str, ...], Inside] | None:
        """One file; None for one that says nothing that can be read."""
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            return None
        try:
            info = os.fstat(descriptor)
            known = self._jobs.get(name)
            if known is not None and known[0] == info.st_mtime_ns:
                return known
            if not stat.S_ISREG(info.st_mode) or info.st_uid not in (self._owner, 0):
                return None
            try:
                said = json.loads(os.read(descriptor, MAX_BYTES))
                inside = Inside(int(name), int(said["uid"]), parse_extra(said["tag"]))
                nodes = tuple(str(node) for node in said["nodes"])
            except (OSError, ValueError, KeyError, TypeError, UsageError):
                LOG.error("%s/%s cannot be read", self._folder, name)
                return None
            return info.st_mtime_ns, nodes, inside
        finally:
            os.close(descriptor)
