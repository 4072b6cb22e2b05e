"""What is wrong with a policy's datasets, limits and dates: what cannot be used, has ended, or will soon. Pure.

The same kind of findings as in :mod:`admin.policy_lint`, which calls this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from admin.findings import Finding, Use
from conf.policy import DataClass, Dataset, Policy, ended
from conf.quote import quote
from conf.surroundings import owned_file_systems
from slurm_hooks.mounts import within

SOON = 30 * 86400.0
"""Seconds. Renewing an agreement takes weeks."""

Uses = Callable[[str], frozenset[Use]]


def lint_data(policy: Policy, uses: Uses, now: float) -> Iterator[Finding]:
    """Every finding. ``uses``: what a role lets in, by its name; ``now``: Unix seconds."""
    yield from _dates(policy, now)
    for name, dataset in policy.datasets.items():
        yield from _dataset(name, dataset, policy, uses)
    yield from _classes(policy, uses)
    yield from _shadow(policy, now)
    yield from _break_glass(policy)
    yield from _adequate(policy)


def _dates(policy: Policy, now: float) -> Iterator[Finding]:
    until = {("roles", name): role.until for name, role in policy.roles.items()}
    until |= {("datasets", name): dataset.until for name, dataset in policy.datasets.items()}
    for (section, name), day in until.items():
        what = section.removesuffix("s")
        if ended(day, now):
            yield Finding(
                "warning",
                f"{what}-ended",
                (section, name, "until"),
                f"the {what} {quote(name)} ended on {day}: it lets nobody in",
                "renew it, with the agreement that it stands for, or remove it",
            )
        elif ended(day, now + SOON):
            yield Finding(
                "warning",
                f"{what}-ends",
                (section, name, "until"),
                f"the {what} {quote(name)} ends on {day}",
                "renew it in time; jobs that wait then are refused at their start",
            )
    held = [each for name in policy.roles for each in policy.holdings(name) if not ended(each.until, now)]
    if policy.roles and not held:
        yield Finding(
            "error",
            "all-ended",
            ("roles",),
            "every role has ended: no tagged job is let in any more",
            "renew those whose agreements go on",
        )


def _dataset(name: str, dataset: Dataset, policy: Policy, uses: Uses) -> Iterator[Finding]:
    for index, role in enumerate(dataset.roles):
        if role in policy.roles and not any(policy.at_least(each.klass, dataset.klass) for each in uses(role)):
            yield Finding(
                "warning",
                "dataset-role-class",
                ("datasets", name, "roles", index),
                f"the role {quote(role)} gives no class as strong as that of dataset {quote(name)}, {dataset.klass}",
                "give the role the class, or leave it out here",
            )
    if not _usable(name, policy, uses):
        yield Finding(
            "error",
            "dataset-unusable",
            ("datasets", name),
            f"nobody can use the dataset {quote(name)}: none of its roles has its class, a place where it may be used, "
            "and a partition, together",
            "compare its class and residency, and those of what it includes, with its roles",
        )
    shared = {entry for each in policy.jurisdictions.values() for entry in each.file_systems}
    shared -= owned_file_systems(policy).keys()
    for index, path in enumerate(dataset.paths):
        around = next((entry for entry in sorted(shared) if within(path, entry)), None)
        if around is not None and len(policy.jurisdictions) > 1:
            yield Finding(
                "warning",
                "dataset-path-shared",
                ("datasets", name, "paths", index),
                f"{path} lies in {around}, which several jurisdictions list: every node that mounts it is a node with "
                f"this data, and is drained in partitions that demand no tag",
                "keep the data in a file system of its own",
            )


def _usable(name: str, policy: Policy, uses: Uses) -> bool:
    """Whether one job may be let in to the dataset and all that it includes, each by a role that covers the job."""
    together = [policy.datasets[each] for each in policy.with_included((name,)) if each in policy.datasets]
    places = frozenset.intersection(*map(policy.places_of, together))
    jobs = None
    for each in together:
        covered = frozenset(
            use
            for role in each.roles
            if role in policy.roles
            for use in uses(role)
            if use.residency in places and policy.at_least(use.klass, each.klass)
        )
        jobs = covered if jobs is None else jobs & covered
    return bool(jobs)


def _classes(policy: Policy, uses: Uses) -> Iterator[Finding]:
    used = {(use.klass, use.partition) for role in policy.roles for use in uses(role)}
    for number, each in enumerate(policy.classes):
        for index, partition in enumerate(each.partitions or ()):
            if (each.name, partition) not in used:
                yield Finding(
                    "warning",
                    "class-partition-unreached",
                    ("classes", number, "partitions", index),
                    f"no role lets jobs of class {quote(each.name)} into the partition {quote(partition)}",
                    "name it in a role that has the class, in its jurisdiction, or leave it out",
                )
        yield from _limits(number, each)


def _limits(number: int, each: DataClass) -> Iterator[Finding]:
    if each.default_time is not None and each.max_time is None:
        yield Finding(
            "warning",
            "class-time-open",
            ("classes", number, "default_time"),
            f"the class {quote(each.name)} has a default_time and no max_time: whoever names a time gets any",
            "add max_time",
        )
    if each.output_dirs is None:
        return
    if each.work_dirs is None:
        yield Finding(
            "warning",
            "class-output-alone",
            ("classes", number, "output_dirs"),
            f"the class {quote(each.name)} says where output goes and not where its jobs work: files that they write "
            "beside it go anywhere",
            "add work_dirs",
        )
    elif not any(within(work, output) for work in each.work_dirs for output in each.output_dirs):
        yield Finding(
            "warning",
            "class-output-elsewhere",
            ("classes", number, "output_dirs"),
            f"no work_dir of the class {quote(each.name)} lies in its output_dirs: each job needs --output, for what "
            "is not named goes to the working directory",
            "add a work_dir to output_dirs, if that is not meant",
        )


def _shadow(policy: Policy, now: float) -> Iterator[Finding]:
    for rule, day in policy.shadow.items():
        over = ended(day, now)
        yield Finding(
            "warning",
            "rule-in-shadow-ended" if over else "rule-in-shadow",
            ("shadow", rule),
            f"the rule {rule} {'has been enforced again since' if over else 'is not enforced until the end of'} {day}",
            "remove it from 'shadow'" if over else "replay the policy, then remove it from 'shadow'",
        )


def _break_glass(policy: Policy) -> Iterator[Finding]:
    people = policy.break_glass
    if people is not None and len(people.requesters) == 1 and people.requesters == people.approvers:
        yield Finding(
            "warning",
            "break-glass-one-group",
            ("break_glass", "approvers"),
            "those who ask for an exception are those who approve it: two friends are enough",
            "name approvers who answer for the data",
        )


def _adequate(policy: Policy) -> Iterator[Finding]:
    reached = {place for role in policy.roles.values() for place in role.jurisdictions}
    for name, each in policy.jurisdictions.items():
        for index, other in enumerate(each.adequate):
            if other not in reached:
                yield Finding(
                    "warning",
                    "adequate-unreached",
                    ("jurisdictions", name, "adequate", index),
                    f"data of {quote(name)} may go to {quote(other)}, and no role lets a job run there",
                    "name it in a role, or leave it out",
                )
