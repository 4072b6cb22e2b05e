"""A real NFSv4 server without its userland: the guest's own nfsd, told what rpc.nfsd and rpc.mountd would tell it.

The tables of exports are the kernel's caches (Documentation/filesystems/nfs/rpc-cache.rst); nothing asks the userland
about what is in them already.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.testbed import settings
from tests.testbed.nodes import on_node

NFSD = Path("/proc/fs/nfsd")
CACHES = Path("/proc/net/rpc")
FAR = 2**31 - 1  # when an entry of a cache ends, in Unix seconds
# include/uapi/linux/nfsd/export.h: insecure ports, root squashed, no subtree check, a file system id given here
FLAGS = 0x2 | 0x4 | 0x400 | 0x2000
SOURCE = f"{settings.ADDRESS}:/"
PORT = 2049


class Nfs:
    """One exported folder, served while :meth:`start` is in force."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for module in ("nfsd", "nfsv4"):
            subprocess.run(["modprobe", module], check=True)
        folder.mkdir(exist_ok=True)
        # the guest's root is an overlay, which cannot be exported
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder)], check=True)
        if not (NFSD / "threads").exists():
            subprocess.run(["mount", "-t", "nfsd", "nfsd", str(NFSD)], check=True)

    def start(self) -> None:
        """Serve it, at once: nobody has locks to reclaim."""
        (NFSD / "versions").write_text("-3 +4 +4.1 +4.2\n")
        for name in ("nfsv4leasetime", "nfsv4gracetime"):
            (NFSD / name).write_text("10\n")
        (CACHES / "auth.unix.ip/channel").write_text(f"nfsd {settings.ADDRESS} {FAR} test\n")
        (CACHES / "nfsd.export/channel").write_text(f"test {self.folder} {FAR} {FLAGS} 65534 65534 0\n")
        (CACHES / "nfsd.fh/channel").write_text(f"test 1 \\x00000000 {FAR} {self.folder}\n")
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((settings.ADDRESS, PORT))
            listening.listen(64)
            (NFSD / "portlist").write_text(f"{listening.fileno()}\n")
        (NFSD / "threads").write_text("2\n")

    def stop(self) -> None:
        """As a server that has died: whoever has it mounted waits."""
        (NFSD / "threads").write_text("0\n")

    def close(self) -> None:
        """Stop, and forget the folder."""
        self.stop()
        for cache in ("nfsd.fh", "nfsd.export"):
            (CACHES / cache / "flush").write_text(f"{FAR}\n")
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False)


@contextlib.contextmanager
def nfs_mounted(node: str, point: str, options: str = "rw") -> Iterator[None]:
    """The server's folder in the mount namespace of a node's slurmd."""
    Path(point).mkdir(parents=True, exist_ok=True)
    where = f"addr={settings.ADDRESS},clientaddr={settings.ADDRESS},vers=4.2,{options}"
    on_node(node, ["mount", "-i", "-t", "nfs4", "-o", where, SOURCE, point])
    try:
        yield
    finally:
        on_node(node, ["umount", "--force", "--lazy", point], check=False)
