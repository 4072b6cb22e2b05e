"""What the datasets of a tag demand: the strictest class, and a place where all of them may be used. Pure.

Naming a dataset is enough: class and residency follow from the policy. What the tag says besides may be stronger, and
is never overruled in silence.
"""

from __future__ import annotations

from conf.policy import Policy
from conf.quote import did_you_mean, quote
from conf.tag import Tag
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import Context, Deny


def derive_tag(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """``dataset.unknown``, ``dataset.class``, ``dataset.nowhere``, ``dataset.residency``; the tag that follows."""
    if job.tag is None or not job.tag.datasets:
        return job
    policy = context.policy
    names = policy.with_included(job.tag.datasets)
    foreign = next((name for name in names if name not in policy.datasets), None)
    if foreign is not None:
        known = policy.datasets
        hint = did_you_mean(foreign, known) or (f"; known here: {', '.join(sorted(known)[:20])}" if known else "")
        return Deny("dataset.unknown", f"this cluster has no dataset {quote(foreign)}{hint}", "correct its name")
    klass = _klass(job.tag, names, policy)
    if isinstance(klass, Deny):
        return klass
    place = _place(job, job.tag, names, policy)
    if isinstance(place, Deny):
        return place
    return job.but(tag=job.tag._replace(klass=klass, residency=place))


def _klass(tag: Tag, names: tuple[str, ...], policy: Policy) -> str | Deny:
    ranked = [(policy.class_rank(policy.datasets[name].klass), name) for name in names]
    unknown = next((name for rank, name in ranked if rank is None), None)
    if unknown is not None:
        return Deny("class.unknown", f"the class of dataset {quote(unknown)} is unknown", "ask an admin to mend it")
    strictest, whose = max((rank or 0, name) for rank, name in ranked)
    demanded = policy.classes[strictest].name
    if not tag.klass:
        return demanded
    if not policy.at_least(tag.klass, demanded):
        return Deny(
            "dataset.class",
            f"dataset {quote(whose)} is of class {quote(demanded)}, the job is tagged {quote(tag.klass)}",
            f"leave --secure-class out, or write --secure-class={demanded}",
        )
    return tag.klass


def _place(job: SubmitJob, tag: Tag, names: tuple[str, ...], policy: Policy) -> str | Deny:
    together = frozenset.intersection(*(policy.places_of(policy.datasets[name]) for name in names))
    if not together:
        return Deny(
            "dataset.nowhere",
            f"the datasets {', '.join(map(quote, names))} may not be used together anywhere",
            "use them in jobs of their own",
        )
    if tag.residency is not None:
        if tag.residency in together:
            return tag.residency
        return Deny(
            "dataset.residency",
            f"the data of {', '.join(map(quote, tag.datasets))} may not be used in {quote(tag.residency)}",
            f"use --secure-residency={' or --secure-residency='.join(sorted(together))}",
        )
    # of several places, the one where the job's partitions are; nobody guesses between two
    partitions = {policy.partition(name).jurisdiction for name in job.partitions}
    fitting = together & partitions if None not in partitions else frozenset()
    found = fitting if len(fitting) == 1 else together
    if len(found) == 1:
        return next(iter(found))
    return Deny(
        "dataset.residency",
        f"the data of {', '.join(map(quote, tag.datasets))} may be used in several places, and the job names none",
        f"add --secure-residency={' or --secure-residency='.join(sorted(found))}",
    )
