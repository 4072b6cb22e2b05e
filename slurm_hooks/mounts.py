"""A node's network file systems: which are writable and not the job's, and whether protected data is mounted. Pure.

What is known comes from mountinfo (proc_pid_mountinfo(5)) alone: no file system is touched, for one that is away would
hang whoever looks. A type that is not known to be local counts as a network: nothing that is new goes unnoticed.
Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOUNTINFO = "/proc/self/mountinfo"
MAX_BYTES = 64 * 1024**2

# The kernel's own, and memory: no data set is kept there. A tmpfs over a directory even hides what is below.
EMPTY = frozenset(
    [
        *(
            "tmpfs",
            "ramfs",
            "rootfs",
            "devtmpfs",
            "devpts",
            "hugetlbfs",
            "mqueue",
            "proc",
            "sysfs",
            "cgroup",
            "cgroup2",
        ),
        *(
            "cpuset",
            "securityfs",
            "selinuxfs",
            "debugfs",
            "tracefs",
            "pstore",
            "efivarfs",
            "configfs",
            "fusectl",
            "bpf",
        ),
        *("binfmt_misc", "rpc_pipefs", "nfsd", "nsfs", "bdev", "resctrl"),
    ]
)
# On this machine's own disks, or nowhere. Not among them, though they look local: 9p, virtiofs
# and hostfs (another machine's, below this one), ocfs2 and gfs2 (a disk that other machines write to as well).
LOCAL = EMPTY | frozenset(
    [
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "reiserfs", "nilfs2", "minix"),
        *("vfat", "msdos", "exfat", "ntfs", "ntfs3", "hfs", "hfsplus", "iso9660", "udf", "squashfs", "erofs", "cramfs"),
        *("overlay", "ecryptfs"),
        # root's alone: see Mount.foreign
        "fuseblk",
        *(f"fuse.{name}" for name in ("lxcfs",)),
        # itself empty; what it mounts has a line of its own
        "autofs",
    ]
)

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_OWNER = re.compile(r"(?:^|,)user_id=([0-9]{1,10})(?:,|$)", re.ASCII)
_FIELDS_BEFORE = 6


class Mount(NamedTuple):
    """One mount. ``foreign``: a FUSE file system that is not root's, whose source, type and point are its user's words
    (fusermount3(1): ``fsname``, ``subtype``), and prove nothing.
    """

    point: str
    fstype: str
    source: str
    writable: bool
    foreign: bool = False

    @property
    def network(self) -> bool:
        """Whether what is written there may leave this machine."""
        return self.foreign or self.fstype not in LOCAL


class Unreadable(BackendUnavailable):
    """Mountinfo cannot be read, or is not what the kernel writes; nobody knows then what is mounted."""

    def __init__(self, why: str) -> None:
        super().__init__(f"what is mounted on this node cannot be told: {why}", advice="look at /proc/self/mountinfo")


def read(path: str = MOUNTINFO) -> list[Mount]:
    """What is mounted in this process's namespace, slurmd's. Raises Unreadable."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123  pathlib is too heavy for a hook
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(error.strerror or "it cannot be read") from None
    if len(text) > MAX_BYTES:
        raise Unreadable("there is too much of it")
    return parse(text)


def parse(text: bytes) -> list[Mount]:
    """The mounts of a mountinfo file, in its order. Raises Unreadable for a line of another form, and for none at all.

    The kernel escapes space, tab, line feed and backslash; a carriage return in a name it leaves as it is.
    """
    lines = [line for line in text.split(b"\n") if line]
    if not lines:
        raise Unreadable("it is empty")
    return [_mount(line) for line in lines]


def _mount(line: bytes) -> Mount:
    fields = line.split(b" ")
    try:
        # optional fields are many or none; the first '-' ends them
        end = fields.index(b"-", _FIELDS_BEFORE)
        point, options = fields[4], fields[5]
        fstype, source, super_options = fields[end + 1 :]
    except (ValueError, IndexError):
        raise Unreadable(f"a line of it has another form: {line[:80]!r}") from None
    shown = _plain(fstype)
    # 'ro' or 'rw' is the first word of both (fs/proc_namespace.c); whatever is not clearly read-only can be written to
    read_only = b"ro" in (options.partition(b",")[0], super_options.partition(b",")[0])
    owner = _OWNER.search(_plain(super_options)) if shown.partition(".")[0] in ("fuse", "fuseblk") else None
    foreign = owner is not None and int(owner[1]) != 0
    return Mount(_plain(point), shown, _plain(source), writable=not read_only, foreign=foreign)


def _plain(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def unlisted(mounts: Iterable[Mount], listed: Iterable[str]) -> list[Mount]:
    """The writable network file systems that are none of ``listed``: mount points, all below them, and sources."""
    allowed = tuple(listed)
    return [each for each in mounts if each.network and each.writable and not _is_listed(each, allowed)]


def _is_listed(mount: Mount, listed: tuple[str, ...]) -> bool:
    if mount.foreign:
        return False
    return any(_same(mount.source, each) or within(mount.point, each) for each in listed)


def exposed(
    mounts: Iterable[Mount], datasets: Mapping[str, str], file_systems: Mapping[str, str]
) -> tuple[Mount, str] | None:
    """A mount by which protected data can be reached here, and whose it is; None: there is no such mount.

    ``datasets``: path to name; what is mounted there or below counts, of any type that can hold data, and a network
    file system (or an automounter's point) above it. ``file_systems``: mount point or source to jurisdiction; of them
    network types only. The root file system is never "above": it may be a network's without having every path. What
    users mount does not count: they could take nodes out of service with it.
    """
    for mount in mounts:
        if mount.foreign or mount.fstype in EMPTY:
            continue
        remote = mount.network or mount.fstype == "autofs"
        for path, name in datasets.items():
            if within(mount.point, path) or (remote and _above(mount.point, path)):
                return mount, f"dataset {name}"
        for place, name in file_systems.items() if remote else ():
            if _same(mount.source, place) or within(mount.point, place) or _above(mount.point, place):
                return mount, f"jurisdiction {name}"
    return None


def within(path: str, directory: str) -> bool:
    """Whether a path is the directory, which must be absolute, or lies below it, by their texts."""
    return directory.startswith("/") and (path == directory or path.startswith(f"{directory.rstrip('/')}/"))


def _above(point: str, path: str) -> bool:
    return point != "/" and path.startswith("/") and within(path, point)


def _same(source: str, listed: str) -> bool:
    return bool(source) and source.rstrip("/") == listed.rstrip("/")
