"""What scratch lies on, made ready before a node takes its first job: as the site file says, or as ``auto`` chooses.

The choice of ``auto`` is made here and nowhere else: once, on the node, told to the audit trail, kept in a file beside
the site file, and rendered into what the hooks read. A Prolog never chooses: what is chosen is there or the job goes
elsewhere. Where scratch lies cannot change under jobs: as long as there is anything of one, another choice is refused.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from admin import store_look, store_take
from conf import store
from conf.errors import Refused, SecureSlurmError
from keys.scratch import backing, memory
from keys.scratch.errors import NodeBroken
from keys.scratch.paths import open_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from conf.site import Scratch


class Ready(NamedTuple):
    """What scratch lies on here: file, lvm, block or memory; ``bytes``: what it can give now, -1: unknown."""

    backing: str
    why: str
    bytes: int


def choose(scratch: Scratch) -> Ready:
    """What ``auto`` would choose here, without changing anything.

    The volume group, if it is instance store; the folder, if something is mounted at ``scratch.volume``; memory, if the
    site says so; otherwise nothing.

    :raises Refused: ``store.none``; or what is there must not be used, which is not the same as nothing.
    """
    if scratch.volume_group and store_look.group(scratch.volume_group) is not None:
        found = store_take.look(scratch.volume_group)
        return Ready("lvm", f"volume group {found.name} of {len(found.physical)} instance store drives", found.free)
    missing = [f"no volume group {scratch.volume_group}"] if scratch.volume_group else []
    if scratch.volume:
        try:
            backing.check_volume(scratch.volume)
        except NodeBroken:
            missing.append(f"nothing is mounted at {scratch.volume}")
        else:
            return Ready("file", f"{scratch.volume} is mounted", _room(scratch.volume))
    # a drive that nobody made a volume group of is a broken node, not one without a disk
    drives = store_look.drives()
    if scratch.diskless == "memory" and not drives:
        return Ready("memory", f"{' and '.join(missing)}", memory_room(scratch))
    if drives:
        missing.append(f"{len(drives)} drives of instance store lie idle")
    raise Refused(
        "store.none",
        f"this node has nothing that scratch could lie on: {', '.join(missing)}",
        advice="see scratch.backing; for nodes without a disk: scratch.diskless",
    )


def prepare(scratch: Scratch, note: Callable[..., object]) -> Ready:
    """Do what the site file says: take the group over, make the folder, see that memory will do. May be repeated."""
    if scratch.backing == "auto":
        return _ready(choose(scratch), scratch, note)
    return _ready(Ready(scratch.backing, "as scratch.backing says", -1), scratch, note)


def _ready(what: Ready, scratch: Scratch, note: Callable[..., object]) -> Ready:
    if what.backing == "lvm":
        return what._replace(bytes=_group(scratch, note))
    if what.backing == "file":
        return what._replace(bytes=_folder(scratch))
    if what.backing == "memory":
        memory.refuse_swap("this node")
        return what._replace(bytes=memory_room(scratch))
    return what


def _group(scratch: Scratch, note: Callable[..., object]) -> int:
    """A group that the site does not say is to be taken over may be anything: of the admin's own making, say."""
    if scratch.take_over:
        store_take.take_over(scratch.volume_group, scratch.take_over, note)
    return _free(scratch.volume_group)


def _free(group: str) -> int:
    """Bytes that jobs' volumes can have of a group. Refused: there is no such group, or it is not jobs' at all."""
    found = store_look.group(group)
    if found is None:
        raise Refused("store.no-group", f"there is no volume group {group}", advice="see: vgs")
    if any(each.name == store_look.VENDORS_VOLUME for each in found.volumes):
        raise Refused(
            "store.volume",
            f"{found.name}/{store_look.VENDORS_VOLUME} is still there, and has the group's space",
            advice="set scratch.take_over: lv_ephemeral, or use backing: file on it",
        )
    return found.free


def _folder(scratch: Scratch) -> int:
    """Make the folder before there is any user on the node: in a folder that all may write to, such as /scratch, the
    first to come could take the name, and no job would have scratch here. It would not be taken for ours.
    """
    path = scratch.directory or store.DIRECTORY
    device = backing.check_volume(scratch.volume)
    try:
        folder = open_directory(path, private=True, create=0o700)
    except OSError as error:
        raise NodeBroken(f"{path} cannot be made: {error.strerror}", advice="make the folder above it") from None
    try:
        if device is not None and os.fstat(folder).st_dev != device:
            raise NodeBroken(f"{path} is not on the file system at {scratch.volume}", advice="see: findmnt")
        space = os.fstatvfs(folder)
    finally:
        os.close(folder)
    free = space.f_bavail * space.f_frsize
    return min(free, scratch.limit) if scratch.limit else free


def memory_room(scratch: Scratch) -> int:
    """Bytes of memory that jobs could still have here; never negative."""
    return max(0, min(scratch.limit - memory.taken(), memory.available() - memory.keep()))


def _room(path: str) -> int:
    try:
        space = os.statvfs(path)
    except OSError:
        return -1
    return space.f_bavail * space.f_frsize


def problem(scratch: Scratch, chosen: str) -> str:
    """Why scratch could not be given here now, in a sentence; "" when it could. Nothing is changed."""
    try:
        if scratch.backing == "auto" and choose(scratch).backing != chosen:
            return f"the choice for this node is {chosen or 'not made'}: secure-slurm node store --prepare"
        what = chosen if scratch.backing == "auto" else scratch.backing
        if what == "lvm":
            _free(scratch.volume_group)
        if what == "memory":
            memory.refuse_swap("this node")
        if what == "file":
            backing.check_volume(scratch.volume)
    except SecureSlurmError as error:
        return f"{error} ({error.advice})" if error.advice else str(error)
    return ""
