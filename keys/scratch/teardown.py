"""The way back: whatever is there of a job's scratch is unmounted, closed and removed, and that is made sure of.

It needs no daemon, no network and no journal, may be run any number of times, and goes on after each failure: what can
be taken away is taken away, and what is left is named in the end.

If anything still holds the file system, the key goes first. From then on what is left is ciphertext that nobody has a
key for, and the rest (killing the job's holders, unmounting, closing) is tidying up.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from conf.errors import SecureSlurmError
from keys.journal import Journal, JournalError, Record
from keys.process import Budget, ProcessError
from keys.scratch import backing, crypt, filesystem, loop, stacked
from keys.scratch.errors import NodeBroken, ScratchLeft
from keys.scratch.holders import end_holders
from keys.scratch.mounts import Mount, below, mounts
from keys.scratch.plan import ScratchNames, names_from_config, names_of
from keys.scratch.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE = 40.0
"""Seconds for a whole tear-down. It is cut short by nothing but this: Slurm never runs an Epilog a second time."""

_LOCK_PATIENCE = 20.0
# longer than this an unmount is not waited for: without the key it need not write what is still in memory
_UNMOUNT = 8.0
_SEARCH = 5.0
_PAUSE = 0.1
# tries before a mapping that nothing is mounted from is taken to be held: udev may just be looking at it
_QUIET_TRIES = 3


def close_scratch(
    journal: Journal, job: int, scratch: Mapping[str, Any], *, uid: int | None = None, patience: float = PATIENCE
) -> Report:
    """Take a job's scratch away on this node, wherever its set-up or an earlier tear-down got to.

    :param scratch: the ``scratch`` part of the hooks' configuration; the names follow from it. What the journal says of
        a start under another configuration is taken away as well.
    :param uid: the job's user, whose processes may be killed if they hold it; None: as the journal says, or the owner
        of the mounted file system.
    :param patience: seconds.
    :returns: what was found and done; ``report.gone`` is true.
    :raises ScratchLeft: something is still there; its ``report`` says what, and whether the key is gone.
    :raises NodeBroken: the configuration or the job id is unusable.
    """
    names = names_from_config(journal.node, job, scratch)
    report = Report(journal.node, job)
    # before the lock: a set-up that holds it gives up at its next step, and one that comes later does not begin
    _revoke(journal, job, report)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(journal.lock(job, _LOCK_PATIENCE))
        except (JournalError, OSError) as error:
            # without a lock two tear-downs may meet; every step of theirs can be repeated
            report.problems.append(str(error))
        return close_locked(journal, names, report, uid=uid, patience=patience, revoke=False)


def close_locked(
    journal: Journal, names: ScratchNames, report: Report, *, uid: int | None = None, patience: float = PATIENCE,
    revoke: bool = True,
) -> Report:  # fmt: skip
    """:func:`close_scratch` for a caller who holds the job's lock.

    :param revoke: whether a start of the job that is still under way may not go on; False for that start itself.
    """
    if revoke:
        _revoke(journal, names.job, report)
    record = _read(journal, names.job, report)
    everything = [names]
    if record is not None:
        report.key_name, report.incarnation = record.key_name, record.incarnation
        uid = uid or record.uid
        written = _written_names(record, names.node, report)
        if written is not None and written != names:
            everything.append(written)
    budget = Budget(patience)
    for each in everything:
        _Closing(each, report, uid, budget).run()
    for each in everything:
        report.left += [item for item in verify_gone(each) if item not in report.left]
    if report.left:
        raise ScratchLeft(_left_message(report), report, advice="see: secure-slurm node status; then reboot the node")
    if _write_destroyed(journal, record, names, uid, report):
        try:
            journal.settled(names.job)
        except (SecureSlurmError, OSError) as error:
            report.problems.append(str(error))
    return report


def _revoke(journal: Journal, job: int, report: Report) -> None:
    """A Prolog may outlive its slurmd, and get to its set-up when the Epilog has come and gone."""
    try:
        journal.revoke(job)
    except (SecureSlurmError, OSError) as error:
        report.problems.append(str(error))


def _left_message(report: Report) -> str:
    text = f"scratch of job {report.job} is not gone: {', '.join(report.left)}"
    text += "; its key has been wiped" if report.wiped else ""
    text += f"; held by {', '.join(report.holders)}" if report.holders else ""
    return text + (f" ({report.problems[-1]})" if report.problems else "")


def _read(journal: Journal, job: int, report: Report) -> Record | None:
    """What the journal says, or, where it says nothing, the record that a reboot left."""
    for read in (journal.read, journal.before_reboot):
        try:
            record = read(job)
        except (SecureSlurmError, OSError) as error:
            report.problems.append(str(error))
        else:
            if record is not None:
                return record
    return None


def _written_names(record: Record, node: str, report: Report) -> ScratchNames | None:
    """The names that a journal states, if they are such as this code gives: a garbled one must not make root remove
    files by whatever name it holds.
    """
    where = record.backing_path.rpartition("/")[0] if record.backing in ("file", "lvm") else record.backing_path
    try:
        names = names_of(node, record.job, record.backing, where, record.mount_root)
    except NodeBroken as error:
        report.problems.append(f"the journal's names are not used: {error}")
        return None
    if (names.path, names.mapper, names.mount_point) != (record.backing_path, record.mapper, record.mount_point):
        report.problems.append("the journal's names are not used: they are none of ours")
        return None
    return names


def _write_destroyed(
    journal: Journal, record: Record | None, names: ScratchNames, uid: int | None, report: Report
) -> bool:
    """Whether the journal says that it is gone, or need not."""
    if record is None and not report.found:
        return True
    base = record or Record(names.job, names.node, uid or 0, backing=names.backing, backing_path=names.path)
    if base.state == "destroyed":
        return True
    try:
        journal.write(base._replace(state="destroyed", wrapped_key=""))
    except (SecureSlurmError, OSError) as error:
        report.problems.append(str(error))
        return False
    return True


def verify_gone(names: ScratchNames) -> list[str]:
    """What is still there of a job's scratch, as ``kind: name``. What cannot be told counts as being there."""
    left = [f"mapping: {names.mapper}"] if crypt.find(names.mapper) is not None else []
    left += [f"mount: {mount.point}" for mount in below(names.mount_point, mounts())]
    if os.path.lexists(names.mount_point):
        left.append(f"mount point: {names.mount_point}")
    if names.backing in backing.LOOPED:
        left += [f"loop: {device}" for device in loop.find(names.path)]
    try:
        if backing.exists(names, Budget(20.0)):
            left.append(f"{'volume' if names.backing == 'lvm' else 'file'}: {names.path}")
    except SecureSlurmError as error:
        left.append(f"unknown: {names.path} ({error})")
    return left


