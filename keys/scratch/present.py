"""What there is on this machine under names that only scratch of ours has, with or without a journal of it.

The names follow from node and job (keys/scratch/plan.py), so whatever has one tells the job. Nothing is changed by
looking, and nothing but names and sysfs is looked at, except for LVM, which has to be asked.
"""

# pathlib is left out on purpose: what runs every few seconds on a compute node has to be light
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any

from keys.process import ProcessError, program, run
from keys.scratch import crypt
from keys.scratch.errors import NodeBroken
from keys.scratch.mounts import mounts
from keys.scratch.plan import names_from_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SYSFS = "/sys/block"
QUERY_TIMEOUT = 20.0
"""Seconds."""

_NUMBER = re.compile(r"([1-9][0-9]{0,9})(?:\.img)?(?: \(deleted\))?", re.ASCII)


def jobs_present(node: str, scratch: Mapping[str, Any]) -> Iterator[int]:
    """The jobs that a mapping, loop device, mount, mount point, backing file or volume is named after.

    :param scratch: the ``scratch`` part of the hooks' configuration.
    :raises NodeBroken: LVM does not answer, or the configuration is unusable. :raises OSError: there is no sysfs.
    """
    names = names_from_config(node, 1, scratch)
    root, store = names.mount_root, names.path.rpartition("/")[0]
    seen = [*_attributes("dm/name"), *_attributes("loop/backing_file")]
    seen += [f"{root}/{mount.point.removeprefix(root + '/').partition('/')[0]}" for mount in mounts()]
    seen += [f"{root}/{name}" for name in _entries(root)]
    if names.backing == "file":
        seen += [f"{store}/{name}" for name in _entries(store)]
    elif names.backing == "lvm":
        seen += [f"{store}/{name}" for name in _volumes(store)]
    for text in seen:
        match = _NUMBER.fullmatch(text, max(text.rfind("-"), text.rfind("/")) + 1)
        if match:
            with contextlib.suppress(NodeBroken):
                job = names_from_config(node, int(match[1]), scratch)
                if text.removesuffix(" (deleted)") in (job.mapper, job.mount_point, job.path):
                    yield job.job


def foreign(node: str, job: int, scratch: Mapping[str, Any]) -> str:
    """Why a mapping with the name of the job's is none of ours; "" when it is ours, or is not there."""
    mapping = crypt.find(names_from_config(node, job, scratch).mapper)
    if mapping is not None:
        try:
            crypt.check_ours(mapping)
        except NodeBroken as error:
            return str(error)
    return ""


def _attributes(name: str) -> Iterator[str]:
    for entry in os.listdir(SYSFS):
        # another kind of device, or it went away while it was looked at
        with contextlib.suppress(OSError), open(f"{SYSFS}/{entry}/{name}", "rb") as file:
            yield os.fsdecode(file.read().rstrip(b"\n"))


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _volumes(group: str) -> list[str]:
    """The logical volumes of a group. Without udevd LVM would wait for its list of devices."""
    config = "devices{obtain_device_list_from_udev=0}"
    try:
        argv = [program("lvs"), "--config", config, "--noheadings", "--options", "lv_name", "--", group]
        return run(argv, timeout=QUERY_TIMEOUT).stdout.decode("ascii", "replace").split()
    except ProcessError as error:
        raise NodeBroken(f"the volume group {group} does not answer: {error}", advice=f"see: vgs {group}") from None
