"""What a node's trails have beyond what the head node holds: root's part, answered by the hand to the node daemon.

Lines that are known to be on the disk, and no others: one that a crash takes back must not be held elsewhere. Where the
head node holds another chain than the one here (this machine is the successor of one of that name), its beginning.

Standard library only, as everything that root runs here.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from audit.continuity import MOST_BYTES, WRITERS
from audit.line import HEAD_SUFFIX, TRAIL_SUFFIX, ZERO_HASH, Link, parse_link
from audit.sealing import SEALED
from audit.store import Folder, read_head
from slurm_hooks.wire import WireError, text

_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_GENESIS = f'"prev":"{ZERO_HASH}"'.encode()


class _Place(NamedTuple):
    """Where the line after ``link`` begins."""

    link: Link
    inode: int
    offset: int


class Reader:
    """The trails of one node. ``directory``: where they are; empty: nowhere."""

    def __init__(self, directory: str, node: str) -> None:
        self._directory = directory
        self._node = node
        self._places: dict[str, _Place] = {}

    def after(self, writer: str, held: Link) -> bytes:
        """The lines that follow ``held``, as many as go at once; empty when there are none.

        :raises OSError: they cannot be read.
        """
        name = f"{self._node}-{writer}{TRAIL_SUFFIX}"
        with Folder(self._directory) as folder:
            head = read_head(folder.fd, name + HEAD_SUFFIX)
            if head is None or head == held:
                return b""
            files = self._files(folder.fd, name)
            place = self._places.get(writer)
            if place is None or place.link != held or place.inode not in {inode for _, inode in files}:
                place = _find(folder.fd, files, held)
            lines, place = _read(folder.fd, files, place, head)
        if lines:
            self._places[writer] = place
        return lines

    def _files(self, folder: int, name: str) -> list[tuple[str, int]]:
        """Names and inodes, the oldest first."""
        found = [one for one in os.listdir(folder) if one == name or _of(one, name)]
        entries = [(one, os.stat(one, dir_fd=folder, follow_symlinks=False)) for one in found]
        # two that were sealed in the same tick of the clock have the same time: then by number
        entries.sort(key=lambda entry: (entry[0] == name, entry[1].st_mtime_ns, entry[0]))
        return [(one, info.st_ino) for one, info in entries]


def _of(name: str, trail: str) -> bool:
    found = SEALED.fullmatch(name)
    return found is not None and found["name"] == trail


def _find(folder: int, files: list[tuple[str, int]], held: Link) -> _Place:
    """Where to go on: behind the line that is held, at the last beginning of a chain, or at the first line of all."""
    oldest = _Place(held, files[0][1] if files else 0, 0)
    if not held.seq:
        return oldest
    mark = f'"hash":"{held.hash}"}}\n'.encode()
    for name, inode in reversed(files):
        content = _whole(folder, name)
        at = content.rfind(mark)
        if at >= 0:
            return _Place(held, inode, at + len(mark))
    for name, inode in reversed(files):
        content = _whole(folder, name)
        at = content.rfind(_GENESIS)
        if at >= 0:
            return _Place(held, inode, content.rfind(b"\n", 0, at) + 1)
    return oldest


def _whole(folder: int, name: str) -> bytes:
    """A file, SEGMENT_BYTES and a line at most; read once for each connection."""
    fd = _open(folder, name)
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)


def _open(folder: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)


def _read(folder: int, files: list[tuple[str, int]], place: _Place, head: Link) -> tuple[bytes, _Place]:
    """Whole lines from there on, up to ``head``; of one file, and of one chain."""
    at = [inode for _, inode in files].index(place.inode) if files else 0
    offset = place.offset
    for name, inode in files[at:]:
        fd = _open(folder, name)
        try:
            block = os.pread(fd, MOST_BYTES, offset)
        finally:
            os.close(fd)
        lines, link, used = _cut(block, place.link, head, current=name == files[-1][0])
        if lines:
            return lines, _Place(link, inode, offset + used)
        offset = 0
    return b"", place


def _cut(block: bytes, link: Link, head: Link, *, current: bool) -> tuple[bytes, Link, int]:
    """The lines of a block that may be sent, the last one's link, and the bytes they take with what is none of ours.

    ``current``: the block is of the file that the head file is about.
    """
    lines: list[bytes] = []
    used = 0
    for raw in block.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            break
        found = parse_link(raw)
        if found is not None:
            if (current and found.seq > head.seq) or (lines and _GENESIS in raw):
                break
            lines.append(raw)
            link = found
        used += len(raw)
    return b"".join(lines), link, used


def answer(reader: Reader, fields: dict[str, bytes]) -> dict[str, str]:
    """The hand's verb ``trail``. :raises WireError: it is malformed."""
    writer, seq, digest = (text(fields, name) for name in ("writer", "seq", "hash"))
    if writer not in WRITERS or not re.fullmatch(r"[0-9]{1,18}", seq, re.ASCII) or not _HASH.fullmatch(digest):
        raise WireError("the question for the trail's lines is malformed")
    return {"lines": reader.after(writer, Link(int(seq), digest)).decode("ascii")}
