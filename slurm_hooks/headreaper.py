"""Which starts of jobs are over, though nobody said so: what Vault holds, compared with what slurmctld says. Pure.

No is the default here too, and it means: leave it alone. A start is over when slurmctld *says* so, of this very job,
twice, at least :data:`APART` seconds apart, the same slurmctld both times. What runs, starts or is being configured is
never over, and neither is what Slurm is merely silent about. No decision rests on two clocks being equal: the wall
clock is only ever a reason to leave something alone.

What goes wrong with Slurm, and which rule below stands against it:

- no answer, half an answer, another cluster's: there is no :class:`~slurm_hooks.slurmview.View`, and nothing is judged;
- jobs that ran at the last look are missing although slurmctld keeps ended ones: :func:`check_plausible`;
- other people's jobs are hidden (PrivateData), and nobody says what is there (:mod:`slurm_hooks.sight`): then "no such
  job" means nothing;
- a restored state does not know jobs that run: their numbers have not been given yet (``next_job``), or their restart
  count is lower than the start's;
- a fail-over or a restart: what was seen before it does not count, and "no such job" not within :data:`SETTLED`;
- a number that was used again: if that job has not ended, the start is left alone, until that job starts (which closes
  what is left of its number) or ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from conf.errors import BackendUnavailable
from slurm_hooks.slurmview import Controller, Seen, View

LOOK_EVERY = 15.0
APART = 20.0
"""Seconds between two looks, and at least between the two that a destruction rests on, by the monotonic clock."""
SETTLED = 60
"""Seconds since its start before slurmctld's "no such job" counts: by then every node has registered with it."""
AFTER_END = 300
"""Seconds after a job's end within which a grant of it may be dated; the clocks of two machines differ."""

# squeue(1), JOB STATE CODES. What is in none of these sets is alive as far as we know.
FINISHED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "TIMEOUT"),
    )
)
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"))
ALIVE = frozenset(("CONFIGURING", "RESIZING", "RUNNING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"))


class Held(NamedTuple):
    """What there is of one start of a job: in Vault, or the file that says where it runs.

    ``start`` tells it from every other start. ``restarts``: Slurm's count at that start; None: not known. ``made``:
    Unix seconds by the lifecycle daemon's clock.
    """

    job: int
    start: str
    nodes: tuple[str, ...]
    restarts: int | None
    made: int


class Verdict(NamedTuple):
    """``over``: and ``why`` is the evidence; else why it is left alone."""

    over: bool
    why: str


def judge(held: Held, view: View, unknown: frozenset[int]) -> Verdict:
    """Whether one look calls this start over. ``unknown``: the jobs of which slurmctld said that there are none."""
    seen = view.jobs.get(held.job)
    if seen is None:
        return _judge_unlisted(held, view.controller, unknown)
    if seen.state in FINISHED:
        return _judge_finished(held, seen)
    if seen.state in WAITING:
        if held.restarts is not None and seen.restarts > held.restarts:
            return Verdict(True, f"slurmctld has requeued it since: {seen.state}, restart {seen.restarts}")
        return Verdict(False, f"slurmctld calls it {seen.state}: it may start yet")
    return Verdict(False, f"slurmctld calls it {seen.state}")


def _judge_unlisted(held: Held, controller: Controller, unknown: frozenset[int]) -> Verdict:
    if controller.hides:
        return Verdict(False, "slurmctld hides jobs (PrivateData): that it shows none means nothing")
    if held.job not in unknown:
        return Verdict(False, "slurmctld did not list it, and did not say that there is no such job")
    if held.job >= controller.next_job:
        return Verdict(False, "slurmctld has not given that number yet: its state is older than the job")
    if controller.up_for < SETTLED:
        return Verdict(False, f"slurmctld knows no such job, {max(controller.up_for, 0)} s after its start")
    return Verdict(True, "slurmctld knows no such job")


def _judge_finished(held: Held, seen: Seen) -> Verdict:
    if held.restarts is not None and held.restarts > seen.restarts:
        return Verdict(False, f"slurmctld's state is older than the start: {seen.state}, restart {seen.restarts}")
    if seen.ended and held.made > seen.ended + AFTER_END:
        return Verdict(False, f"slurmctld calls it {seen.state}, and it was made after that end")
    return Verdict(True, f"slurmctld calls it {seen.state}")


def may_be_over(job: int, view: View) -> bool:
    """Whether it is worth a closer look."""
    seen = view.jobs.get(job)
    return seen is None or seen.state in FINISHED or seen.state in WAITING


class _First(NamedTuple):
    at: float
    boot: str


class Sightings:
    """Which starts were called over, since when, and by which slurmctld. In memory: a restart begins anew."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, str], _First] = {}
        self._alive: frozenset[int] = frozenset()
        self._looked: _First | None = None

    def check_plausible(self, now: float, view: View) -> None:
        """BackendUnavailable, and all that was seen is forgotten, when jobs are gone that slurmctld must still know.

        ``now``: seconds of the monotonic clock, when the view was asked for.
        """
        if view.controller.hides:
            # what is missing is hidden
            self._looked = None
            return
        before, alive = self._looked, self._alive
        self._looked = _First(now, view.controller.boot)
        self._alive = frozenset(job for job, seen in view.jobs.items() if seen.state in ALIVE)
        gone = alive - view.jobs.keys()
        if before is None or before.boot != view.controller.boot or not gone:
            return
        if not view.controller.keeps or now - before.at < view.controller.keeps:
            self.forget()
            raise BackendUnavailable(
                f"{len(gone)} jobs that ran {now - before.at:.0f} s ago are not in slurmctld's list, job {min(gone)} "
                "among them, though it remembers ended ones for longer",
                advice="what it says is not believed; it is asked again",
            )

    def due(self, now: float, boot: str, judged: Iterable[tuple[Held, Verdict]]) -> list[tuple[Held, str]]:
        """The starts that are over by two looks, with the evidence; everything that this look does not confirm is
        forgotten. ``now`` as above.
        """
        kept: dict[tuple[int, str], _First] = {}
        found: list[tuple[Held, str]] = []
        for held, verdict in judged:
            if not verdict.over:
                continue
            name = (held.job, held.start)
            first = self._first.get(name)
            if first is None or first.boot != boot:
                first = _First(now, boot)
            elif now - first.at >= APART:
                found.append((held, f"{verdict.why}, the second time after {now - first.at:.0f} s"))
            kept[name] = first
        self._first = kept
        return found

    def forget(self) -> None:
        """An answer was odd: whatever was seen before must be seen twice again."""
        self._first = {}

    def wait(self, now: float) -> float:
        """Seconds until the next look: when the first suspect is due, and no later than :data:`LOOK_EVERY`."""
        due = [first.at + APART - now for first in self._first.values()]
        return min([LOOK_EVERY, *(max(each, 1.0) for each in due)])
