"""The reaper of one node: what no job has any more goes within a minute, what lives is never touched.

Run by a timer every 20 seconds, by root, in the namespaces of slurmd, and by ``secure-slurm node reap``. It looks at
what has a name of ours (kernel, disks, journal, task files), asks the kernel what lives, then Slurm, and destroys by
the rule of :mod:`slurm_hooks.reap_rule` with the Epilog's own code, under the job's lock, after asking all of it again.

Standard library only: it runs under ``python3 -IS`` on every compute node all day.
"""

# pathlib is left out on purpose

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from audit.chain import Chain
from conf.errors import SecureSlurmError
from conf.hookconf import read_hook_config
from conf.slurmnames import for_node
from keys.durable import boot_id, boot_time
from keys.journal import JournalError, journal_of
from keys.scratch import deadboot
from keys.scratch.errors import ScratchLeft
from keys.scratch.plan import names_from_config
from keys.scratch.present import foreign, jobs_present
from keys.scratch.report import Report
from keys.scratch.teardown import PATIENCE, close_locked
from slurm_hooks import reap_rule, taskfile
from slurm_hooks.hookenv import say
from slurm_hooks.reap_memory import Memory
from slurm_hooks.slurmword import Slurm, Start
from slurm_hooks.steps import jobs_in_cgroups, running_steps

if TYPE_CHECKING:
    from keys.journal import Record
    from slurm_hooks.reap_rule import Remains, Ruling, Seen

SECONDS = 60.0
"""For one run. What has to wait longer is for the next, which the timer starts."""
_BOOT_PATIENCE = 30.0
_STEP = 20.0
_AGAIN = 10.0
_PROBLEM, _HEALED = "problem", "healed"


class Outcome(NamedTuple):
    """What became of one job's remains: a kind of :mod:`slurm_hooks.reap_rule`, ``healed``, or ``problem`` (they could
    not be looked at, or not be taken away). ``removed``: as ``kind: name``.
    """

    job: int
    kind: str
    why: str
    removed: tuple[str, ...] = ()

    @property
    def bad(self) -> bool:
        """Whether an admin has to look."""
        return self.kind in (_PROBLEM, reap_rule.FOREIGN)


class _Life:
    """What lives on this machine, looked up once."""

    def __init__(self) -> None:
        self._steps = running_steps()
        self._jobs: set[int] | None = None

    def of(self, job: int) -> str:
        """What of the job lives, in words; "" for nothing. OSError: that cannot be told."""
        for pid, owner in self._steps.items():
            if owner in (job, None):
                return f"slurmstepd {pid} runs it" if owner else f"slurmstepd {pid} does not say which job it has"
        if self._jobs is None:
            self._jobs = jobs_in_cgroups()
        return "processes are in its cgroup" if job in self._jobs else ""


