"""Freezing a job on this node so that it may go on: processes stand still, the key is gone, all else stays.

Beside :mod:`keys.stopping`, which is for good. The journal keeps the wrapped data key, which is useless without Vault.

Standard library only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conf.errors import SecureSlurmError
from keys import freezer
from keys.process import Budget
from keys.scratch import keyless

if TYPE_CHECKING:
    from keys.journal import Journal
    from keys.secret import Secret

SECONDS = 20.0
_LOCK = 3.0


class Froze(NamedTuple):
    """What was done. ``wiped``: there was a key, and it is gone. ``problem``: what went wrong, "" for nothing."""

    frozen: freezer.Frozen
    wiped: bool
    problem: str

    def evidence(self) -> str:
        """In words, for the trail."""
        count = f"{self.frozen.number} {'cgroups' if self.frozen.how == 'cgroup' else 'processes'}"
        stopped = f"{count} frozen" if self.frozen.how != "none" else "no process was there"
        stopped += "" if self.frozen.complete else ", not all of them"
        key = "the key was wiped" if self.wiped else "no key was there"
        return f"{stopped}; " + (self.problem or key)


def freeze_job(journal: Journal, job: int) -> Froze:
    """Freeze the processes, suspend the mapping, wipe its key; may be called again. Raises nothing of the node's."""
    frozen = freezer.freeze(journal.node, job)
    try:
        # a tear-down takes the mapping away for good, and must not meet one that comes back to life
        with journal.lock(job, _LOCK):
            wiped = keyless.take(mapper(journal.node, job), Budget(SECONDS))
    except (SecureSlurmError, OSError) as error:
        return Froze(frozen, False, str(error)[:300])
    return Froze(frozen, wiped, "")


def thaw_job(journal: Journal, job: int, key: Secret | None) -> str:
    """Give the mapping its key and have all go on; what went wrong, "" for nothing. ``key`` is wiped in any case.

    A mapping that goes on already has its key: then only the processes are let go. Without a key for a mapping that
    waits for one nothing is let go: a process would run into it and could not even be killed.
    """
    name = mapper(journal.node, job)
    try:
        with journal.lock(job, _LOCK):
            if keyless.waits(name):
                if key is None:
                    return "there is no key for its scratch"
                keyless.give(name, key, Budget(SECONDS))
    except (SecureSlurmError, OSError) as error:
        return str(error)[:300]
    finally:
        if key is not None:
            key.wipe()
    return "" if freezer.thaw(journal.node, job) else "not all of its processes could be told to go on"


def mapper(node: str, job: int) -> str:
    """The name of the job's mapping (keys/scratch/plan.py)."""
    return f"secure-{node}-{job}"
