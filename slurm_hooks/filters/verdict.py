"""What a step of the chain can say, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import NamedTuple

import attrs

from conf.policy import Policy, ended
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.hostnames import Hosts
from slurm_hooks.revoked import Revocation
from slurm_hooks.running import Places
from slurm_hooks.snapshot import Snapshot

NO_TIME = 253402300799.0
"""The last second of the year 9999: for who says no time, everything that ends has ended."""


class Deny(NamedTuple):
    """No. ``rule`` is stable and documented, ``message`` says what happened, ``advice`` what would be accepted."""

    rule: str
    message: str
    advice: str = ""


class Allow(NamedTuple):
    """This step has nothing against the job. ``shadowed``: what rules in shadow would have refused.

    ``exemptions``: the ids of the break-glass grants without which it would have been refused.
    """

    shadowed: tuple[Deny, ...] = ()
    exemptions: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Exemption:
    """A break-glass grant in force: ``user`` holds ``role`` too, or may change the tag of ``job``, until ``until``.

    ``until`` in Unix seconds; exactly one of ``role`` and ``job`` is set. ``id`` joins every use of it to its approval.
    ``uid``: the user's, by which a change of a job is known. ``ended``: before its time; it is here only so that a
    refusal can say so.
    """

    id: str
    user: str
    until: float
    role: str | None = None
    job: int | None = None
    uid: int | None = None
    ended: bool = False

    def holds(self, now: float) -> bool:
        """Whether it is in force at this moment (Unix seconds)."""
        return not self.ended and now < self.until


class Context(NamedTuple):
    """What is known besides the job, taken once per request so that no step sees a reload half way.

    ``members`` None: who is in which group is unknown (missing or too old), and ``members_problem`` says why. ``now``:
    Unix seconds. ``exemptions``: the break-glass grants; whether one has ended is asked here, not where it was read.
    ``running``: the tagged jobs of each node. ``revoked``: the revocations in force. ``hosts``: which
    nodes the hosts are that are called by their address; None: nobody has said so yet.
    """

    policy: Policy
    members: Snapshot | None = None
    members_problem: str = "the group members have not been read yet"
    members_advice: str = "try again later"
    now: float = NO_TIME
    exemptions: tuple[Exemption, ...] = ()
    running: Places = MappingProxyType({})
    revoked: tuple[Revocation, ...] = ()
    hosts: Hosts | None = None

    def shadows(self, rule: str) -> bool:
        """Whether the policy has put a rule in shadow, until a day that is not over."""
        until = self.policy.shadow.get(rule)
        return until is not None and not ended(until, self.now)

    def exempt_roles(self, user: str) -> dict[str, str]:
        """The roles that a user holds by break-glass at this moment, each with the id of the grant."""
        return {
            each.role: each.id
            for each in self.exemptions
            if each.role is not None and each.user == user and each.holds(self.now)
        }

    def lapsed(self, user: str, roles: Iterable[str]) -> Exemption | None:
        """The last grant of one of these roles to a user, when it has ended."""
        wanted = frozenset(roles)
        mine = [each for each in self.exemptions if each.role in wanted and each.user == user]
        return max((each for each in mine if not each.holds(self.now)), key=lambda each: each.until, default=None)

    def retagging(self, uid: int, job: int) -> Exemption | None:
        """The grant by which somebody may change the tag of this job at this moment."""
        mine = (each for each in self.exemptions if each.job == job and each.uid == uid)
        return next((each for each in mine if each.holds(self.now)), None)


Verdict = Allow | Deny
Mutator = Callable[[SubmitJob, Context], SubmitJob | Deny]
Judge = Callable[[SubmitJob, Context], Verdict]

ALLOW = Allow()
