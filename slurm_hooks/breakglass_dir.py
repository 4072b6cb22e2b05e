"""The folder of the papers of break-glass grants: written by secure-slurm-glassd alone, read with suspicion.

A file counts when it is that daemon's (or root's), nobody else can write it, and it has one name. Whatever else lies
there is reported and counts for nothing, with one exception: an end is there as soon as something has its name.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import stat
from typing import NamedTuple

from conf.errors import BackendUnavailable, ConfigError, Refused
from conf.quote import quote
from slurm_hooks.breakglass_papers import KINDS, MAX_BYTES, Paper, is_id, said_by

WRITER = "secure-glass"
"""The account of secure-slurm-glassd."""
MAX_FILES = 4096
FILE_MODE = 0o640
TEMPORARY = ".new-"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TOO_MANY: dict[str, tuple[int, ...]] = {"/": ()}
_LIKE = f"as in conf/tmpfiles/secure-slurm.conf: {WRITER}:secure-record, mode 2750"
_UNREAD = "cannot be read"
_NOBODYS = stat.S_IWGRP | stat.S_IWOTH

Papers = dict[str, dict[str, Paper]]
Stamp = tuple[int, ...]


class Odd(NamedTuple):
    """Something in the folder that is no paper of a grant: its name, its owner's uid, and what is wrong with it."""

    name: str
    owner: int
    what: str


class Box:
    """The reader's side: everything that is in the folder, read anew only where something changed.

    ``papers`` by id and kind; ``odd`` is what was found besides; ``problem`` why nothing can be read at all ("" when
    it can): then both are empty. ``writer`` is the account whose files count, besides root's.
    """

    def __init__(self, path: str, writer: str = WRITER) -> None:
        self.path = path
        self.papers: Papers = {}
        self.odd: tuple[Odd, ...] = ()
        self.problem = ""
        self._writer = writer
        self._writers: frozenset[int] | None = None
        self._seen: dict[str, Stamp] | None = None

    def poll(self) -> bool:
        """Look again; true when something is not as it was. Never raises for what is in the folder."""
        before = (self.papers, self.odd, self.problem)
        try:
            self._look()
        except (ConfigError, OSError) as error:
            what = str(error) if isinstance(error, ConfigError) else f"{self.path} cannot be read: {error.strerror}"
            self.papers, self.odd, self.problem, self._seen = {}, (), what, None
        return before != (self.papers, self.odd, self.problem)

    def _look(self) -> None:
        folder = open_folder(self.path, self._trusted())
        try:
            seen = _stamps(folder)
            if seen != self._seen:
                self._read(folder, seen)
        finally:
            os.close(folder)

    def _trusted(self) -> frozenset[int]:
        """Whose files count; looked up until the account is there, and then no more."""
        if self._writers is None:
            try:
                self._writers = frozenset({0, pwd.getpwnam(self._writer).pw_uid})
            except KeyError:
                return frozenset({0})
        return self._writers

    def _read(self, folder: int, seen: dict[str, Stamp]) -> None:
        self.papers, self.odd, self._seen, self.problem = {}, (), None, ""
        if seen is _TOO_MANY:
            self.problem = f"{self.path} has more than {MAX_FILES} files, so nothing in it counts: remove old ones"
            self._seen = seen
            return
        papers: Papers = {}
        odd: list[Odd] = []
        for name in sorted(seen):
            found = read_one(folder, name, self._trusted())
            grant, _, kind = name.rpartition(".")
            if isinstance(found, Odd):
                odd.append(found)
                if kind == "end" and is_id(grant):
                    # an end that cannot be read is one: in doubt nothing is in force
                    papers.setdefault(grant, {})[kind] = Paper(None, b"", 0.0)
            elif found is not None:
                papers.setdefault(grant, {})[kind] = found
        # what a disk did not give this time is asked for again
        again = any(each.what.startswith(_UNREAD) for each in odd)
        self.papers, self.odd, self._seen = papers, tuple(odd), None if again else seen


