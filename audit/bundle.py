"""A bundle for storage that is written once: audit files up to a date, and a manifest that says what each one is.

``manifest.json`` is canonical JSON: the same files and the same date give the same bytes, whenever it is made. What is
signed is its SHA-256, behind a prefix that no other use of the key has; ``manifest.signature.json`` is the signature.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from audit.findings import Finding
from audit.line import TRAIL_SUFFIX, Link, parse_line
from audit.reading import read_lines, unreadable
from audit.sealing import sealed_name
from audit.verify import walk_part
from conf.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND = "secure-slurm audit export"
VERSION = 1
_NAME = "manifest"
MANIFEST, SIGNATURE = f"{_NAME}.json", f"{_NAME}.signature.json"
PREFIX = b"secure-slurm audit export 1\n"
MAX_MANIFEST = 64 * 1024 * 1024
_BLOCK = 1 << 20
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*", re.ASCII)
_FORM: dict[str, type] = {
    **{"path": str, "source": str, "sha256": str, "bytes": int, "chain": str, "whole": bool},
    **{"first": int, "prev": str, "last": int, "hash": str, "from": str, "to": str},
}


class Part(NamedTuple):
    """The beginning of one audit file, or all of it. ``entry`` is its line in the manifest."""

    path: Path
    size: int
    entry: dict[str, Any]


def part_of(path: Path, root: Path, until: str) -> Part | None:
    """What of a file is older than ``until`` (a time as in a line); None when nothing is.

    It ends before the first line that is not: so a clock that went back moves no line into another bundle.
    """
    first = last = None
    digest, size = hashlib.sha256(), 0
    kept, kept_size = digest.copy(), 0
    whole = True
    for _, raw in read_lines(path):
        line = parse_line(raw)
        if line is not None and str(line["time"]) >= until:
            whole = False
            break
        digest.update(raw)
        size += len(raw)
        if line is not None:
            first, last = first or line, line
            kept, kept_size = digest.copy(), size
    if first is None or last is None:
        return None
    trail, _, rest = path.name.partition(TRAIL_SUFFIX)
    # what stands behind the last whole line of an open file is still being written
    whole = whole and bool(rest)
    if not whole:
        digest, size = kept, kept_size
    link = Link(int(str(last["seq"])), str(last["hash"]))
    name = path.name if whole else sealed_name(trail + TRAIL_SUFFIX, Link(int(str(first["seq"])), ""), link)
    source = path.relative_to(root)
    entry = {
        "path": str(PurePosixPath(source.parent) / name),
        "source": source.as_posix(),
        "sha256": digest.hexdigest(),
        "bytes": size,
        "chain": f"{first['host']}-{first['writer']}",
        "whole": whole,
        "first": first["seq"],
        "prev": first["prev"],
        "last": last["seq"],
        "hash": last["hash"],
        "from": first["time"],
        "to": last["time"],
    }
    return Part(path, size, entry)


def manifest(cluster: str, until: str, parts: list[Part]) -> bytes:
    """The text of the manifest."""
    files = sorted((part.entry for part in parts), key=lambda entry: str(entry["path"]))
    content = {"kind": KIND, "v": VERSION, "cluster": cluster, "until": until, "files": files}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True).encode("ascii") + b"\n"


def signed_bytes(text: bytes) -> bytes:
    """What the signature of a manifest is over."""
    return digest_bytes(hashlib.sha256(text).hexdigest())


def digest_bytes(digest: str) -> bytes:
    """The same, by the manifest's SHA-256 in hex."""
    return PREFIX + digest.encode("ascii") + b"\n"


def read_manifest(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """A bundle's manifest. Refused ``bundle.form``: it is none."""
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if (
        len(text) > MAX_MANIFEST
        or not isinstance(found, dict)
        or (found.get("kind"), found.get("v")) != (KIND, VERSION)
        or not isinstance(found.get("files"), list)
        or not all(map(_is_entry, found["files"]))
        or len({entry["path"] for entry in found["files"]}) != len(found["files"])
    ):
        raise Refused(
            "bundle.form",
            f"{path} is no manifest of an audit export",
            advice="name a folder that 'secure-slurm audit export' wrote",
        )
    return text, found


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == _FORM.keys()
        and all(type(entry[name]) is kind for name, kind in _FORM.items())
        and all(_PATH.fullmatch(entry[name]) and ".." not in entry[name] for name in ("path", "source"))
    )


def check(folder: Path, found: dict[str, Any]) -> list[Finding]:
    """What is wrong with the files of a bundle, by its manifest: each one's bytes, its lines, and how they join."""
    findings: list[Finding] = []
    chains: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in found["files"]:
        problem = _differs(folder / entry["path"], entry)
        if problem:
            findings.append(Finding("changed", str(folder / entry["path"]), 0, problem))
        else:
            chains.setdefault((str(PurePosixPath(entry["path"]).parent), entry["chain"]), []).append(entry)
    known = {entry["path"] for entry in found["files"]} | {MANIFEST, SIGNATURE}
    findings += [
        Finding("foreign", str(folder / path), 0, "the manifest does not name it")
        for path in _files(folder)
        if path not in known
    ]
    for (_, name), entries in sorted(chains.items()):
        entries.sort(key=lambda entry: (entry["from"], entry["first"]))
        first = entries[0]
        before = Link(first["first"] - 1, first["prev"])
        findings += walk_part(name, [folder / entry["path"] for entry in entries], before)
    return findings


def _differs(path: Path, entry: dict[str, Any]) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    same = (digest.hexdigest(), size) == (entry["sha256"], entry["bytes"])
    return "" if same else "its bytes are not those that the manifest has the hash of"


def _files(folder: Path) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        for name in names:
            yield (Path(where) / name).relative_to(folder).as_posix()
