"""The head node's reaper: looks at Vault and at Slurm again and again, and ends what is over and nobody ended.

An EpilogSlurmctld that was killed, taken out of slurm.conf or never ran leaves keys, grants and the file that says
where the job runs. A grant is written before its key and deleted after it, so Vault's list of grants finds every key.
:mod:`slurm_hooks.headreaper` decides; this asks and acts. Nothing is kept on disk: what is left in Vault is the note,
and the next daemon finds it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import attrs

from conf.errors import BackendUnavailable, SecureSlurmError
from keys.grant import Grant
from slurm_hooks import running
from slurm_hooks.headreaper import Held, Sightings, judge, may_be_over
from slurm_hooks.lifecycle import Destroyed, Jobs
from slurm_hooks.lostnodes import LostNodes
from slurm_hooks.slurmview import Controller, View

LOG = logging.getLogger(__name__)

MOST_ASKED = 50
"""Jobs that slurmctld is asked about one by one in a look; the others wait for the next."""
_FILE = "file "


class Vault(Protocol):
    """What is needed of :class:`slurm_hooks.vaultjobs.VaultJobs`; every call blocks."""

    def grants(self) -> list[tuple[str, int]]: ...  # noqa: D102
    def held(self, node: str, job: int) -> Grant | None: ...  # noqa: D102


class Slurm(Protocol):
    """What is needed of :class:`slurm_hooks.slurmview.SlurmView`; every call blocks."""

    def look(self) -> View: ...  # noqa: D102
    def unknown(self, jobs: Iterable[int], before: Controller) -> frozenset[int]: ...  # noqa: D102


class Kept(NamedTuple):
    """Something that is over as it seems, or may be, and is left alone."""

    job: int
    why: str


@attrs.define
class Report:
    """The last look. ``at``: Unix seconds, 0 for never. ``error``: why it came to nothing. ``grants``: how many there
    are; ``foreign``, ``damaged``: grants that are not ours, or cannot be read, and are never touched.

    ``kept``: what is no running job's and is not destroyed (yet), with the reason. ``standby``: another head node ends
    what is over.
    """

    at: float = 0.0
    error: str = ""
    grants: int = 0
    foreign: int = 0
    damaged: int = 0
    kept: list[Kept] = attrs.Factory(list)
    healed: int = 0
    standby: bool = False

    @property
    def result(self) -> str:
        """In one line."""
        if not self.at:
            return "it has not looked yet"
        if self.error:
            return f"nothing was judged: {self.error}"
        if self.standby:
            return f"{self.grants} grants; it leaves them to the head node that acts"
        odd = f", {self.foreign} of another cluster, {self.damaged} damaged" if self.foreign or self.damaged else ""
        return f"{self.grants} grants{odd}, {len(self.kept)} left alone though no job of theirs runs"


Healed = Callable[[Held, str, list[Destroyed]], None]
Announce = Callable[[Held, str], None]


class HeadReaper:
    """One look after the other. ``announce`` and ``healed`` write the audit trail, before and after a destruction.

    ``lost`` finds nodes that running jobs have lost. ``may_end``: whether this head node ends what the slurmctld with
    that BOOT_TIME calls over;
    ``acted_for``: for how many seconds it has acted.
    """

    def __init__(
        self,
        vault: Vault,
        slurm: Slurm,
        jobs: Jobs,
        pool: ThreadPoolExecutor,
        *,
        cluster: str,
        running_dir: str,
        announce: Announce,
        healed: Healed,
        may_end: Callable[[str], bool] = lambda _boot: True,
        acted_for: Callable[[], float] = lambda: math.inf,
        lost: LostNodes | None = None,
    ) -> None:
        self._vault = vault
        self._slurm = slurm
        self._jobs = jobs
        self._pool = pool
        self._cluster = cluster
        self._running_dir = running_dir
        self._announce = announce
        self._healed = healed
        self._may_end = may_end
        self._acted_for = acted_for
        self._lost = lost
        self._sightings = Sightings()
        self._odd: set[tuple[str, int]] = set()
        self.report = Report()

    async def forever(self) -> None:
        """Look, act, wait."""
        while True:
            try:
                await self.look()
            except Exception:
                LOG.exception("a look at Vault and Slurm failed")
                self.report = Report(time.time(), "a defect: see the daemon's log", healed=self.report.healed)
            await asyncio.sleep(self._wait(time.monotonic()))

    def _wait(self, now: float) -> float:
        """Seconds until something that was seen is to be seen again, a lost node too."""
        return min(each.wait(now) for each in (self._sightings, self._lost) if each is not None)

    async def look(self) -> None:
        """Once; what went wrong is in :attr:`report`, and in the log when it is new."""
        report = Report(time.time(), healed=self.report.healed)
        try:
            await self._look(report)
        except SecureSlurmError as error:
            report.error = str(error)
            if report.error != self.report.error:
                LOG.warning("keys of jobs that are over are not looked for: %s", error)
        self.report = report

    async def _look(self, report: Report) -> None:
        # Vault first: what a job that starts meanwhile writes is not in this list
        loop = asyncio.get_running_loop()
        grants = await loop.run_in_executor(self._pool, self._vault.grants)
        files = running.known(self._running_dir)
        report.grants = len(grants)
        if not grants and not files:
            return
        began = time.monotonic()
        view = await loop.run_in_executor(self._pool, self._slurm.look)
        if not self._may_end(view.controller.boot):
            # what a standby has seen must be seen anew once it acts
            report.standby = True
            self._sightings.forget()
            if self._lost is not None:
                self._lost.forget()
            return
        # a slurmctld that has taken over was started long before that
        up_for = int(min(view.controller.up_for, self._acted_for()))
        view = view._replace(controller=view.controller._replace(up_for=up_for))
        self._sightings.check_plausible(began, view)
        suspects = [(node, job) for node, job in grants if may_be_over(job, view)]
        held = await loop.run_in_executor(self._pool, self._read, suspects, report)
        held += [
            Held(job, f"{_FILE}{written}", (), None, written // 10**9)
            for job, written in files.items()
            if may_be_over(job, view) and not any(each.job == job for each in held)
        ]
        unknown = await loop.run_in_executor(self._pool, self._unknown, held, view)
        judged = [(each, judge(each, view, unknown)) for each in held]
        due = self._sightings.due(began, view.controller.boot, judged)
        report.kept = [Kept(each.job, verdict.why) for each, verdict in judged if not _is_file(each)]
        for each, evidence in due:
            if not self._may_end(view.controller.boot):
                return
            await self._end(each, evidence, report)
        if self._lost is not None:
            lost = await loop.run_in_executor(self._pool, self._lost.find, grants, view, began)
            if self._may_end(view.controller.boot):
                await self._lost.end(lost)

    def _read(self, suspects: Iterable[tuple[str, int]], report: Report) -> list[Held]:
        """The starts that these grants are of. Damaged ones, and those of another cluster, are counted alone."""
        nodes: dict[tuple[int, str], list[str]] = {}
        first: dict[tuple[int, str], Grant] = {}
        for node, job in suspects:
            try:
                grant = self._vault.held(node, job)
            except BackendUnavailable:
                raise
            except SecureSlurmError as error:
                report.damaged += 1
                if (node, job) not in self._odd:
                    LOG.error("the grant of job %d for %s is left alone: %s", job, node, error)
                    self._odd.add((node, job))
                continue
            if grant is None:
                continue
            if grant.cluster != self._cluster:
                report.foreign += 1
            elif (grant.node, grant.job) != (node, str(job)):
                report.damaged += 1
            else:
                nodes.setdefault((job, grant.incarnation), []).append(node)
                first.setdefault((job, grant.incarnation), grant)
        return [
            Held(name[0], name[1], tuple(nodes[name]), int(grant.restarts), int(grant.created))
            for name, grant in first.items()
        ]

    def _unknown(self, held: Iterable[Held], view: View) -> frozenset[int]:
        """The jobs of which slurmctld says that there are none, each asked about by its number."""
        missing = sorted({each.job for each in held} - view.jobs.keys())[:MOST_ASKED]
        return self._slurm.unknown(missing, view.controller) if missing else frozenset()

    async def _end(self, held: Held, evidence: str, report: Report) -> None:
        if _is_file(held):
            # no wait between the two: a start writes its file and is known in one go
            if not self._jobs.knows(held.job):
                running.remove(self._running_dir, held.job)
                LOG.info("job %d runs nowhere any more: %s", held.job, evidence)
            return
        LOG.warning("job %d is over and nobody said so: %s; its keys are destroyed", held.job, evidence)
        self._announce(held, evidence)
        try:
            destroyed = await self._jobs.reap(held.job, held.start, held.nodes)
        except SecureSlurmError as error:
            LOG.warning("job %d: its keys are not confirmed as destroyed: %s", held.job, error)
            report.kept = [kept for kept in report.kept if kept.job != held.job] + [Kept(held.job, str(error))]
            return
        if not self._jobs.knows(held.job):
            running.remove(self._running_dir, held.job)
        report.kept = [kept for kept in report.kept if kept.job != held.job]
        report.healed += 1
        self._healed(held, evidence, destroyed)


def _is_file(held: Held) -> bool:
    return held.start.startswith(_FILE)
