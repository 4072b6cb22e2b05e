"""Rotation: a file that has grown large, or is of another month, is sealed under a name of its own and written no more.

``n1-node.jsonl`` becomes ``n1-node.jsonl.000000000001-000000004711-5d41402a`` (first and last line, and the beginning
of the last one's hash), mode 0440. Its end is on the disk, and in the head file, before it is renamed; the first line
of the new file names the last one's hash. Standard library only: root hooks import this.
"""

from __future__ import annotations

import os
import re

from audit.line import HEAD_SUFFIX, Link, parse_link
from audit.store import TAIL_BLOCK, read_head, tail, write_head

SEGMENT_BYTES = 32 * 1024 * 1024
SEALED = re.compile(r"(?P<name>.+\.jsonl)\.(?P<first>[0-9]{12})-(?P<last>[0-9]{12})-(?P<hash>[0-9a-f]{8})", re.ASCII)
_TIME = b'"time":"'


def month_of(fd: int) -> str:
    """``2026-11``, of a file's first line; empty when it has none."""
    start = os.pread(fd, 256, 0)
    at = start.find(_TIME)
    return start[at + len(_TIME) :][:7].decode("ascii", "replace") if at >= 0 else ""


def is_due(size: int, month: str, now: str) -> bool:
    """Whether a file of that size, and whose first line is of that month, is to be sealed. ``now``: as in a line."""
    return size >= SEGMENT_BYTES or (bool(month) and not now.startswith(month))


def seal(folder: int, name: str, fd: int) -> str:
    """Seal the file, which the caller has locked; its new name, or an empty text when its end is not whole yet.

    OSError: it could not be done, and the file is what it was.
    """
    first = parse_link(os.pread(fd, TAIL_BLOCK, 0).partition(b"\n")[0])
    last, torn = tail(fd, os.fstat(fd).st_size)
    if first is None or last is None or torn:
        return ""
    head = read_head(folder, name + HEAD_SUFFIX)
    if head is not None and head.seq > last.seq:
        return ""
    os.fsync(fd)
    write_head(folder, name + HEAD_SUFFIX, last)
    sealed = sealed_name(name, first, last)
    if sealed in os.listdir(folder):
        return ""
    os.fchmod(fd, 0o440)
    os.rename(name, sealed, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)
    return sealed


def sealed_name(name: str, first: Link, last: Link) -> str:
    """The name of a sealed file."""
    return f"{name}.{first.seq:012d}-{last.seq:012d}-{last.hash[:8]}"
