"""The members file: what the directory said last, for who must decide without asking it.

slurmctld waits while a job is judged, so the decision daemon looks members up in memory only. One process reads the
directory and replaces this file whole; readers take it whole or keep what they had, until that is too old. Too old,
unreadable or doubtful is a refusal, never an empty answer.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from conf.errors import BackendUnavailable, ConfigError, Refused
from slurm_hooks.membersfile import ADVICE, MAX_BYTES, Lines, dump, parse, parse_like
from slurm_hooks.membership import Group

MAX_FUTURE = 60.0  # seconds: a clock step that NTP makes in one go
MODE = 0o640

_KNOWN_USERS = 10_000  # whose groups are remembered


class Snapshot:
    """One reading of the directory. Lookups are in memory; what they answer does not change after it is made.

    ``loaded_at`` is when the reading began (Unix seconds), ``source`` which server gave it. The keys of ``groups`` are
    the names as the policy writes them.

    No table of users is made beforehand: for 50,000 people that takes a quarter of a second of the interpreter, in
    which decisions wait. Asking each of 500 groups whether somebody is in it takes some 20 us, once for each user.
    """

    __slots__ = ("_known", "groups", "loaded_at", "source")

    def __init__(self, loaded_at: float, source: str, groups: Mapping[str, Group]) -> None:
        self.loaded_at = loaded_at
        self.source = source
        self.groups = groups
        self._known: dict[str, frozenset[str]] = {}

    def groups_of(self, user: str) -> frozenset[str]:
        """The policy's groups that this login name is in; empty for somebody unknown."""
        known = self._known.get(user)
        if known is None:
            known = frozenset(dn for dn, group in self.groups.items() if user in group.members)
            if len(self._known) < _KNOWN_USERS:
                self._known[user] = known
        return known

    def followed_by(self, loaded_at: float, source: str, groups: Mapping[str, Group]) -> Snapshot:
        """A later reading. When its groups are the very same object, what was found about users stays known."""
        later = Snapshot(loaded_at, source, groups)
        if groups is self.groups:
            later._known = self._known
        return later

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
                advice=f"try again later; if it lasts, {ADVICE}",
            )

    @classmethod
    def load(cls, path: str | Path, owner_uid: int, *, max_age: float, now: float) -> Snapshot:
        """Read, check and index the file.

        Raises :class:`Refused` (rules ``directory.missing``, ``.unsafe``, ``.damaged``, ``.version``, ``.empty``,
        ``.future``, ``.stale``): not there, a link, not ``owner_uid``'s (or root's), writable by others, not what
        :func:`write_snapshot` writes, no group in it, or outside its time.
        """
        snapshot = cls(*parse(_read_safely(os.fspath(path), owner_uid)))
        snapshot.check_age(now, max_age)
        return snapshot


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
        "directory.missing", "the group members have not been read yet", advice=f"try again later, or {ADVICE}"
    )


def _unsafe(path: str, what: str) -> Refused:
    return Refused("directory.unsafe", f"the members file {path} {what}", advice=ADVICE)


def write_snapshot(path: str | Path, snapshot: Snapshot) -> None:
    """Put the file in place in one step, mode 0640, in the group of its directory.

    A reader sees the old file or the new one. It is not fsynced: it lives on tmpfs, and after a crash it is read anew.
    Raises :class:`ConfigError` when there is no group to write, the directory is not ours or others can write to it,
    :class:`BackendUnavailable` when the file system refuses (full, read-only).
    """
    if not snapshot.groups:
        raise ConfigError("the policy names no group, so there is nothing to look up", advice="see roles.*.groups")
    data = dump(snapshot.loaded_at, snapshot.source, snapshot.groups)
    target = Path(path)
    try:
        _replace(target, data)
    except OSError as error:
        raise BackendUnavailable(
            f"the members file {target} was not written: {error.strerror}",
            advice="check the directory's owner and free space; the old file stays in use until it is too old",
        ) from None


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
        self._lines: Lines | None = None
        self._snapshot: Snapshot | None = None

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
            lines = parse_like(_read_safely(self.path, self.owner_uid), self._lines)
            last, content = self._snapshot, lines.content
            snapshot = Snapshot(*content) if last is None else last.followed_by(*content)
            snapshot.check_age(now, self.max_age)
        except Refused as error:
            self.problem = error
            # What is wrong in the content stays wrong; a wrong mode or owner is mended without a new mtime.
            self._seen = seen if error.rule in ("directory.damaged", "directory.version", "directory.empty") else None
            return False
        # The file may have been replaced between lstat and open: then it is newer than ``seen`` and is read again.
        self._seen, self._snapshot, self._lines, self.problem = seen, snapshot, lines, None
        return True

    def current(self, now: float) -> Snapshot:
        """The snapshot in use. Raises :class:`Refused` when there is none, or it has become too old."""
        if self._snapshot is None:
            if self.problem is not None:  # a new object each time: a raised one keeps growing its traceback
                raise Refused(self.problem.rule, str(self.problem), advice=self.problem.advice)
            raise _missing()
        self._snapshot.check_age(now, self.max_age)
        return self._snapshot
