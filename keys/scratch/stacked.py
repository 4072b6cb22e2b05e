"""What the kernel itself has put on a job's device, and what no process shows: mappings on it, loop devices on it or on
files in it, swap.

Only root, or a service of root's, can have made them; a user asks udisks, or LVM finds a volume group in the data. All
of it hangs on the data of a job that is over, and keeps its device busy without a process to be killed.
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH116, PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import SecureSlurmError
from keys.process import program
from keys.scratch import loop

if TYPE_CHECKING:
    from collections.abc import Callable

    from keys.process import Budget

SYSFS = "/sys/block"
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_STEP = 5.0
_DEPTH = 8
"""Devices on devices; device-mapper tables nest no deeper in practice, and a circle must not keep us."""


class Stacked(NamedTuple):
    """A block device on top of another: ``kind`` is ``mapping`` or ``loop``; ``name`` as dmsetup or ``/dev`` has it;
    ``device`` as st_rdev.
    """

    kind: str
    name: str
    device: int


def above(device: int, depth: int = _DEPTH) -> list[Stacked]:
    """The devices on a device, on its file system and on each other, the topmost first. ``device`` as st_rdev."""
    found: list[Stacked] = []
    if depth > 0:
        for each in [*_mappings(device), *(Stacked("loop", path, number) for path, number in loop.on_device(device))]:
            found += [upper for upper in above(each.device, depth - 1) if upper not in found]
            found.append(each)
    return found


class Taken(NamedTuple):
    """What was to be taken off, and why it is still there; "" when it is not."""

    what: str
    problem: str = ""


def take_off(device: int, budget: Budget) -> list[Taken]:
    """Take off every device above this one, the topmost first; never this one itself."""
    done = []
    for each in above(device):
        act = partial(loop.detach, each.name) if each.kind == "loop" else partial(_remove, each.name, budget)
        done.append(_tried(f"nested {each.kind}: {each.name}", act))
    return done


def swaps_off(device: int, budget: Budget) -> list[Taken]:
    """Take swap on this device, or on what lies on it, back into memory.

    Before the key goes: what other processes have in it would be lost with it. Where there is no room for it, or no
    time, that is how it ends.
    """
    devices = {device, *(each.device for each in above(device))}
    return [_tried(f"swap: {path}", partial(_swap_off, path, budget)) for path in _swaps(devices)]


def _tried(what: str, act: Callable[[], object]) -> Taken:
    try:
        act()
    except (SecureSlurmError, OSError) as error:
        return Taken(what, str(error))
    return Taken(what)


def _remove(name: str, budget: Budget) -> None:
    budget.run([program("dmsetup"), "remove", "--", name], cap=_STEP)


def _swap_off(path: str, budget: Budget) -> None:
    budget.run([program("swapoff"), "--", path], cap=_STEP)


def _swaps(devices: set[int]) -> list[str]:
    """The swap areas that are one of these devices, or files on them."""
    found = []
    with open("/proc/swaps", "rb") as file:
        for line in file.read().split(b"\n")[1:]:
            path = os.fsdecode(
                _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[0].split(b"\t")[0])
            )
            with contextlib.suppress(OSError):
                status = os.stat(path)
                if {status.st_dev, status.st_rdev} & devices:
                    found.append(path)
    return found


def _mappings(device: int) -> list[Stacked]:
    """Device-mapper keeps each mapping's devices below it as ``slaves`` (sysfs)."""
    found = []
    for entry in os.listdir(SYSFS):
        if not entry.startswith("dm-"):
            continue
        with contextlib.suppress(OSError):
            if any(
                _number(f"{SYSFS}/{entry}/slaves/{below}/dev") == device
                for below in os.listdir(f"{SYSFS}/{entry}/slaves")
            ):
                found.append(Stacked("mapping", _text(f"{SYSFS}/{entry}/dm/name"), _number(f"{SYSFS}/{entry}/dev")))
    return found


def _number(path: str) -> int:
    try:
        major, _, minor = _text(path).partition(":")
        return os.makedev(int(major), int(minor))
    except (OSError, ValueError):
        return 0


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().strip()
