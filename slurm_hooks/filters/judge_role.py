"""Which of a user's roles cover the rest of a job: partition, account, QOS, reservation, licences, datasets. Pure.

One role must cover all of it: two that cover half each would together give what neither gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from conf.policy import Role, ended
from conf.quote import quote
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import Allow, Context, Deny, Verdict

Roles = dict[str, Role]
_TRES = ("tres_per_job", "tres_per_node", "tres_per_task", "tres_per_socket")


class Dimension(NamedTuple):
    """One thing that a role may be limited to. ``asked``: what the job names of it, None when that is not known."""

    rule: str
    option: str
    allowed: Callable[[Role], tuple[str, ...] | None]
    asked: Callable[[SubmitJob], frozenset[str] | None]


def _partitions(job: SubmitJob) -> frozenset[str] | None:
    return frozenset(job.partitions) or None


def _account(job: SubmitJob) -> frozenset[str] | None:
    return _one(job.string("account") or job.string("default_account"))


def _qos(job: SubmitJob) -> frozenset[str] | None:
    return _one(job.string("qos") or job.string("default_qos"))


def _reservations(job: SubmitJob) -> frozenset[str]:
    return frozenset(filter(None, (job.string("reservation") or "").split(",")))


def _licenses(job: SubmitJob) -> frozenset[str]:
    # name[@server][:count], or name/db:..., joined by "," (all of them) or "|" (one of them)
    words = re.split(r"[,|;]", job.string("licenses") or "")
    # sbatch(1), --tres-per-task: a licence may be a TRES of each task as well
    tres = (word for field in _TRES for word in (job.string(field) or "").split(",") if word.startswith("license/"))
    return frozenset(re.split(r"[:=]", word.removeprefix("license/"))[0] for word in (*words, *tres) if word)


def _one(name: str | None) -> frozenset[str] | None:
    return None if not name else frozenset({name})


DIMENSIONS = (
    Dimension("role.partition", "--partition", lambda role: role.partitions, _partitions),
    Dimension("role.account", "--account", lambda role: role.accounts, _account),
    Dimension("role.qos", "--qos", lambda role: role.qos, _qos),
    Dimension("role.reservation", "--reservation", lambda role: role.reservations, _reservations),
    Dimension("role.license", "--licenses", lambda role: role.licenses, _licenses),
)


def narrowed(job: SubmitJob, held: Roles, context: Context) -> Verdict:
    """Allow if one of the ``held`` roles covers the whole job, and each dataset is given by one that does."""
    shadowed: list[Deny] = []
    for dimension in DIMENSIONS:
        fitting = {name: role for name, role in held.items() if _covers(role, job, dimension)}
        if context.shadows(dimension.rule):
            # only told: it must not decide between the roles either
            shadowed += [] if fitting else [_not_covered(job, held, dimension)]
        elif fitting:
            held = fitting
        else:
            return _not_covered(job, held, dimension)
    return with_datasets(job, held, context, shadowed)


def with_datasets(job: SubmitJob, held: Roles, context: Context, shadowed: list[Deny]) -> Verdict:
    """Allow if every dataset is given by one of ``held``. ``shadowed``: what was refused in shadow before."""
    for refused in _datasets(job, held, context):
        if not context.shadows(refused.rule):
            return refused
        shadowed.append(refused)
    return Allow(tuple(shadowed))


def _covers(role: Role, job: SubmitJob, dimension: Dimension) -> bool:
    allowed = dimension.allowed(role)
    if allowed is None:
        return True
    asked = dimension.asked(job)
    return asked is not None and asked <= frozenset(allowed)


def _not_covered(job: SubmitJob, held: Roles, dimension: Dimension) -> Deny:
    asked = dimension.asked(job)
    known = sorted({name for role in held.values() for name in dimension.allowed(role) or ()})
    what = dimension.rule.removeprefix("role.")
    shown = quote(",".join(sorted(asked))) if asked else "that the job has, which is not known"
    return Deny(
        dimension.rule,
        f"your role {some(held)} does not cover the {what} {shown}",
        f"use {dimension.option}={f' or {dimension.option}='.join(known)}" if known else "ask an admin which to use",
    )


def _datasets(job: SubmitJob, held: Roles, context: Context) -> Iterable[Deny]:
    """``dataset.expired``, ``dataset.role``: each dataset, and each that it includes, by itself."""
    if job.tag is None or not job.tag.datasets:
        return
    policy = context.policy
    for name in policy.with_included(job.tag.datasets):
        dataset = policy.datasets.get(name)
        if dataset is None:
            yield Deny("dataset.unknown", f"this cluster has no dataset {quote(name)} (any more)", "correct its name")
        elif ended(dataset.until, context.now):
            yield Deny(
                "dataset.expired",
                f"the agreement for dataset {quote(name)} ended on {dataset.until}",
                "ask an admin to renew it, with the agreement",
            )
        elif held.keys().isdisjoint(dataset.roles):
            yield Deny(
                "dataset.role",
                f"dataset {quote(name)} needs the role {some(dataset.roles)}, and you have it not, or not for this job",
                "ask the owner of the dataset, or an admin, for the role",
            )


def some(names: Iterable[str]) -> str:
    """Names as a message tells them; of many, the first few."""
    listed = sorted(names)
    return " or ".join(map(quote, listed[:5])) + (f" or one of {len(listed) - 5} more" if len(listed) > 5 else "")
