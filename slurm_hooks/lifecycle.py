"""One job at a time, each in its own order: what the lifecycle daemon does when Slurm says "start" and "ended".

The races were measured on the real slurmctld: EpilogSlurmctld overtakes a running PrologSlurmctld; PrologSlurmctld may
run twice for one start; it may be killed and leave a grant behind. Hence three rules:

- "ended" marks every start that has arrived so far as unwanted, at once, and then waits its turn;
- a creation looks after every write whether it is still wanted, and undoes itself;
- a start first closes whatever is left of the job, also what only a note on disk still knows of.

A note (:mod:`slurm_hooks.ended`) that was there before a start arrived belongs to an earlier incarnation, one that
appeared since then to this one: Slurm starts no job whose EpilogSlurmctld has not finished.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import attrs

from conf.errors import Refused
from slurm_hooks.ended import EndedJob

Result = TypeVar("Result")


@attrs.frozen(kw_only=True)
class StartJob:
    """A job that was judged and may start: what its grants will say. ``scratch`` in bytes on each node, 0 for none.

    ``nonce`` is the decision record's: it joins this start to the decision, which had no job id yet.
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


@attrs.frozen
class Destroyed:
    """The end of one node's key: its name, and when Vault said that there is no such key (404)."""

    node: str
    key: str
    at: str


class JobKeys(Protocol):
    """The keys and grants of jobs in Vault; every call blocks."""

    def create(self, job: StartJob, incarnation: str, still_wanted: Callable[[], bool]) -> None:
        """Grants and keys for every node, or none: when it raises, it has undone what it did."""

    def destroy(self, job: int, nodes: tuple[str, ...]) -> list[Destroyed]:
        """Keys, then grants, of every node; may be repeated. Raises BackendUnavailable while Vault is away."""


class Notes(Protocol):
    """The notes of ended jobs on disk."""

    def of(self, job: int) -> list[EndedJob]:
        """Those of one job."""

    def remove(self, note: EndedJob) -> None:
        """Once Vault has confirmed."""


@attrs.define(eq=False)
class _Start:
    """A start that has arrived: waiting for its turn, being made, or running."""

    incarnation: str
    nodes: tuple[str, ...]
    wanted: bool = True


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

    async def start(self, job: StartJob, incarnation: str) -> list[Destroyed]:
        """Close what is left of this job, then make its keys; returns what was closed.

        Refused ``lifecycle.ended`` when the job ended meanwhile: then nothing of it is left.
        """
        mine = _Start(incarnation, job.nodes)
        self._starts.setdefault(job.job, []).append(mine)
        earlier = set(self._notes.of(job.job))
        try:
            async with self._turn(job.job):
                closed = await self._close_earlier(job.job, mine)
                mine.wanted = mine.wanted and earlier.issuperset(self._notes.of(job.job))
                self._check_wanted(mine, job.job)
                await self._blocking(lambda: self._keys.create(job, incarnation, lambda: mine.wanted))
                if not mine.wanted:
                    await self._blocking(lambda: self._keys.destroy(job.job, job.nodes))
                    self._check_wanted(mine, job.job)
        except BaseException:
            self._forget(job.job, mine)
            raise
        return closed

    async def ended(self, job: int, nodes: tuple[str, ...]) -> list[Destroyed]:
        """The job is over: its keys and grants go, its notes with them.

        Raises BackendUnavailable when Vault cannot confirm: the notes stay, and :meth:`retry` finishes.
        """
        for start in self._starts.get(job, ()):
            start.wanted = False
        return await self.retry(job, nodes)

    async def retry(self, job: int, nodes: tuple[str, ...]) -> list[Destroyed]:
        """Destroy what an earlier "ended" was about; a start that has arrived since then is left alone."""
        async with self._turn(job):
            starts = self._starts.get(job, [])
            alive = {node for start in starts if start.wanted for node in start.nodes}
            over = [start for start in starts if not start.wanted]
            everywhere = dict.fromkeys((*nodes, *(node for start in over for node in start.nodes)))
            notes = self._notes.of(job)
            # what a newer start holds, it has closed before it began
            targets = tuple(node for node in everywhere if node not in alive)
            destroyed = await self._blocking(lambda: self._keys.destroy(job, targets)) if targets else []
            for start in over:
                self._forget(job, start)
            for note in notes:
                self._notes.remove(note)
            return destroyed

    def open_jobs(self) -> dict[int, str]:
        """Jobs with keys, as far as this process knows, and the incarnation of each."""
        return {job: starts[-1].incarnation for job, starts in self._starts.items() if starts}

    async def _close_earlier(self, job: int, mine: _Start) -> list[Destroyed]:
        others = [start for start in self._starts[job] if start is not mine and not self._is_later(job, start, mine)]
        notes = self._notes.of(job)
        noted = (node for note in notes for node in note.nodes)
        nodes = dict.fromkeys((*mine.nodes, *noted, *(node for start in others for node in start.nodes)))
        closed = await self._blocking(lambda: self._keys.destroy(job, tuple(nodes)))
        for note in notes:
            self._notes.remove(note)
        for start in others:
            self._forget(job, start)
        return closed

    def _is_later(self, job: int, start: _Start, mine: _Start) -> bool:
        order = self._starts[job]
        return order.index(start) > order.index(mine)

    @staticmethod
    def _check_wanted(start: _Start, job: int) -> None:
        if not start.wanted:
            raise Refused("lifecycle.ended", f"job {job} ended while its keys were being made")

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

    async def _blocking(self, act: Callable[[], Result]) -> Result:
        """Run in a thread, to its end: a cancelled request must not leave a creation running unseen."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, act)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise
