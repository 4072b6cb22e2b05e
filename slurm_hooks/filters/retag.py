"""A pending job gets another tag, or none, by break-glass: the job as its owner would submit it now. Pure.

It is judged by all judges of a submission. What slurmctld shows no filter of a stored job (its script, variables, mail
and preference) cannot be judged again, so a class that is stricter about one of these than the old one is refused.
"""

from __future__ import annotations

import attrs

from conf.policy import DataClass, Policy
from conf.quote import quote
from conf.tag import Tag, mentions_tag
from slurm_hooks import constraint
from slurm_hooks.filters.change import JUDGED, PLAIN, Change, merged
from slurm_hooks.filters.job import SubmitJob, from_fields, number
from slurm_hooks.filters.mutate import EXCLUSIVE
from slurm_hooks.filters.verdict import Context, Deny, Exemption
from slurm_hooks.record import SEPARATOR, Record, split

_STATE_AND_MOST_FLAGS = (
    0xFFFF  # slurm.h: JOB_PENDING is 0; flags such as JOB_COMPLETING and JOB_CONFIGURING lie above it
)
_STRICTER = {
    "mail": ("allow", "owner", "refuse"),
    "burst_buffers": ("allow", "refuse"),
    "environment": ("any", "none", "nil"),
}


def wanted(change: Change, tag: Tag) -> bool:
    """Whether a change asks for another tag than the job has."""
    extra = change.asked_text("extra")
    return extra is not None and extra != tag.to_extra()


def permission(change: Change, context: Context, privileged: frozenset[int]) -> Exemption | Deny:
    """``modify.tag``, ``modify.running``, ``modify.field``, ``modify.record``: whether this person may do it now.

    slurmctld drops an admin comment that a filter sets for an operator, without a word, and keeps the new tag: a job
    without a record of it. What asks for one itself it refuses beforehand (measured on 24.11 and 26.05).
    """
    job = number(change.stored, "job_id")
    grant = None if job is None else context.retagging(change.modify_uid, job)
    if grant is None:
        return Deny(
            "modify.tag",
            "the tag of a job cannot be changed, not even by an admin without a break-glass grant for this job",
            "cancel the job and submit it again with the tag that it should have",
        )
    if change.modify_uid == change.owner:
        return Deny(
            "modify.tag",
            f"the break-glass grant {quote(grant.id)} is yours, and so is the job: nobody changes the tag of their own",
            "let another operator do it",
        )
    state = number(change.stored, "job_state")
    if state is None or state & _STATE_AND_MOST_FLAGS:
        return Deny(
            "modify.running",
            "the job does not wait any more: what runs keeps the tag that its nodes and keys were given for",
            "cancel it, and submit it again",
        )
    if "admin_comment" not in change.asked and change.modify_uid not in privileged:
        return Deny(
            "modify.record",
            "the new tag needs a new record in the admin comment, which not every operator may write",
            "add AdminComment=x to the same command: it is replaced, or slurmctld says that you may not",
        )
    other = sorted(change.asked.keys() - PLAIN - JUDGED - {"extra", "admin_comment"})
    if other:
        return Deny("modify.field", f"{quote(other[0])} cannot be changed together with the tag", "leave it out")
    return grant


def submission(change: Change, kept: Record, policy: Policy) -> SubmitJob:
    """The job as its owner would submit it with the tag that is asked for."""
    extra = change.asked_text("extra") or ""
    fields = {**merged(change), "submit_uid": str(kept.uid).encode(), "extra": change.asked["extra"]}
    for name in ("container", "alloc_node"):
        if change.stored.get(name):
            fields[name] = change.stored[name]
    if "features" not in change.asked:
        fields["features"] = _asked_before(change.stored_text("features") or "", kept.tag, extra, policy).encode()
    old = policy.data_class(kept.tag.klass)
    return attrs.evolve(
        from_fields(fields),
        user_id=kept.uid,
        user_name=kept.user,
        demand_nodes=change.demand_nodes,
        forced_sharing=change.forced_sharing,
        shared=EXCLUSIVE if old is not None and old.exclusive_nodes else None,
    )


def _asked_before(features: str, old: Tag, extra: str, policy: Policy) -> str:
    """The stored constraint without the old tag's jurisdiction, if another one takes its place."""
    if not mentions_tag(extra) or old.residency is None or old.residency not in policy.jurisdictions:
        return features
    if f"residency={old.residency}" in extra.split(";"):
        return features
    feature = policy.jurisdictions[old.residency].feature
    asked = features.removesuffix(feature).removesuffix("&")
    for each in (asked, asked.removeprefix("(").removesuffix(")")):
        if not each or (features != each and constraint.is_forced(features, feature)):
            return each
    return features


def unseen(change: Change, old: Tag, new: Tag | None, policy: Policy) -> Deny | None:
    """``modify.unseen``: the new class forbids what the old one did not, and nobody can see whether the job has it."""
    before, after = policy.data_class(old.klass), None if new is None else policy.data_class(new.klass)
    if after is None:
        return None
    if before is None:
        return _unseen(after, "whatever the job has of it")
    for name, order in _STRICTER.items():
        if order.index(getattr(after, name)) > order.index(getattr(before, name)):
            return _unseen(after, name)
    array = number(change.stored, "array_job_id")
    if array and after.max_array is not None and (before.max_array is None or after.max_array < before.max_array):
        return _unseen(after, "max_array")
    return None


def _unseen(after: DataClass, what: str) -> Deny:
    return Deny(
        "modify.unseen",
        f"class {quote(after.name)} is stricter about {quote(what)} than the job's, which cannot be judged again now",
        "cancel the job and submit it again with the tag that it should have",
    )


def comment(change: Change, grant: Exemption, signed: str) -> str:
    """The new admin comment: the new record, or none, what an admin had added, and the grant's id."""
    _, kept = split(change.stored_text("admin_comment") or "")
    words = [kept, f"tag {'changed' if signed else 'removed'} by break-glass {grant.id}"]
    said = "; ".join(word for word in words if word)
    return f"{signed}{SEPARATOR}{said}" if signed else said
