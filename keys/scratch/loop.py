"""Loop devices by ioctl (loop(4), linux/loop.h): on the descriptor of the backing file, so that no path is looked up.

Every device is attached with autoclear. It goes away by itself when its last user closes it: when the mapping on top is
removed, and also when the process that attached it is killed before there is a mapping.
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from typing import TYPE_CHECKING

from keys.scratch.errors import NodeBroken

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTROL = "/dev/loop-control"
_SET_FD = 0x4C00
_CLR_FD = 0x4C01
_SET_STATUS64 = 0x4C04
_GET_STATUS64 = 0x4C05
_GET_FREE = 0x4C82
_AUTOCLEAR = 4
# struct loop_info64: device, inode, rdevice, offset, sizelimit; number, encrypt type, encrypt key size, flags;
# file name, crypt name, encrypt key; init[2]
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_TRIES = 50
_GONE_WITHIN = 5.0


def attach(backing: int, name: str) -> tuple[int, str]:
    """Attach an open file to a free loop device.

    :param backing: descriptor of the file, open for reading and writing.
    :param name: what losetup is to show for it.
    :returns: a descriptor that keeps the device alive until something else does, and its path.
    :raises NodeBroken: the kernel has no loop devices to give.
    """
    try:
        control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NodeBroken(f"no loop devices: {_CONTROL}: {error.strerror}", advice="modprobe loop") from None
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}"
            device = _try_attach(path, backing, name)
            if device is not None:
                return device, path
            time.sleep(0.01)
    except OSError as error:
        raise NodeBroken(f"cannot attach {name} to a loop device: {error.strerror}") from None
    finally:
        os.close(control)
    raise NodeBroken(f"cannot attach {name}: others took every free loop device")


def _try_attach(path: str, backing: int, name: str) -> int | None:
    """None: another process was faster, or the device node is not there yet."""
    try:
        device = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.ioctl(device, _SET_FD, backing)
    except OSError as error:
        os.close(device)
        if error.errno == errno.EBUSY:
            return None
        raise
    try:
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, os.fsencode(name)[-63:], b"", b"", 0, 0)
        fcntl.ioctl(device, _SET_STATUS64, info)
    except BaseException:
        fcntl.ioctl(device, _CLR_FD)
        os.close(device)
        raise
    return device


def find(path: str) -> list[str]:
    """The loop devices whose backing file is, or was, at ``path``."""
    texts = {path, f"{path} (deleted)"}
    try:
        status: os.stat_result | None = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except OSError:
        status = None
    found = []
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith("loop"):
            continue
        try:
            with open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
                shown = os.fsdecode(file.read().rstrip(b"\n"))
        except OSError:
            continue
        # The text is the path as the attaching process saw it; in another mount namespace only the inode is the same.
        if shown in texts or (status is not None and _backs(f"/dev/{name}", status)):
            found.append(f"/dev/{name}")
    return found


def on_device(device: int) -> list[tuple[str, int]]:
    """The loop devices on a block device, or on a file of the file system on it: path and number (st_rdev)."""
    found = []
    for name in sorted(os.listdir("/sys/block")):
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop/backing_file"):  # noqa: PTH110
            continue
        with contextlib.suppress(OSError), _opened(f"/dev/{name}") as descriptor:
            info = _INFO.unpack(fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size)))
            if device in (_device(info[0]), _device(info[2])):
                found.append((f"/dev/{name}", os.fstat(descriptor).st_rdev))
    return found


def _backs(device: str, status: os.stat_result) -> bool:
    try:
        with _opened(device) as descriptor:
            info = _INFO.unpack(fcntl.ioctl(descriptor, _GET_STATUS64, bytes(_INFO.size)))
    except OSError:
        return False
    return bool(info[1] == status.st_ino and _device(info[0]) == status.st_dev)


def _device(number: int) -> int:
    """A device as loop_info64 has it, in st_dev's form.

    It is the kernel's own encoding (new_encode_dev or, for old kernels, huge_encode_dev): both have the low eight bits
    of the minor and the major at these places.
    """
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def detach(device: str) -> None:
    """Detach a loop device, and wait until it is.

    :raises NodeBroken: it is still in use.
    """
    end = time.monotonic() + _GONE_WITHIN
    while os.path.exists(f"/sys/block/{device.rpartition('/')[2]}/loop/backing_file"):  # noqa: PTH110
        with contextlib.suppress(OSError), _opened(device) as descriptor:
            fcntl.ioctl(descriptor, _CLR_FD)
        if time.monotonic() >= end:
            raise NodeBroken(f"{device} is still in use", advice=f"see: losetup {device}; lsblk {device}")
        time.sleep(0.02)


@contextlib.contextmanager
def _opened(device: str) -> Iterator[int]:
    descriptor = os.open(device, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
