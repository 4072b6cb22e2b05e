"""Folders that root works in: opened step by step, so that nobody can put another one in their place.

Every later act (create, rename, unlink, mkdir) goes by the descriptor that comes out of here, never by the path again.
"""

from __future__ import annotations

import os
import stat

from keys.scratch.errors import UnsafePath

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def open_directory(path: str, *, private: bool = False, create: int | None = None) -> int:
    """Open a folder for ``*at`` calls; the caller closes the descriptor.

    :param path: absolute, without ``.`` or ``..``.
    :param private: nobody but the owner may even look inside.
    :param create: the mode to create the last part with, should it be missing; None: it must be there.
    :raises UnsafePath: a part is a symbolic link or no folder, belongs to somebody other than root or ourselves, or may
        be written to by others. In a folder with the sticky bit (``/tmp``) others cannot replace what is ours, so
        it may be passed through, but not be the last part.
    :raises FileNotFoundError: a part is missing.
    """
    parts = [part for part in path.split("/") if part]
    if not path.startswith("/") or not parts or "\0" in path or not {".", ".."}.isdisjoint(parts):
        raise UnsafePath(f"{path!r} is not an absolute path", advice="write the real path of the folder")
    descriptor = os.open("/", _FLAGS)
    try:
        for number, part in enumerate(parts, 1):
            here = "/" + "/".join(parts[:number])
            last = number == len(parts)
            below = _enter(descriptor, part, here, create if last else None)
            os.close(descriptor)
            descriptor = below
            _check(os.fstat(descriptor), here, last=last, private=private and last)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _enter(parent: int, name: str, path: str, create: int | None) -> int:
    if create is not None:
        try:
            os.mkdir(name, create, dir_fd=parent)
        except FileExistsError:
            pass
        else:
            # mkdir's mode went through the umask, which in a hook is 077; a mount root has to be 0755
            made = os.open(name, _FLAGS, dir_fd=parent)
            os.fchmod(made, create)
            return made
    try:
        return os.open(name, _FLAGS, dir_fd=parent)
    except NotADirectoryError:
        # what O_DIRECTORY | O_NOFOLLOW says of a symbolic link, too (open(2))
        raise UnsafePath(
            f"{path} is not a folder, or is a symbolic link", advice="configure the real path, without links"
        ) from None


def _check(status: os.stat_result, path: str, *, last: bool, private: bool) -> None:
    if status.st_uid not in (0, os.geteuid()) or (last and status.st_uid != os.geteuid()):
        raise UnsafePath(f"{path} belongs to user {status.st_uid}, not to root", advice=f"chown root:root {path}")
    sticky = bool(status.st_mode & stat.S_ISVTX) and not last
    if status.st_mode & _WRITABLE_BY_OTHERS and not sticky:
        raise UnsafePath(f"{path} may be written to by others", advice=f"chmod go-w {path}")
    if private and status.st_mode & 0o077:
        raise UnsafePath(f"{path} is open to others", advice=f"chmod 0700 {path}")
