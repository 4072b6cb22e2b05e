"""The journal of scratch on one node: what has been begun for which job, so that it can be undone after any crash.

It lies on tmpfs (``<run_dir>/journal``, 0700, root): a reboot takes it away together with the mappings it is about.
What a reboot leaves is written to a disk as well, for as long as there is any of it (keys/durable.py).
Each step is written down before it is done. It holds the wrapped data key, never the plain one.

Tear-down does not depend on it. Everything has a name that follows from node and job (keys/scratch/plan.py); a journal
that is missing or damaged costs the audit trail the key's name, not the job its clean end.
"""

# pathlib is left out on purpose: root hooks import this module at every start of a job
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import InternalError, Refused
from conf.slurmnames import for_node
from keys.durable import Durable, DurableError, Kept, boot_id, boot_time, folder_of
from keys.scratch.errors import JobEnded, UnsafePath
from keys.scratch.paths import open_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

STATES = ("planned", "backing", "loop", "mapping", "filesystem", "mount", "ready", "destroyed")
KEEP_DESTROYED = 7 * 86400.0
PRUNE_EVERY = 3600.0
KEEP_SEEN = 40 * 86400.0
"""Seconds. A grant lives as long as its job waits to start on a node that is already allocated: minutes."""

_INCARNATION = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FILE = re.compile(r"([1-9][0-9]{0,9})\.json", re.ASCII)
_MAX_BYTES = 64 * 1024
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_POLL = 0.05
_PRUNED = ".pruned"


class JournalError(InternalError):
    """The journal cannot be read or written, or says what a journal of ours cannot say."""


class Record(NamedTuple):
    """What is known of one job's scratch on this node. Devices as ``major:minor``; times in Unix seconds."""

    job: int
    node: str
    uid: int
    state: str = "planned"
    incarnation: str = ""
    restarts: int = 0
    key_name: str = ""
    wrapped_key: str = ""
    mapper: str = ""
    backing: str = ""
    backing_path: str = ""
    loop: str = ""
    backing_device: str = ""
    mapping_device: str = ""
    mount_root: str = ""
    mount_point: str = ""
    filesystem: str = ""
    size_bytes: int = 0
    created: float = 0.0
    changed: float = 0.0
    place: str = ""
    """The node's verdict on its own place when the job started (keys/place.py); "" in a journal of an older version."""


