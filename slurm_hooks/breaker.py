"""The circuit breaker: when services fail for many jobs, no further start is tried until they answer again. Pure.

Closed: every start is tried. Open: none is; the head node asks the services by itself. When they answer it is
half-open: one start is tried, and its end decides: closed, or open for longer. What counts as a failure is a start that
has waited for as long as it may; one job counts once, or a single job that nothing could help would stop all others.

Times are seconds of the monotonic clock, given by the caller.
"""

from __future__ import annotations

import attrs

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"

FAILURES = 3
"""Jobs whose starts failed within :data:`WINDOW`, after which it opens."""
WINDOW = 600.0
PROBE_FIRST, PROBE_MOST = 2.0, 30.0
"""Seconds between two questions to the services while it is open; doubled each time, up to the second figure."""
TRIAL = 300.0
"""Seconds after which a trial that nobody heard of again is given up: longer than any PrologSlurmctld."""
IDLE = 60.0
"""Seconds half-open without any job to try, after which it is closed."""


@attrs.define(eq=False)
class Breaker:
    """The state. ``changed`` counts its changes, so that a caller sees that there was one."""

    state: str = CLOSED
    since: float = 0.0
    reason: str = ""
    rule: str = ""
    held: int = 0
    """Starts that were turned away since it opened."""
    changed: int = 0
    _failures: dict[int, float] = attrs.Factory(dict)
    _trial: int = 0
    _trial_since: float = 0.0
    _probe_at: float = 0.0
    _probe_wait: float = PROBE_FIRST

    def admit(self, job: int, now: float) -> str:
        """What a start may do: ``try``; ``wait`` for the trial of another; or ``no``."""
        if self.state == CLOSED:
            return "try"
        if self.state == OPEN:
            self.held += 1
            return "no"
        if self._trial in (0, job) or now - self._trial_since > TRIAL:
            self._trial, self._trial_since = job, now
            return "try"
        return "wait"

    def succeeded(self, job: int, now: float) -> None:
        """A start has its keys."""
        self._failures.pop(job, None)
        if self.state == HALF_OPEN:
            self._become(CLOSED, now)
            self._failures.clear()

    def without_verdict(self, job: int) -> None:
        """A start ended in a way that says nothing about the services: it was refused, or its job is over."""
        if self._trial == job:
            self._trial = 0

    def failed(self, job: int, rule: str, reason: str, now: float) -> None:
        """A start has waited for a service for as long as it may, in vain."""
        self._failures = {one: at for one, at in self._failures.items() if now - at < WINDOW}
        self._failures[job] = now
        if self.state == OPEN or (self.state == CLOSED and len(self._failures) < FAILURES):
            return
        self.rule, self.reason = rule, reason
        longer = min(self._probe_wait * 2, PROBE_MOST) if self.state == HALF_OPEN else PROBE_FIRST
        self._become(OPEN, now)
        self._probe_wait = longer
        self._probe_at = now + longer

    def probe_is_due(self, now: float) -> bool:
        """Whether the services are to be asked now."""
        return self.state == OPEN and now >= self._probe_at

    def probed(self, problem: str, now: float) -> None:
        """The services were asked; ``problem``: why they are still away, empty when they answer."""
        if self.state != OPEN:
            return
        if not problem:
            self._become(HALF_OPEN, now)
            return
        self.reason = problem
        self._probe_wait = min(self._probe_wait * 2, PROBE_MOST)
        self._probe_at = now + self._probe_wait

    def has_trial(self, now: float) -> bool:
        """Whether a start is being tried while it is half-open."""
        return self._trial != 0 and now - self._trial_since <= TRIAL

    def nobody_waits(self, now: float) -> None:
        """There is no job that could be tried. After a while it is closed: whoever comes next is as good as a trial."""
        if self.state == HALF_OPEN and not self.has_trial(now) and now - self.since > IDLE:
            self._become(CLOSED, now)
            self._failures.clear()

    @property
    def failures(self) -> int:
        """Jobs that count at the moment."""
        return len(self._failures)

    def _become(self, state: str, now: float) -> None:
        if self.state == CLOSED:
            self.held = 0
        self.state, self.since = state, now
        self.changed += 1
        self._trial = 0
