"""One job at a time, each in its own order: what the lifecycle daemon does when Slurm says "start" and "ended".

The races were measured on the real slurmctld: EpilogSlurmctld overtakes a running PrologSlurmctld; PrologSlurmctld may
run twice for one start; it may be killed and leave a grant behind. Hence four rules:

- "ended" marks every start that has arrived so far as unwanted, at once, and then waits its turn;
- a creation looks after every write whether it is still wanted, and undoes itself;
- "ended" is remembered for a while, for a start whose PrologSlurmctld began before it and spoke after it;
- a start first closes whatever is left of the job, also what only a note on disk still knows of.

A note (:mod:`slurm_hooks.ended`) that was there before a start arrived belongs to an earlier incarnation, one that
appeared since then to this one: Slurm starts no job whose EpilogSlurmctld has not finished. It counts as "ended" even
if the message never came, and it stays until Vault has confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import attrs

from conf.errors import Refused, SecureSlurmError
from conf.tag import Tag
from slurm_hooks.ended import EndedJob

Result = TypeVar("Result")

REMEMBERED = 3600 * 10**9
"""Nanoseconds for which an "ended" is remembered: longer than any PrologSlurmctld runs (PrologEpilogTimeout)."""


@attrs.frozen(kw_only=True)
class StartJob:
    """A job that was judged and may start: what its grants will say. ``scratch`` in bytes on each node, 0 for none.

    ``nonce`` is the decision record's: it joins this start to the decision, which had no job id yet. ``shadowed``: the
    rules in shadow that would have refused it; ``exemptions``: the break-glass grants without which it would have been.
    """

    job: int
    uid: int
    user: str
    cluster: str
    nodes: tuple[str, ...]
    restarts: int
    klass: str
    residency: str
    scratch: int
    nonce: str
    datasets: tuple[str, ...] = ()
    shadowed: tuple[str, ...] = ()
    exemptions: tuple[str, ...] = ()

    @property
    def tag(self) -> Tag:
        """The tag that it may start with."""
        return Tag(self.klass, self.residency or None, self.scratch or None, self.datasets)


@attrs.frozen
class Destroyed:
    """The end of one node's key: its name, and when Vault said that there is no such key (404).

    ``made`` (Unix seconds) and ``incarnation`` as the grant had them; "" when it did not say.
    """

    node: str
    key: str
    at: str
    made: str = ""
    incarnation: str = ""


class JobKeys(Protocol):
    """The keys and grants of jobs in Vault; every call blocks."""

    def create(self, job: StartJob, incarnation: str, still_wanted: Callable[[], bool]) -> None:
        """Grants and keys for every node, or none: when it raises, it has undone what it did."""

    def destroy(self, job: int, nodes: tuple[str, ...], incarnation: str | None = None) -> list[Destroyed]:
        """Keys, then grants, of every node; may be repeated. Raises BackendUnavailable while Vault is away.

        ``incarnation``: of this start alone.
        """

    def lock(self, job: int, nodes: tuple[str, ...], *, locked: bool) -> int:
        """Have Vault refuse what the job's keys wrapped before, or take it again; how many keys there are."""

    def holders(self, job: int) -> tuple[str, ...]:
        """The nodes that have a grant of the job. Raises BackendUnavailable while Vault is away."""


class Notes(Protocol):
    """The notes of ended jobs on disk."""

    def of(self, job: int) -> list[EndedJob]:
        """Those of one job."""

    def remove(self, note: EndedJob) -> None:
        """Once Vault has confirmed."""


@attrs.define(eq=False)
class _Start:
    """A start that has arrived: waiting for its turn, or ``opened``: being made, running, or over and not yet closed.

    ``earlier``: the notes that were there when it arrived. Before it is opened it has written nothing, and what is on
    its nodes is somebody else's.
    """

    incarnation: str
    nodes: tuple[str, ...]
    earlier: frozenset[EndedJob]
    wanted: bool = True
    opened: bool = False


