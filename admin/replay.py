"""The jobs of the accounting against a policy: what would have been decided on each, and how that differs.

A decision is the engine's own (:mod:`slurm_hooks.engine`), on the request that job_submit.lua would have sent.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from admin.sacct_job import Accounted, accounted
from conf.policy import Policy
from keys.secret import Secret
from slurm_hooks.engine import POLICY_DIGITS, Decision, Signer, decide_submit
from slurm_hooks.filters.verdict import Context
from slurm_hooks.snapshot import Snapshot

EXAMPLES = 5
"""Jobs that are named for each rule and user."""
_REMEMBERED = 16384
"""Decisions: the tasks of an array, and most of what one user submits, ask the same."""

Fields = tuple[tuple[str, bytes], ...]
Kind = Literal["newly refused", "newly allowed", "other rule", "in shadow"]
KINDS: tuple[Kind, ...] = ("newly refused", "newly allowed", "other rule", "in shadow")
ACCEPTED = "accepted"
"""Stands for the rule of a job's real decision: whatever is in the accounting was accepted."""


class Verdict(NamedTuple):
    """A decision, without what only Slurm needs."""

    allowed: bool
    rule: str
    message: str = ""
    advice: str = ""
    shadowed: tuple[str, ...] = ()


class Change(NamedTuple):
    """A job on which the policies differ, and what each of the two says."""

    kind: Kind
    job: Accounted
    before: Verdict
    after: Verdict

    @property
    def told(self) -> Verdict:
        """The refusal, which says why; for a newly allowed job the one that would be no more."""
        return self.before if self.kind == "newly allowed" else self.after


class Group:
    """The jobs of one user that one rule decides otherwise."""

    __slots__ = ("examples", "jobs", "told")

    def __init__(self, told: Verdict) -> None:
        self.jobs = 0
        self.examples: list[str] = []
        self.told = told

    def add(self, job: str) -> None:
        """One more."""
        self.jobs += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(job)


class Replay:
    """Judge one job after the other with :meth:`take`; what was found is in the attributes.

    ``before`` None: compared with what happened. ``each`` is told every change. Of the jobs themselves nothing is kept.
    """

    def __init__(
        self,
        policy: Policy,
        before: Policy | None,
        members: Snapshot,
        now: float,
        each: Callable[[Change], None] = lambda _: None,
    ) -> None:
        self._new = _judge(policy, members, now)
        self._old = None if before is None else _judge(before, members, now)
        self._each = each
        self._short = policy.hash[:POLICY_DIGITS]
        self.judged = 0
        self.unreadable = 0
        self.without_partition = 0
        self.under_this_policy = 0
        self.kinds: Counter[Kind] = Counter()
        self.tags: Counter[str] = Counter()
        self.policies: Counter[str] = Counter()
        self.groups: dict[tuple[Kind, str, str], Group] = {}

    @property
    def unchanged(self) -> int:
        """Jobs on which both agree."""
        return self.judged - sum(self.kinds[kind] for kind in KINDS if kind != "in shadow")

    def take(self, entry: object) -> None:
        """Judge one entry of ``jobs``. Never raises because of what it holds."""
        job = accounted(entry)
        if job is None:
            self.unreadable += 1
            return
        self.judged += 1
        self.tags[job.tag_from] += 1
        self.policies[job.policy] += 1
        self.without_partition += not job.submission.texts["partition"]
        fields: Fields = tuple(job.submission.fields().items())
        after = self._new(fields)
        before = Verdict(True, ACCEPTED) if self._old is None else self._old(fields)
        kind = _kind(before, after)
        if kind is not None:
            self._add(Change(kind, job, before, after))
        if after.allowed:
            # told beside the comparison: shadow mode changes no verdict
            for rule in after.shadowed:
                self._add(Change("in shadow", job, before, after._replace(rule=rule, message="", advice="")))

    def _add(self, change: Change) -> None:
        kind, job, told = change.kind, change.job, change.told
        self.kinds[kind] += 1
        self.under_this_policy += kind == "newly refused" and job.policy == self._short
        key = (kind, told.rule, job.user)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(told)
        group.add(job.name)
        self._each(change)

    def sorted_groups(self) -> list[tuple[tuple[Kind, str, str], Group]]:
        """By kind, then the largest first."""
        return sorted(self.groups.items(), key=lambda pair: (KINDS.index(pair[0][0]), -pair[1].jobs, pair[0]))


def _kind(before: Verdict, after: Verdict) -> Kind | None:
    if before.allowed != after.allowed:
        return "newly refused" if before.allowed else "newly allowed"
    return "other rule" if not after.allowed and before.rule != after.rule else None


def _judge(policy: Policy, members: Snapshot, now: float) -> Callable[[Fields], Verdict]:
    context = Context(policy, members, now=now)
    # the key is made up: no record of a replay is worth anything
    signer = Signer("replay", Secret(secrets.token_bytes(32)), frozenset({0}))

    @lru_cache(_REMEMBERED)
    def judge(fields: Fields) -> Verdict:
        found: Decision = decide_submit(dict(fields), context, signer)
        return Verdict(found.allowed, found.rule, found.message, found.advice, found.shadowed)

    return judge
