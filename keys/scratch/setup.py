"""The way there: backing store, loop device, mapping, file system, mount. All of it, or nothing.

Each step is journalled before it is done, and has its inverse on a stack. Any failure, and any signal that asks us to
stop, runs the stack from the top. What a SIGKILL leaves behind is for the Epilog (keys/scratch/teardown.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, NamedTuple, Self

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from keys.journal import Record
from keys.process import Budget
from keys.scratch import backing, crypt, filesystem, memory
from keys.scratch.errors import NodeBroken
from keys.scratch.plan import ScratchInfo, check_plan
from keys.scratch.report import Report
from keys.scratch.teardown import close_locked, verify_gone

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from keys.journal import Journal
    from keys.scratch.plan import ScratchPlan
    from keys.secret import Secret

SECONDS = 35.0
"""For a whole set-up. A Prolog's own alarm is obeyed as well, whichever comes first."""

_LOCK_PATIENCE = 5.0
_UNDO = 20.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)


class Interrupted(BackendUnavailable):
    """Set-up was told to stop, and has undone what it did."""


def open_scratch(
    plan: ScratchPlan,
    key: Secret,
    journal: Journal,
    *,
    incarnation: str,
    key_name: str,
    wrapped: str,
    restarts: int = 0,
    place: str = "",
    seconds: float = SECONDS,
    healed: Callable[[Report], object] | None = None,
) -> ScratchInfo:
    """Give a job its encrypted scratch. ``key`` is wiped when this returns or raises.

    What an earlier start of the same job left behind, by the journal's word, is taken down first; anything else that is
    in the way is refused, not removed.

    :param incarnation: of the grant, claimed before (``Journal.claim_incarnation``).
    :param key_name: the transit key's name in Vault; ``wrapped``: the data key as Vault wrapped it.
    :param place: the node's verdict on its own place, for the journal.
    :param seconds: for everything together.
    :param healed: is told what an earlier start of the job had left, once that is gone.
    :raises ScratchTooLarge: ``scratch.no-space``: the job's fault, the node is well.
    :raises Refused: ``scratch.too-small``, ``scratch.root``, ``scratch.busy``.
    :raises JobEnded: a tear-down of the job, or another start of it, came after this incarnation was claimed.
    :raises Interrupted: SIGTERM, SIGINT or SIGHUP came, and the caller had no handler for it. A handler of the caller's
        (SIGALRM's, say) is run between two steps instead of inside one; what it raises undoes everything as well.
    :raises InternalError: otherwise: the node is broken (NodeBroken, ProcessError, JournalError).
    """
    try:
        check_plan(plan)
        with journal.lock(plan.job, _LOCK_PATIENCE), _Signals() as signals:
            work = _SetUp(plan, journal, signals, seconds, healed)
            record = Record(
                job=plan.job, node=plan.node, uid=plan.uid, incarnation=incarnation, restarts=restarts,
                key_name=key_name, wrapped_key=wrapped, mapper=plan.names.mapper, backing=plan.backing,
                backing_path=plan.names.path, mount_root=plan.names.mount_root, mount_point=plan.names.mount_point,
                filesystem=plan.filesystem, size_bytes=plan.mapped_bytes, place=place,
            )  # fmt: skip
            return work.run(record, key)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise NodeBroken(f"cannot set scratch up on node {plan.node}: {error.strerror}{where}") from None
    finally:
        key.wipe()


