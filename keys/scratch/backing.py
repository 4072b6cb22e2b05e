"""The backing store: a file, memory, a logical volume, or a whole device. Only ciphertext ever reaches it.

:func:`make` gives a block device for the mapping; :func:`remove` takes back what it made, and may be repeated.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from keys.scratch import blockdevice, loop, volume
from keys.scratch.errors import NodeBroken, ScratchTooLarge
from keys.scratch.mounts import mounts
from keys.scratch.paths import open_directory

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.scratch.plan import ScratchNames, ScratchPlan

LOOPED = ("file", "memory")
"""The backings that a loop device makes a block device of."""

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KEEP_BYTES = 1024**3
_KEEP_PART = 20
"""What a reservation leaves free: a gibibyte, or a twentieth of a file system that is smaller than 20 of them."""


class Backing(NamedTuple):
    """A block device to put the mapping on; ``held`` keeps it for us until the mapping does, and is closed then."""

    device: str
    held: int | None


def make_file(plan: ScratchPlan) -> int:
    """Create and size the backing file, and return its descriptor. Nothing is left of it when this fails.

    Space is reserved (fallocate(2): no block is written, so it takes the same time for any size), or with
    ``overcommit`` left to be found when it is written to.

    A reservation leaves 1 GiB free, or 5 % of a file system smaller than 20 GiB, of what users other than root may use:
    root's fallocate would take all of it, and the blocks that are kept for root as well, and slurmd's spool and the
    audit trail may lie there. With ``overcommit`` nothing is reserved and nothing kept free: jobs that write may fill
    the file system, as that setting says.

    :raises ScratchTooLarge: there is no space for it, or too little would stay free.
    :raises NodeBroken: something is already there (a file or link of our name), the folder is not safe or not on the
        volume that it must be on, or the file system cannot reserve.
    """
    name = plan.names.path.rpartition("/")[2]
    check_volume(plan.volume)
    folder = open_directory(plan.directory, private=True, create=0o700)
    try:
        _check_place(folder, plan)
        _check_limit(folder, plan)
        try:
            file = os.open(name, _CREATE, 0o600, dir_fd=folder)
        except FileExistsError:
            raise NodeBroken(
                f"{plan.names.path} is already there, and it is not from this start of the job",
                advice="if the job runs nowhere, take it down: secure-slurm node clean",
            ) from None
        try:
            _size(file, plan)
            # another start may have come in between, as below
            _check_limit(folder, plan)
        except BaseException:
            os.close(file)
            os.unlink(name, dir_fd=folder)
            raise
        return file
    finally:
        os.close(folder)


def check_volume(volume: str) -> int | None:
    """The device (st_dev) of the file system at a mount point; None when none is demanded ("").

    :raises NodeBroken: nothing is mounted there, so that what belongs on it would be on the disk below.
    """
    if not volume:
        return None
    found = [mount.device for mount in mounts() if mount.point == volume]
    if not found:
        raise NodeBroken(
            f"nothing is mounted at {volume}, where scratch must lie",
            advice="mount it, or have the node replaced; see scratch.volume",
        )
    return found[-1]


def _check_place(folder: int, plan: ScratchPlan) -> None:
    """:raises NodeBroken: the folder is on another file system than what is mounted at ``scratch.volume``."""
    device = check_volume(plan.volume)
    if device is not None and os.fstat(folder).st_dev != device:
        raise NodeBroken(
            f"{plan.directory} is not on the file system at {plan.volume}", advice="see scratch.directory and findmnt"
        )


def _check_limit(folder: int, plan: ScratchPlan) -> None:
    """:raises ScratchTooLarge: with this job the backing files in the folder would be larger than the limit in all.

    Sizes and not blocks: a sparse file is promised whole. The job's own file does not count.
    """
    if not plan.limit:
        return
    taken, own = 0, plan.names.path.rpartition("/")[2]
    for name in os.listdir(folder):
        if name.endswith(".img") and name != own:
            with contextlib.suppress(FileNotFoundError):  # its job has ended
                taken += os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    refuse_over_limit(plan, taken)


def refuse_over_limit(plan: ScratchPlan, taken: int) -> None:
    """:raises ScratchTooLarge: the job's scratch does not fit into ``scratch.limit`` beside ``taken`` bytes."""
    if plan.limit and taken + plan.mapped_bytes > plan.limit:
        raise ScratchTooLarge(
            f"node {plan.node} gives {plan.limit} bytes of scratch in all, {taken} are taken, "
            f"and the job wants {plan.size_bytes}"
        )


