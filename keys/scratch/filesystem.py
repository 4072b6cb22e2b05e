"""The file system on the mapping, where it is mounted, and to whom it belongs.

Made in the same time for any size: inode tables are written when they are first used, there is no journal (a crash ends
the job and its key, so there is nothing to replay), and nothing is discarded.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from keys.process import program
from keys.scratch.errors import NodeBroken
from keys.scratch.mounts import below, mounts
from keys.scratch.paths import open_directory
from keys.scratch.unmount import unmount as unmount_point

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.scratch.plan import ScratchNames

_MAKE = {
    # mke2fs(8), ext4(5). Copies of the superblock and its descriptors, and room to grow, are for file systems that live
    # on: without them, and with metadata in few places (-G), 10 TiB take 0.2 s and 8 MB instead of 1.2 s and 144 MB.
    "ext4": (
        "mkfs.ext4", "-F", "-q", "-m", "0", "-G", "1024", "-O", "^has_journal,^resize_inode,sparse_super2",
        "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,num_backup_sb=0",
    ),
    # mkfs.xfs(8): -K does not discard; there is always a log, by default 2 GB on large devices, written at once
    "xfs": ("mkfs.xfs", "-f", "-q", "-K", "-l", "size=64m"),
}  # fmt: skip
# noinit_itable: no kernel thread that goes on to write inode tables for hours under a file system that lives as long
_OPTIONS = {"ext4": "nosuid,nodev,noatime,noinit_itable", "xfs": "nosuid,nodev,noatime"}
TMP = "tmp"
"""The folder in the file system that TMPDIR is to name."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = 30.0


def make(filesystem: str, device: str, budget: Budget) -> None:
    """Make a file system.

    :raises ProcessError: mkfs failed, or did not end in time.
    """
    name, *arguments = _MAKE[filesystem]
    budget.run([program(name), *arguments, device], cap=_STEP)


def make_mount_point(names: ScratchNames) -> None:
    """Make the folder that is mounted on: root's own, and closed to everybody until the file system covers it.

    :raises NodeBroken: something is already there, or users cannot get to the mount root.
    """
    root = open_directory(names.mount_root, create=0o755)
    try:
        if not os.fstat(root).st_mode & 0o001:
            raise NodeBroken(f"users cannot enter {names.mount_root}", advice=f"chmod 0755 {names.mount_root}")
        os.mkdir(str(names.job), 0o700, dir_fd=root)
    except FileExistsError:
        raise NodeBroken(
            f"{names.mount_point} is already there, and it is not from this start of the job",
            advice="if the job runs nowhere, take it down: secure-slurm node clean",
        ) from None
    finally:
        os.close(root)


def remove_mount_point(names: ScratchNames) -> bool:
    """Remove the folder that was mounted on; whether it was there.

    In mount namespaces that have their own copy of the mount, this takes the mount off the folder as well (the kernel
    does so since 3.18): the only way to end copies that Slurm's own namespaces or services hold.

    :raises OSError: something is still mounted on it here (EBUSY), or it is not empty, or it is no folder.
    """
    try:
        root = open_directory(names.mount_root)
    except FileNotFoundError:
        return False
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(str(names.job), dir_fd=root)
            return True
        return False
    finally:
        os.close(root)


def mount(names: ScratchNames, filesystem: str, budget: Budget) -> None:
    """Mount the mapping; ``-i``: without helper programs.

    :raises ProcessError: the mount failed.
    """
    argv = [program("mount"), "-i", "-t", filesystem, "-o", _OPTIONS[filesystem], "--", names.device, names.mount_point]
    budget.run(argv, cap=_STEP)


def unmount(point: str, budget: Budget, *, cap: float = _STEP) -> None:
    """Unmount what is mounted at ``point``; never lazily, since a lazy unmount says "gone" of what is still in use.

    Not by umount(8): it gives the kernel the whole path, and for root it follows links (keys/scratch/unmount.py).

    :raises ProcessError: it is busy, or there was too much left to write for the time given (``cap`` seconds).
    """
    unmount_point(point, timeout=min(cap, budget.left()), stop=budget.stop)


def unmount_all(names: ScratchNames, budget: Budget) -> None:
    """Unmount everything at the job's mount point and inside it.

    :raises ProcessError: something is busy.
    """
    for found in below(names.mount_point, mounts()):
        unmount_one(names, found.point, budget)


def unmount_one(names: ScratchNames, point: str, budget: Budget, *, cap: float = _STEP) -> None:
    """Unmount one mount of a job; never lazily.

    The job's own mount point by umount(8): no part of that path is anybody's but root's, which is looked at here, and
    starting it takes less than the copy of this process that :func:`unmount` needs for the paths of users.

    :raises ProcessError: as :func:`unmount`.
    """
    if point == names.mount_point and _is_roots_own(names.mount_root):
        budget.run([program("umount"), "-i", "-c", "--", point], cap=cap)
    else:
        unmount(point, budget, cap=cap)


def _is_roots_own(folder: str) -> bool:
    try:
        os.close(open_directory(folder))
    except (NodeBroken, OSError):
        return False
    return True


def hand_over(names: ScratchNames, uid: int, gid: int, device: int) -> None:
    """Give the mounted file system to the job's user, with a folder ``tmp`` for TMPDIR in it; both 0700.

    :param device: what has to be mounted there (st_dev).
    :raises NodeBroken: something else is mounted there, or with other options: nothing is given away then.
    """
    root = open_directory(names.mount_root)
    try:
        top = os.open(str(names.job), _DIRECTORY, dir_fd=root)
    finally:
        os.close(root)
    try:
        _check(top, names, device)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir("lost+found", dir_fd=top)  # fsck will never come, and users wonder about it
        os.mkdir(TMP, 0o700, dir_fd=top)
        inner = os.open(TMP, _DIRECTORY, dir_fd=top)
        try:
            _give(inner, uid, gid)
        finally:
            os.close(inner)
        _give(top, uid, gid)
    finally:
        os.close(top)


def _check(top: int, names: ScratchNames, device: int) -> None:
    if os.fstat(top).st_dev != device:
        raise NodeBroken(f"what is mounted at {names.mount_point} is not {names.device}")
    wanted = os.ST_NOSUID | os.ST_NODEV
    if os.fstatvfs(top).f_flag & wanted != wanted:
        raise NodeBroken(f"{names.mount_point} is not mounted nosuid and nodev")


def _give(folder: int, uid: int, gid: int) -> None:
    os.fchmod(folder, 0o700)
    os.fchown(folder, uid, gid)