class _Signals:
    """Holds back signals that would end or divert us in the middle of a step; :meth:`check` lets them through.

    A handler that raised between the kernel's "done" and our note of it would leave something that nobody undoes.
    """

    def __init__(self) -> None:
        self._old: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}
        self._noted: list[int] = []

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                try:
                    self._old[number] = signal.signal(number, self._note)
                except ValueError:
                    break  # not the main thread: it gets no signals anyway
        return self

    def __exit__(self, *exc: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted.append(number)

    def pending(self) -> bool:
        """Whether a signal waits."""
        return bool(self._noted)

    def check(self) -> None:
        """Give way to a signal that came; returns if there was none."""
        if not self._noted:
            return
        number = self._noted.pop(0)
        handler = self._old.get(number)
        if callable(handler):
            handler(number, None)
        raise Interrupted(f"set-up was told to stop ({signal.Signals(number).name})")


class _Undo(NamedTuple):
    what: str
    act: Callable[[Budget], object]


class _SetUp:
    """One set-up, and what has to be undone of it."""

    def __init__(
        self,
        plan: ScratchPlan,
        journal: Journal,
        signals: _Signals,
        seconds: float,
        healed: Callable[[Report], object] | None,
    ) -> None:
        self._plan = plan
        self._healed = healed
        self._names = plan.names
        self._journal = journal
        self._signals = signals
        self._budget = Budget(seconds, signals.pending)
        self._undo: list[_Undo] = []
        self._held: list[int] = []
        self._record = Record(plan.job, plan.node, plan.uid)

    def run(self, record: Record, key: Secret) -> ScratchInfo:
        self._journal.check_claim(record.job, record.incarnation)
        self._heal()
        self._record = self._journal.write(record)
        try:
            self._step("backing")
            device = self._backing()
            self._record = self._record._replace(backing_device=_numbers(os.stat(device).st_rdev))  # noqa: PTH116
            self._step("mapping")
            mapping = self._map(device, key)
            self._record = self._record._replace(mapping_device=_numbers(mapping.device))
            self._step("filesystem")
            filesystem.make(self._plan.filesystem, self._names.device, self._budget)
            self._step("mount")
            self._mount(mapping.device)
            self._step("ready")
            self._signals.check()
        except BaseException as error:
            self._undo_all(error)
            if not isinstance(error, Refused):
                # a program that was stopped because a signal waits: what the signal has to say is the true reason
                self._signals.check()
            raise
        self._journal.prune_sometimes()
        return self._info(mapping)

    def _heal(self) -> None:
        """Take down what an earlier start of this job left; refuse what nobody knows of."""
        if self._earlier():
            report = Report(self._plan.node, self._plan.job)
            close_locked(self._journal, self._names, report, patience=self._budget.left(), revoke=False)
            if self._healed is not None:
                self._healed(report)
        left = verify_gone(self._names)
        if left:
            raise NodeBroken(
                f"before the start of job {self._plan.job} there is already {', '.join(left)}, and no journal of it",
                advice="if the job runs nowhere, take it down: secure-slurm node clean",
            )

    def _earlier(self) -> bool:
        try:
            record = self._journal.read(self._plan.job) or self._journal.before_reboot(self._plan.job)
        except SecureSlurmError:
            return True  # damaged: there was something, and everything of it can be found by its name
        return record is not None and record.state != "destroyed"

    def _step(self, state: str) -> None:
        self._signals.check()
        # A tear-down that could not wait for the lock any longer may have come meanwhile. It revokes before it looks:
        # what is mounted when this still passes for the last time is there to be found.
        self._journal.check_claim(self._plan.job, self._record.incarnation)
        self._record = self._journal.write(self._record._replace(state=state))

    def _backing(self) -> str:
        if self._plan.backing in backing.LOOPED:
            file = (
                backing.make_file(self._plan) if self._plan.backing == "file" else memory.make(self._plan, self._budget)
            )
            self._undo.append(
                _Undo(f"backing {self._plan.backing}", lambda budget: backing.remove(self._names, budget))
            )
            self._held.append(file)
            self._step("loop")
            store = backing.attach_file(file, self._names)
            self._record = self._record._replace(loop=store.device)
        else:
            # Here and below the inverse goes on the stack before the act where the act is a program: one that is cut
            # short may have done its work. Nothing was there before (_heal), so nothing of others is undone.
            self._undo.append(_Undo("volume", lambda budget: backing.remove(self._names, budget)))
            store = backing.make_device(self._plan, self._budget)
        if store.held is not None:
            self._held.append(store.held)
        self._undo.append(_Undo("loop device", lambda _budget: self._let_go()))
        # only now: what we hold ourselves keeps the loop device from going away
        memory.check_limit(self._plan)
        return store.device

    def _map(self, device: str, key: Secret) -> crypt.Mapping:
        self._undo.append(_Undo("mapping", lambda budget: crypt.close(self._names.mapper, budget)))
        mapping = crypt.open_mapping(self._names.mapper, device, self._plan.mapped_bytes, key, self._budget)
        key.wipe()
        self._let_go()
        return mapping

    def _mount(self, device: int) -> None:
        filesystem.make_mount_point(self._names)
        self._undo.append(_Undo("mount point", lambda _budget: filesystem.remove_mount_point(self._names)))
        self._undo.append(_Undo("mount", lambda budget: filesystem.unmount_all(self._names, budget)))
        filesystem.mount(self._names, self._plan.filesystem, self._budget)
        filesystem.hand_over(self._names, self._plan.uid, self._plan.gid, device)

    def _let_go(self) -> None:
        """Close what kept the backing store for us; a loop device without a mapping goes away with this."""
        while self._held:
            os.close(self._held.pop())

    def _undo_all(self, reason: BaseException) -> None:
        """:raises NodeBroken: something could not be undone; whatever the reason was, this node is broken now."""
        budget = Budget(_UNDO)
        problems = []
        while self._undo:
            undo = self._undo.pop()
            try:
                undo.act(budget)
            except (SecureSlurmError, OSError) as error:
                problems.append(f"{undo.what}: {error}")
        self._let_go()
        if problems:
            raise NodeBroken(f"{reason}; and set-up could not be undone: {'; '.join(problems)}") from reason
        with contextlib.suppress(SecureSlurmError, OSError):
            self._journal.write(self._record._replace(state="destroyed", wrapped_key=""))
            self._journal.settled(self._plan.job)

    def _info(self, mapping: crypt.Mapping) -> ScratchInfo:
        return ScratchInfo(
            path=self._names.mount_point,
            tmp=f"{self._names.mount_point}/{filesystem.TMP}",
            mapper=self._names.mapper,
            cipher=crypt.CIPHER,
            key_bits=crypt.KEY_BITS,
            size_bytes=self._plan.mapped_bytes,
            filesystem=self._plan.filesystem,
            device=_numbers(mapping.device),
            backing=self._plan.backing,
            backing_path=self._names.path,
        )


def _numbers(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
