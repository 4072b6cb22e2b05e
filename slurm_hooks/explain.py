"""Why the engine would say what it says: the same chain, walked step by step, with every step written down.

Nothing here decides: each step is the chain's own, and the verdict is the last step's. What a step rests on is told as
paths into the policy file (``("classes", 1, "max_scratch")``), which who has the file turns into lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from conf.tag import Tag
from keys.secret import Secret
from slurm_hooks import record
from slurm_hooks.engine import ERROR, Signer, record_of
from slurm_hooks.filters import chain, judge_who
from slurm_hooks.filters.job import SubmitJob, from_fields
from slurm_hooks.filters.judge_role import narrowed
from slurm_hooks.filters.verdict import ALLOW, Allow, Context, Deny, Judge, Mutator

Section = tuple[str | int, ...]
Part = Literal["set", "judge"]
MAX_SECTIONS = 8
"""Of one step: a job may name hundreds of partitions, and nobody reads hundreds of lines."""
# shows whether a record of the job could be written at all; what it signs is thrown away
_NO_SIGNER = Signer("explain", Secret(b"no key: what this signs is thrown away"), frozenset())


class Step(NamedTuple):
    """One step of the chain. ``sections``: where in the policy it looked; ``changes``: what it set on the job.

    ``shadowed``: what rules in shadow would have refused. ``exemptions``: the break-glass grants that it needed.
    """

    name: str
    part: Part
    verdict: Literal["allow", "refuse"]
    rule: str = ""
    message: str = ""
    advice: str = ""
    sections: tuple[Section, ...] = ()
    changes: Mapping[str, str] = {}
    shadowed: tuple[Deny, ...] = ()
    exemptions: tuple[str, ...] = ()


class Explanation(NamedTuple):
    """Every step up to the first refusal. ``changes`` is what Slurm would be told to set, but for the record."""

    allowed: bool
    rule: str
    message: str
    advice: str
    steps: tuple[Step, ...]
    tag: Tag | None
    changes: Mapping[str, str]


def explain(
    fields: Mapping[str, bytes],
    context: Context,
    mutators: Sequence[Mutator] = chain.MUTATORS,
    judges: Sequence[Judge] = chain.SUBMIT_JUDGES,
) -> Explanation:
    """What :func:`slurm_hooks.engine.decide_submit` says of this request, and every step on the way. Never raises."""
    steps: list[Step] = []
    tag: Tag | None = None
    try:
        job = from_fields(fields)
        end: Deny | Allow = chain.NO_VERDICT
        for part, each in [("set", step) for step in mutators] + [("judge", step) for step in judges]:
            after, end = _walk(part, each, job, context)
            steps.append(_step(part, each, (job, after), end, context))
            if isinstance(end, Deny):
                break
            job = after
            tag = job.tag
        if isinstance(end, Allow) and not judges:
            end = chain.NO_VERDICT
        if isinstance(end, Allow) and job.tag is not None:
            record.sign(record_of(job, job.tag, context, _NO_SIGNER), _NO_SIGNER.key)
    except Exception:  # noqa: BLE001 - the engine refuses it and logs why; a second log would mislead
        end = ERROR
    if isinstance(end, Deny):
        return Explanation(False, *end, tuple(steps), tag, {})
    rule = "allow.untagged" if tag is None else "allow.tagged"
    return Explanation(True, rule, "", "", tuple(steps), tag, job.changes if tag is not None else {})


def _walk(part: str, step: Any, job: SubmitJob, context: Context) -> tuple[SubmitJob, Allow | Deny]:  # noqa: ANN401 - a step may return anything, which is the point
    """One step, by the chain's own hand: a chain of one. What raises refuses, as in the engine."""
    try:
        if part == "judge":
            return job, chain.judge_job(job, context, (step,))
        result = chain.mutate_job(job, context, (step,))
    except Exception:  # noqa: BLE001 - see explain()
        return job, ERROR
    return (job, result) if isinstance(result, Deny) else (result, ALLOW)


