"""The hand's part for jobs that may go on: freeze, hand out the wrapped key, take the key and let them go.

A frozen job's lease does not end: there is nothing left to take from it. It stays frozen over restarts of the hand, of
the node daemon and of the head node, until the head node orders otherwise, or it is over.

A frozen process that is killed while it waits for the suspended device cannot die, and would drain the node. So a job
of which one is seen is stopped for good: the device fails, the process dies, and the job's end takes its course.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conf.errors import InternalError, Refused
from keys import freezer, freezing, stopping
from keys.secret import Secret
from slurm_hooks import presence, wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from keys.journal import Journal, Record
    from slurm_hooks.presence import Present

KILLED = "it was killed while it was frozen"


class Freezes:
    """Which jobs are frozen: job to incarnation, in ``jobs``, which the hand keeps on its tmpfs.

    ``save`` puts it there; ``write`` leaves an audit line and never raises; ``before`` raises when it cannot.
    """

    def __init__(
        self,
        journal: Journal,
        run_dir: str,
        save: Callable[[], None],
        write: Callable[..., None],
        before: Callable[..., None],
    ) -> None:
        self.jobs: dict[int, str] = {}
        self.unsure: set[int] = set()
        """Of those, the ones of which it is not certain that the key is gone."""
        self._journal = journal
        self._run_dir = run_dir
        self._save = save
        self._write = write
        self._before = before
        self._sure: set[int] = set()

    def forget(self, here: dict[int, str]) -> None:
        """What is not here any more, or another start of it."""
        for job, incarnation in list(self.jobs.items()):
            if here.get(job) != incarnation:
                self.drop(job)

    def drop(self, job: int) -> None:
        """The job is not frozen: it goes on, or it was stopped for good."""
        self.jobs.pop(job, None)
        self._sure.discard(job)
        self.unsure.discard(job)

    def answer(self, verb: str, present: Present, fields: dict[str, bytes]) -> dict[str, str]:
        """One request about a job that is here. :raises SecureSlurmError: as the three below."""
        if verb == "freeze":
            return {"result": self.freeze(present, wire.text(fields, "reason")[:200])}
        if verb == "wrapped":
            name, wrapped = self.wrapped(present)
            return {"result": presence.FROZEN, "key": name, "wrapped": wrapped, "incarnation": present.incarnation}
        plaintext = fields.get("plaintext", b"")
        return {"result": self.thaw(present, Secret(plaintext) if plaintext else None)}

    def freeze(self, present: Present, reason: str) -> str:
        """``frozen``, ``stopped`` (it was before, for good), or ``failed``."""
        if present.state == presence.STOPPED:
            return presence.STOPPED
        again = present.state == presence.FROZEN and present.job in self._sure
        if again:
            freezer.freeze(self._journal.node, present.job)
            return presence.FROZEN
        if stopping.is_starting(self._journal, self._run_dir, present.job):
            # it has no mapping yet, or one that its set-up still works on: the order comes again in two seconds
            return "failed"
        # first remembered: whoever comes after a crash in the middle goes on with it
        self.jobs[present.job] = present.incarnation
        self.unsure.add(present.job)
        self._save()
        found = freezing.freeze_job(self._journal, present.job)
        result = "failed" if found.problem else presence.FROZEN
        if not found.problem:
            self._sure.add(present.job)
            self.unsure.discard(present.job)
        if present.state != presence.FROZEN or found.problem:
            self._write(
                "job.frozen", present, reason=reason, result=result, evidence=found.evidence(), wiped=found.wiped
            )
        return result

    def wrapped(self, present: Present) -> tuple[str, str]:
        """The transit key's name and the wrapped data key of a frozen job; both "" for one without scratch.

        :raises Refused: ``freeze.not-frozen``. :raises SecureSlurmError: its journal cannot be read, or the trail
            cannot be written: then nothing is handed out.
        """
        record = self._record(present)
        if record is None:
            return "", ""
        self._before("node.unwrap", present, key=record.key_name)
        return record.key_name, record.wrapped_key

    def thaw(self, present: Present, key: Secret | None) -> str:
        """``running`` or ``failed``; for one that was not frozen ``running`` as well: the order was carried out before.

        :raises Refused: ``freeze.stopped``: it was stopped for good.
        """
        if present.state == presence.STOPPED:
            raise Refused("freeze.stopped", "the job was stopped for good on this node: it cannot go on, scancel it")
        if present.state == presence.RUNNING:
            return presence.RUNNING
        # a key that was given before something else failed is taken again at the next tick
        self._sure.discard(present.job)
        self.unsure.add(present.job)
        problem = freezing.thaw_job(self._journal, present.job, key)
        if not problem:
            self.drop(present.job)
            self._save()
        result = "failed" if problem else presence.RUNNING
        self._write("job.thawed", present, result=result, reason=problem or None)
        return result

    def tick(self, present: Present, stop: Callable[[Present, str], str]) -> None:
        """Processes that came since stand still; a key that is still there after a crash goes; who is killed ends."""
        self.freeze(present, "it was to be frozen")
        if freezer.is_being_killed(self._journal.node, present.job):
            self.drop(present.job)
            stop(present, KILLED)

    def _record(self, present: Present) -> Record | None:
        if present.state != presence.FROZEN:
            raise Refused("freeze.not-frozen", "the job is not frozen on this node, so its key is not handed out")
        record = self._journal.read(present.job)
        if record is None or record.state == "destroyed":
            return None
        if record.incarnation != present.incarnation or not record.wrapped_key:
            raise InternalError("the journal does not hold the wrapped key of this start")
        return record
