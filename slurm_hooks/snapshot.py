"""The members file: what the directory said last, for who must decide without asking it.

slurmctld waits while a job is judged, so the decision daemon looks members up in memory only. One process reads the
directory and replaces this file whole; readers take it whole or keep what they had, until that is too old. Too old,
unreadable or doubtful is a refusal, never an empty answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import BackendUnavailable, ConfigError, Refused
from slurm_hooks.accounts import valid_user_name
from slurm_hooks.membership import Group

VERSION = 1
MAX_BYTES = 128 * 1024 * 1024
MAX_FUTURE = 60.0  # seconds: a clock step that NTP makes in one go
MODE = 0o640

_ADVICE = "ask an administrator to look at the secure-slurm-ldapd service"
_NOBODY: frozenset[str] = frozenset()
_AFTER_DATE = b',"source":'


class Snapshot:
    """One reading of the directory. Lookups are a dictionary access; nothing in here changes after it is made.

    ``loaded_at`` is when the reading began (Unix seconds), ``source`` which server gave it. The keys of ``groups`` are
    the names as the policy writes them.
    """

    __slots__ = ("_by_user", "groups", "loaded_at", "source")

    def __init__(self, loaded_at: float, source: str, groups: Mapping[str, Group]) -> None:
        self.loaded_at = loaded_at
        self.source = source
        self.groups = dict(groups)
        of_user: dict[str, list[str]] = {}
        for dn, group in self.groups.items():
            for name in group.members:
                of_user.setdefault(name, []).append(dn)
        # Thousands of people share a few combinations of groups: one set for each combination keeps this small.
        shared: dict[tuple[str, ...], frozenset[str]] = {}
        self._by_user = {
            name: shared.setdefault(combination, frozenset(combination))
            for name, combination in ((name, tuple(groups)) for name, groups in of_user.items())
        }

    def groups_of(self, user: str) -> frozenset[str]:
        """The policy's groups that this login name is in; empty for somebody unknown."""
        return self._by_user.get(user, _NOBODY)

    def age(self, now: float) -> float:
        """Seconds since the reading began; negative when it lies in the future."""
        return now - self.loaded_at

    def check_age(self, now: float, max_age: float) -> None:
        """Raise :class:`Refused` when this is older than ``max_age`` seconds, or dated after ``now``."""
        age = self.age(now)
        if age < -MAX_FUTURE:
            raise Refused(
                "directory.future",
                f"the group members are dated {-age:.0f} s in the future",
                advice="ask an administrator to check the clock of the head node",
            )
        if not age <= max_age:
            raise Refused(
                "directory.stale",
                f"the group members were read {age:.0f} s ago, more than the {max_age:.0f} s that are accepted",
                advice=f"try again later; if it lasts, {_ADVICE}",
            )

    def dated(self, loaded_at: float) -> Snapshot:
        """The same members, read at another time. Nothing is copied or indexed again."""
        other = object.__new__(Snapshot)
        other.loaded_at, other.source = loaded_at, self.source
        other.groups, other._by_user = self.groups, self._by_user
        return other

    @classmethod
    def load(cls, path: str | Path, owner_uid: int, *, max_age: float, now: float) -> Snapshot:
        """Read, check and index the file.

        Raises :class:`Refused` (rules ``directory.missing``, ``.unsafe``, ``.damaged``, ``.version``, ``.empty``,
        ``.future``, ``.stale``): not there, a link, not ``owner_uid``'s (or root's), writable by others, not what
        :func:`write_snapshot` writes, no group in it, or outside its time.
        """
        snapshot = parse(_read_safely(os.fspath(path), owner_uid))
        snapshot.check_age(now, max_age)
        return snapshot


class _Text(NamedTuple):
    """A members file as it was read: what the refresh changes each time, and all the rest."""

    head: bytes
    rest: bytes

    @classmethod
    def of(cls, data: bytes) -> _Text:
        """Split where :func:`_to_json` has put the date in front of everything else."""
        head, mark, rest = data.partition(_AFTER_DATE)
        return cls(head, mark + rest) if mark else cls(data, b"")