def _step(
    part: str, step: Mutator | Judge, jobs: tuple[SubmitJob, SubmitJob], end: Allow | Deny, context: Context
) -> Step:
    before, after = jobs
    name = getattr(step, "__name__", "step")
    changes = {key: value for key, value in after.changes.items() if before.changes.get(key) != value}
    kind: Part = "judge" if part == "judge" else "set"
    sections = () if end is ERROR else tuple(islice(_sections(name, after, context, end), MAX_SECTIONS))
    if isinstance(end, Deny):
        return Step(name, kind, "refuse", *end, sections, changes)
    return Step(name, kind, "allow", "", "", "", sections, changes, end.shadowed, end.exemptions)


# Where in the policy a step looks: the key of the job's class, of its jurisdiction, or of its partitions.
_CLASS_KEYS = {
    "read_tag": "name",
    "default_scratch": "default_scratch",
    "whole_nodes": "exclusive_nodes",
    "residency": "residency",
    "scratch": "max_scratch",
    "sharing": "exclusive_nodes",
    "default_time": "default_time",
    "most_nodes": "max_nodes",
    "partitions": "partitions",
    "nodes": "max_nodes",
    "time": "max_time",
    "gpus": "max_gpus",
    "gres": "gres",
    "array": "max_array",
    "work_dir": "work_dirs",
    "output": "output_dirs",
    "mail": "mail",
    "container": "containers",
    "burst_buffer": "burst_buffers",
    "environment": "environment",
    "user_environment": "environment",
}
_PARTITION_KEYS = {
    "demanded_tag": "demand_tag",
    "inherited_tag": "demand_tag",
    "partition": "jurisdiction",
    "least_class": "least_class",
}
# steps that look at the job alone
WITHOUT_POLICY = frozenset(
    [
        *("refuse_cut", "allow_requeue", "foreign_record", "asked_tag", "own_job", "known_user", "routes"),
        *("clean_strings", "others", "revoked"),
    ]
)
KNOWN = frozenset([*_CLASS_KEYS, *_PARTITION_KEYS, *WITHOUT_POLICY, "force_constraint", "derive_tag", "role"])
"""The steps that are told with the place in the policy that they stand on, or are known to stand on none."""


def _sections(name: str, job: SubmitJob, context: Context, end: Allow | Deny) -> Iterator[Section]:
    policy = context.policy
    if name in _PARTITION_KEYS:
        # the submitting host counts there, not where the job goes
        from_host = name == "inherited_tag"
        for each in job.demand_nodes if from_host else job.partitions or policy.demanding_partitions():
            if each in policy.partitions:
                yield ("partitions", each, _PARTITION_KEYS[name])
    elif job.tag is None:
        # an unknown class stops at read_tag, before the job has a tag
        if name == "read_tag" and isinstance(end, Deny):
            yield ("classes",)
    elif name in _CLASS_KEYS:
        rank = policy.class_rank(job.tag.klass)
        yield ("classes",) if rank is None else ("classes", rank, _CLASS_KEYS[name])
    elif name == "force_constraint" and job.tag.residency is not None:
        place = job.tag.residency
        yield ("jurisdictions", place, "feature") if place in policy.jurisdictions else ("jurisdictions",)
    elif name == "derive_tag":
        yield from ((("datasets", each) if each in policy.datasets else ("datasets",)) for each in job.tag.datasets)
    elif name == "role":
        yield from _roles(job, job.tag, context, end)


def _roles(job: SubmitJob, tag: Tag, context: Context, end: Allow | Deny) -> Iterator[Section]:
    """The roles that give it; when none does, those that come nearest: the user's for this class, else all for it."""
    policy = context.policy
    if isinstance(end, Deny) and end.rule.startswith("dataset."):
        yield from (("datasets", name) for name in policy.with_included(tag.datasets) if name in policy.datasets)
        return
    places = judge_who.places_of(job, policy)
    groups = frozenset() if context.members is None else context.members.groups_of(job.user_name or "")
    exempt = context.exempt_roles(job.user_name or "")
    fitting = {name: role for name, role in policy.roles_for(tag.klass) if places <= frozenset(role.jurisdictions)}
    held = {name: role for name, role in fitting.items() if name in exempt or judge_who.holds(name, groups, context)}
    found = list(held or fitting)
    if isinstance(end, Allow) and held:
        alone = ((name, narrowed(job, {name: role}, context)) for name, role in held.items())
        found = [name for name, verdict in alone if isinstance(verdict, Allow)] or found
    yield from ((("roles", name) for name in found) if found else [("roles",)])
