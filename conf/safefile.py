"""Reading a file that root trusts: the file and every directory above it belong to root or to one named user.

Standard library only: root hooks use it. What is checked is the open file, not its name, so nothing can be swapped
between the check and the reading.
"""

from __future__ import annotations

import errno
import os
import stat

from conf.errors import ConfigError
from conf.quote import quote

MAX_CONFIG = 1024 * 1024
# as in the kernel (MAXSYMLINKS, path_resolution(7))
_MAX_LINKS = 40


def check_file_safety(path: str | os.PathLike[str], *, owner: int | None = None, secret: bool = False) -> None:
    """Raise ConfigError unless ``path`` may be trusted; see :func:`read_safely`."""
    os.close(_open_checked(os.fspath(path), _trusted(owner), secret=secret))


def read_safely(
    path: str | os.PathLike[str], *, owner: int | None = None, secret: bool = False, limit: int = MAX_CONFIG
) -> bytes:
    """The content of a trusted file of at most ``limit`` bytes.

    Refused (ConfigError): a missing or unreadable file, a symbolic link, anything but a regular file, an owner other
    than root and ``owner`` (default: the effective uid), write permission for group or others, a directory above it of
    which the same cannot be said (a sticky one such as /tmp may be writable). ``secret``: others may not read it.
    POSIX ACLs need no look of their own: their mask shows in the group bits (acl(5)).
    """
    fd = _open_checked(os.fspath(path), _trusted(owner), secret=secret)
    try:
        if os.fstat(fd).st_size > limit:
            raise ConfigError(f"{_shown(path)} is larger than {limit} bytes", advice="is this the right file?")
        data = bytearray()
        while chunk := os.read(fd, limit + 1 - len(data)):
            data += chunk
        if len(data) > limit:
            raise ConfigError(f"{_shown(path)} grew beyond {limit} bytes while it was read", advice="try again")
        return bytes(data)
    except OSError as error:
        raise ConfigError(f"{_shown(path)} cannot be read: {error.strerror}") from None
    finally:
        os.close(fd)


def _trusted(owner: int | None) -> frozenset[int]:
    return frozenset({0, os.geteuid() if owner is None else owner})


def _open_checked(path: str, trusted: frozenset[int], *, secret: bool) -> int:
    if "\0" in path or not path:
        raise ConfigError(f"{_shown(path)} is not a path")
    directory, name = os.path.split(os.path.join(os.getcwd(), path))  # noqa: PTH109, PTH118 - no pathlib in root hooks
    if name in {"", ".", ".."}:
        raise ConfigError(f"{_shown(path)} is not a file", advice="name the file, not its directory")
    real = _checked_directory(directory, trusted)
    try:
        # O_NONBLOCK: a FIFO in its place must not hang the reader
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(real.rstrip("/") + "/" + name, flags)
    except OSError as error:
        raise _cannot_open(path, error) from None
    try:
        _check_open_file(fd, path, trusted, secret=secret)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_open_file(fd: int, path: str, trusted: frozenset[int], *, secret: bool) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{_shown(path)} is not a regular file", advice="replace it by a plain file")
    _check_owner_and_mode(path, status, trusted)
    if secret and status.st_mode & stat.S_IRWXO:
        raise ConfigError(f"{_shown(path)} holds a secret and is open to all", advice=f"chmod o-rwx {_shown(path)}")


def _checked_directory(path: str, trusted: frozenset[int]) -> str:
    """The real path of a directory, of which only a trusted user can change any step, link or target."""
    todo = [part for part in reversed(path.split("/")) if part not in {"", "."}]
    current, links = "/", 0
    _check_directory(current, trusted)
    while todo:
        part = todo.pop()
        if part == "..":
            current = os.path.dirname(current)  # noqa: PTH120 - no pathlib in root hooks
            continue
        step = current.rstrip("/") + "/" + part
        status = _check_directory(step, trusted)
        if not stat.S_ISLNK(status.st_mode):
            current = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise ConfigError(f"{_shown(path)} has too many symbolic links", advice="write the real path")
        target = os.readlink(step)  # noqa: PTH115 - no pathlib in root hooks
        current = "/" if target.startswith("/") else current
        todo.extend(part for part in reversed(target.split("/")) if part not in {"", "."})
    return current


def _check_directory(path: str, trusted: frozenset[int]) -> os.stat_result:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise _cannot_open(path, error) from None
    if stat.S_ISLNK(status.st_mode):
        if status.st_uid not in trusted:
            raise ConfigError(f"the link {_shown(path)} belongs to uid {status.st_uid}", advice="write the real path")
        return status
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{_shown(path)} is not a directory")
    _check_owner_and_mode(path, status, trusted)
    return status


def _check_owner_and_mode(path: str, status: os.stat_result, trusted: frozenset[int]) -> None:
    if status.st_uid not in trusted:
        owners = " or ".join(f"uid {uid}" for uid in sorted(trusted))
        raise ConfigError(
            f"{_shown(path)} belongs to uid {status.st_uid}, must belong to {owners}",
            advice=f"chown root {_shown(path)}",
        )
    # in a sticky directory nobody can replace what a trusted user owns, and the owner of each step is checked
    sticky_directory = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky_directory:
        raise ConfigError(
            f"{_shown(path)} can be written by group or others (mode {stat.S_IMODE(status.st_mode):04o})",
            advice=f"chmod go-w {_shown(path)}",
        )


def _cannot_open(path: str, error: OSError) -> ConfigError:
    if error.errno == errno.ENOENT:
        return ConfigError(f"{_shown(path)} does not exist", advice="create it, or name another with an option")
    if error.errno == errno.ELOOP:
        return ConfigError(f"{_shown(path)} is a symbolic link", advice="replace it by the file itself")
    return ConfigError(f"{_shown(path)} cannot be opened: {error.strerror}", advice="check its permissions")


def _shown(path: str | os.PathLike[str]) -> str:
    """The path bare when it is plain, else quoted."""
    text = os.fspath(path)
    return text if text and text.isprintable() and not text.count(" ") else quote(text)
