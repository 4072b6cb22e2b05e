"""Whether what is written to a place reaches a disk in clear. Memory does not, nor dm-crypt with a real cipher.

Only what the kernel says is believed: the mount table, sysfs, and device-mapper's own table. What cannot be told (a
network file system, btrfs, a loop device, encryption in the disk itself) counts as clear.
Standard library only (root hooks import it under ``python3 -IS``).
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH116, PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re
import stat

from conf.errors import SecureSlurmError
from keys.process import program, run
from keys.scratch.mounts import mounts

IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
"""File systems without a store. Their pages may go to swap, which is judged for itself."""
SYSFS = "/sys/dev/block"
SWAPS = "/proc/swaps"
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_DEPTH = 8
_STEP = 5.0


def place_fault(path: str) -> str:
    """Why what is written below ``path`` may be on a disk in clear; empty: it is not.

    The path need not be there yet: it is judged by where it would be made. Links are followed, as a writer does.
    """
    here = os.path.realpath(path)
    try:
        while not os.path.exists(here):  # noqa: PTH110
            here = os.path.dirname(here)  # noqa: PTH120
        device = os.stat(here).st_dev
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})"
    types = {mount.fstype for mount in mounts() if mount.device == device}
    if types and types <= IN_MEMORY:
        return ""
    fault = device_fault(device)
    return fault and f"{path} is on {' or '.join(sorted(types)) or 'an unknown file system'}: {fault}"


def device_fault(device: int, depth: int = _DEPTH) -> str:
    """Why a block device (st_rdev, or st_dev of a file system) keeps what it is given in clear; empty: it does not."""
    number = f"{os.major(device)}:{os.minor(device)}"
    if not os.major(device):
        return "a file system that does not say on which devices it is"
    entry = f"{SYSFS}/{number}"
    if not os.path.isdir(entry) or depth <= 0:  # noqa: PTH112
        return f"the kernel does not describe the device {number}"
    name = os.path.basename(os.path.realpath(entry))  # noqa: PTH119
    if name.startswith("zram"):
        store = _text(f"{entry}/backing_dev")
        return "" if store in ("", "none") else f"{name} writes to {store}, in clear"
    if _text(f"{entry}/dm/uuid").startswith("CRYPT-"):
        return _cipher_fault(device, name)
    below = _names(f"{entry}/slaves")
    # a volume or an array is as good as the worst device below it
    found = (device_fault(_number(f"{entry}/slaves/{each}/dev"), depth - 1) for each in below)
    return next(filter(None, found), "") if below else f"{name} is not encrypted"


def _cipher_fault(device: int, name: str) -> str:
    """What calls itself dm-crypt is asked for its cipher: names are anybody's, and one cipher encrypts nothing."""
    argv = [program("dmsetup"), "table", "--major", str(os.major(device)), "--minor", str(os.minor(device))]
    try:
        lines = run(argv, timeout=_STEP).stdout.decode("ascii", "replace").strip().splitlines()
    except SecureSlurmError as error:
        return f"{name} cannot be asked for its cipher: {error}"
    for words in (line.split() for line in lines):
        if len(words) < 4 or words[2] != "crypt":
            return f"{name} is not encrypted, though it is called so"
        if "cipher_null" in words[3]:
            return f"{name} has the cipher {words[3]}, which encrypts nothing"
    return "" if lines else f"{name} has no table"


def swap_faults() -> list[str]:
    """Each swap area (proc_swaps, swapon(8)) that keeps memory in clear, and why.

    :raises OSError: the list cannot be read.
    """
    with open(SWAPS, "rb") as file:
        lines = file.read(1024**2).split(b"\n")[1:]
    found = []
    for line in filter(None, lines):
        path = os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[0].split(b"\t")[0]))
        fault = _swap_fault(path)
        if fault:
            found.append(f"swap on {path}: {fault}")
    return found


def _swap_fault(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"it cannot be looked at ({error.strerror})"
    return device_fault(status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev)


def _number(path: str) -> int:
    major, _, minor = _text(path).partition(":")
    with contextlib.suppress(ValueError):
        return os.makedev(int(major), int(minor))
    return 0


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
