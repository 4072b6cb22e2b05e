"""The audit trails against Slurm's accounting: each secured job that ran has a start here, each start a job there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from admin.sacct_job import accounted
from audit.facts import Facts
from audit.gaps import SKEW, SLACK, Gap

OVER = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL", "DEADLINE"}
)


NOWHERE = "None assigned"
"""What Slurm says of the nodes of a job that was given none."""


class Job(NamedTuple):
    """One entry. Times are Unix seconds, 0: none."""

    job: int
    secured: bool
    start: int
    end: int
    over: bool
    ran: bool


class Accounts:
    """What the accounting says; ``take`` is given each entry."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self.jobs: dict[int, list[Job]] = {}
        self.first = 0

    def take(self, entry: object) -> None:
        """One entry of ``jobs``."""
        job = accounted(entry)
        if job is None or not isinstance(entry, Mapping) or entry.get("cluster", self._cluster) != self._cluster:
            return
        number = entry["job_id"]
        times = entry.get("time")
        start, end = _time(times, "start"), _time(times, "end")
        submitted = _time(times, "submission")
        if submitted:
            self.first = min(self.first or submitted, submitted)
        states = _states(entry)
        # a job that was over within a second has run all the same; one that never did has no nodes
        ran = bool(start) and entry.get("nodes") not in (None, "", NOWHERE)
        one = Job(number, job.tag_from == "record", start, end, bool(end) and bool(OVER & states), ran)
        self.jobs.setdefault(number, []).append(one)


def compare(facts: Facts, accounts: Accounts, now: float) -> list[Gap]:
    """What one says and the other does not. ``now``: when the accounting was asked, Unix seconds."""
    found = [*_accounted(facts, accounts), *_told(facts, accounts, now)]
    return sorted(found, key=lambda gap: (gap.kind, gap.job, gap.what))


def _accounted(facts: Facts, accounts: Accounts) -> Iterator[Gap]:
    started = {job for job, _ in facts.starts}
    for number, entries in accounts.jobs.items():
        for one in entries:
            covered = facts.first + SKEW < one.start < facts.last - SLACK
            if one.secured and covered and one.ran and number not in started:
                yield Gap(
                    "job-without-record",
                    number,
                    "the accounting has it as a secured job that ran, and no trail tells of its start",
                    f"sacct -j {number}; the lifecycle trail of every SlurmctldHost, PrologSlurmctld in slurm.conf",
                )
        last = max(entries, key=lambda one: one.start)
        if last.over and last.end < facts.last - SLACK:
            for key in facts.keys.values():
                if key.job == number and key.made and not key.over and key.made < last.end + SKEW:
                    yield Gap(
                        "key-outlives-job",
                        number,
                        f"the accounting says that it ended, and the end of the key {key.name} is not told",
                        f"secure-slurm status; secure-slurm audit certificate {number}",
                    )


def _told(facts: Facts, accounts: Accounts, now: float) -> Iterator[Gap]:
    for (number, _), start in facts.starts.items():
        covered = accounts.first and accounts.first < start.at < now - SLACK
        if covered and number not in accounts.jobs and not start.refused:
            yield Gap(
                "job-not-accounted",
                number,
                "a trail tells of its start, and the accounting does not know it",
                f"sacct -j {number}; slurmdbd's log, PurgeJobAfter in slurmdbd.conf",
            )


def _states(entry: Mapping[str, object]) -> set[str]:
    state = entry.get("state")
    current = state.get("current") if isinstance(state, Mapping) else state
    found = current if isinstance(current, list) else [current]
    return {str(one).partition(" ")[0] for one in found}


def _time(times: object, name: str) -> int:
    value = times.get(name) if isinstance(times, Mapping) else None
    if isinstance(value, Mapping):
        value = value.get("number") if value.get("set") is True else None
    return value if type(value) is int and value > 0 else 0
