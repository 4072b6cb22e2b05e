"""Stopping every process of a job on this node, so that none of them runs on while its key is taken away.

With ProctrackType=proctrack/cgroup on cgroup v2: the kernel's freezer, on the part of each step's cgroup in which the
job's own processes are. slurmstepd itself, beside it, must go on: a job whose slurmstepd does not answer cannot be
ended, and drains its node (UnkillableStepTimeout, slurm.conf(5)). What is frozen can still be killed (cgroup-v2.rst).

Without such a cgroup: SIGSTOP for what descends from the job's slurmstepds, or has its number in the environment.

Standard library only.
"""

# pathlib is left out on purpose: root's daemons import this
# ruff: noqa: PTH112, PTH119, PTH123

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 20
"""Looks at the processes, until one finds none that was not stopped: who is not stopped yet may fork."""
_SCOPE = "slurmstepd.scope"
_WAIT = 0.5
# what slurmstepd calls itself (setproctitle in slurmstepd.c)
_STEPD = re.compile(rb"slurmstepd: \[([0-9]+)\.")


class Frozen(NamedTuple):
    """How a job was stopped: ``cgroup``, ``signal``, or ``none`` when nothing of it was there. ``complete``: all of it.

    ``number``: cgroups or processes.
    """

    how: str
    number: int
    complete: bool


def freeze(node: str, job: int) -> Frozen:
    """Stop the job's processes; may be called again, and stops what has come since. Never raises OSError."""
    cgroups = list(step_cgroups(node, job))
    if cgroups:
        done = [_write_frozen(cgroup) for cgroup in cgroups]
        end = time.monotonic() + _WAIT
        # a process that waits for a dead file server is frozen once that lets it go; nothing waits for it here
        while all(done) and not all(map(_is_frozen, cgroups)) and time.monotonic() < end:
            time.sleep(0.005)
        return Frozen("cgroup", len(cgroups), all(done) and all(map(_is_frozen, cgroups)))
    return _stop_by_signal(node, job)


def thaw(node: str, job: int) -> bool:
    """Have the job's processes go on; whether all could be told to. May be called again.

    Without cgroups those that the user had stopped (SIGSTOP) go on as well: nobody can tell them from ours.
    """
    cgroups = list(step_cgroups(node, job))
    if cgroups:
        return all([_write_frozen(cgroup, "0") for cgroup in cgroups])
    for pid, begun in _processes(node, job).items():
        _send(pid, begun, signal.SIGCONT)
    return True


def is_being_killed(node: str, job: int) -> bool:
    """Whether a process of the job has been killed and cannot die: it waits for a device that does not answer."""
    pids: set[int] = set()
    cgroups = list(step_cgroups(node, job))
    for cgroup in cgroups:
        for folder, _, _ in os.walk(cgroup):
            pids |= {int(pid) for pid in _read(f"{folder}/cgroup.procs").split()}
    return any(map(_kill_pending, pids if cgroups else _processes(node, job)))


def _kill_pending(pid: int) -> bool:
    for line in _read(f"/proc/{pid}/status").splitlines():
        # what waits for the thread, and for the process (proc_pid_status(5))
        if line.startswith((b"SigPnd:", b"ShdPnd:")) and int(line.split()[1], 16) & 1 << (signal.SIGKILL - 1):
            return True
    return False


def is_there(node: str, job: int) -> bool:
    """Whether anything of the job runs on this node, frozen or not."""
    return any(True for _ in step_cgroups(node, job)) or bool(_processes(node, job))


def step_cgroups(node: str, job: int, mounts: str = "/proc/self/mounts", proc: str = "/proc") -> Iterator[str]:
    """The cgroups with the job's own processes, one a step (Slurm's cgroup/v2: ``.../job_J/step_S/user``).

    From 26.05 on the name of the job's is not its number but its SLUID, which nothing here knows: then each slurmstepd
    of the job says where it is, in ``step_S/slurm``, and its step's other cgroup is beside it.
    """
    scopes = _scopes(node, mounts)
    jobs = [folder for scope in scopes for folder in (f"{scope}/job_{job}",) if os.path.isdir(folder)]
    if not jobs and scopes:
        jobs = sorted(_by_stepds(scopes, job, mounts, proc))
    for folder in jobs:
        for step in _names(folder):
            path = f"{folder}/{step}/user"
            if step.startswith("step_") and os.path.isdir(path):
                yield path


def _by_stepds(scopes: list[str], job: int, mounts: str, proc: str) -> set[str]:
    """The cgroups of a job by its slurmstepds, which are root's."""
    found: set[str] = set()
    for pid in (name for name in _names(proc) if name.isdigit()):
        title = _STEPD.match(_read(f"{proc}/{pid}/cmdline"))
        if title is None or int(title[1]) != job or _owner(pid, proc) != 0:
            continue
        for line in _read(f"{proc}/{pid}/cgroup").decode("utf-8", "replace").splitlines():
            own, step, here = line.removeprefix("0::").rstrip("/").rsplit("/", 2) if line.count("/") > 2 else ("",) * 3
            if line.startswith("0::/") and step.startswith("step_") and here == "slurm":
                found |= {f"{top}{own}" for top in _cgroup_mounts(mounts)}
    return {path for path in found if any(path.startswith(f"{scope}/") for scope in scopes)}


