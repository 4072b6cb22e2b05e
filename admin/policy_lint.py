"""What is wrong with a policy that has no mistake: rules that can never hold, words that nothing uses. Pure.

An ``error`` is something that the policy says and that cannot be: nobody will ever be let in by it. A ``warning`` may
be meant. None of this can make a job pass that should not: whatever is unclear refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

from admin.findings import Finding, Use
from admin.policy_lint_data import lint_data
from admin.policy_lint_groups import group_members, lint_groups
from conf.policy import Policy, Role
from conf.quote import nearest, quote
from slurm_hooks.snapshot import Snapshot


def lint(policy: Policy, members: Snapshot | None = None, *, now: float = 0.0) -> list[Finding]:
    """Every finding. ``members``: the group members as last read, to compare the policy's groups with; ``now``: Unix
    seconds, by which dates have passed (0: none has).
    """
    kept = cache(lambda name: frozenset(uses(policy.roles[name], policy)))
    found = [*_roles(policy), *_unused(policy), *_partitions(policy)]
    found += [*lint_data(policy, kept, now), *lint_groups(policy, kept)]
    if members is not None:
        found += group_members(policy, members)
    return found


def uses(role: Role, policy: Policy) -> Iterator[Use]:
    """Every combination of class, residency and partition in which this role alone lets a job in."""
    bound = {word for each in policy.classes if each.name in role.classes for word in each.partitions or ()}
    known = dict.fromkeys((*policy.partitions, *sorted(bound), None))
    named = role.partitions if role.partitions is not None else known
    for klass, residency, partition in product(role.classes, (*role.jurisdictions, None), named):
        use = Use(klass, residency, partition)
        if _fits_class(use, policy) and _fits_partition(use, policy) and _covers_place(use, role, policy):
            yield use


def _fits_class(use: Use, policy: Policy) -> bool:
    data_class = policy.data_class(use.klass)
    if data_class is None or (use.residency is not None and use.residency not in policy.jurisdictions):
        return False
    return use.residency is not None or data_class.residency == "optional"


def _fits_partition(use: Use, policy: Policy) -> bool:
    data_class = policy.data_class(use.klass)
    if data_class is not None and data_class.partitions is not None and use.partition not in data_class.partitions:
        return False
    demands = policy.partition(use.partition or "")
    if demands.least_class is not None and not policy.at_least(use.klass, demands.least_class):
        return False
    if demands.jurisdiction is None or use.residency == demands.jurisdiction:
        return True
    return use.residency is None and not demands.demand_tag


def _covers_place(use: Use, role: Role, policy: Policy) -> bool:
    if use.residency is not None:
        return True
    place = policy.partition(use.partition or "").jurisdiction
    return {place} <= set(role.jurisdictions) if place else set(policy.jurisdictions) <= set(role.jurisdictions)


def _roles(policy: Policy) -> Iterator[Finding]:
    for name, role in policy.roles.items():
        found = list(uses(role, policy))
        if not found:
            yield Finding(
                "error",
                "role-unusable",
                ("roles", name),
                f"the role {quote(name)} lets nobody in: no class, jurisdiction and partition of it go together",
                "compare its partitions with 'partitions': their jurisdiction and least_class; or remove the role",
            )
            continue
        for key, words, used in (
            ("classes", role.classes, {each.klass for each in found}),
            ("jurisdictions", role.jurisdictions, _places(found, policy)),
            ("partitions", role.partitions or (), {each.partition for each in found}),
        ):
            for index, word in enumerate(words):
                if word not in used:
                    yield Finding(
                        "warning",
                        "role-word-unusable",
                        ("roles", name, key, index),
                        f"the role {quote(name)} can never use {quote(word)} of its {key} with the rest of it",
                        "leave it out, or correct what it goes with",
                    )


def _places(found: list[Use], policy: Policy) -> set[str | None]:
    """The jurisdictions that are used: by name, or by a tag without one where the partition is in it or in any."""
    places: set[str | None] = {each.residency for each in found}
    for each in found:
        if each.residency is None:
            place = policy.partition(each.partition or "").jurisdiction
            places |= {place} if place else set(policy.jurisdictions)
    return places


def _unused(policy: Policy) -> Iterator[Finding]:
    given = {klass for role in policy.roles.values() for klass in role.classes}
    for index, each in enumerate(policy.classes):
        if each.name not in given:
            yield Finding(
                "warning",
                "class-unused",
                ("classes", index, "name"),
                f"no role gives the class {quote(each.name)}: every job that names it is refused",
                "name it in a role, or remove it",
            )
    named = {place for role in policy.roles.values() for place in role.jurisdictions}
    named |= {each.jurisdiction for each in policy.partitions.values() if each.jurisdiction}
    for name in policy.jurisdictions:
        if name not in named:
            yield Finding(
                "warning",
                "jurisdiction-unused",
                ("jurisdictions", name),
                f"no role and no partition names the jurisdiction {quote(name)}: no job can ask for it",
                "name it in a role or a partition, or remove it",
            )


def _partitions(policy: Policy) -> Iterator[Finding]:
    reached = {each.partition for role in policy.roles.values() for each in uses(role, policy)}
    for name, each in policy.partitions.items():
        if each.demand_tag and name not in reached:
            yield Finding(
                "error",
                "partition-unreachable",
                ("partitions", name),
                f"no job can run in the partition {quote(name)}: it demands a tag, and no role has one for it",
                "give a role a class of at least its least_class, its jurisdiction, and the partition",
            )
        if each.demand_tag and each.least_class is None and len(policy.classes) > 1:
            yield Finding(
                "warning",
                "partition-any-class",
                ("partitions", name),
                f"the partition {quote(name)} takes a tag of any class, the weakest too",
                f"add 'least_class', for example {policy.classes[-1].name}",
            )
    for name, role in policy.roles.items():
        for index, word in enumerate(role.partitions or ()):
            near = None if word in policy.partitions else nearest(word, policy.partitions)
            if near:
                yield Finding(
                    "warning",
                    "partition-unnamed",
                    ("roles", name, "partitions", index),
                    f"the partition {quote(word)} of the role {quote(name)} demands nothing: 'partitions' lacks it",
                    f"if {quote(near)} is meant, correct it; else add it to 'partitions'",
                )
