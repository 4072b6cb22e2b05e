"""Whether what a job stands on was revoked (``secure-slurm revoke``). No break-glass grant and no shadow helps."""

from __future__ import annotations

from conf.policy import Policy
from conf.quote import quote
from conf.tag import Tag
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.judge_who import places_of
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict
from slurm_hooks.revoked import STOP, Revocation, Subject

_ADVICE = "ask an admin, who can lift it: secure-slurm revoke --list"


def revoked(job: SubmitJob, context: Context) -> Verdict:
    """``revoked.*``: a standing revocation is about this job."""
    if job.tag is None or not context.revoked:
        return ALLOW
    places = places_of(job, context.policy)
    groups = context.members.groups_of(job.user_name or "") if context.members else frozenset[str]()
    subject = Subject(
        uid=-1 if job.user_id is None else job.user_id,
        tag=job.tag,
        roles=roles_behind(context.policy, job.tag, places, groups, context.now),
        places=places,
    )
    return verdict(context.revoked, subject, context.now)


def verdict(revocations: tuple[Revocation, ...], subject: Subject, now: float) -> Verdict:
    """Deny for the first revocation that is about the subject."""
    for each in revocations:
        if each.holds(now) and each.is_about(subject):
            what = "was revoked" if each.mode == STOP else "is frozen"
            return Deny(each.rule, f"{quote(each.words)} {what}" if each.kind else each.words, _ADVICE)
    return ALLOW


def roles_behind(
    policy: Policy, tag: Tag, places: frozenset[str], groups: frozenset[str], now: float
) -> frozenset[str]:
    """The roles that may have let a job in: those of the user's that fit it, each of which would have been enough.

    A user who has none that fits may just have lost it: then every role that fits.
    """
    fitting = {name for name, each in policy.roles_for(tag.klass) if places <= frozenset(each.jurisdictions)}
    mine = fitting & frozenset(policy.held_by(groups, now))
    return frozenset(mine or fitting)