def open_folder(path: str, trusted: frozenset[int]) -> int:
    """A descriptor of the folder. ConfigError when it is not there, or not one that the daemon alone can write to."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}", advice=f"it must be {_LIKE}") from None
    status = os.fstat(folder)
    if status.st_uid not in trusted:
        problem = f"belongs to uid {status.st_uid}, not to {WRITER}"
    elif status.st_mode & _NOBODYS:
        problem = f"can be written by others than {WRITER} (mode {stat.S_IMODE(status.st_mode):04o})"
    else:
        return folder
    os.close(folder)
    raise ConfigError(f"{path} {problem}", advice=f"it must be {_LIKE}")


def read_one(folder: int, name: str, trusted: frozenset[int]) -> Paper | Odd | None:
    """One file. None when it is gone meanwhile; never follows a link, never waits, never reads more than it may."""
    owner = -1
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        owner = status.st_uid
        grant, _, kind = name.rpartition(".")
        if kind not in KINDS or not is_id(grant):
            return Odd(name, owner, "is none of the files that belong here")
        if problem := _problem(status, trusted):
            return Odd(name, owner, problem)
        file = os.open(name, _READ, dir_fd=folder)
        try:
            return _content(file, name, trusted)
        finally:
            os.close(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Odd(name, owner, f"{_UNREAD}: {error.strerror}")


def _content(file: int, name: str, trusted: frozenset[int]) -> Paper | Odd:
    status = os.fstat(file)
    problem = _problem(status, trusted)
    if problem:
        return Odd(name, status.st_uid, problem)
    data = os.read(file, MAX_BYTES)
    return Paper(said_by(data), data, status.st_ctime)


def _problem(status: os.stat_result, trusted: frozenset[int]) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_uid not in trusted:
        return f"is not {WRITER}'s"
    if status.st_nlink != 1:
        return "has a second name"
    if status.st_mode & _NOBODYS:
        return f"can be written by others than its owner (mode {stat.S_IMODE(status.st_mode):04o})"
    return f"has more than {MAX_BYTES} bytes" if status.st_size > MAX_BYTES else ""


def _stamps(folder: int) -> dict[str, Stamp]:
    """What would change with anything in the folder; one constant when it has too many files."""
    found: dict[str, Stamp] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY):
                continue
            if len(found) == MAX_FILES:
                return _TOO_MANY
            try:
                status = os.stat(entry.name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                continue
            found[entry.name] = (
                status.st_ino,
                status.st_ctime_ns,
                status.st_mode,
                status.st_uid,
                status.st_nlink,
                status.st_size,
            )
    return found


class Pen:
    """The daemon's side: new files, whole and on the disk or not there at all, and none twice.

    One process has it at a time, by a lock on the folder. Raises ConfigError when it is not the daemon's own folder.
    """

    def __init__(self, path: str) -> None:
        self._folder = open_folder(path, frozenset({os.geteuid()}))
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConfigError(f"{path}: another daemon writes there", advice="stop it first") from None
        for name in os.listdir(self._folder):  # noqa: PTH208  of a descriptor
            if name.startswith(TEMPORARY):
                os.unlink(name, dir_fd=self._folder)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._folder)

    def there(self, name: str) -> bool:
        """Whether anything has this name, whatever it is. BackendUnavailable when that cannot be told."""
        try:
            os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise BackendUnavailable(f"{quote(name)} cannot be looked at: {error.strerror}") from None
        return True

    def write(self, name: str, data: bytes) -> None:
        """A new paper. Refused when there is one of this name, BackendUnavailable when the file system refuses."""
        if len(data) > MAX_BYTES:
            raise Refused("glass.syntax", f"it would have more than {MAX_BYTES} bytes", advice="shorten the reason")
        if self.there(name):
            raise Refused(
                "glass.twice", f"there is {quote(name)} already", advice="see 'secure-slurm break-glass list'"
            )
        temporary = TEMPORARY + secrets.token_hex(8)
        try:
            file = os.open(temporary, _CREATE, 0o600, dir_fd=self._folder)
            try:
                try:
                    if os.write(file, data) != len(data):
                        raise OSError(28, "no space is left")
                    # its group is the folder's, by the set-group-ID bit: the deciders'
                    os.fchmod(file, FILE_MODE)
                    os.fsync(file)
                finally:
                    os.close(file)
                os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except OSError:
                os.unlink(temporary, dir_fd=self._folder)
                raise
            os.fsync(self._folder)
        except OSError as error:
            raise BackendUnavailable(f"{quote(name)} cannot be written: {error.strerror}") from None

    def remove(self, name: str) -> None:
        """Take a paper away that is of no use any more; none of this name is as good."""
        try:
            os.unlink(name, dir_fd=self._folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise BackendUnavailable(f"{quote(name)} cannot be removed: {error.strerror}") from None
