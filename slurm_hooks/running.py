"""Where tagged jobs run: one small file for each, written by the lifecycle daemon, read by the decision daemon.

What is submitted on a node where a tagged job of the same user runs may come from inside that job, and then it must
carry a tag at least as strong. slurmctld tells the filter from which host a job comes, not from which job.

A file that stays behind (an EpilogSlurmctld that never ran) only refuses more, and only to that user on those nodes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import BackendUnavailable, UsageError
from conf.tag import Tag, parse_extra
from slurm_hooks import hostnames

LOG = logging.getLogger(__name__)
MAX_BYTES = 1024 * 1024
_TURN = threading.Lock()
"""Held by whoever changes a file: what was read must not be written back over a change, or over an end."""
LOOK_EVERY = 0.1
"""Seconds between two looks of the decision daemon, and twice that what a start waits after it was written down."""


class Inside(NamedTuple):
    """A tagged job that runs on a node: whose it is, and its tag."""

    job: int
    uid: int
    tag: Tag


Places = Mapping[str, tuple[Inside, ...]]
"""Node names in lower case, and what runs there."""


By = tuple[str, tuple[str, ...]]
"""The login name of whose job it is, and the roles of his that gave it what it has."""


def write(  # noqa: PLR0917  as it stands in the file
    folder: str, job: int, uid: int, tag: Tag, nodes: tuple[str, ...], by: By = ("", ())
) -> None:
    """Say where a job runs, before it does. BackendUnavailable when that cannot be written: then it must not start."""
    said: dict[str, object] = {"uid": uid, "tag": tag.to_extra(), "nodes": list(nodes)}
    text = json.dumps({**said, "user": by[0], "roles": list(by[1])})
    try:
        with _TURN:
            _replace(folder, job, text)
    except OSError as error:
        raise BackendUnavailable(
            f"{folder}: where job {job} runs cannot be written: {error.strerror}",
            advice="it must belong to the lifecycle daemon's account, and have space (conf/tmpfiles)",
        ) from None


def remove(folder: str, job: int) -> None:
    """The job runs nowhere any more. May be repeated; what cannot be removed only refuses more."""
    try:
        with _TURN:
            Path(folder, str(job)).unlink(missing_ok=True)
    except OSError as error:
        LOG.warning("%s: job %d still counts as running: %s", folder, job, error.strerror)


def _change(folder: str, job: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Say something else of the same start: the file keeps its time. OSError, ValueError, TypeError."""
    path = Path(folder, str(job))
    with _TURN:
        before = path.stat()
        said = json.loads(path.read_bytes())
        _replace(folder, job, json.dumps({**said, **change(said)}), before)


def _replace(folder: str, job: int, text: str, before: os.stat_result | None = None) -> None:
    """Exchange the file for one with this text, and the times of the one ``before``."""
    temporary = Path(folder, f".{job}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o640)
        file.write(text)
    if before is not None:
        os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
    temporary.replace(Path(folder, str(job)))


def bind(folder: str, job: int, instances: Mapping[str, str]) -> None:
    """Say which instance the job has on these nodes; what was said of others stays. BackendUnavailable."""
    try:
        _change(folder, job, lambda said: {"instances": {**said.get("instances", {}), **instances}})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BackendUnavailable(f"{folder}: which instances job {job} has cannot be written: {error}") from None


def bound(folder: str, job: int) -> dict[str, str]:
    """Which instance the job has on each node, as far as that is known; nothing when it runs nowhere any more."""
    try:
        said = json.loads(Path(folder, str(job)).read_bytes()).get("instances", {})
        return {str(node): str(instance) for node, instance in said.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise BackendUnavailable(f"{folder}: which instances job {job} has cannot be read: {error}") from None


def settle(folder: str, job: int) -> None:
    """The job stands on no role any more. Its file keeps its time, for it is still the same start."""
    try:
        _change(folder, job, lambda _: {"roles": []})
    except (OSError, ValueError, TypeError) as error:
        LOG.warning(
            "%s: the roles of job %d cannot be taken out of its file, they are looked at again: %s", folder, job, error
        )


def known(folder: str) -> dict[int, int]:
    """The jobs that have a file, and when it was written, in nanoseconds: another start writes it anew.

    BackendUnavailable when the folder cannot be read.
    """
    found: dict[int, int] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if re.fullmatch(r"[1-9][0-9]{0,9}", entry.name, re.ASCII):
                    with contextlib.suppress(FileNotFoundError):
                        found[int(entry.name)] = entry.stat(follow_symlinks=False).st_mtime_ns
    except OSError as error:
        raise BackendUnavailable(f"{folder}: where jobs run cannot be read: {error.strerror}") from None
    return found


def all_jobs(folder: str) -> list[tuple[Inside, tuple[str, ...]]]:
    """Every job there is a file of, with its nodes, for the account that wrote them. BackendUnavailable."""
    reader = Running(folder, os.geteuid())
    reader.look()
    return reader.found()


def by_roles(folder: str) -> dict[tuple[int, int], tuple[Inside, By]]:
    """The jobs that stand on a role, by number and when their file was written. BackendUnavailable.

    What cannot be read stands on none.
    """
    found: dict[tuple[int, int], tuple[Inside, By]] = {}
    for job, written in known(folder).items():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, UsageError):
            said = json.loads(Path(folder, str(job)).read_bytes())
            by = str(said["user"]), tuple(str(role) for role in said["roles"])
            if by[0] and by[1]:
                found[job, written] = Inside(job, int(said["uid"]), parse_extra(said["tag"])), by
    return found


class Running:
    """The decision daemon's side: what was read last. :meth:`look` does file I/O, ``places`` is memory.

    Only files of the uid ``owner`` count, and root's.
    """

    def __init__(self, folder: str, owner: int) -> None:
        self.places: Places = {}
        self.hosts: hostnames.Hosts | None = None
        self._folder = folder
        self._owner = owner
        self._seen: int | None = None
        self._jobs: dict[str, tuple[int, tuple[str, ...], Inside] | None] = {}

    def found(self) -> list[tuple[Inside, tuple[str, ...]]]:
        """The jobs that were read last, by number, each with its nodes as they are called."""
        return sorted((inside, nodes) for _, nodes, inside in filter(None, self._jobs.values()))

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
                # in one step: who decides meanwhile has the one before
                self.hosts = self._hosts(descriptor)
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

    def _hosts(self, folder: int) -> hostnames.Hosts | None:
        """The table of :mod:`slurm_hooks.hostnames`; one that is missing, damaged or somebody else's is none."""
        try:
            descriptor = os.open(
                hostnames.FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
            )
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode) or info.st_uid not in (self._owner, 0):
                return None
            try:
                return hostnames.parse(file.read(hostnames.MAX_BYTES))
            except ValueError:
                LOG.error("%s/%s cannot be read", self._folder, hostnames.FILE)
                return None

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
