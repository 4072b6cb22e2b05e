"""What is wrong with a policy's groups, and with roles beside each other: two of a kind, spellings, members. Pure.

The same kind of findings as in :mod:`admin.policy_lint`, which calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from admin.findings import Finding, Use
from conf.inclusion import closure
from conf.policy import Policy, Role
from conf.quote import quote
from conf.yamlmarks import Where
from slurm_hooks.dn import DnError, normalise
from slurm_hooks.snapshot import Snapshot

Uses = Callable[[str], frozenset[Use]]


def lint_groups(policy: Policy, uses: Uses) -> Iterator[Finding]:
    """Every finding. ``uses``: what a role lets in, by its name."""
    yield from _covered(policy)
    yield from _included(policy, uses)
    yield from _spelling(policy)


def _covered(policy: Policy) -> Iterator[Finding]:
    # a role that a dataset or another role names is not there for its own groups alone
    named = {role for each in policy.datasets.values() for role in each.roles}
    named |= {role for each in policy.roles.values() for role in each.includes}
    roles = list(policy.roles.items())
    for index, (name, role) in enumerate(roles):
        for other_index, (other_name, other) in enumerate(roles):
            # of two that are the same, only the later one is too much
            if index == other_index or name in named or not _covers(other, role):
                continue
            if other_index < index or not _covers(role, other):
                yield Finding(
                    "warning",
                    "role-covered",
                    ("roles", name),
                    f"the role {quote(name)} gives nothing that {quote(other_name)} does not give to the same groups",
                    "remove it, or correct its groups",
                )
                break


def _covers(other: Role, role: Role) -> bool:
    """Whether ``other`` gives the groups of ``role`` all that it gives them."""
    return (
        set(map(_key, role.groups)) <= set(map(_key, other.groups))
        and _gives(other, role)
        and set(role.includes) <= set(other.includes)
    )


def _gives(other: Role, role: Role) -> bool:
    """Whether ``other`` lets in all that ``role`` lets in by itself, for as long."""
    if not (set(role.classes) <= set(other.classes) and set(role.jurisdictions) <= set(other.jurisdictions)):
        return False
    if other.until is not None and (role.until is None or role.until > other.until):
        return False
    limits = (
        (role.partitions, other.partitions),
        (role.accounts, other.accounts),
        (role.qos, other.qos),
        (role.reservations, other.reservations),
        (role.licenses, other.licenses),
    )
    return all(more is None or (less is not None and set(less) <= set(more)) for less, more in limits)


def _included(policy: Policy, uses: Uses) -> Iterator[Finding]:
    """Includes by which nobody gets anything."""
    needed = {role for each in policy.datasets.values() for role in each.roles}
    inclusions = {name: role.includes for name, role in policy.roles.items()}
    for name, role in policy.roles.items():
        for index, word in enumerate(role.includes):
            if word not in policy.roles:
                continue
            reason = _by_another(name, word, inclusions)
            if not reason and not any(uses(each) for each in closure([word], inclusions) if each in policy.roles):
                reason = "which lets nobody in"
            alone = word not in needed and not policy.roles[word].includes
            if not reason and alone and _gives(role, policy.roles[word]):
                reason = "which gives nothing that the role does not give by itself"
            if reason:
                yield Finding(
                    "warning",
                    "role-include-idle",
                    ("roles", name, "includes", index),
                    f"the role {quote(name)} includes {quote(word)}, {reason}",
                    "leave it out, or correct it",
                )
    nested = {name: dataset.includes for name, dataset in policy.datasets.items()}
    for name, dataset in policy.datasets.items():
        for index, word in enumerate(dataset.includes):
            reason = _by_another(name, word, nested)
            if reason:
                yield Finding(
                    "warning",
                    "dataset-include-idle",
                    ("datasets", name, "includes", index),
                    f"the dataset {quote(name)} includes {quote(word)}, {reason}",
                    "leave it out",
                )


def _by_another(name: str, word: str, included: dict[str, tuple[str, ...]]) -> str:
    """What of an entry's other includes has this one as well, in words; empty: none has."""
    words = included[name]
    if words.count(word) > 1:
        return "twice"
    others = [each for each in words if each != word]
    through = next((each for each in others if word in closure([each], included)), None)
    return f"as {quote(through)} does, which it includes too" if through else ""


@cache
def _key(group: str) -> str:
    try:
        return normalise(group)
    except DnError:
        return group


def _spelling(policy: Policy) -> Iterator[Finding]:
    """Groups that the LDAP reader cannot read as names, and two spellings of one group."""
    first: dict[str, str] = {}
    for where, group in _groups(policy):
        try:
            spelt = first.setdefault(normalise(group), group)
        except DnError as error:
            advice = "write it as 'ldapsearch' shows it, with ',' in a value as '\\,'"
            yield Finding("error", "group-unreadable", where, f"not a distinguished name: {error}", advice)
            continue
        if spelt != group:
            yield Finding(
                "warning",
                "group-spelling",
                where,
                f"the group {quote(group)} is also written {quote(spelt)}",
                "write it the same way everywhere",
            )


def group_members(policy: Policy, members: Snapshot) -> Iterator[Finding]:
    """The policy's groups compared with what the LDAP reader found."""
    known = {_key(dn): group for dn, group in members.groups.items()}
    for where, dn in _groups(policy):
        group = known.get(_key(dn))
        if group is None:
            yield Finding(
                "warning",
                "group-unknown",
                where,
                f"the members file says nothing of the group {quote(dn)}: it was read for another policy",
                "let secure-slurm-ldapd read the directory with this policy (--once), then check again",
            )
        elif group.missing:
            yield Finding(
                "error",
                "group-missing",
                where,
                f"the directory has no group {quote(dn)}",
                "correct the name, or create the group",
            )
        elif not group.members:
            yield Finding(
                "warning",
                "group-empty",
                where,
                f"nobody is in the group {quote(dn)}",
                "add members, or look whether their accounts are closed",
            )


def _groups(policy: Policy) -> Iterator[tuple[Where, str]]:
    for name, role in policy.roles.items():
        for index, group in enumerate(role.groups):
            yield ("roles", name, "groups", index), group
    people = policy.break_glass
    for key, groups in (("requesters", people.requesters), ("approvers", people.approvers)) if people else ():
        for index, group in enumerate(groups):
            yield ("break_glass", key, index), group
