"""Who still holds a file system, and the end of those who are the job's.

A process of the job is one that has the job's user among its user ids, or lives in a user namespace that this user owns
(a rootless container's processes have other ids). Of those, only the ones that hold this very file system are killed: a
user may have another job on the node. Processes of others are named, not touched.

Looking at a process means looking at its files, and one that lies on a dead NFS server makes whoever looks wait for
ever. So the search is made by a child that can be left behind.
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from keys.scratch.mounts import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

# linux/nsfs.h
_NS_GET_OWNER_UID = 0xB704
_MAX_ANSWER = 1024**2
_SHOWN = 50


class Ended(NamedTuple):
    """Processes as ``<pid> <command> (user <uid>, <what it holds>)``, and whether the search came to its end."""

    killed: list[str]
    others: list[str]
    complete: bool


def end_holders(devices: set[int], uid: int | None, *, copies: bool, timeout: float) -> Ended:
    """Kill the job's processes that hold one of these file systems (st_dev).

    :param uid: the job's user; None or 0: nobody is killed, all are named.
    :param copies: whether having a mount of it in a mount namespace other than ours counts as holding it.
    :param timeout: seconds for the search.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(timeout) + 1)
            os.close(reader)
            answer = json.dumps(_search(devices, uid or 0, copies=copies)).encode()
            os.write(writer, answer[:_MAX_ANSWER])
        os._exit(0)
    os.close(writer)
    try:
        answer = _receive(reader, time.monotonic() + timeout)
    finally:
        os.close(reader)
        _reap(child)
    try:
        killed, others = json.loads(answer)
    except ValueError:
        return Ended([], [], False)
    return Ended(killed, others, True)


def _receive(reader: int, end: float) -> bytes:
    answer = b""
    while (left := end - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        data = os.read(reader, 65536)
        if not data:
            break
        answer += data
    return answer


def _reap(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    for _ in range(20):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
                continue
        return


def _search(devices: set[int], uid: int, *, copies: bool) -> tuple[list[str], list[str]]:
    killed: list[str] = []
    others: list[str] = []
    own_namespace = _link("/proc/self/ns/mnt")
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        with _handle(pid) as handle:
            # the handle is taken before the look: what is killed is the process that was looked at (pidfd_open(2))
            why = _why(pid, devices) or (_copy(pid, devices, own_namespace) if copies else "")
            if not why:
                continue
            uids = _uids(pid)
            line = f"{pid} {_command(pid)} (user {uids[0] if uids else '?'}, {why})"
            if uid and (uid in uids or _namespace_owner(pid) == uid):
                _kill(pid, handle)
                killed.append(line)
            else:
                others.append(line)
    return killed[:_SHOWN], others[:_SHOWN]


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[int | None]:
    handle = None
    with contextlib.suppress(OSError):  # it is gone, or the kernel is older than 5.3
        handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def _kill(pid: int, handle: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        if handle is not None:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)


def _why(pid: int, devices: set[int]) -> str:
    """What a process holds of one of the devices; empty: nothing.

    By the device of each open thing and not by its path: in another namespace, or after it was deleted, the path is
    another one. Threads may have a working directory and files of their own (unshare(2)).
    """
    if _on(f"/proc/{pid}/exe", devices):
        return "runs from it"
    for task in _entries(f"/proc/{pid}/task"):
        for name, what in (("cwd", "working directory"), ("root", "root directory")):
            if _on(f"{task}/{name}", devices):
                return what
        if any(_on(file, devices) for file in _entries(f"{task}/fd")):
            return "open file"
    return "mapped file" if _maps(pid, devices) else ""


def _entries(folder: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


def _on(path: str, devices: set[int]) -> bool:
    try:
        return os.stat(path).st_dev in devices
    except OSError:
        return False


def _maps(pid: int, devices: set[int]) -> bool:
    """Mapped files; each line of proc_pid_maps(5) has the device as ``major:minor``, in hexadecimal."""
    wanted = {f"{os.major(device):02x}:{os.minor(device):02x}" for device in devices}
    with (
        contextlib.suppress(OSError, IndexError),
        open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as file,
    ):
        return any(line.split(None, 4)[3] in wanted for line in file)
    return False


def _copy(pid: int, devices: set[int], own_namespace: str) -> str:
    if _link(f"/proc/{pid}/ns/mnt") in ("", own_namespace):
        return ""
    return "mounted in its namespace" if any(mount.device in devices for mount in mounts(str(pid))) else ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _uids(pid: int) -> list[int]:
    """Real, effective, saved and file system user id."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("Uid:"):
                return [int(word) for word in line.split()[1:5]]
    return []


def _command(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return "".join(c if c.isprintable() else "?" for c in file.read().strip())[:32]
    return "?"


def _namespace_owner(pid: int) -> int:
    """The user who made the user namespace that a process lives in (ioctl_ns(2)): 0 for the initial one; -1 unknown."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        answer = fcntl.ioctl(descriptor, _NS_GET_OWNER_UID, bytes(4))
        return int(struct.unpack("=I", answer)[0])
    except OSError:
        return -1
    finally:
        os.close(descriptor)
