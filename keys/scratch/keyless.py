"""A mapping without its key, and the key put back: for a job that is frozen and may go on (:mod:`keys.freezing`).

What was written before stays as it is: the device is suspended, so nothing reaches it and nothing is lost, and the
crypt target has no key, so that nobody can have it go on but who gives the key again (dm-crypt.rst, "Messages"; the
kernel itself refuses to resume a crypt target without a key).

Whoever waits for the device waits until then, and so does each ``sync`` on the node (docs/decisions/0029).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from keys.process import ProcessError, program
from keys.scratch import crypt
from keys.scratch.errors import NodeBroken

if TYPE_CHECKING:
    from keys.process import Budget
    from keys.secret import Secret

_STEP = 20.0
CONTROL = "/dev/mapper/control"

# struct dm_ioctl and DM_TARGET_MSG of <linux/dm-ioctl.h>, whose layout is the same on every architecture
_HEADER = struct.Struct("=3I3Ii3IQ128s129s7x")
_VERSION = (4, 0, 0)
_SECURE_DATA = 1 << 15
_TARGET_MESSAGE = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | 14
_SECTOR = struct.Struct("=Q")
# more than a kilobyte: below that CPython gives the kernel a copy of its own, which nobody wipes (fcntlmodule.c)
_SIZE = 4096
_DIGITS = b"0123456789abcdef"


def take(name: str, budget: Budget) -> bool:
    """Suspend a mapping and have its key zeroed in the kernel; whether there is one. May be repeated.

    :raises ProcessError: a step failed: the key may still be there. :raises NodeBroken: the mapping is not ours.
    """
    mapping = crypt.find(name)
    if mapping is None:
        return False
    crypt.check_ours(mapping)
    dmsetup = program("dmsetup")
    if not mapping.suspended:
        # without flushing: what lies in memory is written when it goes on; lockfs would wait for whoever writes
        budget.run([dmsetup, "suspend", "--noflush", "--nolockfs", "--", name], cap=_STEP)
    budget.run([dmsetup, "message", "--", name, "0", "key", "wipe"], cap=_STEP)
    return True


def give(name: str, key: Secret, budget: Budget) -> None:
    """Put the key back and let the mapping go on; ``key`` is wiped when this returns or raises.

    :raises NodeBroken: there is none of ours that waits for a key, or the kernel does not take this one: it stays
        suspended. :raises ProcessError: dmsetup failed.
    """
    with key:
        mapping = crypt.find(name)
        if mapping is None:
            raise NodeBroken(f"there is no mapping {name} to give a key to")
        crypt.check_ours(mapping)
        if not mapping.suspended:
            raise NodeBroken(f"the mapping {name} is in use, so it needs no key")
        if len(key) != crypt.KEY_BYTES:
            raise NodeBroken(f"the key has {len(key) * 8} bits, not {crypt.KEY_BITS}")
        why = crypt.table_fault(crypt.table(name, budget), mapping.sectors, _backing(mapping.kernel_name))
        if why:
            raise NodeBroken(f"the mapping {name} does not look like one of a job's, so it gets no key: {why}")
        _set_key(name, key)
    try:
        budget.run([program("dmsetup"), "resume", "--noflush", "--nolockfs", "--", name], cap=_STEP)
    except ProcessError:
        # nobody is to find a key in a mapping that is taken for one without
        take(name, budget)
        raise


def waits(name: str) -> bool:
    """Whether the mapping is suspended; False when there is none."""
    mapping = crypt.find(name)
    return mapping is not None and mapping.suspended


def _backing(kernel_name: str) -> str:
    """The device below, as ``major:minor``; "" when there is not just one."""
    folder = f"/sys/block/{kernel_name}/slaves"
    try:
        (below,) = os.listdir(folder)  # noqa: PTH208
        with open(f"{folder}/{below}/dev", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _set_key(name: str, key: Secret) -> None:
    """``dmsetup message NAME 0 key set HEX``, which would show the key in its argument list to every process."""
    buffer = bytearray(_SIZE)
    try:
        _HEADER.pack_into(
            buffer, 0, *_VERSION, _SIZE, _HEADER.size, 0, 0, _SECURE_DATA, 0, 0, 0, name.encode("ascii"), b""
        )
        place = _HEADER.size + _SECTOR.size
        start = b"key set "
        buffer[place : place + len(start)] = start
        place += len(start)
        for byte in key.reveal():
            buffer[place], buffer[place + 1] = _DIGITS[byte >> 4], _DIGITS[byte & 15]
            place += 2
        try:
            descriptor = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NodeBroken(f"{CONTROL}: {error.strerror}") from None
        try:
            fcntl.ioctl(descriptor, _TARGET_MESSAGE, buffer, True)
        except OSError as error:
            raise NodeBroken(f"the kernel does not take the key of {name}: {error.strerror}") from None
        finally:
            os.close(descriptor)
    finally:
        buffer[:] = bytes(_SIZE)
