"""What the lifecycle daemon says of itself: what is pending and why, what the reaper saw, and who answers it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from conf.errors import SecureSlurmError
from conf.version import __version__
from slurm_hooks.ended import EndedJob
from slurm_hooks.serve import Answer, Fields, Peer

if TYPE_CHECKING:
    from audit.chain import Chain
    from slurm_hooks.acting import Acting
    from slurm_hooks.admission import Admission
    from slurm_hooks.certifying import Certifier
    from slurm_hooks.lifecycle import Jobs
    from slurm_hooks.live import Live
    from slurm_hooks.reaping import HeadReaper, Report
    from slurm_hooks.segments import Segments

MOST_TOLD = 200
"""Jobs of each kind that are told one by one; the counts have all."""
STANDBY = "the head node that acts destroys it"


class Status:
    """The verb ``status``. ``vault`` and ``slurm`` ask these services now: they raise when something is wrong.

    ``failures``: why the last try to destroy a job's keys failed.
    """

    def __init__(
        self,
        live: Live,
        chain: Chain,
        *,
        vault: Callable[[], object],
        slurm: Callable[[], object],
        notes: Callable[[], list[EndedJob]],
        jobs: Jobs,
    ) -> None:
        self._live = live
        self._chain = chain
        self._vault = vault
        self._slurm = slurm
        self._notes = notes
        self._jobs = jobs
        self._reaper: HeadReaper | None = None
        self._certifier: Certifier | None = None
        self._acting: Acting | None = None
        self._admission: Admission | None = None
        self.segments: Segments | None = None
        self.connected: Callable[[], Iterable[str]] = list
        self.failures: dict[int, str] = {}
        self.breaker: Callable[[], dict[str, object]] | None = None

    def watch(
        self,
        reaper: HeadReaper,
        certifier: Certifier,
        acting: Acting | None = None,
        admission: Admission | None = None,
    ) -> None:
        """Tell of these too."""
        self._reaper, self._certifier, self._acting, self._admission = reaper, certifier, acting, admission

    async def answer(self, _fields: Fields, _peer: Peer) -> Answer:
        """For an admin, as JSON in ``report``. An empty text means that all is well there."""
        vault, slurm, audit, notes = await asyncio.gather(
            asyncio.to_thread(_ask, self._vault),
            asyncio.to_thread(_ask, self._slurm),
            asyncio.to_thread(_ask, self._chain.flush),
            asyncio.to_thread(self._notes),
        )
        now, known = time.time(), self._live.context()
        standby = self._acting is not None and self._acting.acts is False
        # a standby has no failures of its own to tell
        failures = dict.fromkeys((note.job for note in notes), STANDBY) if standby else self.failures
        waiting = pending(notes, failures, now)
        report: dict[str, object] = {
            "open": len(self._jobs.open_jobs()),
            "pending": waiting[:MOST_TOLD],
            "pending_count": len(waiting),
            "vault": vault,
            "slurm": slurm,
            "members": "" if known.members else known.members_problem,
            "members_age": self._live.members_age(),
            "audit": audit,
            "policy": self._live.policy.hash,
        }
        if self._reaper is not None:
            report["reaper"] = reaped(self._reaper.report, now)
        if self.breaker is not None:
            report["breaker"] = self.breaker()
        if self._certifier is not None:
            report["certificates"] = {"waiting": self._certifier.waiting, "error": self._certifier.error}
        if self._acting is not None:
            report["acting"] = await asyncio.to_thread(self._acting.report)
        if (queue := self._admission) is not None:
            report["starts"] = {"active": queue.active, "waiting": queue.waiting, "turned_away": queue.turned_away}
        if self.segments is not None:
            report["segments"] = self.segments.report(self.connected())
        return {"verdict": "allow", "version": __version__, "report": json.dumps(report)}


def pending(notes: Iterable[EndedJob], failures: Mapping[int, str], now: float) -> list[dict[str, object]]:
    """The ended jobs whose keys Vault has not confirmed as destroyed, the oldest first. ``now``: Unix seconds.

    ``age``: seconds since the note was written; 0 when the clock was set back.
    """
    told: list[tuple[float, dict[str, object]]] = []
    for note in notes:
        try:
            age = max(now - os.stat(note.path, follow_symlinks=False).st_mtime, 0.0)  # noqa: PTH116
        except OSError:
            # it was confirmed just now
            continue
        why = failures.get(note.job, "it is being destroyed")
        told.append((age, {"job": note.job, "age": round(age, 1), "reason": why}))
    return [one for _, one in sorted(told, key=lambda each: -each[0])]


def reaped(report: Report, now: float) -> dict[str, object]:
    """The reaper's last look. ``age``: seconds since then, None when it has not looked yet."""
    return {
        "age": round(max(now - report.at, 0.0), 1) if report.at else None,
        "result": report.result,
        "standby": report.standby,
        "error": report.error,
        "grants": report.grants,
        "foreign": report.foreign,
        "damaged": report.damaged,
        "healed": report.healed,
        "kept": [kept._asdict() for kept in report.kept[:MOST_TOLD]],
        "kept_count": len(report.kept),
    }


def _ask(question: Callable[[], object]) -> str:
    """Empty when it is answered, else what went wrong. Blocks."""
    try:
        question()
    except SecureSlurmError as error:
        return str(error) or type(error).__name__
    return ""
