"""Backing store on a whole block device (an instance store, say): for one job at a time, if nothing else uses it."""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH110, PTH123, PTH208

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import Refused
from keys.scratch.errors import NodeBroken, ScratchTooLarge
from keys.scratch.mounts import mounts

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.scratch.plan import ScratchPlan

# the names that keys/scratch/plan.py gives, of whichever node: several slurmds may share one kernel
_OURS = re.compile(r"secure-[A-Za-z0-9][A-Za-z0-9.-]{0,62}-[1-9][0-9]{0,9}", re.ASCII)
# longer than the cryptsetup of another start, or a look of udev's, holds the lock
_LOCK_PATIENCE = 25.0
_POLL = 0.1
_BUSY = "scratch of backing 'block' is for one job at a time: make the nodes exclusive, or use lvm or file"


class Users(NamedTuple):
    """What uses a device: mappings of jobs' scratch by their names, and everything else in words."""

    jobs: list[str]
    others: list[str]


def claim(plan: ScratchPlan, budget: Budget) -> int:
    """Lock the device, and make sure that nobody uses it; returns the descriptor that holds the lock.

    The lock (flock(2), which udev respects) is held until the mapping is there. From then on the mapping itself is what
    the next claim runs into: device-mapper alone would let two mappings share a device.

    :raises ScratchTooLarge: the device is smaller than what the job asked for.
    :raises Refused: ``scratch.busy``: another job has it. The node is well, and must not be drained for that.
    :raises NodeBroken: it is no block device, or it is mounted, swapped to, partitioned, mapped by others, or claimed.
    """
    try:
        device = os.open(plan.device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NodeBroken(f"no device {plan.device}: {error.strerror}", advice="check scratch.device") from None
    try:
        _check(device, plan, budget)
    except BaseException:
        os.close(device)
        raise
    return device


def _check(device: int, plan: ScratchPlan, budget: Budget) -> None:
    status = os.fstat(device)
    if not stat.S_ISBLK(status.st_mode):
        raise NodeBroken(f"{plan.device} is not a block device", advice="check scratch.device")
    _lock(device, plan, budget)
    used = users(status.st_rdev)
    if used.others:
        raise NodeBroken(f"the device {plan.device} is in use: {', '.join(used.others)}", advice=_BUSY)
    if used.jobs:
        raise Refused(
            "scratch.busy", f"the scratch device of node {plan.node} is another job's ({', '.join(used.jobs)})",
            advice=_BUSY,
        )  # fmt: skip
    try:
        # O_EXCL without O_CREAT: the kernel itself refuses a device that is mounted, swapped to or claimed (open(2))
        os.close(os.open(f"/proc/self/fd/{device}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise NodeBroken(f"cannot use the device {plan.device}: {error.strerror}", advice=_BUSY) from None
    size = os.lseek(device, 0, os.SEEK_END)
    if size < plan.mapped_bytes:
        raise ScratchTooLarge(f"the scratch device of node {plan.node} has {size} bytes, not {plan.size_bytes}")


def _lock(device: int, plan: ScratchPlan, budget: Budget) -> None:
    """Wait for the lock: a job that starts at the same moment has it until its mapping tells of it, udev for a look."""
    end = time.monotonic() + min(_LOCK_PATIENCE, budget.left())
    while True:
        try:
            fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end or (budget.stop is not None and budget.stop()):
                raise NodeBroken(
                    f"another program keeps the device {plan.device} locked",
                    advice=f"see: lslocks; fuser {plan.device}",
                ) from None
            time.sleep(_POLL)
        else:
            return


def users(device: int) -> Users:
    """What uses a device (st_rdev), by sysfs: mounts, partitions, and what is built on top of it."""
    system = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    jobs: list[str] = []
    others = [f"mounted at {mount.point}" for mount in mounts() if mount.device == device]
    try:
        for holder in sorted(os.listdir(f"{system}/holders")):
            name = _job_mapping(f"{system}/holders/{holder}")
            if name:
                jobs.append(name)
            else:
                others.append(f"held by {holder}")
        others += [
            f"partition {name}" for name in sorted(os.listdir(system)) if os.path.exists(f"{system}/{name}/partition")
        ]
    except OSError as error:
        raise NodeBroken(
            f"cannot tell whether device {os.major(device)}:{os.minor(device)} is in use: {error}"
        ) from None
    return Users(jobs, others)


def _job_mapping(holder: str) -> str:
    """The name of the mapping, if cryptsetup made it for a job's scratch: its name and its UUID say so. Else empty."""
    try:
        with open(f"{holder}/dm/name", encoding="ascii") as name, open(f"{holder}/dm/uuid", encoding="ascii") as uuid:
            found, made = name.read().strip(), uuid.read().strip()
    except (OSError, ValueError):
        return ""
    return found if _OURS.fullmatch(found) and made == f"CRYPT-PLAIN-{found}" else ""
