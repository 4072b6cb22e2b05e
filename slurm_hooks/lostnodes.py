"""Nodes that a running job has lost: their keys do not wait for the job's end.

A job with ``--no-kill`` goes on without a node that failed, and one that was made smaller has given nodes back. Slurm
calls no EpilogSlurmctld for that, and the instance may be terminated long before the job ends. As with jobs that are
over (:mod:`slurm_hooks.headreaper`), slurmctld must say it twice, the same slurmctld both times, at least 20 s apart:
the job is alive, it is this very start, it has nodes, and this node is none of them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from conf.errors import BackendUnavailable, SecureSlurmError, UsageError
from keys.grant import Grant
from slurm_hooks.headreaper import ALIVE, Held, Sightings, Verdict
from slurm_hooks.hostlist import contains
from slurm_hooks.lifecycle import Destroyed
from slurm_hooks.slurmview import Controller, View

LOG = logging.getLogger(__name__)

_LINE = re.compile(r"([1-9][0-9]{0,9})\|(\S*)", re.ASCII)


class Slurm(Protocol):
    """What is needed of :class:`slurm_hooks.slurmview.SlurmView`; blocks."""

    def places(self) -> str: ...  # noqa: D102
    def check_same(self, before: Controller) -> None: ...  # noqa: D102


class Take(Protocol):
    """Destroys what one start of a job has on one node, in the job's own turn."""

    def __call__(self, job: int, node: str, incarnation: str) -> Awaitable[list[Destroyed]]:
        """What was destroyed. SecureSlurmError: it is not confirmed."""


def read_places(text: str) -> dict[int, str]:
    """``squeue --format=%A|%N``: the jobs that have nodes, and their lists. BackendUnavailable for any other line."""
    found: dict[int, str] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        # the tasks of an array that have not begun may share one number
        if match is None or (match[2] and int(match[1]) in found):
            raise BackendUnavailable("squeue's list of the jobs' nodes cannot be read")
        if match[2]:
            found[int(match[1])] = match[2]
    if text and not text.endswith("\n"):
        raise BackendUnavailable("squeue's list of the jobs' nodes is cut")
    return found


class LostNodes:
    """One look after the other, each behind one of the reaper's. ``held`` reads a grant; it and ``slurm`` block."""

    def __init__(
        self,
        slurm: Slurm,
        held: Callable[[str, int], Grant | None],
        take: Take,
        say: Callable[..., None],
    ) -> None:
        self._slurm = slurm
        self._held = held
        self._take = take
        self._say = say
        self._sightings = Sightings()

    def find(self, grants: Iterable[tuple[str, int]], view: View, now: float) -> list[tuple[Held, str]]:
        """The nodes to be taken from their jobs, with the evidence. Blocks. ``now``: when the view was asked for."""
        alive = [(node, job) for node, job in grants if (seen := view.jobs.get(job)) and seen.state in ALIVE]
        places: dict[int, str] = {}
        if alive:
            places = read_places(self._slurm.places())
            self._slurm.check_same(view.controller)
        judged = []
        for node, job in alive:
            if job not in places or _is_among(node, places[job]):
                continue
            try:
                grant = self._held(node, job)
            except BackendUnavailable:
                raise
            except SecureSlurmError:
                continue  # damaged: the reaper has said so
            if grant is None or int(grant.restarts) != view.jobs[job].restarts:
                continue
            # one node at a time is what is seen twice
            held = Held(job, f"{grant.incarnation}@{node}", (node,), int(grant.restarts), int(grant.created))
            judged.append((held, Verdict(True, f"slurmctld has the job on {places[job][:200]}, without {node}")))
        return self._sightings.due(now, view.controller.boot, judged)

    async def end(self, due: Iterable[tuple[Held, str]]) -> None:
        """Destroy what is due. What Vault does not confirm is found again."""
        for held, evidence in due:
            incarnation, _, node = held.start.partition("@")
            try:
                destroyed = await self._take(held.job, node, incarnation)
            except SecureSlurmError as error:
                LOG.warning("job %d: its keys on %s are not confirmed as destroyed: %s", held.job, node, error)
                continue
            LOG.warning("job %d has lost node %s: %s; its keys there were destroyed", held.job, node, evidence)
            facts = {"job": held.job, "node": node, "incarnation": incarnation, "count": len(destroyed)}
            self._say("reaper.healed", reason=evidence, **facts)

    def forget(self) -> None:
        """Whatever was seen must be seen twice again."""
        self._sightings.forget()

    def wait(self, now: float) -> float:
        """Seconds until the next look is due."""
        return self._sightings.wait(now)


def _is_among(node: str, nodes: str) -> bool:
    try:
        return contains(nodes, node)
    except UsageError:
        return True  # what cannot be read takes nothing away
