"""A ParallelCluster configuration as our own rules look at it: what was read, and what it has to fit. Pure.

The rules take what YAML read and pass over whatever has the wrong shape: ParallelCluster's schema says that better.
Slurm's settings are compared without regard to case, as Slurm and ParallelCluster do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from admin.findings import Finding
from admin.parallelcluster import aws
from admin.parallelcluster.answers import Answers
from conf.policy import Policy
from conf.rawchecks import Raw, items, section
from conf.site import Site
from conf.yamlmarks import Where

QUEUES: Where = ("Scheduling", "SlurmQueues")
SETTINGS: Where = ("Scheduling", "SlurmSettings")
CUSTOM: Where = (*SETTINGS, "CustomSlurmSettings")


class Setting(NamedTuple):
    """One key of CustomSlurmSettings. ``alone``: its entry has no other key."""

    key: str
    value: object
    where: Where
    alone: bool


class Queue(NamedTuple):
    """A queue that has a name."""

    name: str
    raw: Raw
    where: Where

    def resources(self) -> Iterator[tuple[Raw, Where]]:
        """Its compute resources."""
        for index, each in enumerate(items(self.raw, "ComputeResources")):
            if isinstance(each, dict):
                yield each, (*self.where, "ComputeResources", index)


class Look(NamedTuple):
    """A configuration, and what there is to compare it with; None: not known, and rules about it say nothing."""

    raw: Raw
    site: Site | None = None
    policy: Policy | None = None
    answers: Answers | None = None
    slurm: str | None = None

    @property
    def region(self) -> str:
        """The region, "" when it is not said."""
        return text(self.raw, "Region")

    @property
    def jurisdiction(self) -> str | None:
        """The policy's jurisdiction of the region."""
        return self.policy.jurisdiction_of_region(self.region) if self.policy and self.region else None

    def demands(self, queue: str) -> bool:
        """Whether every job in a queue must carry a tag; without a policy no queue is known to."""
        return self.policy is not None and self.policy.partition(queue).demand_tag

    def settings(self) -> list[Setting]:
        """Every key of CustomSlurmSettings, in the order of the file."""
        found = []
        for index, entry in enumerate(items(below(self.raw, SETTINGS), "CustomSlurmSettings")):
            if isinstance(entry, dict):
                for key, value in entry.items():
                    found.append(Setting(key, value, (*CUSTOM, index, key), len(entry) == 1))
        return found

    def setting(self, name: str) -> Setting | None:
        """The one of that name that counts: the last."""
        return next((each for each in reversed(self.settings()) if each.key.lower() == name.lower()), None)

    def queues(self) -> list[Queue]:
        """The queues, in the order of the file."""
        found = items(section(self.raw, "Scheduling"), "SlurmQueues")
        return [
            Queue(name, each, (*QUEUES, index))
            for index, each in enumerate(found)
            if isinstance(each, dict) and (name := text(each, "Name"))
        ]

    def pools(self) -> list[tuple[Raw, Where]]:
        """The pools of login nodes."""
        found = items(section(self.raw, "LoginNodes"), "Pools")
        return [(each, ("LoginNodes", "Pools", index)) for index, each in enumerate(found) if isinstance(each, dict)]

    def storages(self) -> list[tuple[Raw, Where]]:
        """The shared file systems."""
        found = items(self.raw, "SharedStorage")
        return [(each, ("SharedStorage", index)) for index, each in enumerate(found) if isinstance(each, dict)]

    def partition(self) -> str:
        """The AWS partition, as in an ARN."""
        return aws.partition_of(self.region)


Findings = Iterator[Finding]
Rule = Callable[[Look], Findings]


def error(check: str, where: Where, message: str, advice: str) -> Finding:
    """Something that must not go into use."""
    return Finding("error", check, where, message, advice)


def warning(check: str, where: Where, message: str, advice: str) -> Finding:
    """Something that may be meant."""
    return Finding("warning", check, where, message, advice)


def below(raw: Raw, where: Where) -> Raw:
    """The mapping at a path of keys, empty when there is none."""
    for step in where:
        raw = section(raw, str(step))
    return raw


def text(raw: Raw, key: str) -> str:
    """The text below a key, "" when there is none."""
    found = raw.get(key)
    return found if isinstance(found, str) else ""


def scalars(value: object, where: Where = ()) -> Iterator[tuple[Where, str]]:
    """Every text in what YAML read, with its path."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from scalars(each, (*where, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from scalars(each, (*where, index))
    elif isinstance(value, str):
        yield where, value