def _scopes(node: str, mounts: str) -> list[str]:
    """Where slurmstepds live: at most two levels below the top, where no user can make a cgroup (systemd's slices)."""
    found: list[str] = []
    for top in _cgroup_mounts(mounts):
        for name in _names(top):
            for path in (f"{top}/{name}", *(f"{top}/{name}/{below}" for below in _names(f"{top}/{name}"))):
                if path.endswith(_SCOPE) and path not in found:
                    found.append(path)
    # several slurmds on one machine have a scope each, with their node's name
    own = [path for path in found if os.path.basename(path) == f"{node}_{_SCOPE}"]
    return own or [path for path in found if os.path.basename(path) == _SCOPE]


def _cgroup_mounts(mounts: str) -> list[str]:
    with contextlib.suppress(OSError), open(mounts, encoding="utf-8", errors="replace") as file:
        return [fields[1] for fields in map(str.split, file) if len(fields) > 2 and fields[2] == "cgroup2"]
    return []


def _names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _write_frozen(cgroup: str, state: str = "1") -> bool:
    try:
        with open(f"{cgroup}/cgroup.freeze", "w", encoding="ascii") as file:
            file.write(state)
    except FileNotFoundError:
        return True  # the step has ended
    except OSError:
        return False
    return True


def _is_frozen(cgroup: str) -> bool:
    try:
        with open(f"{cgroup}/cgroup.events", encoding="ascii") as file:
            return "frozen 1" in file.read().splitlines()
    except OSError:
        return not os.path.isdir(cgroup)


def _stop_by_signal(node: str, job: int) -> Frozen:
    stopped: set[tuple[int, bytes]] = set()
    for _ in range(ROUNDS):
        new = _processes(node, job).items() - stopped
        if not new:
            return Frozen("signal" if stopped else "none", len(stopped), True)
        for pid, begun in new:
            _send(pid, begun, signal.SIGSTOP)
        stopped |= new
    return Frozen("signal", len(stopped), False)


def _send(pid: int, begun: bytes, number: int) -> None:
    """Signal the process that was looked at, and none that has its number by now."""
    handle = None
    with contextlib.suppress(OSError):  # it is gone, or the kernel is older than 5.3
        handle = os.pidfd_open(pid)
    try:
        # looked at behind the handle: from here on the number stands for this very process
        if not begun or _begun(pid) != begun:
            return
        with contextlib.suppress(ProcessLookupError):
            if handle is not None:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(pid, number)
    finally:
        if handle is not None:
            os.close(handle)


def _processes(node: str, job: int) -> dict[int, bytes]:
    """Of this job: below one of its slurmstepds, or with its number in the environment. None of root's. With each when
    it began, which tells it from another of its number.

    The environment is what a process began with, and its user's to choose: it adds processes, it excuses none. That a
    foreign process may have itself stopped by it is its own doing. Root's are Slurm's: the hooks have the same
    variables, and an Epilog or a slurmstepd that is stopped never ends (it drained the node).
    """
    parents: dict[int, int] = {}
    begun: dict[int, bytes] = {}
    stepds: set[int] = set()
    marked: set[int] = set()
    roots: set[int] = set()
    want = {b"SLURM_JOB_ID=%d" % job, b"SLURMD_NODENAME=" + node.encode()}
    for pid in (int(name) for name in _names("/proc") if name.isdigit()):
        parent = _parent(pid)
        if parent is None or pid == os.getpid():
            continue
        parents[pid], begun[pid] = parent, _begun(pid)
        if _owner(pid) == 0:
            roots.add(pid)
            # anybody else may call himself that
            title = _STEPD.match(_read(f"/proc/{pid}/cmdline"))
            if title and int(title[1]) == job:
                stepds.add(pid)
        elif want <= set(_read(f"/proc/{pid}/environ").split(b"\0")):
            marked.add(pid)
    mine = set(marked)
    for pid, parent in parents.items():
        above, seen = parent, 0
        while above > 1 and above not in stepds and seen < len(parents):
            above, seen = parents.get(above, 0), seen + 1
        if above in stepds and pid not in roots:
            mine.add(pid)
    return {pid: begun[pid] for pid in mine}


def _begun(pid: int) -> bytes:
    """When a process began, in ticks since the boot (proc_pid_stat(5), starttime); empty when it is gone."""
    return b"".join(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19:20])


def _owner(pid: int | str, proc: str = "/proc") -> int:
    """The real user id; -1 for a process that is gone."""
    for line in _read(f"{proc}/{pid}/status").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return -1


def _parent(pid: int) -> int | None:
    # the name, in brackets, may hold anything (proc_pid_stat(5)); zombies have nothing left to stop
    rest = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(rest) < 2 or rest[0] in (b"Z", b"X"):
        return None
    return int(rest[1])


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1024 * 1024)
    except OSError:
        return b""