def _size(file: int, plan: ScratchPlan) -> None:
    try:
        if plan.overcommit:
            os.ftruncate(file, plan.mapped_bytes)
        else:
            _check_room(file, plan, plan.mapped_bytes)
            _reserve(file, plan.mapped_bytes)
            # another start may have reserved in between; each of them looks again, so that at worst both give way
            _check_room(file, plan, 0)
    except OSError as error:
        if error.errno in _FULL:
            raise ScratchTooLarge(
                f"node {plan.node} has no {plan.size_bytes} bytes of scratch free ({error.strerror})"
            ) from None
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise NodeBroken(
                f"the file system of {plan.directory} cannot reserve space",
                advice="use a local ext4 or xfs, or set scratch.overcommit",
            ) from None
        raise


def _check_room(file: int, plan: ScratchPlan, size: int) -> None:
    """:raises ScratchTooLarge: with ``size`` more bytes taken, less would be free than is to be kept."""
    space = os.fstatvfs(file)
    keep = min(_KEEP_BYTES, space.f_blocks * space.f_frsize // _KEEP_PART)
    # f_bavail, not f_bfree: without what only root may use (statvfs(3))
    free = space.f_bavail * space.f_frsize
    if free - size < keep:
        raise ScratchTooLarge(
            f"node {plan.node} has no {plan.size_bytes} bytes of scratch free ({keep} bytes of its disk stay free)"
        )


def _reserve(file: int, size: int) -> None:
    # Not os.posix_fallocate: where the file system cannot reserve, the C library's writes to every block instead,
    # for hours. ctypes gives the system call's own answer.
    libc = ctypes.CDLL(None, use_errno=True)
    while libc.fallocate(ctypes.c_int(file), 0, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def attach_file(file: int, names: ScratchNames) -> Backing:
    """Put the backing file on a loop device. The device goes away with the last of its users (autoclear)."""
    held, device = loop.attach(file, names.path)
    return Backing(device, held)


def make_device(plan: ScratchPlan, budget: Budget) -> Backing:
    """The logical volume (made for the job), or the whole device (checked to be free).

    :raises ScratchTooLarge: it is too small, or the volume group is full.
    :raises Refused: ``scratch.busy``: the device is another job's.
    :raises NodeBroken: it is in use by something else, or not there.
    """
    if plan.backing == "lvm":
        return Backing(volume.create(plan, budget), None)
    return Backing(plan.device, blockdevice.claim(plan, budget))


def exists(names: ScratchNames, budget: Budget) -> bool:
    """Whether something of this job's backing store is there. A whole device always is, and is never the job's."""
    if names.backing == "lvm":
        return volume.exists(names.path, budget)
    # memory has no name of its own: it is there as long as a loop device has it, which teardown.verify_gone looks for
    return names.backing == "file" and os.path.lexists(names.path)


def remove(names: ScratchNames, budget: Budget) -> list[str]:
    """Take the backing store away; what was removed, as ``kind: name``. A whole device is left as it is: ciphertext.

    :raises NodeBroken: it is still in use, or is something that is not ours to remove.
    """
    if names.backing == "lvm":
        return [f"volume: {names.path}"] if volume.remove(names.path, budget) else []
    if names.backing not in LOOPED:
        return []
    removed = []
    for device in loop.find(names.path):
        loop.detach(device)
        removed.append(f"loop: {device}")
    if names.backing == "file" and _unlink(names.path):
        removed.append(f"file: {names.path}")
    return removed


def _unlink(path: str) -> bool:
    directory, _, name = path.rpartition("/")
    try:
        folder = open_directory(directory, private=True)
    except FileNotFoundError:
        return False
    try:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                raise NodeBroken(f"{path} is a folder, not a backing file", advice="look at it, and remove it by hand")
            os.unlink(name, dir_fd=folder)
            return True
        return False
    finally:
        os.close(folder)
