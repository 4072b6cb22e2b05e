"""What is to become of each job that a revocation is about, and what its nodes and Vault have confirmed of it.

Levels, not edges: an order may be given any number of times, by this process or by one before it, and each report of a
node says again where things are. There are three: stopped for good, frozen, and going on (``revoked.MODES``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import attrs

from conf.errors import SecureSlurmError
from slurm_hooks import ended
from slurm_hooks.links import Connected
from slurm_hooks.presence import FROZEN, RUNNING, STOPPED
from slurm_hooks.revoked import FREEZE, RESUME, STOP

LOG = logging.getLogger(__name__)

ORDER = 45.0
"""Seconds for a node to do what it is ordered; then it is ordered again."""
WAITING, DELETED, LOCKED, UNLOCKED = "waiting", "deleted", "locked", "unlocked"
NODES_DONE = {
    STOP: frozenset({STOPPED, "gone"}),
    FREEZE: frozenset({FROZEN, STOPPED, "gone"}),
    RESUME: frozenset({RUNNING, STOPPED, "gone"}),
}
"""What a node may say so that it has confirmed. What was stopped cannot be frozen, nor go on."""
KEYS_DONE = {
    STOP: frozenset({DELETED}),
    FREEZE: frozenset({LOCKED, DELETED}),
    RESUME: frozenset({UNLOCKED, DELETED}),
}


class Nodes(Protocol):
    """What is needed of :class:`slurm_hooks.links.Links`."""

    async def stop(self, node: str, job: int, reason: str, within: float) -> str: ...  # noqa: D102
    async def freeze(self, node: str, job: int, reason: str, within: float) -> str: ...  # noqa: D102
    async def thaw(self, node: str, job: int, reason: str, within: float) -> str: ...  # noqa: D102


@attrs.frozen
class Keys:
    """Vault's side; both raise SecureSlurmError while Vault has not confirmed.

    ``end(job, nodes)`` deletes the job's keys and grants; ``lock(job, nodes, locked=...)`` has its keys refuse what
    they wrapped, or take it again.
    """

    end: Callable[[int, tuple[str, ...]], Awaitable[None]]
    lock: Callable[..., Awaitable[int]]


@attrs.define(eq=False)
class Job:
    """A job: what is to become of it, what each of its nodes said last, and how its keys are."""

    nodes: dict[str, str]
    wanted: str = STOP
    keys: str = WAITING
    over: bool = False

    def done(self) -> bool:
        """All have confirmed."""
        return self.keys in KEYS_DONE[self.wanted] and NODES_DONE[self.wanted].issuperset(self.nodes.values())


class Orders:
    """``nodes()``: the links. ``reason(job)``: for the nodes' trail. ``changed()``: something was confirmed."""

    def __init__(
        self,
        nodes: Callable[[], Nodes],
        keys: Keys,
        ended_dir: str,
        *,
        reason: Callable[[int], str],
        say: Callable[..., None],
        changed: Callable[[], None],
    ) -> None:
        self.jobs: dict[int, Job] = {}
        self._nodes = nodes
        self._keys = keys
        self._ended_dir = ended_dir
        self._reason = reason
        self._say = say
        self._changed = changed
        self._busy: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def take_on(self, job: int, nodes: tuple[str, ...], wanted: str, *, done: bool) -> None:
        """A job and what is to become of it; ``done``: that was confirmed before."""
        keys = {STOP: DELETED, FREEZE: LOCKED, RESUME: UNLOCKED}[wanted]
        mine = self.jobs.setdefault(job, Job({}, wanted, keys if done else WAITING))
        mine.wanted = STOP if mine.over else wanted
        for node in nodes:
            mine.nodes.setdefault(node, {STOP: STOPPED, FREEZE: FROZEN, RESUME: RUNNING}[wanted] if done else WAITING)

    def forget(self, job: int) -> None:
        """No revocation is about it any more."""
        self.jobs.pop(job, None)

    def started(self, job: int, nodes: tuple[str, ...]) -> None:
        """On these nodes it is another start from now on, which was let in."""
        if job in self.jobs:
            for node in nodes:
                self.jobs[job].nodes.pop(node, None)

    def order(self, job: int) -> None:
        """Order whatever has not been confirmed."""
        mine = self.jobs[job]
        # the nodes first: what they have to do is what takes the data out of reach
        for node in mine.nodes:
            self._order(node, job)
        if mine.keys not in KEYS_DONE[mine.wanted]:
            self._start(self._delete(job) if mine.wanted == STOP else self._lock(job), ("", job))

    def retry_keys(self) -> None:
        """Ask Vault again what it has not confirmed; keys that are to be deleted have a note, which others work off."""
        for job, mine in list(self.jobs.items()):
            if mine.wanted != STOP and mine.keys not in KEYS_DONE[mine.wanted]:
                self._start(self._lock(job), ("", job))

    def order_all(self) -> None:
        """What was not confirmed when the daemon stopped."""
        for job, mine in list(self.jobs.items()):
            if not mine.done():
                self.order(job)

    def end(self, job: int) -> None:
        """The job is over: one that is frozen would not go away, for whoever waits for its device cannot die."""
        mine = self.jobs.get(job)
        if mine is not None and mine.wanted != STOP:
            mine.over, mine.wanted = True, STOP
            self.order(job)

    def keys_gone(self, job: int) -> None:
        """Vault has confirmed that a job has no key, whoever asked it."""
        if job in self.jobs:
            self.jobs[job].keys = DELETED
            self._changed()

    def heard(self, connected: Connected) -> None:
        """A node has said which jobs are on it."""
        here, node = connected.jobs or {}, connected.node
        for job, mine in list(self.jobs.items()):
            if node not in mine.nodes or (node, job) in self._busy:
                continue
            if job not in here:
                if mine.nodes[node] not in NODES_DONE[STOP]:
                    self._confirmed(node, job, "gone")
                continue
            if here[job].state in NODES_DONE[mine.wanted]:
                self._confirmed(node, job, here[job].state)
            else:
                mine.nodes[node] = WAITING if mine.nodes[node] in NODES_DONE[mine.wanted] else mine.nodes[node]
                self._order(node, job)

    def _order(self, node: str, job: int) -> None:
        mine = self.jobs[job]
        if mine.nodes[node] in NODES_DONE[mine.wanted]:
            return
        # before its key is unlocked a node could ask Vault for nothing but a refusal
        if mine.wanted != RESUME or mine.keys == UNLOCKED:
            self._start(self._act(node, job, mine.wanted), (node, job))

    def _start(self, act: Coroutine[Any, Any, None], key: tuple[str, int]) -> None:
        """One order at a time for a job on a node; another that comes meanwhile is given at the next report."""
        if key in self._busy:
            act.close()
            return
        self._busy.add(key)
        task = asyncio.create_task(act)
        self._tasks.add(task)

        def over(done: asyncio.Task[None]) -> None:
            self._busy.discard(key)
            self._tasks.discard(done)
            if not done.cancelled() and done.exception() is not None:
                LOG.error("job %d: a revocation failed", key[1], exc_info=done.exception())

        task.add_done_callback(over)

    async def _act(self, node: str, job: int, wanted: str) -> None:
        links = self._nodes()
        send = links.stop if wanted == STOP else links.freeze if wanted == FREEZE else links.thaw
        try:
            result = await send(node, job, self._reason(job), ORDER)
        except SecureSlurmError as error:
            LOG.warning("job %d is not confirmed by node %s (%s): %s", job, node, wanted, error)
            return
        self._confirmed(node, job, result)

    def _confirmed(self, node: str, job: int, result: str) -> None:
        mine = self.jobs.get(job)
        if mine is None or mine.nodes.get(node, result) == result:
            return
        mine.nodes[node] = result
        self._say("revocation.node", job=job, node=node, result=result)
        self._changed()

    async def _delete(self, job: int) -> None:
        mine = self.jobs[job]
        nodes = tuple(mine.nodes)
        try:
            # its note makes the lifecycle daemon go on with it, after a restart too, until Vault confirms
            await asyncio.to_thread(ended.write, self._ended_dir, job, nodes)
        except OSError as error:
            LOG.error("job %d: no note of its keys can be left: %s", job, error.strerror)
        try:
            await self._keys.end(job, nodes)
        except SecureSlurmError as error:
            LOG.warning("job %d: its keys are not confirmed as destroyed yet: %s", job, error)
            return
        mine.keys = DELETED
        self._changed()

    async def _lock(self, job: int) -> None:
        mine = self.jobs[job]
        wanted = mine.wanted
        try:
            await self._keys.lock(job, tuple(mine.nodes), locked=wanted == FREEZE)
        except SecureSlurmError as error:
            LOG.warning("job %d: Vault has not confirmed that its keys are to %s: %s", job, wanted, error)
            return
        if mine.keys != DELETED:
            mine.keys = LOCKED if wanted == FREEZE else UNLOCKED
        if mine.wanted == RESUME and mine.keys == UNLOCKED:
            for node in mine.nodes:
                self._order(node, job)
        self._changed()
