"""The order of the steps: mutate, then judge. No step may be silent, and an empty chain allows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from slurm_hooks.filters import (
    derive,
    judge_class,
    judge_paths,
    judge_place,
    judge_revoked,
    judge_routes,
    judge_tag,
    judge_who,
    mutate,
)
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import Allow, Context, Deny, Judge, Mutator

MUTATORS: tuple[Mutator, ...] = (
    mutate.refuse_cut,
    mutate.read_tag,
    derive.derive_tag,
    mutate.default_scratch,
    mutate.force_constraint,
    mutate.whole_nodes,
    mutate.default_time,
    mutate.most_nodes,
    mutate.allow_requeue,
)

# What the class limits; the same at submission, for a change and at the start.
LIMITS: tuple[Judge, ...] = (
    judge_class.partitions,
    judge_class.nodes,
    judge_class.time,
    judge_class.gpus,
    judge_class.gres,
)

SUBMIT_JUDGES: tuple[Judge, ...] = (
    judge_tag.foreign_record,
    judge_tag.asked_tag,
    judge_tag.demanded_tag,
    judge_tag.inherited_tag,
    judge_who.own_job,
    judge_who.known_user,
    judge_revoked.revoked,
    judge_place.residency,
    judge_tag.scratch,
    judge_routes.routes,
    judge_place.clean_strings,
    judge_place.partition,
    judge_place.least_class,
    *LIMITS,
    judge_class.array,
    judge_paths.work_dir,
    judge_paths.output,
    judge_routes.mail,
    judge_routes.container,
    judge_routes.burst_buffer,
    judge_routes.environment,
    judge_routes.user_environment,
    judge_routes.others,
    judge_who.role,
    judge_place.sharing,
)

# What a change of place is judged by: whoever asks for it, the job's owner is the one whose roles count.
MODIFY_JUDGES: tuple[Judge, ...] = (
    judge_who.known_user,
    judge_place.residency,
    judge_tag.scratch,
    judge_routes.routes,
    judge_place.clean_strings,
    judge_place.partition,
    judge_place.least_class,
    *LIMITS,
    judge_paths.work_dir,
    judge_paths.output,
    judge_routes.mail,
    judge_routes.others,
    judge_who.role,
    judge_place.sharing,
)

NO_VERDICT = Deny("engine.no-verdict", "nothing decided about this job, so it is refused", "tell an admin")


def mutate_job(job: SubmitJob, context: Context, mutators: Sequence[Mutator] = MUTATORS) -> SubmitJob | Deny:
    """The job with what it needs; Deny from the first step that refuses, or that returns something else."""
    for step in mutators:
        result: object = step(job, context)
        if isinstance(result, Deny):
            return result
        if not isinstance(result, SubmitJob):
            return NO_VERDICT
        job = result
    return job


def force_place(job: SubmitJob, context: Context, stored_features: str | None) -> SubmitJob | Deny:
    """The changed job with its jurisdiction forced into every constraint that was asked for, and into the stored one.

    The stored constraint is judged beside a new ``prefer`` or partition, but told to Slurm only if it has to change:
    a running job's constraint cannot be set any more.
    """
    if "features" not in job.strings and stored_features:
        job = attrs.evolve(job, strings={**job.strings, "features": stored_features})
    return mutate_job(job, context, (mutate.refuse_cut, mutate.force_constraint))


def judge_job(job: SubmitJob, context: Context, judges: Sequence[Judge]) -> Allow | Deny:
    """Allow only if there are judges and every one of them said so; a rule in shadow refuses nothing, and is told."""
    said_something = False
    shadowed: list[Deny] = []
    exemptions: list[str] = []
    for judge in judges:
        found: object = judge(job, context)
        if isinstance(found, Deny):
            if not context.shadows(found.rule):
                return found
            shadowed.append(found)
        elif isinstance(found, Allow):
            shadowed.extend(found.shadowed)
            exemptions.extend(found.exemptions)
        else:
            return NO_VERDICT
        said_something = True
    return Allow(tuple(shadowed), tuple(dict.fromkeys(exemptions))) if said_something else NO_VERDICT
