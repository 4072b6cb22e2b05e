"""One mount taken off, whoever swaps folders on the way to it meanwhile.

What is mounted inside a job's scratch lies below folders of the job's user. A path is looked up anew by whoever uses
it, so a process of the user that has outlived the job could put a link in the place of a folder and have root unmount
something else. Here each part of the path is opened from the one before, links are not followed, and the last part is
unmounted from within its folder.

A child does it: the lookup may ask a FUSE server that never answers, and an unmount waits for what is still to be
written. A child that sits in such a wait is left behind, with nothing of ours in its hands.
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from keys.process import ProcessError, ProcessTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UMOUNT_NOFOLLOW = 8
"""umount2(2)"""
_POLL = 0.1
_KILL_GRACE = 1.0


def unmount(point: str, *, timeout: float, stop: Callable[[], bool] | None = None) -> None:
    """Unmount what is mounted at ``point``, the topmost if there are several; never lazily.

    :param point: as mountinfo shows it: absolute, and without links.
    :param timeout: seconds; nothing is done when it is not positive. ``stop`` is asked ten times a second.
    :raises ProcessError: it is busy, or no longer there, or a part of the path is a link now; nothing was unmounted.
    :raises ProcessTimeout: it did not end in time.
    """
    parts = point.split("/")[1:]
    if not point.startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
        raise ProcessError(f"{point[:300]!r} is not the path of a mount")
    if timeout <= 0:
        raise ProcessTimeout(f"{point} was not unmounted: no time is left")
    libc = ctypes.CDLL(None, use_errno=True)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(libc, parts, writer)
    os.close(writer)
    try:
        answer = _receive(reader, time.monotonic() + timeout, stop)
    finally:
        os.close(reader)
        _reap(child)
    if answer is None:
        raise ProcessTimeout(f"{point} was not unmounted within {timeout:.1f} s")
    if answer != b"0":
        number = int(answer or b"0")
        raise ProcessError(
            f"cannot unmount {point}: {os.strerror(number) if number else 'the attempt was cut short'}", returncode=1
        )


def _in_child(libc: ctypes.CDLL, parts: list[str], writer: int) -> None:
    """Does not return. Says the error number of the kernel, 0 for none, or nothing if it got nowhere."""
    with contextlib.suppress(BaseException):
        os.setsid()
        # Nothing of ours may stay open should we be left behind: the job's lock, slurmd's pipes
        os.dup2(writer, 3)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 3:
                with contextlib.suppress(OSError):  # the one that listed them
                    os.close(int(name))
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        failed = _unmount(libc, parts)
        # what holds a folder of the scratch busy is let go of before anybody hears that it is unmounted
        os.chdir("/")
        os.write(3, b"%d" % failed)
    os._exit(0)


def _unmount(libc: ctypes.CDLL, parts: list[str]) -> int:
    folder = os.open("/", _STEP)
    try:
        for part in parts[:-1]:
            below = os.open(part, _STEP, dir_fd=folder)
            os.close(folder)
            folder = below
        os.fchdir(folder)
    except OSError as error:
        return error.errno or 0
    finally:
        os.close(folder)
    done = libc.umount2(os.fsencode(parts[-1]), ctypes.c_int(_UMOUNT_NOFOLLOW))
    return ctypes.get_errno() if done != 0 else 0


def _receive(reader: int, end: float, stop: Callable[[], bool] | None) -> bytes | None:
    """What the child said; None: nothing in time."""
    while (left := end - time.monotonic()) > 0 and not (stop is not None and stop()):
        if select.select([reader], [], [], min(left, _POLL))[0]:
            return os.read(reader, 16)
    return None


def _reap(child: int) -> None:
    """The end of the child; one that has answered is just ending, one that cannot be killed is left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    end = time.monotonic() + _KILL_GRACE
    pause = 0.001
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(pause)
                pause = min(pause * 2, 0.05)
                continue
        return
