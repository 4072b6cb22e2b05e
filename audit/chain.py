"""One file of audit lines per host and writer, each line holding the hash of the line before it.

The line is canonical JSON: ASCII, no spaces, the keys in the order below, one line feed at the end::

    {"v":1,"seq":7,"time":"2026-11-21T19:00:00.123456Z","host":"n1","writer":"prolog","boot":"...","event":"...",
     <fields>,"prev":"<hash of line 6>","hash":"<sha256 of this line without its hash>"}

so that ``jq -c 'del(.hash)' | tr -d '\\n' | sha256sum`` checks a line without us. The first line of all has seq 1 and
``prev`` of zeros. The chain goes on across reboots and rotation (``boot`` says which boot wrote a line).

Beside the file lies ``<file>.head``, the seq and hash of the last line that is known to be on the disk: a tail that
was cut off is found by it. A writer that finds fewer lines than the head promises goes on *from the head*, so the gap
stays visible for ever.

What this cannot do: whoever is root on the host may rewrite file and head together. Send heads off the host for that.

Standard library only, and stateless between calls but for a hint: safe between processes, threads and after a fork.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from typing import NamedTuple

from audit import events
from conf.errors import BackendUnavailable

ZERO_HASH = "0" * 64
FORMAT = 1
LOCK_DEADLINE = 5.0
"""Seconds that a writer waits for the others; an append takes microseconds, so longer means that one hangs."""
LOCK_PAUSE = 0.002
TAIL_BLOCK = 65536
"""Bytes; a line is at most some 8 KiB (the limits in events.FIELDS), so the tail always holds a whole one."""
HEAD_LIMIT = 4096
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_WRITER = re.compile(r"[a-z][a-z0-9-]{0,31}")


class AuditError(BackendUnavailable):
    """The trail cannot be written. What is being started must not start; what is being destroyed goes on."""


class Link(NamedTuple):
    """The place of a line in its chain."""

    seq: int
    hash: str


class _Hint(NamedTuple):
    """Where the file stood after our own last line: when it still does, nobody else wrote, and no read is needed."""

    inode: int
    size: int
    link: Link


GENESIS = Link(0, ZERO_HASH)


def canonical(line: dict[str, object]) -> str:
    """The one text that a line's hash is taken of."""
    return json.dumps(line, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def line_hash(line: dict[str, object]) -> str:
    """SHA-256, in hex, of the line without its ``hash``."""
    bare = {name: value for name, value in line.items() if name != "hash"}
    return hashlib.sha256(canonical(bare).encode("ascii")).hexdigest()


def parse_link(raw: bytes) -> Link | None:
    """The link of one line of a chain or of a head file; None for what is not one."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    seq, digest = line.get("seq"), line.get("hash")
    if type(seq) is not int or seq < 1 or not isinstance(digest, str) or len(digest) != len(ZERO_HASH):
        return None
    return Link(seq, digest)


class Chain:
    """The trail of one writer on one host.

    ``directory`` must belong to root or to the caller, and others must not be able to rename files in it: not
    writable by others, and by the group only with the sticky bit. Raises :class:`AuditError` when the trail cannot
    be written or is not safe to write to, ValueError for an event outside the schema.
    """

    def __init__(self, directory: str | os.PathLike[str], writer: str, host: str) -> None:
        if not _HOST.fullmatch(host) or not _WRITER.fullmatch(writer):
            raise ValueError(f"not a host or writer name for an audit file: {host!r}, {writer!r}")
        self.directory = os.fspath(directory)
        self.host = host
        self.writer = writer
        self.name = f"{host}-{writer}.jsonl"
        self.boot = _boot_id()
        self._hint: _Hint | None = None

    def append(self, event: str, *, durable: bool, **fields: object) -> Link:
        """Write one line; with ``durable`` it is on the disk when this returns. A field that is None is left out."""
        checked = events.check(event, fields)
        try:
            return self._append(event, checked, durable=durable)
        except OSError as error:
            raise self._unwritable(error) from error

    def flush(self) -> Link:
        """Put every line so far on the disk, and move the head up to them: one call serves many appends."""
        try:
            return self._flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> AuditError:
        return AuditError(
            f"cannot write the audit trail {self.directory}/{self.name}: {error.strerror or error}",
            advice="Free space in the audit directory or correct its owner and mode; tagged jobs wait until then.",
        )

    def _append(self, event: str, fields: dict[str, events.Value], *, durable: bool) -> Link:
        with _Folder(self.directory) as folder, _File(folder.fd, self.name, create=True) as file:
            file.lock()
            info = os.fstat(file.fd)
            hint = self._hint
            if hint is not None and (hint.inode, hint.size) == (info.st_ino, info.st_size):
                link, text = hint.link, b""
            else:
                link, text = self._pick_up(folder.fd, file.fd, info.st_size)
            first = link.seq == 0
            link, line = self._line(link, event, fields)
            text += line
            self._hint = None
            _write_whole(file.fd, text, info.st_size)
            self._hint = _Hint(info.st_ino, info.st_size + len(text), link)
            file.unlock()
            if durable or first:
                # the very first head is written at once: a file without a head is then always a finding
                os.fsync(file.fd)
                if info.st_size == 0:
                    os.fsync(folder.fd)
                self._advance_head(folder.fd, file, link)
            return link

    def _flush(self) -> Link:
        with _Folder(self.directory) as folder:
            try:
                file = _File(folder.fd, self.name, create=False)
            except FileNotFoundError:
                return GENESIS
            with file:
                file.lock()
                tail, _ = _tail(file.fd, os.fstat(file.fd).st_size)
                file.unlock()
                if tail is None:
                    return GENESIS
                os.fsync(file.fd)
                self._advance_head(folder.fd, file, tail)
                return tail

    def _line(self, link: Link, event: str, fields: dict[str, events.Value]) -> tuple[Link, bytes]:
        line: dict[str, object] = {
            "v": FORMAT,
            "seq": link.seq + 1,
            "time": _now(),
            "host": self.host,
            "writer": self.writer,
            "boot": self.boot,
            "event": event,
            **fields,
            "prev": link.hash,
        }
        digest = line_hash(line)
        return Link(link.seq + 1, digest), canonical({**line, "hash": digest}).encode("ascii") + b"\n"

    def _pick_up(self, folder: int, file: int, size: int) -> tuple[Link, bytes]:
        """Where the chain goes on, and what to write before the next line when the tail is not as it was left."""
        tail, torn = _tail(file, size)
        head = _read_head(folder, self.name + ".head") or GENESIS
        link = tail or GENESIS
        lost = max(0, head.seq - link.seq) if size else 0
        if head.seq >= link.seq:
            link = head
        if not torn and not lost:
            return link, b""
        repair = b"" if not torn or torn.endswith(b"\n") else b"\n"
        link, line = self._line(link, "audit.recovered", events.check("audit.recovered", _recovered(torn, lost)))
        return link, repair + line

    def _advance_head(self, folder: int, file: _File, link: Link) -> None:
        """Move the head up to ``link``, never back: another process may have written it further meanwhile."""
        name = self.name + ".head"
        temporary = f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o640, dir_fd=folder)
        try:
            try:
                os.fchmod(fd, 0o640)
                _write_whole(fd, canonical({"seq": link.seq, "hash": link.hash}).encode("ascii") + b"\n", 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            file.lock()
            head = _read_head(folder, name)
            if head is None or head.seq < link.seq:
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                temporary = ""
            file.unlock()
        finally:
            if temporary:
                os.unlink(temporary, dir_fd=folder)


class _Folder:
    """The audit directory, opened once and checked, so that no later step goes by its path again."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        info = os.fstat(self.fd)
        shared = info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and not info.st_mode & stat.S_ISVTX)
        if info.st_uid not in (0, os.geteuid()) or shared:
            os.close(self.fd)
            raise PermissionError(errno.EPERM, "the directory has an owner or a mode that lets others change the trail")

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


