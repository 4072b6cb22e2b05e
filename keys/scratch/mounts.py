"""What is mounted where, from /proc/<pid>/mountinfo (proc_pid_mountinfo(5)): no file system is touched to find out."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_MAX_BYTES = 64 * 1024**2


class Mount(NamedTuple):
    """One mount: ``device`` as st_dev has it, ``root`` the folder of the file system that is shown at ``point``,
    ``options`` this mount's own, as mount(8) takes them.
    """

    device: int
    root: str
    point: str
    fstype: str
    options: str = ""


def parse(text: bytes) -> list[Mount]:
    """The mounts of a mountinfo file in its order: a later one may cover an earlier. Other lines are left out."""
    found = []
    # not splitlines(): a carriage return in a name is not escaped, and would hide the mount
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        try:
            major, minor = fields[2].split(b":")
            fstype = fields[fields.index(b"-", 6) + 1]
            device = os.makedev(int(major), int(minor))
        except (IndexError, ValueError):
            continue
        found.append(Mount(device, _plain(fields[3]), _plain(fields[4]), _plain(fstype), _plain(fields[5])))
    return found


def _plain(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def mounts(process: str = "self") -> list[Mount]:
    """The mounts that a process sees; none if it is gone."""
    try:
        with open(f"/proc/{process}/mountinfo", "rb") as file:  # noqa: PTH123  pathlib is too heavy for a hook
            return parse(file.read(_MAX_BYTES))
    except OSError:
        return []


def below(point: str, everything: list[Mount]) -> list[Mount]:
    """The mounts at ``point`` and inside it, the innermost and latest first: the order to unmount them in."""
    inside = [mount for mount in everything if mount.point == point or mount.point.startswith(point + "/")]
    return sorted(reversed(inside), key=lambda mount: mount.point.count("/"), reverse=True)
