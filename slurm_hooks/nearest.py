"""The nearest request that the engine would allow: the fewest options changed, and never less protection.

The rule that refuses says what could be changed; each change is put to the whole chain, and where that refuses again,
for another rule, one goes on from there. No weaker class is ever tried, nor another residency than the one that was
named (a misspelt name is mended): what data is and where it belongs, nobody changes for a yes.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Mapping
from typing import NamedTuple

from slurm_hooks.explain import explain
from slurm_hooks.filters import chain
from slurm_hooks.filters.job import SubmitJob, from_fields
from slurm_hooks.filters.verdict import Context, Deny
from slurm_hooks.fixes import BY_RULE, Change, Fields

MAX_TRIES = 64
"""Requests that are put to the chain at most: slurmctld waits meanwhile."""
MAX_SECONDS = 0.02


def nearest(
    fields: Fields, context: Context, tries: int = MAX_TRIES, seconds: float = MAX_SECONDS
) -> tuple[Change, ...] | None:
    """The changes that make the request an allowed one; None when none was found within ``tries`` and ``seconds``."""
    end = time.monotonic() + seconds
    refused = _refused(fields, context)
    if refused is None:
        return ()
    count = 1
    # fewest changes first; of these, what came furthest in the chain
    waiting: list[tuple[int, int, int, Fields, tuple[Change, ...], Refused]] = [(0, 0, 0, fields, (), refused)]
    while waiting:
        _, _, _, asked, changes, why = heapq.heappop(waiting)
        find = BY_RULE.get(why.deny.rule)
        # nothing for what nobody but an admin can change
        for fix in find(asked, why.job, context) if find else ():
            if any(each.option == fix.change.option for each in changes):
                continue
            if count >= tries or time.monotonic() > end:
                return None
            count += 1
            other = _with(asked, fix.fields)
            made = (*changes, fix.change)
            again = _refused(other, context)
            # walked once more by the step: what would not be signed is no yes
            if again is None and explain(other, context).allowed:
                return made
            if again is not None:
                heapq.heappush(waiting, (len(made), -again.step, count, other, made, again))
    return None


class Refused(NamedTuple):
    """The refusal of a request, how many steps it had passed, and the job as far as the chain had made it."""

    deny: Deny
    step: int
    job: SubmitJob


def _refused(fields: Fields, context: Context) -> Refused | None:
    try:
        job = from_fields(fields)
    except Exception:  # noqa: BLE001 - what cannot be read has no nearest
        return Refused(chain.NO_VERDICT, 0, SubmitJob(submit_uid=0, user_id=None, user_name=None, strings={}))
    step = 0
    try:
        for step, mutator in enumerate(chain.MUTATORS):
            found = chain.mutate_job(job, context, (mutator,))
            if isinstance(found, Deny):
                return Refused(found, step, job)
            job = found
        for step, judge in enumerate(chain.SUBMIT_JUDGES, len(chain.MUTATORS)):
            verdict = chain.judge_job(job, context, (judge,))
            if isinstance(verdict, Deny):
                return Refused(verdict, step, job)
    except Exception:  # noqa: BLE001 - as in the engine: what fails refuses
        return Refused(chain.NO_VERDICT, step, job)
    return None


def _with(fields: Fields, changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {name: value for name, value in {**fields, **changes}.items() if value is not None}
