"""Instance store on this machine, and what has been made of it: drives, volume group, volumes, mounts. Only looks.

ParallelCluster makes one volume group of all drives of a node, ``vg.01``, and one striped volume that fills it,
``lv_ephemeral`` (its unit setup-ephemeral.service, which makes the volume again at each boot that finds it missing).

A drive counts as instance store when udev calls it so (``/dev/disk/by-id/nvme*Instance_Storage*``) and the model that
the kernel has read from it says so too. A network volume (EBS) never does, and neither does what has no model.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import BackendUnavailable, Refused
from conf.quote import quote
from keys.process import ProcessError, run
from keys.scratch import volume
from keys.scratch.mounts import Mount, mounts

BY_ID = "/dev/disk/by-id"
LINKS = "nvme*Instance_Storage*"
MODEL = "Instance Storage"
SYSFS = "/sys/dev/block"
MODELS = "/sys/dev/block/{major}:{minor}/device/model"
"""What the drive says of itself; partitions, mappings and loop devices have none."""
VENDORS_VOLUME = "lv_ephemeral"
TIMEOUT = 30.0
"""Seconds for one question to LVM."""


class Volume(NamedTuple):
    """A logical volume. ``device``: st_rdev, 0 while it is not active; ``ours``: made for a job."""

    name: str
    size: int
    device: int
    ours: bool
    mounts: tuple[Mount, ...]


class Group(NamedTuple):
    """A volume group. Sizes in bytes; ``physical``: its devices by path; ``strange``: not instance store of these."""

    name: str
    size: int
    free: int
    physical: tuple[str, ...]
    strange: tuple[str, ...]
    volumes: tuple[Volume, ...]


def drives() -> dict[int, str]:
    """The drives that are instance store: st_rdev, and the name that udev gives them."""
    found: dict[int, str] = {}
    for link in sorted(Path(BY_ID).glob(LINKS)):
        with contextlib.suppress(OSError):  # a link to a drive that is gone
            status = link.stat()
            if stat.S_ISBLK(status.st_mode) and _model_fits(status.st_rdev):
                found.setdefault(status.st_rdev, link.name)
    return found


def _model_fits(device: int) -> bool:
    """A link may be wrong; the model that the kernel read is the drive's own word."""
    try:
        where = MODELS.format(major=os.major(device), minor=os.minor(device))
        return MODEL in Path(where).read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


def _system(device: int) -> str:
    return f"{SYSFS}/{os.major(device)}:{os.minor(device)}"


def whole(device: int) -> int:
    """The disk that a partition is on; anything else is itself. Both as st_rdev."""
    system = Path(_system(device))
    if not (system / "partition").exists():
        return device
    with contextlib.suppress(OSError, ValueError):
        major, _, minor = (system.resolve().parent / "dev").read_text(encoding="ascii").strip().partition(":")
        return os.makedev(int(major), int(minor))
    return device


def group(name: str) -> Group | None:
    """The volume group of this name; None when there is none.

    :raises Refused: ``store.group``: there are several. :raises BackendUnavailable: LVM does not answer.
    """
    select = ["--select", f"vg_name={name}"]
    groups = _report("vgs", "vg", "vg_size,vg_free", *select)
    if not groups:
        return None
    if len(groups) > 1:
        raise Refused(
            "store.group",
            f"there are {len(groups)} volume groups called {quote(name)}",
            advice="rename one: vgrename UUID",
        )
    physical = tuple(str(each["pv_name"]) for each in _report("pvs", "pv", "pv_name", *select))
    ours = set(drives())
    everything = mounts()
    return Group(
        name,
        int(groups[0]["vg_size"]),
        int(groups[0]["vg_free"]),
        physical,
        tuple(path for path in physical if _number(path) not in ours),
        tuple(_volume(each, everything) for each in _report("lvs", "lv", _VOLUME, *select)),
    )


_VOLUME = "lv_name,lv_size,lv_kernel_major,lv_kernel_minor,lv_tags"


def _number(path: str) -> int:
    """The disk below a physical volume, as st_rdev; 0: what LVM calls it by is no device (it is missing)."""
    if not path.startswith("/"):
        return 0
    try:
        status = Path(path).stat()
    except OSError:
        return 0
    return whole(status.st_rdev) if stat.S_ISBLK(status.st_mode) else 0


def _volume(told: dict[str, Any], everything: list[Mount]) -> Volume:
    major, minor = int(told["lv_kernel_major"]), int(told["lv_kernel_minor"])
    device = os.makedev(major, minor) if major >= 0 and minor >= 0 else 0
    return Volume(
        str(told["lv_name"]),
        int(told["lv_size"]),
        device,
        volume.TAG in str(told["lv_tags"]).split(",") and str(told["lv_name"]).startswith("secure-"),
        tuple(mount for mount in everything if device and mount.device == device),
    )


def _report(command: str, key: str, options: str, *arguments: str) -> list[dict[str, Any]]:
    argv = volume.command(command, "--reportformat", "json", "--units", "b", "--nosuffix", "--options", options)
    try:
        said = run([*argv, *arguments], timeout=TIMEOUT).stdout
        return list(json.loads(said)["report"][0][key])
    except (ValueError, KeyError, IndexError, TypeError):
        raise BackendUnavailable(f"{command} did not answer with a report", advice=f"see: {command}") from None
    except ProcessError as error:
        raise BackendUnavailable(f"LVM does not answer: {error}", advice="install lvm2; see: vgs") from None
