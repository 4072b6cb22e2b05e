"""What a node must still know of a job's scratch after a reboot: one small file for each job, on a disk.

The journal (keys/journal.py) lies on tmpfs and goes with the mappings that it is about. A backing file, a volume and
the folder that was mounted on stay: ciphertext that nobody has a key for, and space that nobody gives back. So before
the first of them is made, this is written; when the last of them is gone, it is removed. A file of an earlier boot is
what that boot left. It holds names and never a key, wrapped or not.

It also says how long a set-up has run, by the clock that counts since boot: no change of the wall clock matters.
"""

# pathlib is left out on purpose: root hooks import this module at every start of a job
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import InternalError
from conf.slurmnames import for_node
from keys.scratch.errors import UnsafePath
from keys.scratch.paths import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STATE_DIR = "/var/lib/secure-slurm/node-%n"
"""Where configurations rendered by an older version, which name none, have it."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_FILE = re.compile(r"([1-9][0-9]{0,9})\.json", re.ASCII)
_BOOT = re.compile(r"[0-9a-f-]{32,36}", re.ASCII)
_MAX_BYTES = 16 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DurableError(InternalError):
    """The record on disk cannot be read or written, or says what a record of ours cannot say."""


class Kept(NamedTuple):
    """What one start of a job will have left if the machine goes down now.

    ``boot`` is the kernel's boot id; ``since``: seconds of that boot (CLOCK_BOOTTIME) at which set-up began.
    """

    job: int
    node: str
    uid: int
    boot: str
    since: float
    incarnation: str
    restarts: int
    key_name: str
    mapper: str
    backing: str
    backing_path: str
    mount_root: str
    mount_point: str


_LIKE = Kept(0, "", 0, "", 0.0, "", 0, "", "", "", "", "", "")


def boot_id() -> str:
    """This boot's id (random(4)). Raises DurableError: without it no earlier boot can be told from this one."""
    try:
        with open(BOOT_ID, encoding="ascii", errors="replace") as file:
            text = file.read(64).strip()
    except OSError as error:
        raise DurableError(f"cannot read {BOOT_ID}: {error.strerror}") from None
    if not _BOOT.fullmatch(text):
        raise DurableError(f"{BOOT_ID} holds no boot id")
    return text


def boot_time() -> float:
    """Seconds since boot, time asleep included; neither an admin nor NTP sets it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def folder_of(node_config: Mapping[str, Any], node: str) -> str:
    """The folder by the ``node`` part of the hooks' configuration. ConfigError for a name that could leave it."""
    return for_node(str(node_config.get("state_dir", STATE_DIR)), node)


class Durable:
    """The records of one node. ``path`` is made when first written to; what is above it must be root's."""

    def __init__(self, path: str, node: str) -> None:
        self.path = path.rstrip("/")
        self.node = node

    def write(self, kept: Kept) -> None:
        """Put a record on the disk, in the place of the job's earlier one. Raises DurableError: it is not there."""
        name, temporary = f"{kept.job}.json", f".{kept.job}.{os.getpid()}.tmp"
        text = json.dumps({"v": 1} | kept._asdict(), sort_keys=True).encode("ascii") + b"\n"
        try:
            folder = self._open(0o700)
        except FileNotFoundError:
            raise DurableError(f"there is no folder for {self.path}", advice="create it, owned by root") from None
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            with os.fdopen(os.open(temporary, _CREATE, 0o600, dir_fd=folder), "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise DurableError(
                f"cannot write {self.path}/{name}: {error.strerror}",
                advice="scratch that a reboot would leave is not begun",
            ) from None
        finally:
            os.close(folder)

    def remove(self, job: int) -> None:
        """The job has nothing left on this node. May be repeated; a file that comes back with a crash does no harm."""
        with self._opened() as folder:
            if folder is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{job}.json", dir_fd=folder)

    def read(self, job: int) -> Kept | None:
        """The record of a job; None without one. Raises DurableError when it is cut short, garbled or not root's."""
        name = f"{job}.json"
        with self._opened() as folder:
            if folder is None:
                return None
            try:
                descriptor = os.open(name, _READ, dir_fd=folder)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise self._damaged(name, error.strerror or "it cannot be opened") from None
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise self._damaged(name, "it is not root's own private file")
                kept = self._parse(name, file.read(_MAX_BYTES + 1))
        if kept.job != job or kept.node != self.node:
            raise self._damaged(name, "it is about another job or node")
        return kept

    def jobs(self) -> list[int]:
        """The jobs that there is a record of."""
        with self._opened() as folder:
            names = [] if folder is None else os.listdir(folder)
        return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)

    def _parse(self, name: str, text: bytes) -> Kept:
        try:
            data = json.loads(text.decode("ascii")) if len(text) <= _MAX_BYTES else None
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict) or data.pop("v", None) != 1 or set(data) != set(Kept._fields):
            raise self._damaged(name, "it is cut short or garbled")
        for field, like in _LIKE._asdict().items():
            if type(data[field]) is not type(like) and not (type(like) is float and type(data[field]) is int):
                raise self._damaged(name, f"{field} has a value of another kind")
        return Kept(**data)

    def _damaged(self, name: str, why: str) -> DurableError:
        return DurableError(
            f"the record {self.path}/{name} is damaged: {why}", advice="remove it once nothing of the job is left"
        )

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        try:
            descriptor = self._open(None)
        except FileNotFoundError:
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, create: int | None) -> int:
        try:
            return open_directory(self.path, private=True, create=create)
        except UnsafePath as error:
            raise DurableError(f"the records on disk cannot be trusted: {error}", advice=error.advice) from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DurableError(f"cannot open {self.path}: {error.strerror}") from None