def _nodes_of(what: Iterable[EndedJob] | Iterable[_Start]) -> Iterator[str]:
    return (node for each in what for node in each.nodes)


@attrs.define(eq=False)
class _Turn:
    """The queue of one job: whoever holds the lock acts, ``users`` counts those who hold it or wait."""

    lock: asyncio.Lock = attrs.Factory(asyncio.Lock)
    users: int = 0


class Jobs:
    """Serialises what happens to each job. ``pool`` runs the blocking calls to Vault."""

    def __init__(self, keys: JobKeys, notes: Notes, pool: ThreadPoolExecutor) -> None:
        self._keys = keys
        self._notes = notes
        self._pool = pool
        self._turns: dict[int, _Turn] = {}
        self._starts: dict[int, list[_Start]] = {}
        self._ended: dict[int, int] = {}

    async def start(self, job: StartJob, incarnation: str, *, since: int) -> list[Destroyed]:
        """Close what is left of this job, then make its keys; returns what was closed.

        ``since``: when PrologSlurmctld began, in nanoseconds of the monotonic clock (the same for all of a machine).
        Refused ``lifecycle.ended`` when the job ended meanwhile: then nothing of it is left, or its note still is.
        A request that is cancelled is a job that has ended.
        """
        mine = _Start(incarnation, job.nodes, frozenset(self._notes.of(job.job)))
        mine.wanted = self._ended.get(job.job, -1) < since
        self._starts.setdefault(job.job, []).append(mine)
        try:
            async with self._turn(job.job):
                self._check_wanted(job.job, mine)
                closed = await self._close_earlier(job.job, mine)
                self._check_wanted(job.job, mine)
                mine.opened = True
                await self._create(job, mine)
        except BaseException:
            # a creation that failed may have left something: it stays known, and whoever has the next turn closes it
            mine.wanted = False
            if not mine.opened:
                self._forget(job.job, mine)
            raise
        return closed

    async def ended(self, job: int, nodes: tuple[str, ...]) -> list[Destroyed]:
        """The job is over: its keys and grants go, its notes with them.

        Raises BackendUnavailable when Vault cannot confirm: the notes stay, and :meth:`retry` finishes.
        """
        self._remember(job)
        for start in self._starts.get(job, ()):
            start.wanted = False
        return await self.retry(job, nodes)

    async def retry(self, job: int, nodes: tuple[str, ...]) -> list[Destroyed]:
        """Destroy what an earlier "ended" was about; a start that has arrived since then is left alone.

        Without ``nodes`` Vault is asked which nodes have a grant of the job.
        """
        async with self._turn(job):
            notes = self._heed_notes(job)
            opened = [start for start in self._starts.get(job, ()) if start.opened]
            # what a newer start holds, it has closed before it opened
            alive = {node for start in opened if start.wanted for node in start.nodes}
            over = [start for start in opened if not start.wanted]
            unnamed = not nodes or not all(note.nodes for note in notes)
            holders = await self._blocking(lambda: self._keys.holders(job)) if unnamed else ()
            everywhere = dict.fromkeys((*nodes, *_nodes_of(notes), *_nodes_of(over), *holders))
            targets = tuple(node for node in everywhere if node not in alive)
            destroyed = await self._destroy(job, targets) if targets else []
            for start in over:
                self._forget(job, start)
            for note in notes:
                self._notes.remove(note)
            return destroyed

    async def reap(self, job: int, incarnation: str, nodes: tuple[str, ...]) -> list[Destroyed]:
        """Destroy what one start left behind, of which Slurm has told nobody that it is over; no other start's.

        Raises BackendUnavailable when Vault cannot confirm: its grants stay, and the reaper finds them again.
        """
        async with self._turn(job):
            mine = [start for start in self._starts.get(job, ()) if start.incarnation == incarnation]
            for start in mine:
                start.wanted = False
            destroyed = await self._blocking(lambda: self._keys.destroy(job, nodes, incarnation))
            for start in mine:
                self._forget(job, start)
            return destroyed

    async def in_turn(self, job: int, act: Callable[[], Result]) -> Result:
        """Have something done about a job, which blocks, while nothing else happens to it."""
        async with self._turn(job):
            return await self._blocking(act)

    async def lock(self, job: int, nodes: tuple[str, ...], *, locked: bool) -> int:
        """Lock the job's keys in Vault, or unlock them; how many there are. Raises what Vault says."""
        async with self._turn(job):
            return await self._blocking(lambda: self._keys.lock(job, nodes, locked=locked))

    def knows(self, job: int) -> bool:
        """Whether a start of this job has arrived here and is not over."""
        return job in self._starts

    def open_jobs(self) -> dict[int, str]:
        """Jobs with keys, as far as this process knows, and the incarnation of each."""
        found = ((job, [start.incarnation for start in starts if start.wanted]) for job, starts in self._starts.items())
        return {job: wanted[-1] for job, wanted in found if wanted}

    async def _close_earlier(self, job: int, mine: _Start) -> list[Destroyed]:
        opened = [start for start in self._starts[job] if start.opened]
        # a note that appeared since this start arrived is about this start, and outlives this
        notes = [note for note in self._notes.of(job) if note in mine.earlier]
        unnamed = not all(note.nodes for note in notes)
        holders = await self._blocking(lambda: self._keys.holders(job)) if unnamed else ()
        nodes = dict.fromkeys((*mine.nodes, *_nodes_of(notes), *_nodes_of(opened), *holders))
        closed = await self._destroy(job, tuple(nodes))
        for note in notes:
            self._notes.remove(note)
        for start in opened:
            self._forget(job, start)
        return closed

    async def _create(self, job: StartJob, mine: _Start) -> None:
        def create() -> None:
            self._keys.create(job, mine.incarnation, lambda: mine.wanted)

        try:
            await self._blocking(create, mine)
        except asyncio.CancelledError:
            # it may have been past its last look when it became unwanted; what stays now is left to the next turn
            with contextlib.suppress(SecureSlurmError):
                await self._destroy(job.job, job.nodes)
                self._forget(job.job, mine)
            raise
        self._heed_notes(job.job)
        if not mine.wanted:
            await self._destroy(job.job, job.nodes)
            self._forget(job.job, mine)
            self._check_wanted(job.job, mine)

    def _remember(self, job: int) -> None:
        now = time.monotonic_ns()
        # the latest at the end, so that the oldest are found without a look at the others
        self._ended.pop(job, None)
        self._ended[job] = now
        while (oldest := next(iter(self._ended))) != job and now - self._ended[oldest] > REMEMBERED:
            del self._ended[oldest]

    def _heed_notes(self, job: int) -> list[EndedJob]:
        """The job's notes; a start that they are about is not wanted any more."""
        notes = self._notes.of(job)
        for start in self._starts.get(job, ()):
            start.wanted = start.wanted and start.earlier.issuperset(notes)
        return notes

    def _check_wanted(self, job: int, start: _Start) -> None:
        self._heed_notes(job)
        if not start.wanted:
            raise Refused("lifecycle.ended", f"job {job} ended while its keys were being made")

    async def _destroy(self, job: int, nodes: tuple[str, ...]) -> list[Destroyed]:
        return await self._blocking(lambda: self._keys.destroy(job, nodes))

    def _forget(self, job: int, start: _Start) -> None:
        starts = self._starts.get(job, [])
        if start in starts:
            starts.remove(start)
        if not starts:
            self._starts.pop(job, None)

    @contextlib.asynccontextmanager
    async def _turn(self, job: int) -> AsyncIterator[None]:
        turn = self._turns.setdefault(job, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[job]

    async def _blocking(self, act: Callable[[], Result], start: _Start | None = None) -> Result:
        """Run in a thread, to its end: a cancelled request must not leave it running unseen, with the turn given on.

        ``start`` is the one that a cancelled request takes back.
        """
        future = asyncio.get_running_loop().run_in_executor(self._pool, act)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
                if start is not None:
                    start.wanted = False
        if cancelled is not None:
            future.exception()
            raise cancelled
        return future.result()
