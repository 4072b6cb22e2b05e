"""Whether this user may do this: identity, and the roles that LDAP groups or a break-glass grant give."""

from __future__ import annotations

from conf.policy import Policy, Role, ended
from conf.quote import quote
from slurm_hooks import record
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.judge_role import narrowed, some, with_datasets
from slurm_hooks.filters.verdict import ALLOW, Allow, Context, Deny, Verdict
from slurm_hooks.snapshot import Snapshot

Roles = dict[str, Role]


def own_job(job: SubmitJob, _context: Context) -> Verdict:
    """``identity.submit-uid``: nobody, not even root, submits a tagged job in another's name."""
    if job.tag is not None and job.user_id != job.submit_uid:
        return Deny(
            "identity.submit-uid",
            "a job that carries a tag must be submitted by its owner",
            "submit it as the user who is to own it, without --uid",
        )
    return ALLOW


def known_user(job: SubmitJob, _context: Context) -> Verdict:
    """``rbac.user``: without a plain user name nobody can be found in a group."""
    if job.tag is not None and not record.safe_user(job.user_name):
        return Deny(
            "rbac.user",
            "the controller does not know this user's name, or it has characters that are not accepted",
            "tell an admin: the head node must resolve your uid to a name of letters, digits and . _ @ -",
        )
    return ALLOW


def role(job: SubmitJob, context: Context) -> Verdict:
    """``rbac.snapshot``, ``rbac.role``, ``role.*``, ``dataset.*``: one role of the user's covers all of the job.

    Class, place, partition, account, QOS, reservation and licences must be covered by the same role, and each dataset
    must name one of those that do. A rule in shadow narrows nothing.
    """
    if job.tag is None:
        return ALLOW
    if context.members is None:
        return Deny("rbac.snapshot", context.members_problem, context.members_advice)
    policy = context.policy
    places = places_of(job, policy)
    groups = context.members.groups_of(job.user_name or "")
    mine = ((name, policy.roles[name]) for name in policy.held_by(groups, context.now))
    held = {name: each for name, each in mine if job.tag.klass in each.classes and places.issubset(each.jurisdictions)}
    verdict = narrowed(job, held, context) if held else None
    if isinstance(verdict, Allow):
        return verdict
    # only a refusal looks at the roles that the user does not have
    fitting = {name: each for name, each in policy.roles_for(job.tag.klass) if places <= frozenset(each.jurisdictions)}
    if verdict is None:
        refused = _over(fitting, groups, context) or _with_a_place(
            _no_role(job.tag.klass, places, fitting, context.members), job, context, groups
        )
        # a dataset has an agreement of its own, whatever is said of roles
        verdict = with_datasets(job, {}, context, [refused]) if context.shadows(refused.rule) else refused
    # a break-glass grant is used only for what would be refused without it
    return _exempted(job, held, fitting, verdict, context) if isinstance(verdict, Deny) else verdict


def _exempted(job: SubmitJob, held: Roles, fitting: Roles, refused: Deny, context: Context) -> Verdict:
    """The job with the roles that break-glass gives as well; the refusal, which tells of a grant that has ended."""
    user = job.user_name or ""
    grants = {name: grant for name, grant in context.exempt_roles(user).items() if name in fitting.keys() - held.keys()}
    # an agreement that has run out is not prolonged by a grant
    given = {name: fitting[name] for name in grants if not ended(fitting[name].until, context.now)}
    if given:
        verdict = narrowed(job, {**held, **given}, context)
        return verdict._replace(exemptions=tuple(grants[n] for n in given)) if isinstance(verdict, Allow) else verdict
    lapsed = context.lapsed(user, fitting.keys() - held.keys())
    if lapsed is None:
        return refused
    return refused._replace(
        message=f"{refused.message}; the break-glass grant {quote(lapsed.id)}, which gave you a role for it, has ended"
    )


def holds(name: str, groups: frozenset[str], context: Context) -> bool:
    """Whether one of the groups gives the role, itself or by a role that includes it, on this day."""
    return any(
        not each.groups.isdisjoint(groups) and not ended(each.until, context.now)
        for each in context.policy.holdings(name)
    )


def places_of(job: SubmitJob, policy: Policy) -> frozenset[str]:
    """Where the job may run, as far as the policy knows: without a residency, where its partitions are.

    A partition that says no place may be in any: a role for one jurisdiction would otherwise hold in all of them.
    """
    if job.tag is not None and job.tag.residency is not None:
        return frozenset({job.tag.residency})
    found = {policy.partition(name).jurisdiction for name in job.partitions} or {None}
    return frozenset(policy.jurisdictions) if None in found else frozenset(name for name in found if name is not None)


def _over(fitting: Roles, groups: frozenset[str], context: Context) -> Deny | None:
    """``role.expired``: the user had a role that would do."""
    ends = {
        name: max(each.until for each in mine if each.until is not None)
        for name in fitting
        if (mine := [each for each in context.policy.holdings(name) if not each.groups.isdisjoint(groups)])
    }
    if not ends:
        return None
    name = max(ends, key=lambda each: (ends[each], each))
    return Deny(
        "role.expired",
        f"your role {quote(name)} ended on {ends[name]}",
        "ask an admin to renew it, with the agreement that it stands for",
    )


def _no_role(klass: str, places: frozenset[str], fitting: Roles, members: Snapshot) -> Deny:
    where = f" in {' and '.join(map(quote, sorted(places)))}" if places else ""
    if not fitting:
        return Deny(
            "rbac.role",
            f"no role on this cluster gives class {quote(klass)}{where}",
            "ask an admin for a role that does, or change the tag",
        )
    names = sorted({_group_name(dn, members) for each in fitting.values() for dn in each.groups})
    return Deny(
        "rbac.role",
        f"class {quote(klass)}{where} needs the role {some(fitting)}, which you do not have",
        f"ask for membership in the group {' or '.join(map(quote, names))}; it counts within a minute",
    )


def _with_a_place(refused: Deny, job: SubmitJob, context: Context, groups: frozenset[str]) -> Deny:
    """For a tag without a residency: with one that the user's roles cover, and its partitions too, it would pass."""
    if job.tag is None or job.tag.residency is not None:
        return refused
    policy = context.policy
    mine = {name: each for name, each in policy.roles_for(job.tag.klass) if holds(name, groups, context)}
    fixed = {policy.partition(name).jurisdiction for name in job.partitions} - {None}
    covered = sorted({place for each in mine.values() for place in each.jurisdictions if fixed <= {place}})
    if not covered:
        return refused
    return Deny(
        refused.rule,
        f"the tag names no residency, so the job might run anywhere, and your role {some(mine)} does not cover every "
        "jurisdiction",
        f"add --secure-residency={' or --secure-residency='.join(covered)}",
    )


def _group_name(dn: str, members: Snapshot) -> str:
    group = members.groups.get(dn)
    return dn if group is None else group.name
