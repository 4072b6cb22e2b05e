"""The mapping: plain dm-crypt, AES-256-XTS, under a random 512-bit key that is in the kernel's memory and nowhere else.

No header, no key slot, no password hashing: what lies on the disk is ciphertext from the first block to the last, and
set-up takes as long for a terabyte as for a megabyte (dm-crypt.rst; cryptsetup-open(8), PLAIN MODE).
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from keys.process import ProcessError, program
from keys.scratch import dmtable
from keys.scratch.errors import NodeBroken
from keys.scratch.plan import BLOCK, SECTOR

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.secret import Secret

CIPHER = "aes-xts-plain64"
KEY_BITS = 512
KEY_BYTES = KEY_BITS // 8
"""AES-256 in XTS mode takes two keys of 256 bits."""

_SECTOR_OPTION = f"sector_size:{BLOCK}"
# options that change when and where work is done, not what is written (dm-crypt.rst); anything else is refused
_HARMLESS = {"same_cpu_crypt", "submit_from_crypt_cpus", "no_read_workqueue", "no_write_workqueue", "high_priority"}
# what dmsetup shows instead of the key: zeros, or a reference to a key ring
_HIDDEN_KEY = re.compile(rf"0{{{KEY_BYTES * 2}}}|:{KEY_BYTES}:(?:logon|user|encrypted|trusted):\S+", re.ASCII)
_STEP = 20.0
_GONE_WITHIN = 5.0


class Mapping(NamedTuple):
    """A device-mapper device as sysfs shows it; ``device`` as st_rdev, ``sectors`` of 512 bytes."""

    name: str
    uuid: str
    kernel_name: str
    device: int
    sectors: int
    suspended: bool


def find(name: str) -> Mapping | None:
    """The mapping of this name, by sysfs: no program is run, and no device node is needed."""
    for entry in os.listdir("/sys/block"):
        if entry.startswith("dm-") and _read(entry, "dm/name") == name:
            major, _, minor = _read(entry, "dev").partition(":")
            with contextlib.suppress(ValueError):  # it went away while it was looked at
                return Mapping(
                    name,
                    _read(entry, "dm/uuid"),
                    entry,
                    os.makedev(int(major), int(minor)),
                    int(_read(entry, "size")),
                    _read(entry, "dm/suspended") == "1",
                )
    return None


def _read(entry: str, attribute: str) -> str:
    try:
        with open(f"/sys/block/{entry}/{attribute}", encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def check_ours(mapping: Mapping) -> None:
    """:raises NodeBroken: a mapping of our name that cryptsetup did not make for us; it is left alone."""
    if mapping.uuid != f"CRYPT-PLAIN-{mapping.name}":
        raise NodeBroken(
            f"the mapping {mapping.name} is not ours (its UUID is {mapping.uuid[:80]!r})",
            advice=f"find out what made it: dmsetup info {mapping.name}",
        )


def open_mapping(name: str, device: str, size_bytes: int, key: Secret, budget: Budget) -> Mapping:
    """Map ``device`` as ``/dev/mapper/<name>`` and make sure that the kernel does what was asked.

    :param size_bytes: of the mapping; the rest of the device stays unused.
    :raises NodeBroken: no such cipher, a wrong key or size, the device is in use, or the mapping is not what was asked
        for (it is closed again).
    """
    if len(key) != KEY_BYTES:
        raise NodeBroken(f"the key has {len(key) * 8} bits, not {KEY_BITS}")
    if size_bytes <= 0 or size_bytes % BLOCK:
        raise NodeBroken(f"a mapping of {size_bytes} bytes is not a multiple of {BLOCK}")
    # --hash=plain: cryptsetup ignores the hash for a key file, but not for "-" (its source, src/cryptsetup.c): without
    # this the kernel would get a hash of the data key, and an unwrapped key would open nothing (seen on 2.7.5 and 2.8)
    argv = [program("cryptsetup"), "open", "--type", "plain", "--batch-mode", "--hash=plain"]
    argv += ["--cipher", CIPHER, "--key-size", str(KEY_BITS), "--sector-size", str(BLOCK), "--key-file=-"]
    argv += ["--size", str(size_bytes // SECTOR), "--", device, name]
    try:
        budget.run(argv, cap=_STEP, input=key)
    except ProcessError as error:
        raise NodeBroken(
            f"cannot map {device}: {error}", advice="check that the kernel has dm_crypt and xts: modprobe dm_crypt"
        ) from None
    try:
        return verify(name, os.stat(device).st_rdev, size_bytes)  # noqa: PTH116
    except BaseException:
        close(name, budget)
        raise


def verify(name: str, device: int, size_bytes: int) -> Mapping:
    """Make sure that a mapping is what :func:`open_mapping` promises; ``device`` as st_rdev.

    :raises NodeBroken: it is not.
    """
    mapping = find(name)
    if mapping is None:
        raise NodeBroken(f"the mapping {name} is not there, though cryptsetup opened it")
    check_ours(mapping)
    expected = f"{os.major(device)}:{os.minor(device)}"
    why = table_fault(dmtable.table(name), size_bytes // SECTOR, expected)
    if why:
        raise NodeBroken(f"the mapping {name} is not what was asked for: {why}")
    return mapping


def table(name: str, budget: Budget) -> str:
    """The mapping's table. Without ``--showkeys`` dmsetup shows zeros for the key."""
    return budget.run([program("dmsetup"), "table", "--", name], cap=_STEP).stdout.decode("ascii", "replace").strip()


