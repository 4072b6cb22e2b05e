"""What an earlier boot of this node left on its disks: taken away without asking anybody.

No process, mapping or key outlives a boot, so what a record of another boot names is nobody's any more, whatever Slurm
says of a job with that number. What the kernel of *this* boot knows under such a name is no such thing, and is left to
the reaper, which asks.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import SecureSlurmError
from keys.durable import Kept, boot_id
from keys.scratch import backing, crypt, loop
from keys.scratch.mounts import below, mounts
from keys.scratch.plan import names_from_config
from keys.scratch.report import Report
from keys.scratch.teardown import close_locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keys.journal import Journal

REASON = "left by an earlier boot of this node"


class Taken(NamedTuple):
    """One job's remains. ``problem``: why they are still there; "" when they are gone."""

    job: int
    report: Report
    problem: str


def sweep(journal: Journal, scratch: Mapping[str, Any], *, seconds: float) -> Iterator[Taken]:
    """Take away what earlier boots left of every job, one after the other, until ``seconds`` have passed.

    A job that somebody works on is left out, and so is one whose record is damaged: then nobody knows of which boot it
    is. Raises SecureSlurmError or OSError when the records cannot be looked at at all.
    """
    end = time.monotonic() + seconds
    durable = journal.durable
    this = boot_id() if durable is not None else ""
    for job in [] if durable is None else durable.jobs():
        left = end - time.monotonic()
        if left <= 0:
            return
        with contextlib.suppress(SecureSlurmError, OSError):
            kept = durable.read(job) if durable is not None else None
            if kept is not None and kept.boot != this:
                taken = _take(journal, scratch, kept, left)
                if taken is not None:
                    yield taken


def _take(journal: Journal, scratch: Mapping[str, Any], kept: Kept, patience: float) -> Taken | None:
    """None: it is not what it looked like. JournalError: somebody works on this job."""
    with journal.lock(kept.job, 0.0):
        names = names_from_config(journal.node, kept.job, scratch)
        again = journal.durable.read(kept.job) if journal.durable is not None else None
        if again != kept or _begun_here(journal, kept.job) or _in_kernel({names.mapper, kept.mapper}, kept, names.path):
            return None
        report = Report(journal.node, kept.job)
        try:
            close_locked(journal, names, report, patience=patience, revoke=False)
        except (SecureSlurmError, OSError) as error:
            return Taken(kept.job, report, str(error))
        return Taken(kept.job, report, "")


def _begun_here(journal: Journal, job: int) -> bool:
    record = journal.read(job)
    return record is not None and record.state != "destroyed"


def _in_kernel(mappers: set[str], kept: Kept, path: str) -> bool:
    if any(crypt.find(mapper) is not None for mapper in mappers) or below(kept.mount_point, mounts()):
        return True
    return kept.backing in backing.LOOPED and any(loop.find(each) for each in {path, kept.backing_path})
