"""Stopping a job on this node: its processes frozen, its key out of the kernel. What is left is for its tear-down.

The key goes whether or not the processes could be stopped. What they have mapped or read stays in the page cache, which
frozen processes do not look at, and goes with the unmount (docs/decisions/0023-revocation.md).

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import SecureSlurmError
from keys import freezer
from keys.process import Budget, program
from keys.scratch import crypt

if TYPE_CHECKING:
    from keys.journal import Journal

SECONDS = 20.0
_LOCK = 3.0
_SET_UP = ("planned", "backing", "loop", "mapping", "filesystem", "mount")


class Stopped(NamedTuple):
    """What was done. ``keyless``: there is no mapping that could still be read; ``wiped``: there was one until now.

    ``problem``: what went wrong, empty when nothing did.
    """

    frozen: freezer.Frozen
    keyless: bool
    wiped: bool
    problem: str

    @property
    def done(self) -> bool:
        """Nothing is left to do: a process that cannot be frozen (it waits for a dead server) has no key either."""
        return self.keyless

    def evidence(self) -> str:
        """In words, for the trail."""
        count = f"{self.frozen.number} {'cgroups' if self.frozen.how == 'cgroup' else 'processes'}"
        stopped = f"{count} frozen" if self.frozen.how != "none" else "no process was there"
        stopped += "" if self.frozen.complete else ", not all of them"
        key = "the key was wiped" if self.wiped else "no key was there" if self.keyless else "the key is still there"
        return f"{stopped}; {key}" + (f"; {self.problem}" if self.problem else "")


def stop_job(journal: Journal, run_dir: str, job: int) -> Stopped:
    """Freeze and wipe; may be called again. Raises nothing that has to do with the node's state: see ``problem``."""
    problems: list[str] = []
    if is_starting(journal, run_dir, job):
        # a set-up that is under way gives up at its next step, and undoes itself
        try:
            journal.revoke(job)
        except (SecureSlurmError, OSError) as error:
            problems.append(str(error))
    frozen = freezer.freeze(journal.node, job)
    wiped = False
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(journal.lock(job, _LOCK))
        except (SecureSlurmError, OSError) as error:
            # a tear-down that hangs; each step of theirs and ours can be repeated
            problems.append(str(error))
        try:
            wiped = crypt.wipe_key(_mapper(journal.node, job), Budget(SECONDS))
        except (SecureSlurmError, OSError) as error:
            problems.append(str(error))
    return Stopped(frozen, is_keyless(journal.node, job), wiped, "; ".join(problems)[:300])


def is_keyless(node: str, job: int) -> bool:
    """Whether the job has no mapping here, or one that fails every access."""
    name = _mapper(node, job)
    try:
        if crypt.find(name) is None:
            return True
        argv = [program("dmsetup"), "table", "--", name]
        lines = Budget(SECONDS).run(argv, cap=SECONDS).stdout.decode("ascii", "replace").splitlines()
        return bool(lines) and all(line.split()[2:3] == ["error"] for line in lines)
    except (SecureSlurmError, OSError):
        return crypt.find(name) is None


def _mapper(node: str, job: int) -> str:
    # by node and job alone, as every mapping of ours (keys/scratch/plan.py)
    return f"secure-{node}-{job}"


def is_starting(journal: Journal, run_dir: str, job: int) -> bool:
    """Whether a set-up of the job is under way, or may be."""
    try:
        record = journal.read(job)
    except (SecureSlurmError, OSError):
        return True
    if record is None:
        # a job without scratch has no journal; its Prolog has ended once its tasks' facts are there
        return not os.path.lexists(f"{run_dir}/task/{job}")
    return record.state in _SET_UP
