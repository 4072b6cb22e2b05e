"""The audit file on the disk: opened safely, locked for a moment, read from its end, written whole or not at all.

Everything goes by the descriptor of a directory that was checked once, never by a path again, and follows no symbolic
link. Standard library only: root hooks import this.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from typing import NamedTuple

from audit.line import Link, canonical, parse_link

LOCK_DEADLINE = 5.0
"""Seconds that a writer waits for the others; an append takes microseconds, so longer means that one hangs."""
LOCK_PAUSE = 0.002
TAIL_BLOCK = 65536
"""Bytes; a line is at most some 8 KiB (the limits in events.FIELDS), so the tail always holds a whole one."""
HEAD_LIMIT = 4096


class Folder:
    """The audit directory, opened once and checked, so that no later step goes by its path again."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.check()
        except BaseException:
            os.close(self.fd)
            raise

    def check(self) -> None:
        """PermissionError unless only its owner, we or root, can change what is in it."""
        info = os.fstat(self.fd)
        shared = info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and not info.st_mode & stat.S_ISVTX)
        if info.st_uid not in (0, os.geteuid()) or shared:
            raise PermissionError(errno.EPERM, "the directory has an owner or a mode that lets others change the trail")

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


class File:
    """The trail, opened and checked. The lock belongs to this one opening of it, whoever else has the file open."""

    def __init__(self, folder: int, name: str, *, create: bool) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(name, flags, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
            self.fd = os.open(name, flags | os.O_CREAT, 0o640, dir_fd=folder)
            os.fchmod(self.fd, 0o640)  # hooks run with umask 077; the auditors' group must read it
        try:
            self.check()
        except BaseException:
            os.close(self.fd)
            raise

    def check(self) -> os.stat_result:
        """What the file is now. PermissionError unless it is a plain file that only we can write."""
        info = os.fstat(self.fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink > 1 or info.st_mode & 0o022:
            raise PermissionError(errno.EPERM, "it is not a plain file of our own that only we can write")
        return info

    def __enter__(self) -> File:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of its lock."""
        os.close(self.fd)

    def still_named(self, folder: int, name: str) -> bool:
        """Whether ``name`` still leads here."""
        try:
            now = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(self.fd)
        return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)

    def lock(self) -> None:
        """Wait for the other writers, at most :data:`LOCK_DEADLINE` seconds."""
        end = time.monotonic() + LOCK_DEADLINE
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TimeoutError(errno.ETIMEDOUT, "another writer holds its lock") from None
                time.sleep(LOCK_PAUSE)
            else:
                return

    def unlock(self) -> None:
        """Let the other writers on."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)


class Kept(NamedTuple):
    """Folder and file that stay open between two lines, for a daemon that writes a thousand lines a second.

    Nothing is taken for granted that opening them anew would find out. After a fork they belong to the parent, with
    which the child would share the lock: ``pid`` says whose they are.
    """

    folder: Folder
    file: File
    path: str
    pid: int

    def unchanged(self) -> os.stat_result | None:
        """The file's state if its path still leads to it, and both are as safe as when they were opened; else None."""
        try:
            self.folder.check()
            info = self.file.check()
            named = os.lstat(self.path)
        except OSError:
            return None
        return info if (named.st_dev, named.st_ino) == (info.st_dev, info.st_ino) else None

    def close(self) -> None:
        """Let go of both."""
        os.close(self.folder.fd)
        self.file.close()


def tail(fd: int, size: int) -> tuple[Link | None, bytes]:
    """The last whole line, and the bytes after it that are none (a line torn by a crash)."""
    start = max(0, size - TAIL_BLOCK)
    block = os.pread(fd, TAIL_BLOCK, start)
    end = len(block)
    while end > 0:
        begin = block.rfind(b"\n", 0, end - 1) + 1
        line = block[begin:end]
        link = parse_link(line) if line.endswith(b"\n") else None
        if link is not None:
            return link, block[end:]
        end = begin
    return None, block


def read_head(folder: int, name: str) -> Link | None:
    """What the head file says; None when there is none, or it cannot be understood."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return parse_link(os.read(fd, HEAD_LIMIT))
    finally:
        os.close(fd)


def write_head(folder: int, name: str, link: Link) -> None:
    """Replace the head file; who calls has the trail's lock."""
    temporary = new_head(folder, name, link)
    try:
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise


def new_head(folder: int, name: str, link: Link) -> str:
    """A head file under a name of its own, on the disk; the caller renames or removes it."""
    temporary = f".{name}.{os.getpid()}.{time.monotonic_ns()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o640, dir_fd=folder)
    try:
        os.fchmod(fd, 0o640)
        write_whole(fd, canonical({"seq": link.seq, "hash": link.hash}).encode("ascii") + b"\n", 0)
        os.fsync(fd)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
    finally:
        os.close(fd)
    return temporary


def write_whole(fd: int, data: bytes, size: int) -> None:
    """Write ``data`` at the end, or leave the file as it was: a full disk must not leave half a line."""
    try:
        written = os.write(fd, data)
    except OSError:
        os.ftruncate(fd, size)
        raise
    if written != len(data):
        os.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
