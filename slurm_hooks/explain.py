"""Why the engine would say what it says: the same chain, walked step by step, with every step written down.

Nothing here decides: each step is the chain's own, and the verdict is the last step's. What a step rests on is told as
paths into the policy file (``("classes", 1, "max_scratch")``), which who has the file turns into lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, islice, product
from typing import Any, Literal, NamedTuple

import attrs

from conf.policy import DataClass, Policy
from conf.quote import nearest as most_like
from conf.tag import Tag
from conf.units import format_size
from keys.secret import Secret
from slurm_hooks import record
from slurm_hooks.engine import ERROR, Signer, record_of
from slurm_hooks.filters import chain, judge_who
from slurm_hooks.filters.job import SubmitJob, from_fields, partitions
from slurm_hooks.filters.verdict import ALLOW, Allow, Context, Deny, Judge, Mutator
from slurm_hooks.request import Submission

Section = tuple[str | int, ...]
Part = Literal["set", "judge"]
MAX_TRIES = 2000
MAX_CHOICES = 40
_SMALL_SCRATCH = 10 * 2**30
# shows whether a record of the job could be written at all; what it signs is thrown away
_NO_SIGNER = Signer("explain", Secret(b"no key: what this signs is thrown away"), frozenset())


class Step(NamedTuple):
    """One step of the chain. ``sections``: where in the policy it looked; ``changes``: what it set on the job."""

    name: str
    part: Part
    verdict: Literal["allow", "refuse"]
    rule: str = ""
    message: str = ""
    advice: str = ""
    sections: tuple[Section, ...] = ()
    changes: Mapping[str, str] = {}


class Explanation(NamedTuple):
    """Every step up to the first refusal. ``changes`` is what Slurm would be told to set, but for the record."""

    allowed: bool
    rule: str
    message: str
    advice: str
    steps: tuple[Step, ...]
    tag: Tag | None
    changes: Mapping[str, str]


class Request(NamedTuple):
    """What a person would ask for. ``partition`` None: none is named, and the cluster's default one is not known."""

    tag: Tag
    partition: str | None = None
    constraint: str | None = None
    prefer: str | None = None

    def fields(self, user: str, uid: int) -> dict[str, bytes]:
        """The ``submit`` request for this as a batch job. UsageError for a tag that cannot be written."""
        texts = {
            "extra": self.tag.to_extra(),
            "partition": self.partition,
            "features": self.constraint,
            "prefer": self.prefer,
        }
        return Submission(uid=uid, user=user, texts=texts).fields()

    def options(self) -> dict[str, str]:
        """The same as options of secure-sbatch, by name, in the order in which they must stand."""
        scratch = None if self.tag.scratch is None else format_size(self.tag.scratch)
        options = {
            "--secure-class": self.tag.klass,
            "--secure-residency": self.tag.residency,
            "--secure-scratch": scratch,
            "--partition": self.partition,
            "--constraint": self.constraint,
            "--prefer": self.prefer,
        }
        return {name: value for name, value in options.items() if value is not None}


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
    sections = () if end is ERROR else tuple(_sections(name, after, context, end))
    if isinstance(end, Deny):
        return Step(name, kind, "refuse", *end, sections, changes)
    return Step(name, kind, "allow", sections=sections, changes=changes)


# Where in the policy a step looks: the key of the job's class, of its jurisdiction, or of its partitions.
_CLASS_KEYS = {
    "read_tag": "name",
    "default_scratch": "default_scratch",
    "whole_nodes": "exclusive_nodes",
    "residency": "residency",
    "scratch": "max_scratch",
    "sharing": "exclusive_nodes",
}
_PARTITION_KEYS = {
    "demanded_tag": "demand_tag",
    "inherited_tag": "demand_tag",
    "partition": "jurisdiction",
    "least_class": "least_class",
}
# steps that look at the job alone
WITHOUT_POLICY = frozenset(
    ["refuse_cut", "allow_requeue", "foreign_record", "asked_tag", "own_job", "known_user", "routes", "clean_strings"]
)


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
    elif name == "role":
        yield from _roles(job, job.tag, context, end)


