"""What a step of the chain can say, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from conf.policy import Policy
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.snapshot import Snapshot


class Allow(NamedTuple):
    """This step has nothing against the job."""


class Deny(NamedTuple):
    """No. ``rule`` is stable and documented, ``message`` says what happened, ``advice`` what would be accepted."""

    rule: str
    message: str
    advice: str = ""


class Context(NamedTuple):
    """What is known besides the job, taken once per request so that no step sees a reload half way.

    ``members`` None: who is in which group is unknown (missing or too old), and ``members_problem`` says why.
    """

    policy: Policy
    members: Snapshot | None = None
    members_problem: str = "the group members have not been read yet"
    members_advice: str = "try again later"


Verdict = Allow | Deny
Mutator = Callable[[SubmitJob, Context], SubmitJob | Deny]
Judge = Callable[[SubmitJob, Context], Verdict]

ALLOW = Allow()