class Reaper:
    """One node's. ``slurm`` is asked for its word on jobs."""

    def __init__(self, config: dict[str, Any], node: str, slurm: Slurm) -> None:
        self._node = node
        self._scratch: dict[str, Any] = config["scratch"]
        self._deadline = float(config["node"]["prolog_deadline"])
        self._run_dir = for_node(config["node"]["run_dir"], node)
        self._journal = journal_of(config, node)
        self._slurm = slurm
        self._memory = Memory(self._run_dir, boot_id())
        self._audit = f"{config['audit']['directory']}/node-{node}"

    def run(self, *, once: bool) -> list[Outcome]:
        """Look until nothing can become an orphan within this run; what the last look saw, and all that was done."""
        end = time.monotonic() + SECONDS
        done: list[Outcome] = []
        while True:
            outcomes, wait = self._look()
            done += [each for each in outcomes if each.kind == _HEALED]
            rest = [each for each in outcomes if each.kind != _HEALED]
            if once or wait <= 0 or time.monotonic() + wait > end:
                return done + rest
            time.sleep(min(wait + 0.05, _STEP))

    def _look(self) -> tuple[list[Outcome], float]:
        """One look; the seconds until it is worth while to look again, 0 for not at all."""
        outcomes = self._earlier_boots()
        try:
            jobs, life = self._jobs(), _Life()
        except (SecureSlurmError, OSError) as error:
            return [*outcomes, Outcome(0, _PROBLEM, str(error))], 0.0
        self._slurm.refresh()
        seen: dict[int, Seen] = {}
        told: dict[int, str] = {}
        wait = 0.0
        for job in jobs:
            try:
                outcome, ruling = self._one(job, life)
            except (SecureSlurmError, OSError) as error:
                outcome, ruling = Outcome(job, _PROBLEM, str(error)), None
            outcomes.append(outcome)
            if ruling is not None and ruling.seen is not None and outcome.kind != _HEALED:
                seen[job] = ruling.seen
                wait = min(wait or ruling.wait, ruling.wait) if ruling.wait > 0 else wait
            elif ruling is None and job in self._memory.seen:
                seen[job] = self._memory.seen[job]
            if outcome.kind == _PROBLEM:
                told[job] = outcome.why
                if self._memory.told.get(job) != outcome.why:
                    self._note("hook.error", job=job, hook="reaper", rule="scratch.not-gone", reason=outcome.why)
        if (seen, told) != (self._memory.seen, self._memory.told):
            with contextlib.suppress(OSError):
                self._memory.save(seen, told)
        return outcomes, wait

    def _earlier_boots(self) -> list[Outcome]:
        outcomes = []
        try:
            for taken in deadboot.sweep(self._journal, self._scratch, seconds=_BOOT_PATIENCE):
                if taken.problem:
                    outcomes.append(Outcome(taken.job, _PROBLEM, taken.problem))
                    continue
                self._note("scratch.gone", **taken.report.absent())
                self._note("reaper.healed", **taken.report.healed(deadboot.REASON))
                outcomes.append(Outcome(taken.job, _HEALED, deadboot.REASON, tuple(taken.report.removed)))
        except (SecureSlurmError, OSError) as error:
            outcomes.append(Outcome(0, _PROBLEM, str(error)))
        return outcomes

    def _jobs(self) -> list[int]:
        jobs = set(jobs_present(self._node, self._scratch))
        jobs.update(self._journal.durable.jobs() if self._journal.durable is not None else ())
        jobs.update(taskfile.jobs(self._run_dir))
        return sorted(jobs)

    def _one(self, job: int, life: _Life) -> tuple[Outcome, Ruling]:
        remains, ruling = self._rule(job, life, locked=self._journal.locked(job))
        if ruling.kind != reap_rule.ORPHAN:
            return Outcome(job, ruling.kind, ruling.why), ruling
        try:
            with self._journal.lock(job, 0.0):
                # a start that was let in meanwhile, or slurmctld's own change of mind
                self._slurm.refresh()
                again, ruling = self._rule(job, _Life(), locked=False)
                if ruling.kind != reap_rule.ORPHAN or again.start != remains.start:
                    return Outcome(job, ruling.kind, ruling.why), ruling
                return self._destroy(job, ruling.why), ruling
        except JournalError as error:
            return Outcome(job, reap_rule.BUSY, str(error)), ruling

    def _rule(self, job: int, life: _Life, *, locked: bool) -> tuple[Remains, Ruling]:
        record, known = self._record(job)
        remains = reap_rule.Remains(
            start=record.incarnation if record else "",
            begun=self._begun(job, known=known),
            locked=locked,
            life=life.of(job),
            foreign=foreign(self._node, job, self._scratch),
        )
        start = Start(record.uid or -1, record.restarts) if record else Start()
        word = self._slurm.word(job, start) if reap_rule.needs_slurm(remains) else None
        return remains, reap_rule.rule(remains, word, self._memory.seen.get(job), boot_time(), self._deadline)

    def _record(self, job: int) -> tuple[Record | None, bool]:
        """What is written of a job's latest start, and whether there is anything, damaged or not."""
        known = False
        for read in (self._journal.read, self._journal.before_reboot):
            try:
                record = read(job)
            except (SecureSlurmError, OSError):
                known = True
            else:
                if record is not None and record.state != "destroyed":
                    return record, True
        return None, known

    def _begun(self, job: int, *, known: bool) -> float | None:
        with contextlib.suppress(SecureSlurmError, OSError):
            kept = self._journal.durable.read(job) if self._journal.durable is not None else None
            if kept is not None and kept.boot == boot_id():
                return kept.since
        return None if known else -1.0

    def _destroy(self, job: int, why: str) -> Outcome:
        started = time.monotonic()
        report = Report(self._node, job)
        # what did not go before is tried again in each run: not so long, and without a line each time
        again = job in self._memory.told
        if not again:
            self._note("scratch.close", job=job, reason=f"reaper: {why}")
        removed = ["task file"] if taskfile.remove(self._run_dir, job) else []
        try:
            names = names_from_config(self._node, job, self._scratch)
            close_locked(self._journal, names, report, patience=_AGAIN if again else PATIENCE, revoke=False)
        except ScratchLeft as error:
            return Outcome(job, _PROBLEM, str(error), tuple(removed + report.removed))
        # the claim of the start that is gone; that of a later one is a later start's own
        with contextlib.suppress(SecureSlurmError, OSError):
            self._journal.revoke(job, report.incarnation)
        self._note("scratch.gone", **report.absent(*removed))
        self._note("reaper.healed", seconds=time.monotonic() - started, **report.healed(why, *removed))
        return Outcome(job, _HEALED, why, tuple(removed + report.removed))

    def _note(self, event: str, **fields: object) -> None:
        """An audit line; a log that is full never stops a destruction."""
        try:
            Chain(self._audit, "node", self._node).append(event, durable=True, **{"node": self._node, **fields})
        except (SecureSlurmError, OSError, ValueError) as error:
            say("reaper", f"the audit trail lacks {event}: {error}")


def reap(config: dict[str, Any], node: str, *, once: bool) -> list[Outcome]:
    """Run the reaper of a node. Raises SecureSlurmError when it cannot begin."""
    return Reaper(config, node, Slurm(config["cluster"]["slurm_bin"], node)).run(once=once)


def main() -> int:
    """The timer's: ``reaper NODE [--once]``. 0: nothing is left that should not be; 1: something is, or who knows."""
    os.umask(0o077)
    try:
        outcomes = reap(read_hook_config(check_sources=False), sys.argv[1], once="--once" in sys.argv[2:])
    except (SecureSlurmError, OSError, IndexError, KeyError) as error:
        say("reaper", f"it cannot begin: {error!r}")
        return 1
    for each in outcomes:
        if each.bad or each.kind == _HEALED:
            say("reaper", f"job {each.job}: {each.kind}: {each.why}" + "".join(f"; {item}" for item in each.removed))
    return 1 if any(each.bad for each in outcomes) else 0