def _parse_like(text: _Text, last: tuple[_Text, Snapshot] | None) -> Snapshot:
    """As :func:`parse`; when only the date is another one than last time, the members are not read again.

    Indexing 50,000 people takes a quarter of a second in which a decision has to wait for the interpreter.
    """
    if last is not None and text.rest and text.rest == last[0].rest:
        # one small group in the place of all: the date goes through the same checks
        return last[1].dated(parse(text.head + _AFTER_DATE + b'"","groups":{"-":{"name":"","members":[]}}}').loaded_at)
    return parse(text.head + text.rest)


def _read_safely(path: str, owner_uid: int) -> bytes:
    try:
        # O_NONBLOCK: a FIFO put in the file's place must not hold the reader
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _missing() from None
    except OSError as error:
        raise _unsafe(path, f"cannot be opened: {os.strerror(error.errno or 0)}") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _unsafe(path, "is not a regular file")
        if info.st_uid not in (owner_uid, 0):
            raise _unsafe(path, f"belongs to uid {info.st_uid}, not {owner_uid}")
        if info.st_mode & 0o022:
            raise _unsafe(path, f"can be written by others (mode {stat.S_IMODE(info.st_mode):04o})")
        if info.st_size > MAX_BYTES:
            raise _unsafe(path, f"has more than {MAX_BYTES} bytes")
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unsafe(path, f"cannot be read: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(fd)


def _missing() -> Refused:
    return Refused(
        "directory.missing", "the group members have not been read yet", advice=f"try again later, or {_ADVICE}"
    )


def _unsafe(path: str, what: str) -> Refused:
    return Refused("directory.unsafe", f"the members file {path} {what}", advice=_ADVICE)


def _damaged(what: str) -> Refused:
    return Refused("directory.damaged", f"the members file is damaged: {what}", advice=_ADVICE)


def parse(data: bytes) -> Snapshot:
    """The snapshot in the bytes of a members file. Raises :class:`Refused`; the age is not looked at."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged("not JSON") from None
    if not isinstance(document, dict):
        raise _damaged("not an object")
    if document.get("version") != VERSION or isinstance(document.get("version"), bool):
        raise Refused(
            "directory.version",
            f"the members file has version {document.get('version')!r}, this program reads {VERSION}",
            advice="restart secure-slurm-ldapd and secure-slurm-decisiond from the same release",
        )
    loaded_at, source, groups = document.get("loaded_at"), document.get("source"), document.get("groups")
    # NaN compares false with everything: as a date it would never be too old
    if isinstance(loaded_at, bool) or not isinstance(loaded_at, int | float) or not 0 < loaded_at < 1e11:
        raise _damaged("loaded_at is not a time")
    if not isinstance(source, str) or not isinstance(groups, dict):
        raise _damaged("source or groups missing")
    if not groups:
        raise Refused("directory.empty", "the members file names no group", advice=_ADVICE)
    parsed = {dn: _parse_group(dn, value) for dn, value in groups.items()}
    # each name once, however many groups it is in
    if not all(map(valid_user_name, frozenset().union(*(group.members for group in parsed.values())))):
        raise _damaged("a member is no login name")
    return Snapshot(float(loaded_at), source, parsed)


def _parse_group(dn: str, value: object) -> Group:
    if not isinstance(value, dict):
        raise _damaged(f"group {dn[:80]!a} is not an object")
    name, members, missing = value.get("name"), value.get("members"), value.get("missing", False)
    if not isinstance(name, str) or not isinstance(members, list) or not isinstance(missing, bool):
        raise _damaged(f"group {dn[:80]!a} lacks its name or members")
    if not all(isinstance(member, str) for member in members):
        raise _damaged(f"group {dn[:80]!a} holds something that is no name")
    if missing and members:
        raise _damaged(f"group {dn[:80]!a} is missing and has members")
    return Group(name, frozenset(members), missing)


def write_snapshot(path: str | Path, snapshot: Snapshot) -> None:
    """Put the file in place in one step, mode 0640, in the group of its directory.

    A reader sees the old file or the new one. It is not fsynced: it lives on tmpfs, and after a crash it is read anew.
    Raises :class:`ConfigError` when there is no group to write, the directory is not ours or others can write to it,
    :class:`BackendUnavailable` when the file system refuses (full, read-only).
    """
    if not snapshot.groups:
        raise ConfigError("the policy names no group, so there is nothing to look up", advice="see roles.*.groups")
    data = _to_json(snapshot)
    target = Path(path)
    try:
        _replace(target, data)
    except OSError as error:
        raise BackendUnavailable(
            f"the members file {target} was not written: {error.strerror}",
            advice="check the directory's owner and free space; the old file stays in use until it is too old",
        ) from None


def _to_json(snapshot: Snapshot) -> bytes:
    groups: dict[str, dict[str, Any]] = {}
    for dn, group in snapshot.groups.items():
        groups[dn] = {"name": group.name, "members": sorted(group.members)}
        if group.missing:
            groups[dn]["missing"] = True
    document = {"version": VERSION, "loaded_at": snapshot.loaded_at, "source": snapshot.source, "groups": groups}
    data = json.dumps(document, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"the members file would have {len(data)} bytes, more than {MAX_BYTES}",
            advice="name smaller groups in the policy",
        )
    return data


def _replace(target: Path, data: bytes) -> None:
    directory = target.parent.stat()
    anybody = directory.st_mode & 0o002 and not directory.st_mode & stat.S_ISVTX
    if directory.st_uid not in (os.geteuid(), 0) or anybody:
        raise ConfigError(
            f"the directory {target.parent} does not belong to uid {os.geteuid()}, or anybody may write to it",
            advice="let systemd create it (RuntimeDirectory=) or correct its owner and mode",
        )
    fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            if os.fstat(fd).st_gid != directory.st_gid:
                os.fchown(fd, -1, directory.st_gid)
            os.fchmod(fd, MODE)
            file.write(data)
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


class SnapshotCache:
    """The reader's side: the last good snapshot, in memory.

    :meth:`poll` looks at the file (one ``lstat``; reads it only when it changed) and may be called from a timer or a
    thread. :meth:`current` does no I/O at all, so it is safe while slurmctld waits. A new file that is refused does not
    replace the old snapshot; ``problem`` says why, and the age limit ends the old one.
    """

    def __init__(self, path: str | Path, owner_uid: int, max_age: float) -> None:
        self.path = os.fspath(path)
        self.owner_uid = owner_uid
        self.max_age = max_age
        self.problem: Refused | None = None
        self._seen: tuple[int, int] | None = None
        self._snapshot: Snapshot | None = None
        self._text: _Text | None = None

    def poll(self, now: float) -> bool:
        """Read the file if it is not the one read last; True when a new snapshot is in use. Never raises Refused."""
        try:
            info = os.lstat(self.path)
            seen = (info.st_mtime_ns, info.st_ino)
        except OSError:
            seen = None
        if seen is not None and seen == self._seen:
            return False
        try:
            text = _Text.of(_read_safely(self.path, self.owner_uid))
            last = (self._text, self._snapshot) if self._text is not None and self._snapshot is not None else None
            snapshot = _parse_like(text, last)
            snapshot.check_age(now, self.max_age)
        except Refused as error:
            self.problem = error
            # What is wrong in the content stays wrong; a wrong mode or owner is mended without a new mtime.
            self._seen = seen if error.rule in ("directory.damaged", "directory.version", "directory.empty") else None
            return False
        # The file may have been replaced between lstat and open: then it is newer than ``seen`` and is read again.
        self._seen, self._snapshot, self._text, self.problem = seen, snapshot, text, None
        return True

    def current(self, now: float) -> Snapshot:
        """The snapshot in use. Raises :class:`Refused` when there is none, or it has become too old."""
        if self._snapshot is None:
            if self.problem is not None:  # a new object each time: a raised one keeps growing its traceback
                raise Refused(self.problem.rule, str(self.problem), advice=self.problem.advice)
            raise _missing()
        self._snapshot.check_age(now, self.max_age)
        return self._snapshot