class Journal:
    """The journals of all jobs of one node.

    :param run_dir: the node's run directory; it must be root's, and root's alone to rename things in.
    :param node: the node's Slurm name.
    :param state_dir: the folder on a disk for what must survive a reboot; "": nothing is kept of it.
    """

    def __init__(self, run_dir: str, node: str, state_dir: str = "") -> None:
        self.run_dir = run_dir
        self.durable = Durable(state_dir, node) if state_dir else None
        self.node = node
        self._path = f"{run_dir.rstrip('/')}/journal"

    def claim_incarnation(self, job: int, incarnation: str) -> None:
        """Use up an incarnation: a grant is good for one start on one node. It becomes the one that may start here,
        until :meth:`revoke` or the claim of another (:meth:`check_claim`).

        :raises Refused: ``grant.seen`` when it was used before; ``grant.incarnation`` when it is none.
        :raises JournalError: it cannot be written down, so that a replay would not be noticed.
        """
        _check_job(job)
        if not _INCARNATION.fullmatch(incarnation):
            raise Refused("grant.incarnation", f"the grant of job {job} names no incarnation")
        with self._created() as folder, self._created("seen") as seen:
            try:
                os.close(os.open(incarnation, _CREATE, 0o600, dir_fd=seen))
                os.fsync(seen)
            except FileExistsError:
                raise Refused(
                    "grant.seen",
                    f"the grant of job {job} was used on this node before",
                    advice="a requeued job gets a new grant; if this repeats, look for a second lifecycle daemon",
                ) from None
            except OSError as error:
                raise JournalError(f"cannot write {self._path}/seen: {error.strerror}") from None
            self._replace(folder, f"{job}.claim", incarnation.encode("ascii"))

    def check_claim(self, job: int, incarnation: str) -> None:
        """Make sure that a claimed incarnation may still start: a hook that outlived its slurmd may come too late.

        :raises JobEnded: it was revoked, or another was claimed since, or it never was.
        :raises JournalError: that cannot be told.
        """
        name = f"{_check_job(job)}.claim"
        claimed = b""
        with self._opened() as folder, contextlib.suppress(FileNotFoundError):
            try:
                descriptor = -1 if folder is None else os.open(name, _READ, dir_fd=folder)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise JournalError(f"cannot read {self._path}/{name}: {error.strerror}") from None
            if descriptor >= 0:
                with os.fdopen(descriptor, "rb") as file:
                    claimed = file.read(_MAX_BYTES)
        if not incarnation or claimed != incarnation.encode("ascii", "replace"):
            raise JobEnded(f"job {job} was torn down on this node, or started again, after this start of it had begun")

    def revoke(self, job: int, incarnation: str | None = None) -> None:
        """Have no start go on that has claimed its incarnation, or none but this one; may be called again.

        :raises JournalError: the journal cannot be trusted. :raises OSError: it cannot be written to.
        """
        name = f"{_check_job(job)}.claim"
        with self._opened() as folder, contextlib.suppress(FileNotFoundError):
            if folder is None:
                return
            if incarnation is not None:
                try:
                    self.check_claim(job, incarnation)
                except JobEnded:
                    return
            os.unlink(name, dir_fd=folder)

    def locked(self, job: int) -> bool:
        """Whether somebody works on the job's scratch now. Makes nothing.

        :raises JournalError: the journal cannot be trusted. :raises OSError: the lock cannot be looked at.
        """
        with self._opened() as folder, contextlib.suppress(FileNotFoundError):
            if folder is not None:
                descriptor = os.open(f"{_check_job(job)}.lock", _READ, dir_fd=folder)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
                finally:
                    os.close(descriptor)
        return False

    def read(self, job: int) -> Record | None:
        """What is written of a job; None when nothing is.

        :raises JournalError: cut short, garbled, of another job or node, or not root's own file.
        """
        name = f"{_check_job(job)}.json"
        with self._opened() as folder:
            if folder is None:
                return None
            try:
                descriptor = os.open(name, _READ, dir_fd=folder)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise self._damaged(name, error.strerror or "cannot be opened") from None
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
                    raise self._damaged(name, "it is not root's own private file")
                text = os.read(descriptor, _MAX_BYTES + 1)
            finally:
                os.close(descriptor)
        record = self._parse(name, text)
        if record.job != job or record.node != self.node:
            raise self._damaged(name, "it is about another job or node")
        return record

    def write(self, record: Record) -> Record:
        """Replace what is written of a job, in one piece and on the medium before this returns.

        :raises JournalError: not written; what was there before still is.
        """
        if record.state not in STATES or record.node != self.node:
            raise JournalError(f"a journal of node {self.node} cannot hold state {record.state!r} of {record.node!r}")
        now = time.time()
        record = record._replace(created=record.created or now, changed=now)
        name = f"{_check_job(record.job)}.json"
        text = json.dumps({"v": 1} | record._asdict(), sort_keys=True).encode("ascii") + b"\n"
        with self._created() as folder:
            if self.durable is not None and record.state == "planned":
                try:
                    self.durable.write(_kept(record))
                except DurableError as error:
                    raise JournalError(str(error), advice=error.advice) from None
            self._replace(folder, name, text)
        return record

    def before_reboot(self, job: int) -> Record | None:
        """What the disk knows of a job of which the journal knows nothing, as far as it goes; None: nothing.

        :raises DurableError: damaged, or not to be trusted.
        """
        kept = None if self.durable is None else self.durable.read(job)
        if kept is None:
            return None
        fields = {name: value for name, value in kept._asdict().items() if name in Record._fields}
        return Record(**fields, state="planned")

    def settled(self, job: int) -> None:
        """Nothing of the job is left that a reboot could leave. May be repeated.

        :raises DurableError: the record on disk cannot be removed. :raises OSError: the same.
        """
        if self.durable is not None:
            self.durable.remove(_check_job(job))

    def _replace(self, folder: int, name: str, text: bytes) -> None:
        temporary = f".{name.partition('.')[0]}.{os.getpid()}.tmp"
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
            raise JournalError(f"cannot write {self._path}/{name}: {error.strerror}") from None

    def remove(self, job: int) -> None:
        """Forget a job; may be called again."""
        _check_job(job)
        with self._opened() as folder:
            if folder is not None:
                for name in (f"{job}.json", f"{job}.lock"):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=folder)

    def jobs(self) -> list[int]:
        """The jobs that something is written of, destroyed ones included."""
        with self._opened() as folder:
            names = [] if folder is None else os.listdir(folder)
        return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)

    def prune_sometimes(self) -> None:
        """:meth:`prune`, at most once in :data:`PRUNE_EVERY`: it looks at every job of a week, and a job waits for it.

        :raises JournalError: the journal cannot be trusted. :raises OSError: it cannot be read or written.
        """
        with self._created() as folder:
            descriptor = os.open(_PRUNED, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                status = os.fstat(descriptor)
                if status.st_size and 0 <= time.time() - status.st_mtime < PRUNE_EVERY:
                    return
                os.pwrite(descriptor, b"pruned\n", 0)
            finally:
                os.close(descriptor)
        self.prune()

    def prune(self, now: float | None = None) -> None:
        """Forget jobs destroyed more than seven days ago, and incarnations used more than forty days ago.

        A claim stays as long as its job may run: its Epilog takes it away, or the reboot.
        """
        now = time.time() if now is None else now
        for job in self.jobs():
            with contextlib.suppress(JournalError):
                record = self.read(job)
                if record and record.state == "destroyed" and now - record.changed > KEEP_DESTROYED:
                    with self.lock(job, 0.0):
                        self.remove(job)
        with self._opened("seen") as seen:
            for name in [] if seen is None else os.listdir(seen):
                if now - os.stat(name, dir_fd=seen, follow_symlinks=False).st_mtime > KEEP_SEEN:
                    os.unlink(name, dir_fd=seen)

    @contextlib.contextmanager
    def lock(self, job: int, timeout: float) -> Iterator[None]:
        """Keep set-up, tear-down and the reaper from working on one job at the same time. The kernel lets go of it
        when the holder dies. ``timeout`` in seconds.

        :raises JournalError: somebody else still holds it, or it cannot be made.
        """
        name = f"{_check_job(job)}.lock"
        with self._created() as folder:
            end = time.monotonic() + timeout
            while True:
                descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(descriptor).st_nlink:
                        break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        os.close(descriptor)
                        raise JournalError(
                            f"another process has worked on the scratch of job {job} for more than {timeout:.0f} s"
                        ) from None
                    time.sleep(_POLL)
                # it was removed, or is held: what lies there next time is another file, or a free one
                os.close(descriptor)
        try:
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _opened(self, below: str = "") -> Iterator[int | None]:
        """The folder, or None if nothing was ever written."""
        try:
            descriptor = self._open(below, None)
        except FileNotFoundError:
            yield None
            return
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _created(self, below: str = "") -> Iterator[int]:
        try:
            descriptor = self._open(below, 0o700)
        except FileNotFoundError:
            raise JournalError(f"there is no {self.run_dir}", advice="create it, owned by root") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, below: str, create: int | None) -> int:
        path = f"{self._path}/{below}" if below else self._path
        try:
            return open_directory(path, private=True, create=create)
        except UnsafePath as error:
            raise JournalError(f"the journal cannot be trusted: {error}", advice=error.advice) from None
        except FileNotFoundError:
            raise
        except OSError as error:
            raise JournalError(f"cannot open {path}: {error.strerror}") from None

    def _parse(self, name: str, text: bytes) -> Record:
        if len(text) > _MAX_BYTES:
            raise self._damaged(name, "it is too large")
        try:
            data = json.loads(text.decode("ascii"))
        except (ValueError, RecursionError):
            raise self._damaged(name, "it is cut short or garbled") from None
        if isinstance(data, dict):
            data.setdefault("place", "")
        if not isinstance(data, dict) or data.pop("v", None) != 1 or set(data) != set(Record._fields):
            raise self._damaged(name, "its fields are not those of a journal")
        _check_types(data, lambda why: self._damaged(name, why))
        return Record(**data)

    def _damaged(self, name: str, why: str) -> JournalError:
        return JournalError(
            f"the journal {self._path}/{name} is damaged: {why}",
            advice="tear-down works without it; remove the file once the scratch is gone",
        )


def _check_types(data: dict[str, Any], damaged: Any) -> None:  # noqa: ANN401  (a callable that makes the error)
    for field, default in Record(0, "", 0)._asdict().items():
        value = data[field]
        if type(value) is not type(default) and not (type(default) is float and type(value) is int):
            raise damaged(f"{field} has a value of another kind")
    if data["state"] not in STATES:
        raise damaged("its state is unknown")


def _check_job(job: int) -> int:
    """Ids are numbers and nothing else: they become file names."""
    if type(job) is not int or not 0 < job < 2**32:
        raise JournalError(f"{job!r} is not a job id")
    return job


def _kept(record: Record) -> Kept:
    fields = {name: value for name, value in record._asdict().items() if name in Kept._fields}
    return Kept(**fields, boot=boot_id(), since=boot_time())


def journal_of(config: dict[str, Any], node: str) -> Journal:
    """The journal of a node as the hooks' configuration has it (conf/hookconf.py). ConfigError for an unfit name."""
    section = config["node"]
    return Journal(for_node(section["run_dir"], node), node, folder_of(section, node))