class _Closing:
    """One tear-down under one set of names."""

    def __init__(self, names: ScratchNames, report: Report, uid: int | None, budget: Budget) -> None:
        self._names = names
        self._report = report
        self._uid = uid
        self._budget = budget

    def run(self) -> None:
        mapping = crypt.find(self._names.mapper)
        if mapping is not None:
            self._report.found.append(f"mapping: {mapping.name}")
            if mapping.suspended:
                # a wipe that was cut short: until it is finished, whoever touches the device waits, and so would we
                self._wipe()
        self._uid = self._uid or self._owner()
        self._step(self._unmount)
        self._step(self._remove_mount_point)
        self._step(self._close)
        self._step(self._remove_backing)

    def _step(self, act: Callable[[], None]) -> None:
        """Do one step; a failure is noted, and the steps after it are still tried."""
        try:
            act()
        except (SecureSlurmError, OSError) as error:
            self._report.problems.append(str(error))

    def _owner(self) -> int | None:
        """Whose scratch it is, by the mounted file system: its top folder was given to the job's user."""
        if any(mount.point == self._names.mount_point for mount in mounts()):
            with contextlib.suppress(OSError):
                return os.stat(self._names.mount_point, follow_symlinks=False).st_uid or None  # noqa: PTH116
        return None

    def _mounts(self) -> list[Mount]:
        everything = mounts()
        inside = below(self._names.mount_point, everything)
        mapping = crypt.find(self._names.mapper)
        if mapping is None:
            return inside
        upper = [each.device for each in stacked.above(mapping.device)]
        nested = [m for device in upper for m in reversed(everything) if m.device == device and m not in inside]
        elsewhere = [m for m in everything if m.device == mapping.device and m not in inside]
        return nested + inside + elsewhere

    def _unmount(self) -> None:
        found = self._mounts()
        self._report.found += [f"mount: {mount.point}" for mount in found]
        first = True
        while found:
            if not self._unmount_each(found):
                self._unstack(stacked.swaps_off)
                self._wipe()
                self._end_holders(found, copies=False)
                self._unstack(stacked.take_off)
                if not first:
                    time.sleep(_PAUSE)
                first = False
            found = self._mounts()
            if found and not self._budget.left():
                raise NodeBroken(f"{found[0].point} is still mounted")

    def _unmount_each(self, found: list[Mount]) -> bool:
        good = True
        for mount in found:
            try:
                filesystem.unmount_one(self._names, mount.point, self._budget, cap=_UNMOUNT)
                self._report.removed.append(f"mount: {mount.point}")
            except ProcessError:
                good = False
        return good

    def _remove_mount_point(self) -> None:
        if filesystem.remove_mount_point(self._names):
            self._report.removed.append(f"mount point: {self._names.mount_point}")

    def _close(self) -> None:
        tries = 0
        while (mapping := crypt.find(self._names.mapper)) is not None:
            tries += 1
            try:
                if crypt.close(mapping.name, self._budget):
                    self._report.removed.append(f"mapping: {mapping.name}")
            except ProcessError:
                if not self._budget.left():
                    raise
                if tries > _QUIET_TRIES:
                    self._unstack(stacked.swaps_off)
                    self._wipe()
                    self._end_holders([Mount(mapping.device, "/", "", "")], copies=True)
                    self._unstack(stacked.take_off)
                time.sleep(_PAUSE)

    def _unstack(self, act: Callable[[int, Budget], list[stacked.Taken]]) -> None:
        """Have what the kernel holds the device with taken off; what fails again is told once."""
        mapping = crypt.find(self._names.mapper)
        for taken in act(mapping.device, self._budget) if mapping is not None else []:
            self._report.problems = [line for line in self._report.problems if not line.startswith(f"{taken.what}: ")]
            if taken.problem:
                self._report.problems.append(f"{taken.what}: {taken.problem}")
            else:
                self._report.removed.append(taken.what)

    def _remove_backing(self) -> None:
        if crypt.find(self._names.mapper) is None:
            removed = backing.remove(self._names, self._budget)
            self._report.found += removed
            self._report.removed += removed

    def _wipe(self) -> None:
        """A failure is noted and not raised: closing the mapping destroys the key as well."""
        try:
            if crypt.wipe_key(self._names.mapper, self._budget):
                self._report.wiped = True
        except (SecureSlurmError, OSError) as error:
            self._report.problems.append(f"the key could not be wiped before the holders were killed: {error}")

    def _end_holders(self, found: list[Mount], *, copies: bool) -> None:
        mapping = crypt.find(self._names.mapper)
        devices = {mount.device for mount in found if mount.fstype.startswith("fuse")}
        if mapping is not None:
            devices |= {mapping.device, *(each.device for each in stacked.above(mapping.device))}
        point = self._names.mount_point
        ended = end_holders(devices, self._uid, copies=copies, timeout=_SEARCH, below=point)
        self._report.killed += [line for line in ended.killed if line not in self._report.killed]
        self._report.holders = ended.others
        if not ended.complete:
            self._report.problems.append("the search for holders did not end: a process sits on a dead file system")
