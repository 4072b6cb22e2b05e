"""ParallelCluster's volume group taken over for the scratch of jobs, and given back. Root's; each may be repeated.

Taking over: the volume that fills the group is unmounted, the unit that would make it again is kept from running, and
the volume is removed. What cannot be undone comes last, and whatever fails before it is undone.

Refused is a group with any drive that is no instance store, with volumes of somebody else's, or while anything uses
the file system: a mount that is busy, a second mount of it, another mount namespace that shows it, a step of a job on
this machine. Right before the volume goes everything is looked at again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from admin import store_look, store_unit
from admin.store_look import VENDORS_VOLUME, Group, Volume
from conf.errors import Refused, SecureSlurmError
from conf.quote import quote
from conf.units import format_size
from keys.process import ProcessError, program, run
from keys.scratch import blockdevice, volume
from keys.scratch.errors import NodeBroken
from keys.scratch.unmount import unmount
from slurm_hooks.steps import running_steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from keys.scratch.mounts import Mount

TIMEOUT = 60.0


def look(name: str) -> Group:
    """The group, if it may be touched at all.

    :raises Refused: ``store.no-group``; ``store.not-instance-store``.
    """
    found = store_look.group(name)
    if found is None:
        raise Refused(
            "store.no-group",
            f"there is no volume group {quote(name)} on this machine",
            advice="see whether this instance type has instance store, and what setup-ephemeral.service said",
        )
    if found.strange or not found.physical:
        raise Refused(
            "store.not-instance-store",
            f"the volume group {quote(name)} lies on something that is not instance store: "
            f"{', '.join(map(quote, found.strange)) or 'nothing at all'}",
            advice=f"only drives that {store_look.BY_ID}/{store_look.LINKS} names are taken over",
        )
    return found


def take_over(name: str, remove: str, note: Callable[..., object]) -> list[str]:
    """Make the group the jobs'; what was done, in words; nothing when it is theirs already.

    :param remove: the explicit word: the name of the volume that may be destroyed with all that is in it.
    :param note: writes the audit line ``node.store``; told before anything is changed, and at the end.
    :raises Refused: one of the rules ``store.*``; nothing was changed.
    :raises InternalError: something failed, and what was done before it has been undone as far as it could be.
    """
    found = look(name)
    theirs = _theirs(found)
    if theirs is None and store_unit.stopped():
        return []
    if theirs is not None:
        _refuse_unless_free(found, theirs, remove)
    note(result="begun", bytes=found.size, reason=f"take over {name}")
    with contextlib.ExitStack() as trail:
        trail.callback(note, result="failed", reason=f"take over {name}")
        with contextlib.ExitStack() as undo:
            done = _change(found, theirs, undo)
            undo.pop_all()
        now = look(name)
        if _theirs(now) is not None or not store_unit.stopped():
            raise NodeBroken(f"{name} is not as it should be after it was taken over", advice="see: lvs")
        trail.pop_all()
    note(result="taken", bytes=now.free, evidence="; ".join(done)[:500])
    return done


def _change(found: Group, theirs: Volume | None, undo: contextlib.ExitStack) -> list[str]:
    name = found.name
    done: list[str] = []
    if theirs is not None:
        for mount in theirs.mounts:
            try:
                unmount(mount.point, timeout=TIMEOUT)
            except ProcessError as error:
                raise Refused(
                    "store.busy",
                    f"the file system at {mount.point} is in use: {error}",
                    advice=f"see: fuser -vm {mount.point}; end what uses it, or do it when the node is set up",
                ) from None
            undo.callback(_mount_again, name, mount)
            done.append(f"unmounted {mount.point}")
        if theirs.device:
            _refuse_in_use(name, theirs)
    if store_unit.stop():
        undo.callback(store_unit.give_back)
        done.append(f"{store_unit.NAME} is kept from running")
    if theirs is not None:
        _refuse_changed(name, found)
        # without force: LVM itself refuses a volume that is open (lvremove(8))
        _lvm("lvremove", "--yes", "--quiet", "--", f"{name}/{theirs.name}")
        done.append(f"removed {name}/{theirs.name}")
        for mount in theirs.mounts:
            _close_folder(mount.point)
    return done


def _theirs(found: Group) -> Volume | None:
    """ParallelCluster's volume; None when it is gone.

    :raises Refused: ``store.foreign``: there is a volume that is neither its nor a job's.
    """
    foreign = [each.name for each in found.volumes if not each.ours and each.name != VENDORS_VOLUME]
    if foreign:
        raise Refused(
            "store.foreign",
            f"the volume group {quote(found.name)} has volumes of somebody else's: {', '.join(map(quote, foreign))}",
            advice="a group for scratch is for nothing else; remove them, or name another group",
        )
    return next((each for each in found.volumes if each.name == VENDORS_VOLUME), None)


def _refuse_unless_free(found: Group, theirs: Volume, remove: str) -> None:
    if remove != theirs.name:
        where = f", mounted at {theirs.mounts[0].point}" if theirs.mounts else ""
        raise Refused(
            "store.volume",
            f"{found.name}/{theirs.name} ({format_size(theirs.size)}{where}) has all of the volume group, and removing "
            "it destroys what is in it",
            advice=f"if nothing in it is needed: --remove {theirs.name}, or scratch.take_over",
        )
    others = [mount.point for mount in theirs.mounts if mount.root != "/"] or [
        mount.point for mount in theirs.mounts[1:]
    ]
    if others:
        raise Refused(
            "store.busy",
            f"the file system of {found.name}/{theirs.name} is shown at {', '.join(map(quote, others))} as well",
            advice="somebody put it there for a purpose: see findmnt, and unmount it there first",
        )
    jobs = running_steps()
    if jobs:
        known = sorted({job for job in jobs.values() if job})
        raise Refused(
            "store.busy",
            f"jobs run on this machine: {', '.join(map(str, known)) or 'which cannot be told'}",
            advice="drain the node, and wait for them to end",
        )


def _refuse_in_use(name: str, theirs: Volume) -> None:
    """:raises Refused: ``store.busy``: something still has the device, in whatever namespace."""
    used = blockdevice.users(theirs.device)
    why = ", ".join([*used.jobs, *used.others])
    if not why:
        try:
            # O_EXCL without O_CREAT: the kernel refuses what is mounted anywhere, swapped to or claimed (open(2))
            node = os.open(volume.node_path(f"{name}/{theirs.name}"), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            why = f"{error.strerror}; another mount namespace may show it"
        else:
            why = "" if os.fstat(node).st_rdev == theirs.device else "its device node is another device's"
            os.close(node)
    if why:
        raise Refused(
            "store.busy",
            f"{name}/{theirs.name} is in use: {why}",
            advice=f"see: lsblk; grep {theirs.name} /proc/*/mounts",
        )


def _refuse_changed(name: str, before: Group) -> None:
    """:raises Refused: ``store.busy``: it is not the group any more that was found to be free for the taking."""
    now = look(name)
    volumes = [each._replace(mounts=()) for each in before.volumes]
    if (now.physical, list(now.volumes)) != (before.physical, volumes):
        raise Refused(
            "store.busy",
            f"somebody has changed the volume group {quote(name)} or mounted from it meanwhile",
            advice="see: pvs, lvs, findmnt; then do it again",
        )


def _mount_again(name: str, mount: Mount) -> None:
    with contextlib.suppress(SecureSlurmError):
        device = volume.node_path(f"{name}/{VENDORS_VOLUME}")
        run([program("mount"), "-t", mount.fstype, "-o", mount.options, "--", device, mount.point], timeout=TIMEOUT)


def _close_folder(point: str) -> None:
    """The mount point is a folder of the root volume now: users must not write there and believe it is fast."""
    with contextlib.suppress(OSError):
        folder = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(folder)
            # what was covered may be another file system's top, which is somebody else's business
            covered = status.st_dev != os.stat("..", dir_fd=folder).st_dev
            if not covered and status.st_uid == 0 and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                os.fchmod(folder, 0o755)
        finally:
            os.close(folder)


def release(name: str, note: Callable[..., object]) -> list[str]:
    """Give the group back: it is removed if it is empty, and the unit makes all of it anew at the next boot.

    :raises Refused: ``store.in-use``: it has volumes, of jobs or of others; and as :func:`take_over`.
    """
    done: list[str] = []
    if store_look.group(name) is not None:
        found = look(name)
        if any(each.name == VENDORS_VOLUME for each in found.volumes) and store_unit.stopped() is False:
            return []  # it never was ours
        if found.volumes:
            raise Refused(
                "store.in-use",
                f"the volume group {quote(name)} has volumes: {', '.join(each.name for each in found.volumes)}",
                advice="end the jobs, and see: secure-slurm node status; secure-slurm node reap",
            )
        note(result="begun", bytes=found.size, reason=f"release {name}")
        _lvm("vgremove", "--quiet", "--", name)
        _lvm("pvremove", "--quiet", "--", *found.physical)
        done.append(f"removed the volume group {name}")
    if store_unit.give_back():
        done.append(f"{store_unit.NAME} runs again at the next boot")
    if done:
        note(result="released", evidence="; ".join(done))
    return done


def _lvm(command: str, *arguments: str) -> None:
    try:
        run(volume.command(command, *arguments), timeout=TIMEOUT)
    except ProcessError as error:
        raise NodeBroken(f"{command} failed: {error}", advice="see: lvs, lsblk") from None
