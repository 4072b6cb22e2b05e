"""Packs the offline bundle: what is read from disk goes in, in one order, with one date and one owner.

    python3 -m bundle.pack CHECKOUT WHEELS COMPILED OUT [--extra DIR]

writes OUT/secure-slurm-VERSION.tar.gz. Names, modes and bytes decide what comes out; when, where and by whom it was
made does not, so the archive can be compared with one that somebody else made from the same commit.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

from bundle import sbom

ROOMS = ("admin", "audit", "conf", "keys", "slurm_hooks", "submit")
FOLDERS = (*ROOMS, "docs")
FILES = (
    "install.sh",
    "uninstall.sh",
    "bundle/offline.sh",
    "requirements/accounts.sh",
    "requirements/runtime.lock",
)
EPOCH = 315532800
"""Unix seconds: 1 January 1980, the first that a wheel's own dates can say."""
_LITTER = re.compile(r"__pycache__|\..*|.*(~|\.pyc|\.orig|\.rej|\.swp)")


class Entry(NamedTuple):
    """One file of the archive."""

    data: bytes
    executable: bool = False


class PackError(Exception):
    """The bundle would not be what it says."""


def contents(checkout: Path, wheels: Path, compiled: Path, extra: Path | None = None) -> dict[str, Entry]:
    """Every file of the bundle by its name, the list of checksums and the bill of materials among them.

    Raises PackError for what is missing, for links, and for two different files of one name.
    """
    found: dict[str, Entry] = {}
    for folder in FOLDERS:
        _take(found, checkout / folder, folder)
    for name in FILES:
        found[name] = _entry(checkout / name)
    for path in sorted(wheels.iterdir()):
        if path.suffix == ".whl" or path.name == "FOR":
            found[f"wheels/{path.name}"] = Entry(path.read_bytes())
    for source in (compiled, extra):
        if source:
            _take(found, source, "")
    for needed in ("wheels/pip-*.whl", "wheels/cryptography-*.whl", "lua/*/*/socket/unix.so", "ldap/*/*/*.whl"):
        if not any(Path(name).match(needed) for name in found):
            raise PackError(f"nothing like {needed}")
    version = version_of(found)
    found["VERSION"] = Entry(f"{version}\n".encode())
    return seal(found)


def seal(found: dict[str, Entry]) -> dict[str, Entry]:
    """The same files with a bill of materials and a list of checksums that fit them."""
    files = {name: entry for name, entry in found.items() if name not in ("sbom.cdx.json", "SHA256SUMS")}
    bill = sbom.document(version_of(files), {name: entry.data for name, entry in files.items()})
    files["sbom.cdx.json"] = Entry(bill)
    lines = (f"{hashlib.sha256(files[name].data).hexdigest()}  {name}\n" for name in sorted(files))
    files["SHA256SUMS"] = Entry("".join(lines).encode())
    return files


def version_of(files: dict[str, Entry]) -> str:
    """What the suite calls itself. PackError when it is no version that the custom action can compare."""
    found = re.search(
        r'^__version__ = "([0-9]+\.[0-9]+\.[0-9]+)"$', files["conf/version.py"].data.decode(), re.MULTILINE
    )
    if not found:
        raise PackError("conf/version.py has no version of the form 1.2.3")
    return found[1]


def archive(files: dict[str, Entry]) -> bytes:
    """The archive's bytes: one top folder, files in the order of their names, no owner, no date."""
    top = f"secure-slurm-{version_of(files)}"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(files[name].data)
            member.mode = 0o755 if files[name].executable else 0o644
            member.mtime = EPOCH
            tar.addfile(member, io.BytesIO(files[name].data))
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=EPOCH) as zipped:
        zipped.write(raw.getvalue())
    return packed.getvalue()


def _take(found: dict[str, Entry], folder: Path, name: str) -> None:
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not _LITTER.fullmatch(each))
        for file in files:
            if not _LITTER.fullmatch(file):
                whole = Path(path, file)
                inside = str(Path(name) / whole.relative_to(folder))
                entry = _entry(whole)
                if found.setdefault(inside, entry).data != entry.data:
                    raise PackError(f"there are two different {inside}")


def _entry(path: Path) -> Entry:
    if path.is_symlink() or not path.is_file():
        raise PackError(f"{path} is no plain file")
    # a compiled module is loaded, not run: git knows modes of what is in it alone
    return Entry(path.read_bytes(), path.suffix != ".so" and bool(path.stat().st_mode & 0o100))


def main(argv: list[str] | None = None) -> int:
    """Pack, and say what came out."""
    parser = argparse.ArgumentParser(prog="bundle.pack", description="pack the offline bundle", allow_abbrev=False)
    for name in ("checkout", "wheels", "compiled", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--extra", type=Path)
    args = parser.parse_args(argv)
    try:
        files = contents(args.checkout, args.wheels, args.compiled, args.extra)
    except PackError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 1
    packed = archive(files)
    target = args.out / f"secure-slurm-{version_of(files)}.tar.gz"
    part = target.with_name(f"{target.name}.part")
    part.write_bytes(packed)
    part.rename(target)
    target.with_name(f"{target.name}.sig").unlink(missing_ok=True)
    print(f"{hashlib.sha256(packed).hexdigest()}  {target.name}  {len(files)} files, {len(packed)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