def _roles(job: SubmitJob, tag: Tag, context: Context, end: Allow | Deny) -> Iterator[Section]:
    """The roles that give it; when none does, those that come nearest: one that the user has, else one for the class.

    Each is found by the judge itself, asked about a policy with this role alone.
    """
    policy = context.policy
    alone = {
        name: judge_who.role(job, context._replace(policy=attrs.evolve(policy, roles={name: role})))
        for name, role in policy.roles.items()
    }
    if isinstance(end, Allow):
        found = [name for name, verdict in alone.items() if isinstance(verdict, Allow)]
    else:
        found = [name for name, verdict in alone.items() if isinstance(verdict, Deny) and verdict.rule == end.rule]
        found = [name for name in found if tag.klass in policy.roles[name].classes]
    yield from ((("roles", name) for name in found) if found else [("roles",)])


def nearest(request: Request, user: str, uid: int, context: Context) -> Request | None:
    """The request that is allowed and changes the fewest things, or None when none was found.

    It never asks for less protection: no weaker class, no other residency than the one that was named (a misspelt name
    is mended). A stronger class only where a partition demands it. At most :data:`MAX_TRIES` requests are tried.
    """
    for other in islice(_candidates(request, context.policy), MAX_TRIES):
        fields = other.fields(user, uid)
        # the chain at full speed; only what it lets pass is walked again
        if _passes(fields, context) and explain(fields, context).allowed:
            return other
    return None


def _passes(fields: Mapping[str, bytes], context: Context) -> bool:
    job = chain.mutate_job(from_fields(fields), context)
    return isinstance(job, SubmitJob) and isinstance(chain.judge_job(job, context, chain.SUBMIT_JUDGES), Allow)


def _candidates(request: Request, policy: Policy) -> Iterator[Request]:
    choices: dict[str, list[Any]] = {
        "residency": _residencies(request, policy),
        "scratch": _scratches(request, policy),
        "constraint": [] if request.constraint is None else [None],
        "prefer": [] if request.prefer is None else [None],
        "partition": _partitions(request, policy),
        "klass": _classes(request, policy),
    }
    for count in range(1, len(choices) + 1):
        for names in combinations(choices, count):
            for values in product(*(choices[name] for name in names)):
                yield _changed(request, dict(zip(names, values, strict=True)))


def _changed(request: Request, values: dict[str, Any]) -> Request:
    in_tag = {name: value for name, value in values.items() if name in Tag._fields}
    others = {name: value for name, value in values.items() if name not in Tag._fields}
    return request._replace(tag=request.tag._replace(**in_tag), **others)


def _residencies(request: Request, policy: Policy) -> list[str]:
    asked = request.tag.residency
    if asked is None:
        return list(policy.jurisdictions)[:MAX_CHOICES]
    meant = None if asked in policy.jurisdictions else most_like(asked, policy.jurisdictions)
    return [] if meant is None else [meant]


def _classes(request: Request, policy: Policy) -> list[str]:
    """The class that was meant, or that a partition of the request demands: what data is, nobody changes for a yes."""
    asked = request.tag.klass
    if policy.data_class(asked) is None:
        meant = most_like(asked, [each.name for each in policy.classes])
        return [] if meant is None else [meant]
    demanded = (policy.partition(name).least_class for name in partitions(request.partition))
    return [name for name in dict.fromkeys(demanded) if name is not None and not policy.at_least(asked, name)]


def _scratches(request: Request, policy: Policy) -> list[int | None]:
    """The most that a class gives, if that is less than was asked; a small size where none was; none at all, last."""
    asked = request.tag.scratch
    found = [_size(each, asked) for each in policy.classes]
    sizes = sorted({each for each in found if each is not None and each != asked}, reverse=True)
    return [*sizes[:MAX_CHOICES], *([] if asked is None else [None])]


def _size(data_class: DataClass, asked: int | None) -> int | None:
    if data_class.max_scratch is None:
        return None
    if asked is None:
        return min(data_class.default_scratch or _SMALL_SCRATCH, data_class.max_scratch)
    return min(asked, data_class.max_scratch)


def _partitions(request: Request, policy: Policy) -> list[str]:
    """One of those that were asked for, then those that the policy names, in its order."""
    asked = partitions(request.partition)
    named = [*policy.partitions, *(name for role in policy.roles.values() for name in role.partitions or ())]
    found = dict.fromkeys([*(asked if len(asked) > 1 else ()), *named])
    return [name for name in found if name != request.partition][:MAX_CHOICES]
