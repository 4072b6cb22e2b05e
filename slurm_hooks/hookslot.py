"""One process of the hook server: it waits for one stub, does what that stub would start Python for, and ends.

It was forked with everything imported, before the hook came, so a job waits neither for Python's start nor for a fork.
It serves once: what a hook held in memory is gone with it, as with a Python of its own.

Two FIFOs in a folder that root alone may enter (docs/decisions/0028-hook-server.md): the stub writes its request into
``<name>.ask`` and reads from ``<name>.say`` until a line says ``exit``. As long as this process lives it has ``.say``
open; when it dies, in whatever way, the stub reads the end of the file and knows. No line before ``begun``: nothing was
done, and the stub starts Python itself.
"""

# pathlib is left out on purpose: as light as the hooks
# ruff: noqa: PTH116, PTH123, PTH120

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from conf.errors import SecureSlurmError
from slurm_hooks import epilog, prolog, protected
from slurm_hooks.hookrequest import MAX_REQUEST, Request, answer, is_whole, parse

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

SERVED, UNUSED, STALE = 0, 4, 3
"""Exit codes for the server: a hook was served; none was; the program on the disk is another than the one in memory."""
ASKING = 2.0
"""Seconds for a request to be complete once it has begun to come."""

_MAINS = {"prolog": prolog.main, "protected": protected.main, "epilog": epilog.main}
_FIFO = 0o600
_FLAGS = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_OUTPUT = 32768
_LOWEST = 19
_POPULATE_WRITE = 23
"""MADV_POPULATE_WRITE, madvise(2)"""


def sources() -> dict[str, tuple[int, ...]]:
    """The files that this program was loaded from, by which another version on the disk is noticed."""
    library = os.path.dirname(os.path.dirname(__file__)) + "/"
    files = [str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())]
    # an upgrade of Python replaces its program; our own modules are looked at one by one
    return {file: _mark(file) for file in [sys.executable, *(each for each in files if each.startswith(library))]}


def _mark(file: str) -> tuple[int, ...]:
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def is_stale(known: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a file that was loaded is not there any more as it was."""
    return any(_mark(file) != mark for file, mark in known.items())


class Slot:
    """The pair of FIFOs of this process; ``door`` is the folder's descriptor."""

    def __init__(self, door: int, name: str) -> None:
        self._door = door
        self.name = name
        os.mkfifo(f"{name}.say", _FIFO, dir_fd=door)
        # open for reading too: a stub that opens it waits for nobody, and a request that is never read blocks nobody
        self._say = os.open(f"{name}.say", os.O_RDWR | _FLAGS, dir_fd=door)
        os.mkfifo(f".{name}.ask", _FIFO, dir_fd=door)
        self._ask = os.open(f".{name}.ask", os.O_RDWR | _FLAGS, dir_fd=door)
        # only now can a stub find it
        os.rename(f".{name}.ask", f"{name}.ask", src_dir_fd=door, dst_dir_fd=door)

    def wait(self, lifeline: int) -> bytes:
        """The request, or nothing when the server has ended. Bytes that are no whole request count as nothing."""
        poll = select.poll()
        poll.register(self._ask, select.POLLIN)
        poll.register(lifeline, select.POLLIN)
        data = b""
        while self._ask in dict(poll.poll()):
            end = time.monotonic() + ASKING
            while not is_whole(data) and len(data) < MAX_REQUEST and time.monotonic() < end:
                data += self._read(end)
            return data if is_whole(data) else b""
        return data

    def _read(self, end: float) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._ask, MAX_REQUEST)
        select.select([self._ask], [], [], max(0.0, end - time.monotonic()))
        return b""

    def begin(self, request: Request) -> None:
        """Tell the stub that its hook runs from now on. :raises OSError: nobody reads it any more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.name}.ask", dir_fd=self._door)
        # for writing alone: from here on the kernel knows when the stub is gone
        only = os.open(f"{self.name}.say", os.O_WRONLY | _FLAGS, dir_fd=self._door)
        os.close(self._say)
        self._say = only
        os.set_blocking(only, True)
        self.tell(f"begun {request.address}\n".encode())

    def tell(self, data: bytes) -> None:
        """Write to the stub. :raises OSError: it is gone."""
        while data:
            data = data[os.write(self._say, data) :]

    def end_with_stub(self) -> None:
        """From now on the end of the stub is the end of this process, as when the hook was the stub's own process."""

        def gone(_number: int, _frame: FrameType | None) -> None:
            poll = select.poll()
            poll.register(self._say, 0)
            if poll.poll(0):  # POLLERR: no reader
                os.kill(os.getpid(), signal.SIGKILL)

        signal.signal(signal.SIGIO, gone)
        fcntl.fcntl(self._say, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._say, fcntl.F_SETFL, fcntl.fcntl(self._say, fcntl.F_GETFL) | os.O_ASYNC)
        gone(0, None)

    def remove(self) -> None:
        """Leave nothing in the folder; the claim goes last."""
        for name in (f".{self.name}.ask", f"{self.name}.ask", f"{self.name}.say", f"{self.name}.mine"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self._door)


def _own_pages() -> None:
    """Have this process's own copy of every page that it may write to, now and not while a job waits.

    A fork shares all of them until they are written to, and Python writes to almost every one (reference counts): a
    thousand page faults, which cost as much as everything that the hook does. A kernel before 5.14 takes them later.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        lines = maps.read().splitlines()
    for line in lines:
        place, access = line.split(" ", 2)[:2]
        if access == "rw-p":
            start, end = (int(each, 16) for each in place.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _POPULATE_WRITE)


def serve(door: int, token: str, lifeline: int, known: Mapping[str, tuple[int, ...]]) -> NoReturn:
    """The whole life of the process. Does not return."""
    code = UNUSED
    try:
        # for the next hook: nothing that computes waits for it
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
        _own_pages()
        with contextlib.suppress(PermissionError):  # without CAP_SYS_NICE it stays so
            os.setpriority(os.PRIO_PROCESS, 0, before)
        slot = Slot(door, f"{os.getpid()}-{token}")
        try:
            code = _serve(slot, lifeline, known)
        finally:
            slot.remove()
    except (SecureSlurmError, OSError) as error:
        print(f"secure-slurm hookd: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def _serve(slot: Slot, lifeline: int, known: Mapping[str, tuple[int, ...]]) -> int:
    data = slot.wait(lifeline)
    if not data:
        return UNUSED
    if is_stale(known):
        return STALE
    request = parse(data)
    slot.begin(request)
    if request.hook != "epilog":
        # a destruction is not given up because nobody waits for it any more
        slot.end_with_stub()
    out, err = _captured(1), _captured(2)
    code = _run(request)
    # the stub ends with the last line, and with it the hook; what is left to do here keeps no job waiting
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        slot.tell(answer(request, code, os.pread(out, _MAX_OUTPUT, 0), os.pread(err, _MAX_OUTPUT, 0)))
    return SERVED


def _captured(number: int) -> int:
    """What the hook prints is kept in memory, until the stub prints it."""
    kept = os.memfd_create(f"hook-{number}")
    os.dup2(kept, number)
    return kept


def _run(request: Request) -> int:
    os.environ.clear()
    os.environ.update(request.environ)
    os.chdir("/")
    os.umask(0o077)
    try:
        code = _MAINS[request.hook]()
    except Exception as error:  # noqa: BLE001  it would have ended Python in the same way: a traceback, and 1
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