class _File:
    """The trail, opened anew for each act: a lock of its own per call, and rotation is seen at once."""

    def __init__(self, folder: int, name: str, *, create: bool) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self.fd = os.open(name, flags, dir_fd=folder)
        except FileNotFoundError:
            if not create:
                raise
            self.fd = os.open(name, flags | os.O_CREAT, 0o640, dir_fd=folder)
            os.fchmod(self.fd, 0o640)  # hooks run with umask 077; the auditors' group must read it
        info = os.fstat(self.fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink > 1 or info.st_mode & 0o022:
            os.close(self.fd)
            raise PermissionError(errno.EPERM, "it is not a plain file of our own that only we can write")

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

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
        fcntl.flock(self.fd, fcntl.LOCK_UN)


def _recovered(torn: bytes, lost: int) -> dict[str, object]:
    return {"bytes": len(torn), "lost": lost}


def _tail(fd: int, size: int) -> tuple[Link | None, bytes]:
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


def _read_head(folder: int, name: str) -> Link | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return parse_link(os.read(fd, HEAD_LIMIT))
    finally:
        os.close(fd)


def _write_whole(fd: int, data: bytes, size: int) -> None:
    """Write ``data`` at the end, or leave the file as it was: a full disk must not leave half a line."""
    try:
        written = os.write(fd, data)
    except OSError:
        os.ftruncate(fd, size)
        raise
    if written != len(data):
        os.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _now() -> str:
    nanoseconds = time.time_ns()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(nanoseconds // 10**9))
    return f"{whole}.{nanoseconds // 1000 % 10**6:06d}Z"


def _boot_id() -> str:
    try:
        fd = os.open(BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 64).decode("ascii").strip()
        finally:
            os.close(fd)
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"cannot read {BOOT_ID}", advice="Mount /proc in this unit's namespace.") from error
