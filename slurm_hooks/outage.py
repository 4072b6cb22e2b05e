"""What the lifecycle daemon does about services that are away: the circuit breaker, and who is released afterwards.

PrologSlurmctld waits, gives up and holds its job by itself, as SlurmUser, which this daemon is not; here is counted.
While the breaker is open no start is even tried, and the services are asked now and then. When they answer,
secure-slurm-requeued (SlurmUser as well) is told to release one job, and when that has its keys, all that were held.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from slurm_hooks import wire
from slurm_hooks.admission import BUSY
from slurm_hooks.blame import OUTAGE, SERVICES, TRIAL
from slurm_hooks.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from slurm_hooks.serve import Answer, Fields, Peer

LOG = logging.getLogger(__name__)

TICK = 1.0
LOOK_SOON, LOOK_LATE = 5.0, 60.0
"""Seconds between two looks for jobs that are held, while there may be some and while there should be none."""
TO_START = 30.0
"""Seconds for a job that was released to be tried, before another is released to take its place."""
LINGER = 120.0
"""Seconds after the last failure for which there may be jobs that are about to be held."""

_JOB = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


class Say(Protocol):
    """Writes an audit line."""

    def __call__(self, event: str, **fields: object) -> None: ...  # noqa: D102


class Outage:
    """The breaker with the verbs around it. ``services`` raises what a start would run into, and blocks."""

    def __init__(
        self, start: Callable[[Fields, Peer], Awaitable[Answer]], services: Callable[[], object], say: Say
    ) -> None:
        self.breaker = Breaker(since=time.monotonic())
        self._start = start
        self._services = services
        self._say = say
        # what an earlier run of this daemon has left held is found at once
        self._busy_until = time.monotonic() + LINGER
        self._look_at = 0.0
        self._one_at = 0.0
        self._waiting = 0

    async def start(self, fields: Fields, peer: Peer) -> Answer:
        """PrologSlurmctld's verb: the start itself, if one is to be tried now."""
        job = _job(wire.text(fields, "job"))
        may = self.breaker.admit(job, time.monotonic())
        if may == "no":
            self._busy()
            self._say("start.refused", job=job, rule=OUTAGE)
            raise Refused(
                OUTAGE,
                f"no secured job is started for now: {self.breaker.reason}",
                advice="nothing: the job is released when the service is back",
            )
        if may == "wait":
            raise Refused(TRIAL, "another job is tried first, to see whether the service is back")
        try:
            answer = await self._start(fields, peer)
        except Refused as error:
            if error.rule not in SERVICES:
                self.breaker.without_verdict(job)
            raise
        self._watched(lambda: self.breaker.succeeded(job, time.monotonic()))
        return answer

    async def gave_up(self, fields: Fields, _peer: Peer) -> Answer:
        """A PrologSlurmctld has waited for a service in vain. ``outage``: it is away for everybody, now."""
        job, rule = _job(wire.text(fields, "job")), wire.text(fields, "rule")
        if rule not in SERVICES:
            raise wire.WireError("the rule of the request does not blame a service")
        reason = f"[{rule}] {wire.text(fields, 'reason', '')}"[:250]
        self._busy()
        if rule == BUSY:
            # all that this daemon can do is done: no service failed, and it goes on when there is room
            return {"verdict": "allow", "outage": "1"}
        self._watched(lambda: self.breaker.failed(job, rule, reason, time.monotonic()))
        away = self.breaker.state != CLOSED or bool(await self._problem())
        return {"verdict": "allow", "outage": "1" if away else "0"}

    async def may_release(self, _fields: Fields, _peer: Peer) -> Answer:
        """How many held jobs may be released now: ``none``, ``one`` to try, or ``all``."""
        now = time.monotonic()
        if self.breaker.state == OPEN:
            return {"verdict": "allow", "may": "none"}
        if self.breaker.state == HALF_OPEN:
            busy = self.breaker.has_trial(now) or now < self._one_at
            return {"verdict": "allow", "may": "none" if busy else "one"}
        if now < self._look_at:
            return {"verdict": "allow", "may": "none"}
        self._look_at = now + (LOOK_SOON if now < self._busy_until else LOOK_LATE)
        return {"verdict": "allow", "may": "none" if await self._problem() else "all"}

    async def released(self, fields: Fields, _peer: Peer) -> Answer:
        """Which jobs were released, and how many are still held."""
        jobs, left = wire.text(fields, "jobs"), wire.text(fields, "left")
        if not left.isascii() or not left.isdigit():
            raise wire.WireError("the number of held jobs in the request is not a number")
        self._waiting = int(left)
        if jobs:
            self._one_at = time.monotonic() + TO_START
        elif not self._waiting:
            self._watched(lambda: self.breaker.nobody_waits(time.monotonic()))
        if self._waiting:
            self._busy()
        for job in [_job(each) for each in jobs.split(",")] if jobs else ():
            self._say("start.released", job=job)
        return {"verdict": "allow"}

    async def forever(self) -> None:
        """Ask the services while the breaker is open."""
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.probe()
            except Exception:
                # or it would stay open until the daemon is restarted
                LOG.exception("the services could not be asked")

    async def probe(self) -> None:
        """Ask them once, if that is due."""
        if self.breaker.probe_is_due(time.monotonic()):
            problem = await self._problem()
            self._watched(lambda: self.breaker.probed(problem, time.monotonic()))

    def told(self) -> dict[str, object]:
        """For ``secure-slurm status``. ``age``: seconds in this state."""
        breaker = self.breaker
        return {
            "state": breaker.state,
            "age": round(time.monotonic() - breaker.since, 1),
            "reason": "" if breaker.state == CLOSED else breaker.reason,
            "failures": breaker.failures,
            "turned_away": breaker.held,
            "held": self._waiting,
        }

    async def _problem(self) -> str:
        try:
            await asyncio.to_thread(self._services)
        except SecureSlurmError as error:
            return str(error) or type(error).__name__
        return ""

    def _busy(self) -> None:
        self._busy_until = time.monotonic() + LINGER
        self._look_at = min(self._look_at, time.monotonic() + LOOK_SOON)

    def _watched(self, act: Callable[[], None]) -> None:
        """Whatever changes the state is in the trail."""
        before, since, changed = self.breaker.state, self.breaker.since, self.breaker.changed
        act()
        now = self.breaker
        if now.changed == changed:
            return
        LOG.warning("secured starts: the breaker is %s (was %s): %s", now.state, before, now.reason)
        self._busy()
        if now.state == CLOSED:
            self._say("breaker.closed", seconds=round(time.monotonic() - since, 3), count=now.held)
        else:
            event = "breaker.opened" if now.state == OPEN else "breaker.probing"
            self._say(event, rule=now.rule or None, reason=now.reason, count=now.failures)


def services(*checks: Callable[[], object]) -> Callable[[], None]:
    """One question to all that a start needs; each check raises what is wrong with it."""

    def ask() -> None:
        for check in checks:
            check()

    return ask


def known_members(problem: Callable[[], str]) -> Callable[[], None]:
    """The check that it is known who is in which group; ``problem``: why not."""

    def check() -> None:
        why = problem()
        if why:
            raise BackendUnavailable(why)

    return check


def _job(text: str) -> int:
    if not _JOB.fullmatch(text):
        raise wire.WireError("the job of the request is not a job's number")
    return int(text)
