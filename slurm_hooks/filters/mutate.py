"""The first half of the chain: read the tag, and set what a tagged job needs. Each step may refuse at once."""

from __future__ import annotations

from conf.errors import Refused, UsageError
from conf.policy import DataClass
from conf.quote import quote
from conf.tag import Tag, mentions_tag, parse_extra
from slurm_hooks import constraint
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import Context, Deny

# job_desc_msg_t.shared (slurm.h): JOB_SHARED_NONE is --exclusive
EXCLUSIVE = 0
# What decides whether a job is tagged, and where it goes; cut off, it could hide what must be seen.
DECISIVE = frozenset(
    [
        "extra",
        "partition",
        "admin_comment",
        "dependency",
        "script_lines",
        "user_name",
        "alloc_node",
        "default_partition",
        "demand_nodes",
        "env.secure_class",
        "env.secure_residency",
        "env.secure_scratch_size",
        "env.secure_datasets",
    ]
)


def refuse_cut(job: SubmitJob, _context: Context) -> SubmitJob | Deny:
    """``input.too-long``: a text on which the decision rests did not arrive whole."""
    cut = sorted(job.cut & DECISIVE)
    if cut:
        return Deny("input.too-long", f"the job's {cut[0]} is too long to be judged", "shorten it to below 8 KB")
    return job


def read_tag(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """``tag.syntax``, ``policy.empty``, ``class.unknown``: the tag in ``extra``, in its one canonical spelling."""
    extra = job.string("extra")
    if not mentions_tag(extra) or extra is None:
        return job
    try:
        tag = parse_extra(extra)
    except UsageError as error:
        return Deny("tag.syntax", str(error), error.advice or "use secure-sbatch, which writes the tag for you")
    policy = context.policy
    if not policy.classes or not policy.roles:
        return Deny("policy.empty", "the policy of this cluster names no class or no role", "ask an admin to fill it")
    if tag.klass and policy.data_class(tag.klass) is None:
        known = ", ".join(each.name for each in policy.classes)
        return Deny("class.unknown", f"this cluster has no data class {quote(tag.klass)}", f"use one of: {known}")
    return job.but(tag=tag)


def default_scratch(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """The class's default size, for a job that needs scratch and names no size; ``extra`` becomes canonical."""
    if job.tag is None:
        return job
    tag = job.tag
    data_class = _class_of(tag, context)
    if tag.scratch is None and data_class.scratch == "required":
        tag = tag._replace(scratch=data_class.default_scratch)
    return job.but(tag=tag).with_string("extra", tag.to_extra())


def force_constraint(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """``residency.unknown``, ``residency.constraint``: nodes of the job's jurisdiction only.

    ``prefer`` is forced as well, for it replaces the constraint while it is tried (slurmctld, features_use), and so is
    ``batch_features``, which must name features of the constraint.
    """
    if job.tag is None or job.tag.residency is None:
        return job
    jurisdiction = context.policy.jurisdictions.get(job.tag.residency)
    if jurisdiction is None:
        known = ", ".join(sorted(context.policy.jurisdictions))
        return Deny(
            "residency.unknown", f"this cluster has no jurisdiction {quote(job.tag.residency)}", f"use one of: {known}"
        )
    others = context.policy.features() - {jurisdiction.feature}
    for name, option in (("features", "constraint"), ("prefer", "prefer"), ("batch_features", "batch")):
        expression = job.string(name)
        foreign = sorted(constraint.names(expression) & others)
        if foreign:
            return Deny(
                constraint.RULE,
                f"--{option} names {quote(foreign[0])}, the job's residency is {quote(job.tag.residency)}",
                f"leave the place out of --{option}: {quote(jurisdiction.feature)} is added for you",
            )
        if not expression and name != "features":
            continue
        try:
            job = job.with_string(name, constraint.force(expression, jurisdiction.feature))
        except Refused as error:
            return Deny(error.rule, str(error), error.advice)
    return job


def whole_nodes(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """``--exclusive`` for a class that may not share a node."""
    if job.tag is None or not _class_of(job.tag, context).exclusive_nodes or job.shared == EXCLUSIVE:
        return job
    return job.but(shared=EXCLUSIVE, changes={**job.changes, "shared": str(EXCLUSIVE)})


def default_time(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """The class's default time limit, for a job that names none. Minutes, rounded down, at least one."""
    if job.tag is None or job.number("time_limit") is not None:
        return job
    default = _class_of(job.tag, context).default_time
    return job if default is None else job.with_number("time_limit", max(1, int(default // 60)))


def most_nodes(job: SubmitJob, context: Context) -> SubmitJob | Deny:
    """As many nodes as it needs at least, where the class has a limit and the job says no maximum.

    Not the limit itself: slurmctld gives a job as many nodes as its maximum allows (sbatch(1), ``--nodes``; measured).
    How many several tasks need, nobody knows yet, so such a job is left as it is, and has to say.
    """
    if job.tag is None or job.number("max_nodes") is not None or _class_of(job.tag, context).max_nodes is None:
        return job
    least = job.number("min_nodes")
    if least is None:
        if (job.number("num_tasks") or 1) > 1:
            return job
        least = 1
        job = job.with_number("min_nodes", least)
    return job.with_number("max_nodes", least)


def allow_requeue(job: SubmitJob, _context: Context) -> SubmitJob | Deny:
    """``--requeue`` for a batch job: a node that cannot make its scratch sends the job back instead of ending it."""
    if job.tag is None or not job.has_script or job.requeue == 1:
        return job
    return job.but(requeue=1, changes={**job.changes, "requeue": "1"})


def _class_of(tag: Tag, context: Context) -> DataClass:
    found = context.policy.data_class(tag.klass)
    if found is None:
        raise LookupError("read_tag lets no unknown class pass")
    return found
