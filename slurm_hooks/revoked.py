"""The revocations that are in force: one small file for each, written by the lifecycle daemon, read by both deciders.

A file of the right owner that cannot be read counts as a revocation of everything: nothing tagged starts until it is
mended. Only its own writer can put one there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from conf.errors import BackendUnavailable
from conf.tag import Tag

LOG = logging.getLogger(__name__)

RULES = {
    "job": "revoked.job",
    "user": "revoked.user",
    "role": "revoked.role",
    "dataset": "revoked.dataset",
    "node": "revoked.node",
    "jurisdiction": "revoked.jurisdiction",
    "": "revoked.unreadable",
}
"""What can be revoked, and the rule that refuses it; "" for a file that cannot be read."""
STOP, FREEZE, RESUME = "stop", "freeze", "resume"
MODES = (STOP, FREEZE, RESUME)
"""What is to become of the jobs; of a job that several are about, the first of these counts."""
JOB_FOR = 30 * 86400.0
"""Seconds for which one job stays revoked; Slurm's numbers begin again one day, and another job would be meant."""
MAX_BYTES = 4 * 1024 * 1024

_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)
_VALUE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,255}", re.ASCII)


@attrs.frozen(kw_only=True)
class Subject:
    """What a revocation may be about: a job that runs, waits or is submitted, as far as it is known.

    ``roles``: those that may have let it in. ``places``: the jurisdictions that it runs in or may run in.
    """

    uid: int
    tag: Tag
    job: int | None = None
    nodes: tuple[str, ...] = ()
    roles: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()


@attrs.frozen(kw_only=True)
class Revocation:
    """``kind`` and ``value``: what is revoked, by ``uid`` where it is a user. ``at`` in Unix seconds.

    ``jobs``: those that ran when it was ordered, or started at that moment, each with its nodes. ``done``: when all of
    them were confirmed as stopped and without keys; 0 until then.

    ``mode``: :data:`STOP` for good; :data:`FREEZE` so that they may go on; :data:`RESUME`: they are told to, and what
    is like them is refused until all have confirmed.
    """

    id: str
    kind: str
    value: str
    uid: int | None = None
    at: float = 0.0
    reason: str = ""
    done: float = 0.0
    jobs: Mapping[int, tuple[str, ...]] = attrs.field(factory=dict)
    mode: str = STOP

    @property
    def rule(self) -> str:
        """The rule that refuses what it is about."""
        return RULES[self.kind]

    @property
    def words(self) -> str:
        """What is revoked, for a message."""
        return f"{self.kind} {self.value}" if self.kind else "a revocation that cannot be read"

    @property
    def told(self) -> str:
        """The same for the audit trail, in which people are numbers."""
        return f"user with uid {self.uid}" if self.kind == "user" else self.words

    def holds(self, now: float) -> bool:
        """Whether it is still in force."""
        return self.kind != "job" or self.mode != STOP or now < self.at + JOB_FOR

    def is_about(self, subject: Subject) -> bool:
        """Whether it revokes this."""
        if self.kind == "user":
            return subject.uid == self.uid
        about: Mapping[str, Collection[str]] = {
            "job": () if subject.job is None else (str(subject.job),),
            "role": subject.roles,
            "dataset": subject.tag.datasets,
            "node": subject.nodes,
            "jurisdiction": subject.places,
            "": (self.value,),
        }
        return self.value in about[self.kind]


def safe_value(value: str) -> bool:
    """Whether a name can be what is revoked: nothing that any of our names could not be."""
    return bool(_VALUE.fullmatch(value))


def write(folder: str, revocation: Revocation) -> None:
    """Put it on the disk, whole, before this returns. BackendUnavailable when that fails: nothing is revoked then."""
    said: dict[str, Any] = attrs.asdict(revocation)
    said |= {"jobs": {str(job): list(nodes) for job, nodes in revocation.jobs.items()}}
    temporary = Path(folder, f".{revocation.id}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o640)
            json.dump(said, file)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(Path(folder, f"{revocation.id}.json"))
        _sync(folder)
    except OSError as error:
        raise BackendUnavailable(
            f"{folder}: the revocation cannot be written: {error.strerror}",
            advice="it must belong to the lifecycle daemon's account, and have space (conf/tmpfiles)",
        ) from None


def remove(folder: str, name: str) -> None:
    """Lift it. BackendUnavailable when that fails: it stays in force."""
    try:
        Path(folder, f"{name}.json").unlink(missing_ok=True)
        _sync(folder)
    except OSError as error:
        raise BackendUnavailable(f"{folder}: the revocation stays in force: {error.strerror}") from None


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: str, owner: int) -> tuple[Revocation, ...]:
    """What is in force by the files of ``owner`` (and root's), the oldest first. No folder: none.

    BackendUnavailable for a folder that cannot be read or trusted.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise BackendUnavailable(f"{folder}: {error.strerror}") from None
    try:
        info = os.fstat(descriptor)
        if info.st_uid not in (owner, 0) or info.st_mode & (stat.S_IWOTH | stat.S_IWGRP):
            raise BackendUnavailable(f"{folder} belongs to uid {info.st_uid}, or others can write to it")
        names = [name for name in os.listdir(descriptor) if name.endswith(".json")]  # noqa: PTH208
        found = [_one(descriptor, name, owner) for name in names]
    finally:
        os.close(descriptor)
    return tuple(sorted((one for one in found if one is not None), key=lambda one: (one.at, one.id)))


def _one(folder: int, name: str, owner: int) -> Revocation | None:
    broken = Revocation(id=name.removesuffix(".json"), kind="", value=name)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError:
        return broken
    try:
        info = os.fstat(descriptor)
        if info.st_uid not in (owner, 0) or not stat.S_ISREG(info.st_mode):
            LOG.error("%s among the revocations belongs to uid %d, or is no file: it is left aside", name, info.st_uid)
            return None
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _parsed(json.loads(file.read(MAX_BYTES)), broken.id)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        LOG.error("the revocation %s cannot be read: nothing tagged starts until it is mended", name)
        return broken
    finally:
        os.close(descriptor)


def _parsed(said: dict[str, Any], name: str) -> Revocation:
    kind, value, uid = said["kind"], said["value"], said["uid"]
    if not _NAME.fullmatch(name) or said["id"] != name or kind not in RULES or not kind or not safe_value(value):
        raise ValueError(name)
    mode = said.get("mode", STOP)
    if (kind == "user" and type(uid) is not int) or mode not in MODES:
        raise ValueError(name)
    jobs = {int(job): tuple(str(node) for node in nodes) for job, nodes in said["jobs"].items()}
    at, done, reason = float(said["at"]), float(said["done"]), str(said["reason"])
    return Revocation(id=name, kind=kind, value=value, uid=uid, at=at, reason=reason, done=done, jobs=jobs, mode=mode)


class Revoked:
    """The decision daemon's side: what was read last. :meth:`look` does file I/O, ``all`` is memory."""

    def __init__(self, folder: str, owner: int) -> None:
        self.all: tuple[Revocation, ...] = ()
        self._folder = folder
        self._owner = owner

    def look(self) -> None:
        """Read them. BackendUnavailable when that fails: then those of before stay in force."""
        found = read(self._folder, self._owner)
        # the very same object as long as nothing changes: what was concluded from it holds as long
        if found != self.all:
            self.all = found
