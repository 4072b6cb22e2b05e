"""A network file system without a network: a FUSE server of an empty directory, mounted as whatever it is called.

To the kernel it is a real file system of that type and source, as sshfs, mount-s3 or rclone make them (fuse(4), the
kernel's include/uapi/linux/fuse.h). Run as a program by root in the namespace where it is to be mounted:
``fuse.py POINT SOURCE TYPE OPTIONS`` prints a line when it is mounted, and ends when it has been unmounted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.testbed.nodes import on_node, slurmd_pid

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
LOOKUP, GETATTR, STATFS, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS = 1, 3, 17, 26, 27, 28, 29, 34
SILENT = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET have no answer
ENOENT, ENOSYS = 2, 38


def serve(point: str, source: str, fstype: str, options: str) -> None:
    """Mount and answer until it is unmounted. ``options``: ``ro`` or ``rw``, and the uid that it belongs to."""
    mode, _, uid = options.partition(":")
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if mode == "ro" else 0)
    data = f"fd={device},rootmode=40000,user_id={uid or 0},group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*(word.encode() for word in (source, point, fstype)), flags, data.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        try:
            request = os.read(device, 1 << 20)
        except InterruptedError:
            continue
        except OSError:
            return
        _, opcode, unique, _node = struct.unpack_from("<IIQQ", request)
        if opcode not in SILENT:
            error, body = answer(opcode)
            os.write(device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


def answer(opcode: int) -> tuple[int, bytes]:
    """The error, and what is answered without one."""
    if opcode == INIT:
        return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 9, 65536, 1, 16, 0, 0)
    if opcode == GETATTR:
        inode = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
        return 0, struct.pack("<QII", 1, 0, 0) + inode
    if opcode == OPENDIR:
        return 0, bytes(16)
    if opcode == STATFS:
        return 0, bytes(80)
    if opcode in (READDIR, RELEASEDIR, ACCESS):
        return 0, b""
    return (ENOENT if opcode == LOOKUP else ENOSYS), b""


@contextlib.contextmanager
def mounted(node: str, point: str, source: str, *, fstype: str = "fuse.sshfs", options: str = "rw") -> Iterator[None]:
    """Such a file system in the mount namespace of a node's slurmd."""
    Path(point).mkdir(parents=True, exist_ok=True)
    subprocess.run(["modprobe", "fuse"], check=False)
    namespace = f"--mount=/proc/{slurmd_pid(node)}/ns/mnt"
    words = [sys.executable, "-m", "tests.testbed.fuse", point, source, fstype, options]
    server = subprocess.Popen(["nsenter", namespace, *words], stdout=subprocess.PIPE, cwd="/", text=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        yield
    finally:
        on_node(node, ["umount", "--lazy", point], check=False)
        server.terminate()
        server.wait(120)


if __name__ == "__main__":
    serve(*sys.argv[1:5])
