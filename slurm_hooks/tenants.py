"""Which instance a start of a job belongs to on each node, and what happens when another one comes under the same name.

PrologSlurmctld runs beside ResumeProgram: a grant is written for a node whose instance does not exist yet, so it can
name the node alone. The instance is known at first contact. On each node a start belongs to the instance that is
connected when it begins, or else to the first that connects after that; it is written into the file that says where
the job runs. No start ever moves: when an instance fails, Slurm requeues the job, which is another start.

So when another instance connects under the node's name, what an earlier one was granted there is destroyed, whatever
Slurm thinks of the job. The other nodes of the job keep theirs. The certificate says which instance it is, and an
earlier one does not get this far (:mod:`slurm_hooks.succession`). A certificate that names no instance binds nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs

from conf.errors import SecureSlurmError
from slurm_hooks import running
from slurm_hooks.lifecycle import Destroyed

LOG = logging.getLogger(__name__)
RETRY_EVERY = 5.0
"""Seconds between two tries while Vault does not confirm."""


class Take(Protocol):
    """Destroys what a job has on one node, in the job's own turn, if ``still()`` holds by then."""

    def __call__(self, job: int, node: str, still: Callable[[], bool]) -> Awaitable[list[Destroyed]]:
        """What was destroyed. SecureSlurmError: it is not confirmed."""


@attrs.frozen
class _Lost:
    """A start on a node whose instance was replaced."""

    job: int
    node: str
    before: str
    now: str

    @property
    def why(self) -> str:
        return f"node {self.node} was {self.before} when the job came to it, and is {self.now} by now"


class Tenants:
    """Runs in the daemon's event loop. ``say`` writes an audit line and never raises.

    ``instance``: which instance a node is by its last enrolment, "" when it has not enrolled; blocks, and raises when
    that cannot be told.
    """

    def __init__(self, folder: str, take: Take, say: Callable[..., None], instance: Callable[[str], str]) -> None:
        self._folder = folder
        self._take = take
        self._say = say
        self._instance = instance
        self._reader = running.Running(folder, os.geteuid())
        self._waiting: dict[_Lost, None] = {}
        self._more = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Starts whose keys on a replaced node are not confirmed as destroyed."""
        return len(self._waiting)

    def started(self, job: int, connected: dict[str, str]) -> None:
        """A start was written down. ``connected``: its nodes that are connected, and which instance each is.

        BackendUnavailable: that cannot be written, so it must not start.
        """
        known = {node: instance for node, instance in connected.items() if instance}
        if known:
            running.bind(self._folder, job, known)

    def arrived(self, node: str, instance: str) -> None:
        """A node has connected. What cannot be looked at is logged, and is no reason to send the node away."""
        if not instance:
            return
        try:
            self._reader.look()
            for inside in self._reader.places.get(node.lower(), ()):
                before = running.bound(self._folder, inside.job).get(node, "")
                if not before:
                    running.bind(self._folder, inside.job, {node: instance})
                elif before != instance:
                    self._waiting[_Lost(inside.job, node, before, instance)] = None
                    self._more.set()
        except (SecureSlurmError, OSError) as error:
            LOG.error("what node %s had before it was %s is not known: %s", node, instance, error)

    async def forever(self) -> None:
        """Destroy what has to be, at once; again while Vault is away."""
        while True:
            await self._more.wait()
            self._more.clear()
            await self.once()
            if self._waiting:
                await asyncio.sleep(RETRY_EVERY)
                self._more.set()

    async def once(self) -> None:
        """Each that waits, once."""
        for lost in list(self._waiting):

            def still(lost: _Lost = lost) -> bool:
                # a start that is newer has a file of its own
                if running.bound(self._folder, lost.job).get(lost.node) != lost.before:
                    return False
                if self._instance(lost.node) != lost.before:
                    return True
                # the link remembers nothing of before its start, and the earlier instance may be the first to come
                LOG.warning("node %s is %s; %s has connected in its place", lost.node, lost.before, lost.now)
                return False

            try:
                destroyed = await self._take(lost.job, lost.node, still)
            except SecureSlurmError as error:
                LOG.warning("job %d: its keys on %s wait for Vault: %s", lost.job, lost.node, error)
                continue
            except Exception:
                LOG.exception("job %d: its keys on %s", lost.job, lost.node)
                continue
            del self._waiting[lost]
            if destroyed:
                LOG.warning("job %d: its keys on %s were destroyed: %s", lost.job, lost.node, lost.why)
                self._say("revocation.done", job=lost.job, node=lost.node, evidence=lost.why, count=len(destroyed))
