"""The folder in which people leave the files of break-glass grants: read with suspicion, written as oneself.

The folder belongs to root and is sticky, so that nobody replaces or removes another's file; its group are the people
who may take part, and the daemons. Everything in it is somebody else's: a link, a FIFO, a file with two names or one
that its owner lets others write to is reported and counts for nothing, and so does everything when there is too much.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from conf.errors import BackendUnavailable, ConfigError, UsageError
from conf.quote import quote
from slurm_hooks.breakglass_papers import KINDS, MAX_BYTES, Paper, is_id

MAX_FILES = 512
FILE_MODE = 0o640
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TOO_MANY: dict[str, tuple[int, ...]] = {"/": ()}
_LIKE = "as in conf/tmpfiles/secure-slurm.conf: root, sticky, mode 3770"

Papers = dict[str, dict[str, Paper]]
Stamp = tuple[int, ...]


class Odd(NamedTuple):
    """Something in the folder that is no file of a grant: its name, its owner's uid, and what is wrong with it."""

    name: str
    owner: int
    what: str


class Box:
    """The reader's side: everything that is in the folder, read anew only where something changed.

    ``papers`` by id and kind; ``odd`` is what was found besides; ``problem`` why nothing can be read at all ("" when
    it can): then both are empty.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.papers: Papers = {}
        self.odd: tuple[Odd, ...] = ()
        self.problem = ""
        self._seen: dict[str, Stamp] | None = None

    def poll(self) -> bool:
        """Look again; true when something is not as it was. Never raises for what is in the folder."""
        before = (self.papers, self.odd, self.problem)
        try:
            folder = open_folder(self.path)
        except ConfigError as error:
            self.papers, self.odd, self.problem, self._seen = {}, (), str(error), None
            return before != (self.papers, self.odd, self.problem)
        try:
            seen = _stamps(folder)
            if seen != self._seen:
                self._read(folder, seen)
        finally:
            os.close(folder)
        return before != (self.papers, self.odd, self.problem)

    def _read(self, folder: int, seen: dict[str, Stamp]) -> None:
        self.papers, self.odd, self._seen, self.problem = {}, (), seen, ""
        if seen is _TOO_MANY:
            self.problem = f"{self.path} has more than {MAX_FILES} files, so nothing in it counts: remove old ones"
            return
        odd: list[Odd] = []
        for name in sorted(seen):
            found = read_one(folder, name)
            if isinstance(found, Odd):
                odd.append(found)
            elif found is not None:
                grant, _, kind = name.rpartition(".")
                self.papers.setdefault(grant, {})[kind] = found
        self.odd = tuple(odd)


def open_folder(path: str) -> int:
    """A descriptor of the folder. ConfigError when it is not there, or not one in which owners can be trusted."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError:
        raise ConfigError(
            f"{path} may not be read", advice="ask an admin to take you into the group that it belongs to"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be opened: {error.strerror}", advice=f"it must be {_LIKE}") from None
    status = os.fstat(folder)
    if status.st_uid != 0 and status.st_uid != os.geteuid():
        problem = f"belongs to uid {status.st_uid}, not to root"
    elif not status.st_mode & stat.S_ISVTX or status.st_mode & stat.S_IWOTH:
        problem = f"has mode {stat.S_IMODE(status.st_mode):04o}: it must be sticky, and closed to others"
    else:
        return folder
    os.close(folder)
    raise ConfigError(f"{path} {problem}", advice=f"it must be {_LIKE}")


def read_one(folder: int, name: str) -> Paper | Odd | None:
    """One file. None when it is gone meanwhile; never follows a link, never waits, never reads more than it may."""
    owner = -1
    try:
        owner = os.stat(name, dir_fd=folder, follow_symlinks=False).st_uid
        grant, _, kind = name.rpartition(".")
        if kind not in KINDS or not is_id(grant):
            return Odd(name, owner, "is none of the files that belong here")
        file = os.open(name, _READ, dir_fd=folder)
        try:
            return _content(file, name, kind)
        finally:
            os.close(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Odd(name, owner, f"cannot be read: {error.strerror}")


def _content(file: int, name: str, kind: str) -> Paper | Odd:
    status = os.fstat(file)
    problem = _problem(status, kind)
    if problem:
        return Odd(name, status.st_uid, problem)
    return Paper(status.st_uid, os.read(file, MAX_BYTES), status.st_ctime)


def _problem(status: os.stat_result, kind: str) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_nlink != 1:
        # a file that its owner wrote for something else, which another has linked to here
        return "has a second name"
    # an end says nothing that could be changed to anybody's advantage: it ends, whatever is in it
    if kind != "end" and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others than its owner (mode {stat.S_IMODE(status.st_mode):04o})"
    return f"has more than {MAX_BYTES} bytes" if kind != "end" and status.st_size > MAX_BYTES else ""


def _stamps(folder: int) -> dict[str, Stamp]:
    """What would change with anything in the folder; one constant when it has too many files."""
    found: dict[str, Stamp] = {}
    for name in _names(folder):
        if len(found) == MAX_FILES:
            return _TOO_MANY
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        found[name] = (
            status.st_ino,
            status.st_ctime_ns,
            status.st_mode,
            status.st_uid,
            status.st_nlink,
            status.st_size,
        )
    return found


def _names(folder: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def write(folder: int, name: str, data: bytes) -> None:
    """A new file of one's own, whole and on the disk or not there at all.

    Raises UsageError when there is one of this name, BackendUnavailable when the file system refuses.
    """
    try:
        file = os.open(name, _CREATE, 0o600, dir_fd=folder)
    except FileExistsError:
        raise UsageError(
            f"there is a file {quote(name)} already", advice="see 'secure-slurm break-glass list'"
        ) from None
    except PermissionError:
        raise ConfigError(
            "you may not write break-glass files here", advice="ask an admin to take you into the folder's group"
        ) from None
    except OSError as error:
        raise BackendUnavailable(f"{quote(name)} cannot be written: {error.strerror}") from None
    try:
        try:
            if os.write(file, data) != len(data):
                raise OSError(28, "no space is left")
            # only now can the daemons read it; the folder's group is the file's, by the folder's set-group-ID bit
            os.fchmod(file, FILE_MODE)
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        os.unlink(name, dir_fd=folder)
        raise BackendUnavailable(f"{quote(name)} cannot be written: {error.strerror}") from None
