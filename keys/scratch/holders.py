"""Who still holds a file system, and the end of those who are the job's.

A process of the job is one that has the job's user among its user ids, or lives in a user namespace that this user owns
(a rootless container's processes have other ids). Of those, only the ones that hold this very file system are killed: a
user may have another job on the node. Processes of others are named, not touched.

Looking at a process means looking at its files, and one that lies on a dead NFS or FUSE server makes whoever looks wait
for ever. So the search is made by a child that can be left behind: another goes on after that process, which is judged
by the names of its files alone.
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH115, PTH116, PTH123, PTH208

from __future__ import annotations

import contextlib
import ctypes
import fcntl
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
_CLONE_NEWNS = 0x20000
_LOOK = 2.0
"""Seconds for one process. On a busy machine one with very many files may take longer: it is then told, and asked again
in the next round of a tear-down."""


class Ended(NamedTuple):
    """Processes as ``<pid> <command> (user <uid>, <what it holds>)``, and whether the search came to its end."""

    killed: list[str]
    others: list[str]
    complete: bool


def end_holders(devices: set[int], uid: int | None, *, copies: bool, timeout: float, below: str = "") -> Ended:
    """Kill the job's processes that hold one of these file systems (st_dev).

    :param uid: the job's user; None or 0: nobody is killed, all are named.
    :param copies: whether having a mount of it in a mount namespace other than ours counts as holding it.
    :param timeout: seconds for the search.
    :param below: the mount point: a process that cannot be looked at holds what its files' names say.
    """
    end = time.monotonic() + timeout
    killed: list[str] = []
    others: list[str] = []
    stuck: set[int] = set()
    while True:
        lines, pid = _one_search(devices, uid or 0, copies=copies, end=end, stuck=frozenset(stuck))
        killed += [line[1:] for line in lines if line.startswith("+")]
        others += [line[1:] for line in lines if line.startswith("-")]
        if not pid or pid in stuck:
            # the end of the search, or one that came to nothing; who was seen by two of them is told once
            killed, others = list(dict.fromkeys(killed)), list(dict.fromkeys(others))
            return Ended(killed[:_SHOWN], others[:_SHOWN], pid is None and not stuck)
        stuck.add(pid)
        with _handle(pid) as handle:
            held = _has_by_name(pid, below)
            line = _line(pid, f"does not answer{f', and has {below} open' if held else ''}")
            if held and _is_of(pid, uid or 0):
                _kill(pid, handle)
                killed.append(line)
            else:
                others.append(line)


def _one_search(
    devices: set[int], uid: int, *, copies: bool, end: float, stuck: frozenset[int]
) -> tuple[list[str], int | None]:
    """What a child found (``+``: killed, ``-``: another's), and at which process it did not go on; None: it ended.

    0: it did not get to any process, or failed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(max(1, int(end - time.monotonic()) + 1))
            os.close(reader)
            for line in _search(devices, uid, copies=copies, stuck=stuck):
                os.write(writer, line.encode("utf-8", "replace") + b"\n")
            os.write(writer, b".\n")
        os._exit(0)
    os.close(writer)
    try:
        lines = _receive(reader, end)
    finally:
        os.close(reader)
        _reap(child)
    if lines[-1:] == ["."]:
        return lines, None
    return lines, next((int(line) for line in reversed(lines) if line.isdecimal()), 0)


def _receive(reader: int, end: float) -> list[str]:
    """The child's lines, until its end, or ``end``, or a look at one process that takes too long."""
    answer = b""
    while len(answer) < _MAX_ANSWER and (left := end - time.monotonic()) > 0:
        if not select.select([reader], [], [], min(left, _LOOK))[0]:
            break
        data = os.read(reader, 65536)
        if not data:
            break
        answer += data
    return answer.decode("utf-8", "replace").split("\n")[:-1]


def _reap(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    for _ in range(20):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.05)
                continue
        return


def _search(devices: set[int], uid: int, *, copies: bool, stuck: frozenset[int]) -> Iterator[str]:
    """A line with its number before each process is looked at, and one more for each that holds something."""
    own_namespace = _link("/proc/self/ns/mnt")
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid() or pid in stuck:
            continue
        yield str(pid)
        with _handle(pid) as handle:
            # the handle is taken before the look: what is killed is the process that was looked at (pidfd_open(2))
            why = _why(pid, devices) or (_copy(pid, devices, own_namespace) if copies else "")
            if not why:
                continue
            if _is_of(pid, uid):
                line = _line(pid, why)
                _kill(pid, handle)
                yield f"+{line}"
            else:
                yield f"-{_line(pid, why)}"
    if copies:
        yield from _kept_namespaces(devices)


def _is_of(pid: int, uid: int) -> bool:
    return bool(uid) and (uid in _uids(pid) or _namespace_owner(pid) == uid)


def _line(pid: int, why: str) -> str:
    uids = _uids(pid)
    return f"{pid} {_command(pid)} (user {uids[0] if uids else '?'}, {why})"


def _has_by_name(pid: int, below: str) -> bool:
    """Whether the name of something that a process has open is below the mount point. No file system is asked."""
    names = [f"/proc/{pid}/{name}" for name in ("cwd", "root", "exe")] + _entries(f"/proc/{pid}/fd")
    return bool(below) and any(f"{_link(name)}/".startswith(f"{below}/") for name in names)


def _kept_namespaces(devices: set[int]) -> Iterator[str]:
    """Mount namespaces that no process lives in, and a file keeps (``unshare --mount=FILE``, Slurm's plugins).

    They are named and not touched: whose they are does not show.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    kept = {}
    for mount in mounts():
        if mount.fstype == "nsfs" and mount.root.startswith("mnt:"):
            with contextlib.suppress(OSError):
                kept[mount.point] = os.open(mount.point, os.O_RDONLY | os.O_CLOEXEC)
    for point, descriptor in kept.items():
        # this process is the search's own and ends with it: it need not come back
        if libc.setns(descriptor, _CLONE_NEWNS) == 0 and any(mount.device in devices for mount in mounts()):
            yield f"-namespace kept by {point} (mounted in it)"


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
