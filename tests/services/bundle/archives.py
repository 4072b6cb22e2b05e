"""Bundles taken apart and put together again, to the letter or with something in them that must not be there."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from bundle import pack


def read(path: Path) -> dict[str, pack.Entry]:
    """The files of a bundle by their names below its one folder."""
    found: dict[str, pack.Entry] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            opened = tar.extractfile(member)
            assert opened
            found[member.name.partition("/")[2]] = pack.Entry(opened.read(), bool(member.mode & 0o100))
    return found


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def small(version: str, members: Iterable[tarfile.TarInfo] = (), **files: bytes) -> bytes:
    """An archive of the bundle's form without a wheel: its installer only leaves a mark. ``members`` come first."""
    whole = {"VERSION": f"{version}\n".encode(), "install.sh": b"touch /canary\n", **files}
    top = f"secure-slurm-{version}"
    entries = {name: pack.Entry(data) for name, data in whole.items()}
    sums = "".join(f"{hashlib.sha256(whole[name]).hexdigest()}  {name}\n" for name in sorted(whole))
    entries.setdefault("SHA256SUMS", pack.Entry(sums.encode()))
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        for name, entry in sorted(entries.items()):
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(entry.data)
            tar.addfile(member, io.BytesIO(entry.data))
    return gzip.compress(raw.getvalue())


def odd(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    """A member that does not belong into any bundle."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.linkname = target
    member.size = 4 if kind == tarfile.REGTYPE else 0
    return member
