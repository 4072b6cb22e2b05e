"""Whether a tagged job would stay where it must: residency and partitions; and whether its texts can be trusted."""

from __future__ import annotations

import unicodedata

from conf.quote import quote
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict

# Cc control, Cs lone surrogates (bytes that were not UTF-8), Cf format (bidirectional overrides), Zl/Zp line ends
_NOT_PRINTED = frozenset({"Cc", "Cs", "Cf", "Zl", "Zp"})


def residency(job: SubmitJob, context: Context) -> Verdict:
    """``residency.required``, ``residency.unknown``: the class may demand that the tag says where."""
    if job.tag is None:
        return ALLOW
    data_class = context.policy.data_class(job.tag.klass)
    known = ", ".join(sorted(context.policy.jurisdictions))
    if job.tag.residency is None:
        if data_class is None or data_class.residency == "required":
            return Deny(
                "residency.required",
                f"class {quote(job.tag.klass)} must say where its data stays",
                f"add --secure-residency with one of: {known}",
            )
        return ALLOW
    if job.tag.residency not in context.policy.jurisdictions:
        return Deny(
            "residency.unknown", f"this cluster has no jurisdiction {quote(job.tag.residency)}", f"use one of: {known}"
        )
    return ALLOW


def partition(job: SubmitJob, context: Context) -> Verdict:
    """``residency.partition``: no partition of another jurisdiction, nor one of several.

    Where a tag is demanded, it must say the partition's jurisdiction: data is mounted there that stays in it.
    """
    if job.tag is None:
        return ALLOW
    for name in job.partitions or context.policy.demanding_partitions():
        demands = context.policy.partition(name)
        place = demands.jurisdiction
        if place is None or place == job.tag.residency:
            continue
        if job.tag.residency is not None:
            return Deny(
                "residency.partition",
                f"partition {quote(name)} is in {quote(place)}, the job's residency is {quote(job.tag.residency)}",
                "choose a partition of the job's jurisdiction",
            )
        if demands.demand_tag:
            return Deny(
                "residency.partition",
                f"partition {quote(name)} takes only jobs whose residency is {quote(place)}, and the tag names none",
                f"add --secure-residency={place}, or choose another partition",
            )
    return ALLOW


def least_class(job: SubmitJob, context: Context) -> Verdict:
    """``partition.class``: the class must be as strong as every partition of the job demands.

    Without that, whoever has a role for the weakest class would reach what is mounted for the strongest.
    """
    if job.tag is None:
        return ALLOW
    # not even the default is known: it may be any of those that demand something
    for name in job.partitions or context.policy.demanding_partitions():
        least = context.policy.partition(name).least_class
        if least is not None and not context.policy.at_least(job.tag.klass, least):
            return Deny(
                "partition.class",
                f"partition {quote(name)} takes class {quote(least)} or stronger, the job's is {quote(job.tag.klass)}",
                f"submit it with --secure-class={least}, or to another partition",
            )
    return ALLOW


def sharing(job: SubmitJob, context: Context) -> Verdict:
    """``partition.sharing``: a class with nodes of its own runs in no partition that has OverSubscribe=FORCE.

    There ``shared=0``, which the chain sets, has no effect (cons_tres asks the partition first), and another job of the
    same user on the node would read the mounted scratch.
    """
    data_class = None if job.tag is None else context.policy.data_class(job.tag.klass)
    if job.tag is None or not job.forced_sharing or (data_class is not None and not data_class.exclusive_nodes):
        return ALLOW
    return Deny(
        "partition.sharing",
        f"class {quote(job.tag.klass)} needs whole nodes, and partition {quote(job.forced_sharing[0])} shares them by "
        "force (OverSubscribe=FORCE), or is none that the job's owner may use",
        "choose another partition, or ask an admin for one without OverSubscribe=FORCE",
    )


def clean_strings(job: SubmitJob, _context: Context) -> Verdict:
    """``input.too-long``, ``input.control-characters``: a tagged job's texts reach root's hooks and admins' screens."""
    if job.tag is None:
        return ALLOW
    if job.cut:
        name = min(job.cut)
        return Deny("input.too-long", f"the job's {name} is longer than 8 KB", "shorten it")
    for name, value in job.strings.items():
        if not value.isascii() or not value.isprintable():
            found = next((char for char in value if unicodedata.category(char) in _NOT_PRINTED), None)
            if found is not None:
                return Deny(
                    "input.control-characters",
                    f"the job's {name} has the character {found!a}, which a job that carries a tag may not use",
                    "remove control characters, line breaks and bytes that are not UTF-8",
                )
    return ALLOW
