"""Backing store on a whole block device (an instance store, say): for one job at a time, if nothing else uses it."""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH110, PTH208

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from keys.scratch.errors import NodeBroken, ScratchTooLarge
from keys.scratch.mounts import mounts

if TYPE_CHECKING:
    from keys.scratch.plan import ScratchPlan

_BUSY = "scratch of backing 'block' is for one job at a time: make the nodes exclusive, or use lvm or file"


def claim(plan: ScratchPlan) -> int:
    """Lock the device, and make sure that nobody uses it; returns the descriptor that holds the lock.

    The lock (flock(2), which udev respects) is held until the mapping is there. From then on the mapping itself is what
    the next claim runs into: device-mapper alone would let two mappings share a device.

    :raises ScratchTooLarge: the device is smaller than what the job asked for.
    :raises NodeBroken: it is no block device, or it is mounted, swapped to, partitioned, mapped, or claimed.
    """
    try:
        device = os.open(plan.device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NodeBroken(f"no device {plan.device}: {error.strerror}", advice="check scratch.device") from None
    try:
        _check(device, plan)
    except BaseException:
        os.close(device)
        raise
    return device


def _check(device: int, plan: ScratchPlan) -> None:
    status = os.fstat(device)
    if not stat.S_ISBLK(status.st_mode):
        raise NodeBroken(f"{plan.device} is not a block device", advice="check scratch.device")
    try:
        fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise NodeBroken(f"the device {plan.device} is being set up for another job", advice=_BUSY) from None
    used = users(status.st_rdev)
    if used:
        raise NodeBroken(f"the device {plan.device} is in use: {', '.join(used)}", advice=_BUSY)
    try:
        # O_EXCL without O_CREAT: the kernel itself refuses a device that is mounted, swapped to or claimed (open(2))
        os.close(os.open(f"/proc/self/fd/{device}", os.O_RDWR | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        raise NodeBroken(f"cannot use the device {plan.device}: {error.strerror}", advice=_BUSY) from None
    size = os.lseek(device, 0, os.SEEK_END)
    if size < plan.mapped_bytes:
        raise ScratchTooLarge(f"the scratch device of node {plan.node} has {size} bytes, not {plan.size_bytes}")


def users(device: int) -> list[str]:
    """What uses a device (st_rdev), by sysfs: mounts, partitions, and what is built on top of it."""
    system = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    used = [f"mounted at {mount.point}" for mount in mounts() if mount.device == device]
    try:
        used += [f"held by {name}" for name in sorted(os.listdir(f"{system}/holders"))]
        used += [
            f"partition {name}" for name in sorted(os.listdir(system)) if os.path.exists(f"{system}/{name}/partition")
        ]
    except OSError as error:
        raise NodeBroken(
            f"cannot tell whether device {os.major(device)}:{os.minor(device)} is in use: {error}"
        ) from None
    return used