def table_fault(text: str, sectors: int, device: str) -> str:
    """What is wrong with a table, for a mapping of ``sectors`` on ``device`` (``major:minor``); nothing: empty.

    The form is ``0 <sectors> crypt <cipher> <key> <iv offset> <device> <offset> <n> <options>`` (dm-crypt.rst).
    """
    fields = text.split()
    if len(text.splitlines()) != 1 or len(fields) < 8 or fields[2] != "crypt":
        return "it is no single crypt target"
    checks = (
        (fields[:2] == ["0", str(sectors)], f"its size is not {sectors} sectors"),
        (fields[3] == CIPHER, f"its cipher is not {CIPHER}"),
        (_HIDDEN_KEY.fullmatch(fields[4]) is not None, f"its key has not {KEY_BITS} bits"),
        (fields[5] == "0" and fields[7] == "0", "it does not begin at the start of the device"),
        (fields[6] == device, f"it is not on device {device}"),
        (_SECTOR_OPTION in fields[9:], f"its sectors are not of {BLOCK} bytes"),
        (set(fields[9:]) <= {_SECTOR_OPTION} | _HARMLESS, "it has options that were not asked for"),
    )
    return next((why for good, why in checks if not good), "")


def close(name: str, budget: Budget) -> bool:
    """Remove a mapping; whether it was there. The kernel zeroes its copy of the key as it goes.

    :raises ProcessError: it is still in use (``returncode`` 1), or device-mapper does not answer.
    """
    mapping = find(name)
    if mapping is None:
        return False
    check_ours(mapping)
    try:
        budget.run([program("dmsetup"), "remove", "--", name], cap=_STEP)
    except ProcessError:
        if find(name) is not None:
            raise
    end = time.monotonic() + _GONE_WITHIN
    while find(name) is not None and time.monotonic() < end:
        time.sleep(0.02)
    return True


def wipe_key(name: str, budget: Budget) -> bool:
    """Take the key out of the kernel although the mapping is in use; whether there was one to take.

    In this order: stop I/O without flushing (nothing more is to be written, and ``lockfs`` would wait for holders);
    have the key zeroed; put a table in place that fails every access, which destroys the crypt target with all it knew;
    go on, so that whoever waits on the device gets an error instead of waiting for ever. Each step may be repeated.

    :raises ProcessError: a step failed. The later steps were tried all the same: each of them ends the key by itself.
    """
    mapping = find(name)
    if mapping is None:
        return False
    check_ours(mapping)
    dmsetup = program("dmsetup")
    if not mapping.suspended and _is_error(table(name, budget)):
        return False
    failures: list[ProcessError] = []
    _try(failures, budget, [dmsetup, "suspend", "--noflush", "--nolockfs", "--", name])
    if not _is_error(table(name, budget)):
        _try(failures, budget, [dmsetup, "message", "--", name, "0", "key", "wipe"])
    _try(failures, budget, [dmsetup, "load", name, "--table", f"0 {mapping.sectors} error"])
    _try(failures, budget, [dmsetup, "resume", "--noflush", "--nolockfs", "--", name])
    if failures and not _is_error(table(name, budget)):
        raise failures[0]
    return True


def _try(failures: list[ProcessError], budget: Budget, argv: list[str]) -> None:
    try:
        budget.run(argv, cap=_STEP)
    except ProcessError as error:
        failures.append(error)


def _is_error(text: str) -> bool:
    lines = text.splitlines()
    return bool(lines) and all(line.split()[2:3] == ["error"] for line in lines)
