"""One file of audit lines per host and writer, each line holding the hash of the line before it.

The first line of all has seq 1 and a ``prev`` of zeros. The chain goes on across reboots (``boot`` says which boot
wrote a line) and across rotation by rename, from the head: rotate what was flushed, so a daemon's file when it has
stopped.

Beside the file lies ``<file>.head``, the seq and hash of the last line that is known to be on the disk: a tail that
was cut off is found by it. A writer that finds fewer lines than the head promises goes on *from the head*, so the gap
stays visible for ever.

What this cannot do: whoever is root on the host may rewrite file and head together. Send heads off the host for that.

Standard library only. Safe between processes, threads and after a fork: what is kept between two lines (a hint, and the
open file) is looked at again before it is used.
"""

from __future__ import annotations

import _thread
import os
import re
import time
from functools import lru_cache
from typing import NamedTuple

from audit import events
from audit.line import FORMAT, GENESIS, HEAD_SUFFIX, TRAIL_SUFFIX, Link, sealed
from audit.sealing import is_due, month_of, seal
from audit.store import File, Folder, Kept, new_head, read_head, tail, write_whole
from conf.errors import BackendUnavailable

BOOT_ID = "/proc/sys/kernel/random/boot_id"

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_WRITER = re.compile(r"[a-z][a-z0-9-]{0,31}")


class AuditError(BackendUnavailable):
    """The trail cannot be written. What is being started must not start; what is being destroyed goes on."""


class _Hint(NamedTuple):
    """Where the file stood after our own last line: when it still does, nobody else wrote, and no read is needed."""

    inode: int
    size: int
    link: Link


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
        self.name = f"{host}-{writer}{TRAIL_SUFFIX}"
        self.boot = _boot_id()
        self._hint: _Hint | None = None
        self._kept: Kept | None = None
        self._month = ""
        # between threads of one process: with the file's lock alone they would sleep until it is free
        self._mutex = _thread.allocate_lock()
        self._pid = os.getpid()

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
        self._after_fork()
        with self._mutex:
            link = None if durable else self._append_kept(event, fields)
            if link is not None:
                return link
            self._let_go()
            folder = Folder(self.directory)
            try:
                file = self._in_time(folder.fd, _locked(folder.fd, self.name))
            except BaseException:
                os.close(folder.fd)
                raise
            mine = Kept(folder, file, f"{self.directory}/{self.name}", self._pid)
            try:
                link, new, first = self._append_anew(folder, file, event, fields)
            except BaseException:
                mine.close()
                raise
            if not durable and not first:
                self._kept = mine
                return link
        try:
            # the very first head is written at once: a file without a head is then always a finding
            os.fsync(file.fd)
            if new:
                os.fsync(folder.fd)
            self._advance_head(folder.fd, file, link)
        finally:
            mine.close()
        return link

    def _append_kept(self, event: str, fields: dict[str, events.Value]) -> Link | None:
        """The line, written to the file that is still open; None when it has to be opened and read anew."""
        kept, hint = self._kept, self._hint
        if kept is None or hint is None:
            return None
        kept.file.lock()
        try:
            info = kept.unchanged()
            if info is None or (hint.inode, hint.size) != (info.st_ino, info.st_size):
                return None
            if is_due(info.st_size, self._month, _now()):
                return None
            link, line = self._line(hint.link, event, fields)
            self._write(kept.file, info, line, link)
            return link
        finally:
            kept.file.unlock()

    def _append_anew(
        self, folder: Folder, file: File, event: str, fields: dict[str, events.Value]
    ) -> tuple[Link, bool, bool]:
        """The line, written to a file that was just opened and locked; whether it is the first, here and of all."""
        info = os.fstat(file.fd)
        hint = self._hint
        if hint is not None and (hint.inode, hint.size) == (info.st_ino, info.st_size):
            before, repair = hint.link, b""
        else:
            before, repair = self._pick_up(folder.fd, file.fd, info.st_size)
        link, line = self._line(before, event, fields)
        self._write(file, info, repair + line, link)
        file.unlock()
        return link, info.st_size == 0, before.seq == 0

    def _in_time(self, folder: int, file: File) -> File:
        """The file, or a new one when this one is sealed. One that cannot be sealed is written on."""
        sealed, now = "", _now()
        try:
            self._month = month_of(file.fd) or now[:7]
            if is_due(os.fstat(file.fd).st_size, self._month, now):
                sealed = seal(folder, self.name, file.fd)
        except OSError:
            sealed = ""
        if not sealed:
            return file
        file.close()
        self._month = now[:7]
        return _locked(folder, self.name)

    def _write(self, file: File, info: os.stat_result, text: bytes, link: Link) -> None:
        self._hint = None
        write_whole(file.fd, text, info.st_size)
        self._hint = _Hint(info.st_ino, info.st_size + len(text), link)

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _after_fork(self) -> None:
        """A child has the parent's open file, whose lock they would share, and perhaps a mutex that nobody frees."""
        if self._pid != os.getpid():
            self._mutex = _thread.allocate_lock()
            self._pid = os.getpid()
            self._let_go()

    def _flush(self) -> Link:
        self._after_fork()
        with Folder(self.directory) as folder:
            try:
                file = File(folder.fd, self.name, create=False)
            except FileNotFoundError:
                return GENESIS
            with file:
                with self._mutex:
                    file.lock()
                    last, _ = tail(file.fd, os.fstat(file.fd).st_size)
                    file.unlock()
                if last is None:
                    return GENESIS
                os.fsync(file.fd)
                self._advance_head(folder.fd, file, last)
                return last

    def _line(self, link: Link, event: str, fields: dict[str, events.Value]) -> tuple[Link, bytes]:
        digest, line = sealed(
            {
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
        )
        return Link(link.seq + 1, digest), line

    def _pick_up(self, folder: int, file: int, size: int) -> tuple[Link, bytes]:
        """Where the chain goes on, and what to write before the next line when the tail is not as it was left."""
        last, torn = tail(file, size)
        head = read_head(folder, self.name + HEAD_SUFFIX) or GENESIS
        link = last or GENESIS
        lost = max(0, head.seq - link.seq) if size else 0
        if head.seq >= link.seq:
            link = head
        if not torn and not lost:
            return link, b""
        repair = b"" if not torn or torn.endswith(b"\n") else b"\n"
        link, line = self._line(link, "audit.recovered", events.check("audit.recovered", _recovered(torn, lost)))
        return link, repair + line

    def _advance_head(self, folder: int, file: File, link: Link) -> None:
        """Move the head up to ``link``, never back: another process may have written it further meanwhile."""
        name = self.name + HEAD_SUFFIX
        temporary = new_head(folder, name, link)
        try:
            with self._mutex:
                file.lock()
                head = read_head(folder, name)
                if head is None or head.seq < link.seq:
                    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
                    temporary = ""
                file.unlock()
        finally:
            if temporary:
                os.unlink(temporary, dir_fd=folder)


def _locked(folder: int, name: str) -> File:
    """The file under ``name``, locked; opened again when it was rotated away while we waited for the lock."""
    while True:
        file = File(folder, name, create=True)
        try:
            file.lock()
            if file.still_named(folder, name):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _recovered(torn: bytes, lost: int) -> dict[str, object]:
    return {"bytes": len(torn), "lost": lost}


def _now() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    return f"{_second(seconds)}.{nanoseconds // 1000:06d}Z"


@lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _boot_id() -> str:
    try:
        fd = os.open(BOOT_ID, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 64).decode("ascii").strip()
        finally:
            os.close(fd)
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(f"cannot read {BOOT_ID}", advice="Mount /proc in this unit's namespace.") from error
