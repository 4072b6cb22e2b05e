"""The table of a mapping, asked of the kernel without another program (linux/dm-ioctl.h, DM_TABLE_STATUS).

The kernel gives the table of a crypt target with its key. It is zeroed where it lies before anything is made of the
text, as dmsetup does; the kernel is told to wipe its own copies (DM_SECURE_DATA_FLAG). Only for a mapping that nobody
else works on: an ioctl has no deadline, which a program has.
"""

from __future__ import annotations

import fcntl
import os
import struct

from keys.scratch.errors import NodeBroken

CONTROL = "/dev/mapper/control"
# _IOWR(0xfd, 12, struct dm_ioctl)
_TABLE_STATUS = 0xC138FD0C
# version[3], data_size, data_start, target_count, open_count, flags, event_nr, padding, dev, name, uuid, data
_HEAD = struct.Struct("=3I3IiIIIQ128s129s7x")
# sector_start, length, status, next, target_type
_TARGET = struct.Struct("=QQiI16s")
_STATUS_TABLE = 1 << 4
_BUFFER_FULL = 1 << 8
_SECURE_DATA = 1 << 15
_SIZE = 4096
_ZERO = ord("0")


def table(name: str) -> str:
    """The live table of a mapping with a single target, as ``dmsetup table`` prints it: zeros in the place of a key.

    :raises NodeBroken: no such mapping, not one target, or device-mapper does not answer.
    """
    buffer = bytearray(_SIZE)
    _HEAD.pack_into(
        buffer, 0, 4, 0, 0, _SIZE, _HEAD.size, 0, 0, _STATUS_TABLE | _SECURE_DATA, 0, 0, 0, os.fsencode(name), b""
    )
    try:
        try:
            control = os.open(CONTROL, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.ioctl(control, _TABLE_STATUS, buffer)
            finally:
                os.close(control)
        except OSError as error:
            raise NodeBroken(f"the table of the mapping {name} cannot be read: {error.strerror}") from None
        return _text(buffer, name)
    finally:
        buffer[:] = bytes(len(buffer))


def _text(buffer: bytearray, name: str) -> str:
    head = _HEAD.unpack_from(buffer)
    start, targets, flags = head[4], head[5], head[7]
    if targets != 1 or flags & _BUFFER_FULL or not _HEAD.size <= start <= len(buffer) - _TARGET.size:
        raise NodeBroken(f"the mapping {name} does not have a table of exactly one target")
    first, length, _, _, kind = _TARGET.unpack_from(buffer, start)
    begin = start + _TARGET.size
    end = buffer.find(0, begin)
    kind = kind.rstrip(b"\0")
    if end < 0:
        raise NodeBroken(f"the table of the mapping {name} is cut short")
    if kind == b"crypt":
        _hide_key(buffer, begin, end)
    parameters = buffer[begin:end].decode("ascii", "replace")
    return f"{first} {length} {kind.decode('ascii', 'replace')} {parameters}".strip()


def _hide_key(buffer: bytearray, begin: int, end: int) -> None:
    """Zeros for the second word, in place; a reference to a key ring (``:64:logon:...``) is no secret and stays."""
    key = buffer.find(b" ", begin, end) + 1
    after = buffer.find(b" ", key, end)
    if key and buffer[key : key + 1] != b":":
        for at in range(key, after if after >= 0 else end):
            buffer[at] = _ZERO
