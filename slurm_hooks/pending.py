"""What is still to be destroyed: the notes of ended jobs, tried again and again until Vault has confirmed each.

Of several head nodes the one that acts does it, and the folder is shared. A note that it finds when it takes over may
be older than what runs now: the folder is not shared after all, and the head node that acted meanwhile has started the
job anew. Such a note is worked off when slurmctld does not call the job alive, and else left, unless the job is one
that a revocation ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from conf.errors import BackendUnavailable, SecureSlurmError
from slurm_hooks import ended
from slurm_hooks.headreaper import FINISHED, WAITING
from slurm_hooks.slurmview import View

LOG = logging.getLogger(__name__)

RETRY_FIRST, RETRY_MOST = 1.0, 30.0
"""Seconds between two tries to destroy what Vault has not confirmed; doubled up to the second figure."""
OVER = FINISHED | WAITING
_FOUND = "its note was found at a take-over, and slurmctld"


class SpoolNotes:
    """The notes of ended jobs in one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def all(self) -> list[ended.EndedJob]:
        """Every note there is."""
        return self._read(None)

    def of(self, job: int) -> list[ended.EndedJob]:
        """The notes of one job. BackendUnavailable when the folder cannot be read: no start without its notes."""
        return self._read(job)

    def _read(self, job: int | None) -> list[ended.EndedJob]:
        try:
            return ended.read(self._folder, job)
        except OSError as error:
            raise BackendUnavailable(
                f"{self._folder}: the notes of ended jobs cannot be read: {error.strerror}",
                advice="it must belong to this daemon's account, group SlurmUser's, mode 0770 (conf/tmpfiles)",
            ) from None

    def remove(self, note: ended.EndedJob) -> None:
        """Once Vault has confirmed."""
        ended.remove(note)


class Pending:
    """Works the notes off.

    ``finish`` destroys what one is about. ``look`` asks Slurm, and blocks. ``revoked``: whether a revocation ends it,
    whatever Slurm says. ``failures`` is kept up to date: why the last try for a job came to nothing.
    """

    def __init__(
        self,
        notes: SpoolNotes,
        finish: Callable[[ended.EndedJob], Awaitable[None]],
        *,
        look: Callable[[], View],
        revoked: Callable[[int], bool],
        failures: dict[int, str],
    ) -> None:
        self._notes = notes
        self._finish = finish
        self._look = look
        self._revoked = revoked
        self._failures = failures
        self._found: frozenset[str] | None = frozenset()
        self._wake = asyncio.Event()

    def take_over(self) -> None:
        """Whatever lies there now was left by another head node, or by this one before another acted."""
        self._found = None
        self._wake.set()

    async def forever(self, acts: Callable[[], bool]) -> None:
        """Until nothing is left of them, as long as this head node acts."""
        wait = RETRY_FIRST
        while True:
            self._wake.clear()
            try:
                done = not acts() or await self.once()
            except Exception:
                # whatever it was (no thread to be had, say): keys that nobody destroys any more would live on
                LOG.exception("a round of destroying keys failed")
                done = False
            wait = RETRY_FIRST if done else min(wait * 2, RETRY_MOST)
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def once(self) -> bool:
        """Try once for every note; whether all are done. Whatever goes wrong with one must not keep the others."""
        done = True
        try:
            notes = self._notes.all()
        except SecureSlurmError as error:
            LOG.error("%s", error)
            return False
        for job in self._failures.keys() - {note.job for note in notes}:
            del self._failures[job]
        if self._found is None:
            self._found = frozenset(note.path for note in notes)
        held = await self._held([note.job for note in notes if note.path in self._found])
        for note in notes:
            if note.job in held and note.path in self._found:
                done = False
                self._failures[note.job] = held[note.job]
            else:
                done = await self._one(note) and done
        return done

    async def _held(self, jobs: list[int]) -> dict[int, str]:
        """Of jobs whose notes were found, those to be left alone for now, and why."""
        jobs = [job for job in jobs if not self._revoked(job)]
        if not jobs:
            return {}
        try:
            view = await asyncio.to_thread(self._look)
        except SecureSlurmError as error:
            return dict.fromkeys(jobs, f"{_FOUND} does not say what became of it: {error}")
        held = {job: f"{_FOUND} has not given that number yet" for job in jobs if job >= view.controller.next_job}
        # what it does not list has ended once, by the note, and is not alive: or is hidden, and then the note decides
        seen = {job: view.jobs[job].state for job in jobs if job in view.jobs}
        return held | {job: f"{_FOUND} calls it {state}" for job, state in seen.items() if state not in OVER}

    async def _one(self, note: ended.EndedJob) -> bool:
        try:
            await self._finish(note)
        except SecureSlurmError as error:
            LOG.warning("job %d: keys are not confirmed as destroyed yet: %s", note.job, error)
            self._failures[note.job] = str(error)
        except Exception as error:
            self._failures[note.job] = f"a defect ({type(error).__name__}): see the daemon's log"
            LOG.exception("job %d: destroying its keys failed", note.job)
        else:
            return True
        return False
