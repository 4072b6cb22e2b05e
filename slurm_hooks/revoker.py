"""Revocation on the head node: what is revoked is on the disk first, then refused, then stopped, until all confirm.

It asks for nothing that could not be asked again. Every report of a node is compared with what is revoked: a job that
is on it and still runs is ordered to be stopped, whether the order is the first or the hundredth, by this process or by
one before it. Keys that Vault has not confirmed as gone have a note on the disk (:mod:`slurm_hooks.ended`), which the
lifecycle daemon works off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from conf.errors import Refused, SecureSlurmError, UsageError
from conf.site import Site
from conf.tag import parse_extra
from slurm_hooks import revoked, running
from slurm_hooks.filters.judge_revoked import verdict
from slurm_hooks.filters.verdict import Context, Deny
from slurm_hooks.lifecycle import StartJob
from slurm_hooks.links import Connected, Links
from slurm_hooks.orders import Job, Keys, Orders
from slurm_hooks.presence import FROZEN
from slurm_hooks.revoke_names import check_known, check_value, uid_of
from slurm_hooks.revoked import FREEZE, MODES, RESUME, STOP, Revocation, Subject
from slurm_hooks.subjects import Subjects

LOG = logging.getLogger(__name__)
RETRY_EVERY = 5.0
"""Seconds between two tries to lock or unlock a key that Vault has not confirmed."""


class Revoker:
    """``keys``: what becomes of the keys of a job in Vault.

    ``before`` writes a durable audit line, or raises so that what it announces does not happen; ``say`` never raises.
    """

    def __init__(
        self,
        site: Site,
        context: Callable[[], Context],
        keys: Keys,
        before: Callable[..., None],
        say: Callable[..., None],
    ) -> None:
        self._site = site
        self._folder = site.lifecycle.revoked_dir
        self._context = context
        self._before = before
        self._say = say
        self.links = Links(site.link, self.heard, site.cluster.name if site.enrol.listen else "")
        self._subjects = Subjects(site.lifecycle.running_dir, lambda: self.links)
        self._orders = Orders(
            lambda: self.links,
            keys,
            site.lifecycle.ended_dir,
            reason=self._reason,
            say=say,
            changed=self._conclude,
        )
        self._all = {one.id: one for one in revoked.read(self._folder, os.geteuid())}
        for one in self._all.values():
            self._take_on(one)

    def go_on(self) -> None:
        """What was not confirmed when the daemon stopped; needs the event loop."""
        self._orders.order_all()

    async def forever(self, acts: Callable[[], bool]) -> None:
        """Ask Vault again what it has not confirmed, where this head node acts; nodes are asked as they report."""
        while True:
            await asyncio.sleep(RETRY_EVERY)
            if acts():
                self._orders.retry_keys()

    def reload(self) -> None:
        """What another head node wrote down or lifted while it acted. Reads the folder: BackendUnavailable."""
        found = {one.id: one for one in revoked.read(self._folder, os.geteuid())}
        if found == self._all:
            return
        self._all = found
        for one in found.values():
            self._take_on(one)
        named = {job for one in found.values() for job in one.jobs}
        for job in self._orders.jobs.keys() - named:
            self._orders.forget(job)

    def ends(self, job: int) -> bool:
        """Whether a revocation ends this job, running or not."""
        return any(job in one.jobs and one.mode == STOP for one in self._all.values())

    # -- what is refused -------------------------------------------------------------------------------------------

    def in_force(self) -> tuple[Revocation, ...]:
        """The revocations, for a decision."""
        return tuple(self._all.values())

    def check_start(self, job: StartJob) -> None:
        """Refused ``revoked.*``: of the job, a node of it, or what it stands on."""
        one = running.Inside(job.job, job.uid, job.tag)
        self._check(self._subjects.of(one, job.user, job.nodes, self._context()))

    def started(self, job: StartJob) -> None:
        """A start was let in: what revocations have stopped by its number on its nodes was another start, of the same
        job or, once Slurm's numbers began again, of anybody's. They are not to stop this one as well.

        BackendUnavailable: that cannot be written down, so it must not start.
        """
        for one in list(self._all.values()):
            before = one.jobs.get(job.job, ())
            elsewhere = tuple(node for node in before if node not in job.nodes)
            if elsewhere != before:
                others = {each: nodes for each, nodes in one.jobs.items() if each != job.job}
                self._put(attrs.evolve(one, jobs=others | ({job.job: elsewhere} if elsewhere else {})))
        self._orders.started(job.job, job.nodes)
        if not any(job.job in one.jobs for one in self._all.values()):
            self._orders.forget(job.job)

    def _check(self, subject: Subject) -> None:
        said = verdict(self.in_force(), subject, time.time())
        if isinstance(said, Deny):
            raise Refused(said.rule, said.message, advice=said.advice)

    def matching(self, candidates: Iterable[dict[str, Any]]) -> list[int]:
        """Of the waiting jobs that an admin's command found, those that a revocation is about.

        Each with ``job``, ``uid``, ``user`` and ``extra``; UsageError for what is none.
        """
        context, found = self._context(), []
        for one in candidates:
            try:
                inside = running.Inside(int(one["job"]), int(one["uid"]), parse_extra(str(one["extra"])))
                subject = self._subjects.of(inside, str(one["user"]), (), context)
            except UsageError:
                continue
            except (KeyError, ValueError, TypeError):
                raise UsageError("the list of jobs is malformed") from None
            if isinstance(verdict(self.in_force(), subject, time.time()), Deny):
                found.append(int(one["job"]))
        return found

    # -- what is ordered -------------------------------------------------------------------------------------------

    async def revoke(self, kind: str, value: str, reason: str, within: float, mode: str = STOP) -> dict[str, Any]:
        """Revoke it, and wait up to ``within`` seconds for all to confirm. The same again: the same revocation.

        ``mode`` :data:`FREEZE`: so that :meth:`resume` can take it back. What was revoked for good stays so.
        Refused or BackendUnavailable: nothing was revoked.
        """
        check_value(kind, value)
        if mode not in (STOP, FREEZE):
            raise UsageError("this cannot be revoked", advice="see: secure-slurm revoke --help")
        uid = await asyncio.to_thread(uid_of, value) if kind == "user" else None
        context = self._context()
        check_known(kind, value, context)
        users = await asyncio.to_thread(self._subjects.running)
        # from here to the file nothing is awaited: a start that is judged before is in the list or will look again
        before = self._named(kind, value)
        if before is not None and before.mode == STOP and mode == FREEZE and before.holds(time.time()):
            raise Refused(
                "resume.revoked",
                f"{before.words} was revoked for good: there is nothing left to freeze",
                advice="take it back first, for jobs to come: secure-slurm revoke --lift",
            )
        made = before or Revocation(
            id=secrets.token_hex(8), kind=kind, value=value, uid=uid, at=time.time(), reason=reason, mode=mode
        )
        jobs, new = dict(made.jobs), []
        for inside, user, nodes in [*users, *self._subjects.newer(users)]:
            if made.is_about(self._subjects.of(inside, user, nodes, context)):
                new += [] if inside.job in jobs else [inside.job]
                jobs[inside.job] = nodes
        if before is None or (jobs, mode) != (dict(before.jobs), before.mode) or not before.holds(time.time()):
            made = attrs.evolve(made, jobs=jobs, done=0.0, at=time.time() if kind == "job" else made.at, mode=mode)
            what = f"{made.told}, frozen" if mode == FREEZE else made.told
            what = f"{what}: {reason}" if reason else what
            self._before("revocation.pending", reason=what, count=len(jobs), uid=uid)
            self._put(made)
        for job in new:
            # what is known of it may be of an earlier start
            self._orders.forget(job)
        return await self._carry_out(made, within)

    async def resume(self, kind: str, value: str, reason: str, within: float) -> dict[str, Any]:
        """Have what a revocation froze go on, and take it back once all have confirmed; waits up to ``within`` seconds.

        ``kind`` "id": that revocation. A job that a node reports as frozen although nothing here says so (this head
        node was restored from a backup, say) can be named as well.
        Refused ``resume.revoked``: it was revoked for good; ``revocation.unknown``: nothing of that name is frozen.
        """
        found = self._all.get(value) if kind == "id" else self._named(kind, value)
        if found is None and kind == "job":
            check_value(kind, value)
            found = self._stray(int(value))
        if found is None:
            raise Refused(
                "revocation.unknown", "nothing of that name is frozen", advice="see: secure-slurm revoke --list"
            )
        if found.mode == STOP:
            raise Refused(
                "resume.revoked",
                f"{found.words} was revoked for good: its jobs have no keys any more",
                advice="cancel them; secure-slurm revoke --lift lets others start again",
            )
        if found.mode != RESUME:
            what = f"{found.told}: {reason}" if reason else found.told
            self._before("revocation.resumed", reason=what, count=len(found.jobs), uid=found.uid)
            found = attrs.evolve(found, mode=RESUME, done=0.0)
            self._put(found)
        return await self._carry_out(found, within)

    def _named(self, kind: str, value: str) -> Revocation | None:
        return next((one for one in self._all.values() if (one.kind, one.value) == (kind, value)), None)

    def _stray(self, job: int) -> Revocation | None:
        """A job that is frozen on a node and in no file, as a revocation that was not written."""
        about = [one for one in self._all.values() if job in one.jobs]
        if about:
            return next((one for one in about if one.mode == STOP), None)
        nodes = [
            name
            for name, one in self.links.nodes.items()
            if (one.jobs or {}).get(job) is not None and (one.jobs or {})[job].state == FROZEN
        ]
        if not nodes:
            return None
        return Revocation(
            id=secrets.token_hex(8), kind="job", value=str(job), at=time.time(), jobs={job: tuple(nodes)}, mode=FREEZE
        )

    def _put(self, made: Revocation) -> None:
        revoked.write(self._folder, made)
        self._all[made.id] = made

    async def _carry_out(self, made: Revocation, within: float) -> dict[str, Any]:
        self._take_on(made)
        for job in made.jobs:
            self._orders.order(job)
        # these very objects: once all go on nothing here keeps them
        mine = {job: self._orders.jobs[job] for job in made.jobs}
        end = time.monotonic() + within
        while not all(one.done() for one in mine.values()) and time.monotonic() < end:
            await asyncio.sleep(0.02)
        report = self._report(self._all.get(made.id, made), mine)
        self._conclude()
        return report

    def _take_on(self, one: Revocation) -> None:
        for job, nodes in one.jobs.items():
            # of several the one that takes most counts; of those that say the same one that is not confirmed yet
            about = [each for each in self._all.values() if job in each.jobs]
            wanted = min((each.mode for each in about), key=MODES.index)
            done = all(each.done for each in about if each.mode == wanted)
            self._orders.take_on(job, nodes, wanted, done=done)

    # -- what comes back -------------------------------------------------------------------------------------------

    def heard(self, connected: Connected) -> None:
        """A node has said which jobs are on it."""
        self._orders.heard(connected)

    def ended(self, job: int) -> None:
        """Slurm has said that a job is over: if it is frozen its nodes must be able to take it down."""
        self._orders.end(job)

    def keys_gone(self, job: int) -> None:
        """Vault has confirmed that a job has no key, whoever asked it."""
        self._orders.keys_gone(job)

    def _reason(self, job: int) -> str:
        about = [one for one in self._all.values() if job in one.jobs]
        first = min(about, key=lambda one: MODES.index(one.mode), default=None)
        done = {STOP: "was revoked", FREEZE: "was frozen", RESUME: "was resumed"}
        return "revoked" if first is None else f"{first.told} {done[first.mode]}"

    def _is_done(self, one: Revocation) -> bool:
        return all(self._orders.jobs[job].done() for job in one.jobs)

    def _conclude(self) -> None:
        for one in list(self._all.values()):
            if one.done or not self._is_done(one):
                continue
            done = attrs.evolve(one, done=time.time())
            self._say(
                "revocation.done",
                count=len(one.jobs),
                uid=one.uid,
                result="confirmed" if one.mode == STOP else one.mode,
                evidence=one.told,
            )
            try:
                if one.mode == RESUME:
                    # all go on: nothing of it is left to be refused
                    self._take_back(one)
                    continue
                self._all[one.id] = done
                revoked.write(self._folder, done)
            except SecureSlurmError as error:
                # it is found out once more after a restart, and no harm is done
                self._all[one.id] = done
                LOG.error("%s", error)

    # -- what is told, and lifted ----------------------------------------------------------------------------------

    def _report(self, one: Revocation, known: Mapping[int, Job]) -> dict[str, Any]:
        """What has confirmed and what has not."""
        jobs = {
            str(job): {"keys": known[job].keys, "nodes": dict(sorted(known[job].nodes.items()))}
            for job in sorted(one.jobs)
        }
        return {
            **{"id": one.id, "kind": one.kind, "value": one.value, "at": int(one.at), "reason": one.reason},
            **{"mode": one.mode, "confirmed": all(known[job].done() for job in one.jobs), "jobs": jobs},
        }

    def reports(self) -> list[dict[str, Any]]:
        """All of them."""
        return [self._report(one, self._orders.jobs) for one in self._all.values()]

    def lift(self, name: str) -> str:
        """Take a revocation back: what it stopped stays stopped, what it refused may be submitted again.

        Refused ``revocation.unknown``: there is none of that name; ``resume.frozen``: it has jobs that wait for that.
        """
        one = self._all.get(name)
        if one is None:
            raise Refused("revocation.unknown", "there is no such revocation", advice="see: secure-slurm revoke --list")
        if one.mode == FREEZE:
            raise Refused(
                "resume.frozen", f"{one.words} is frozen, not revoked for good", advice="use: secure-slurm resume"
            )
        self._before("revocation.lifted", reason=one.told, uid=one.uid)
        self._take_back(one)
        return one.words

    def _take_back(self, one: Revocation) -> None:
        revoked.remove(self._folder, one.id)
        del self._all[one.id]
        still = {job for each in self._all.values() for job in each.jobs}
        for job in one.jobs:
            if job not in still:
                self._orders.forget(job)
        for each in self._all.values():
            self._take_on(each)
