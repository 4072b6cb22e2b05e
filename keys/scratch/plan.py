"""What scratch a job is to get, and the names that follow from it.

The names depend on node and job alone, so that a tear-down finds everything without a journal. The node is part of
each, because several slurmds may share one kernel, whose device-mapper and loop devices are shared.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import Refused
from keys.scratch.errors import NodeBroken

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKINGS = ("file", "lvm", "block", "memory")
UNCHOSEN = "auto"
"""What a node's configuration names until ``secure-slurm node store --prepare`` has chosen one of them for the node."""
SECTOR = 512
BLOCK = 4096
"""The sector size of the mapping, and so what every size is a multiple of."""
MINIMUM = {"ext4": 16 * 1024**2, "xfs": 300 * 1024**2}
"""Bytes, below which no file system is made: mkfs.xfs(8) refuses less than 300 MB; ext4 would be all metadata."""

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", re.ASCII)
# lvm(8), VALID NAMES
_VOLUME_GROUP = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,62}", re.ASCII)
_MAX_JOB = 2**32


class ScratchPlan(NamedTuple):
    """Encrypted scratch for one job on one node. Sizes in bytes; ``backing`` is one of :data:`BACKINGS`.

    ``limit``: bytes that the scratch of all jobs of this machine may have together, 0 for no limit; ``volume``: the
    mount point that ``directory`` must be on, "" for any; ``striped``: a volume is spread over all drives of its group.
    """

    node: str
    job: int
    uid: int
    gid: int
    size_bytes: int
    backing: str
    directory: str
    overcommit: bool
    volume_group: str
    device: str
    mount_root: str
    filesystem: str
    run_dir: str
    limit: int = 0
    volume: str = ""
    striped: bool = False

    @property
    def mapped_bytes(self) -> int:
        """The size asked for, rounded up to whole blocks of the mapping."""
        return -(-self.size_bytes // BLOCK) * BLOCK

    @property
    def names(self) -> ScratchNames:
        """What everything is called."""
        where = {"file": self.directory, "lvm": self.volume_group, "block": self.device}.get(self.backing, "")
        return names_of(self.node, self.job, self.backing, where, self.mount_root)


class ScratchNames(NamedTuple):
    """Where one job's scratch is on one node, whether or not it is there.

    ``path`` is the backing file, ``<volume group>/<volume>``, the device, or the name that the kernel shows for memory.
    """

    node: str
    job: int
    mapper: str
    mount_root: str
    mount_point: str
    backing: str
    path: str

    @property
    def device(self) -> str:
        """The node of the opened mapping."""
        return f"/dev/mapper/{self.mapper}"


class ScratchInfo(NamedTuple):
    """Scratch that is ready. ``path`` is the job's folder, ``tmp`` what TMPDIR is to be; sizes in bytes, bits."""

    path: str
    tmp: str
    mapper: str
    cipher: str
    key_bits: int
    size_bytes: int
    filesystem: str
    device: str
    backing: str
    backing_path: str


def names_of(node: str, job: int, backing: str, where: str, mount_root: str) -> ScratchNames:
    """The names by convention; ``where`` is the directory, the volume group or the device.

    :raises NodeBroken: node, job, or configuration from which no safe name can be made.
    """
    if not _NODE.fullmatch(node):
        raise NodeBroken(f"{node[:80]!r} is not the name of a node that can have scratch")
    if type(job) is not int or not 0 < job < _MAX_JOB:
        raise NodeBroken(f"{job!r} is not a job id")
    _check_backing(backing)
    mapper = f"secure-{node}-{job}"
    if backing == "lvm":
        if not is_volume_group(where):
            raise NodeBroken(f"{where[:80]!r} is not the name of a volume group")
        path = f"{where}/{mapper}"
    elif backing == "memory":
        path = memory_path(mapper)
    else:
        if not where.startswith("/"):
            raise NodeBroken(f"the backing store {where[:80]!r} is not an absolute path")
        path = f"{where.rstrip('/')}/{node}-{job}.img" if backing == "file" else where
    if not mount_root.startswith("/") or not mount_root.strip("/"):
        raise NodeBroken(f"the mount root {mount_root[:80]!r} is not an absolute path below /")
    mount_root = mount_root.rstrip("/")
    return ScratchNames(node, job, mapper, mount_root, f"{mount_root}/{job}", backing, path)


def is_volume_group(name: str) -> bool:
    """Whether this can be the name of a volume group that scratch lies on."""
    return _VOLUME_GROUP.fullmatch(name) is not None


def memory_path(name: str) -> str:
    """What the kernel shows as the path of anonymous memory of this name (memfd_create(2))."""
    return f"/memfd:{name}"


def _check_backing(backing: str) -> None:
    if backing == UNCHOSEN:
        raise NodeBroken(
            "what scratch lies on has not been chosen on this node", advice="run: secure-slurm node store --prepare"
        )
    if backing not in BACKINGS:
        raise NodeBroken(f"{backing!r} is no kind of backing store", advice=f"use one of {', '.join(BACKINGS)}")


def names_from_config(node: str, job: int, scratch: Mapping[str, Any]) -> ScratchNames:
    """The names by the ``scratch`` part of the hooks' configuration (conf/render.py).

    :raises NodeBroken: as :func:`names_of`, or a part of the configuration is missing.
    """
    try:
        backing = str(scratch["backing"])
        if backing == UNCHOSEN:
            # Set-up refuses this (check_plan), tear-down must not: mapping and mount are called the same whatever is
            # below, and the journal says what it was. Of memory nothing has a name beyond these.
            backing = "memory"
        where = str(scratch[{"file": "directory", "lvm": "volume_group", "block": "device"}.get(backing, "backing")])
        return names_of(node, job, backing, where, str(scratch["mount_root"]))
    except KeyError as error:
        raise NodeBroken(f"the scratch configuration lacks {error}", advice="run: secure-slurm conf render") from None


def check_plan(plan: ScratchPlan) -> None:
    """Refuse what must not be begun.

    :raises Refused: ``scratch.root`` (root's jobs would be indistinguishable from the system when holders are killed),
        ``scratch.too-small``.
    :raises NodeBroken: the node's side of the plan is wrong.
    """
    if plan.filesystem not in MINIMUM:
        raise NodeBroken(
            f"{plan.filesystem!r} is no file system for scratch", advice=f"use one of {', '.join(MINIMUM)}"
        )
    _check_backing(plan.backing)
    if plan.uid <= 0 or plan.gid < 0:
        raise Refused("scratch.root", f"user {plan.uid} cannot have encrypted scratch", advice="submit as another user")
    if plan.size_bytes < MINIMUM[plan.filesystem]:
        raise Refused(
            "scratch.too-small",
            f"{plan.size_bytes} bytes of scratch are too few for {plan.filesystem}",
            advice=f"ask for at least {MINIMUM[plan.filesystem] // 1024**2}M",
        )
    _ = plan.names
