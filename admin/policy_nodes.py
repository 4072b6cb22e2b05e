"""A policy compared with the cluster that it is for: its partitions, nodes and features as slurmctld has them.

What is mounted on a node, Slurm does not know; the Prolog looks at that. Here is looked at who may be sent to a node at
all. Nothing is changed by looking.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from admin.findings import Finding
from conf.errors import BackendUnavailable
from conf.policy import Policy
from conf.quote import did_you_mean, quote
from conf.surroundings import dataset_paths, owned_file_systems
from keys.process import ProcessError, run

QUERY_TIMEOUT = 60.0
"""Seconds. slurmctld of a large cluster needs some for its nodes."""
ANSWER_LIMIT = 512 * 1024**2
SHOWN = 5

_PARTITION = re.compile(r"PartitionName=(\S+) (?:.* )?OverSubscribe=(\S+)")


class Node(NamedTuple):
    """A node: its features, available or active, and the partitions that it is in."""

    name: str
    features: frozenset[str]
    partitions: frozenset[str]


class Cluster(NamedTuple):
    """What slurmctld says. ``partitions``: each name, and whether it has OverSubscribe=FORCE."""

    partitions: dict[str, bool]
    nodes: tuple[Node, ...]


def ask_slurm(slurm_bin: str) -> Cluster:
    """Partitions and nodes of the running cluster. Raises BackendUnavailable: no answer, or one that cannot be read."""
    # 26.05's JSON says of no partition how it shares its nodes, FORCE or not (measured); the lines for people do
    lines = _scontrol(slurm_bin, "partitions", "--oneliner").decode("utf-8", "replace").splitlines()
    partitions = {found[1]: found[2].startswith("FORCE") for found in map(_PARTITION.match, lines) if found}
    if not partitions:
        raise _unreadable("it names no partition")
    try:
        nodes = tuple(
            Node(
                str(each["name"]),
                frozenset([*map(str, each["features"]), *map(str, each["active_features"])]),
                frozenset(map(str, each["partitions"])),
            )
            for each in json.loads(_scontrol(slurm_bin, "nodes", "--json"))["nodes"]
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _unreadable(type(error).__name__) from None
    return Cluster(partitions, nodes)


def _scontrol(slurm_bin: str, what: str, form: str) -> bytes:
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    argv = [f"{slurm_bin}/scontrol", "--all", form, "show", what]
    try:
        return run(argv, timeout=QUERY_TIMEOUT, env_extra=where, max_output=ANSWER_LIMIT).stdout
    except ProcessError as error:
        raise BackendUnavailable(
            f"slurmctld was not asked about its {what}: {error}", advice="is slurmctld running? Or leave --slurm out"
        ) from None


def _unreadable(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"slurmctld's answer cannot be read: {why}", advice="is this a supported version of Slurm?"
    )


def compare(policy: Policy, cluster: Cluster) -> list[Finding]:
    """Every finding."""
    return [
        *_partitions(policy, cluster),
        *_shared(policy, cluster),
        *_features(policy, cluster),
        *_sharing(policy, cluster),
    ]


def _partitions(policy: Policy, cluster: Cluster) -> Iterator[Finding]:
    places: list[tuple[tuple[str | int, ...], str]] = [(("partitions", name), name) for name in policy.partitions]
    for number, each in enumerate(policy.classes):
        places += [(("classes", number, "partitions", index), word) for index, word in enumerate(each.partitions or ())]
    for name, role in policy.roles.items():
        places += [(("roles", name, "partitions", index), word) for index, word in enumerate(role.partitions or ())]
    for where, name in places:
        if name not in cluster.partitions:
            yield Finding(
                "error",
                "slurm-partition-missing",
                where,
                f"Slurm has no partition {quote(name)}{did_you_mean(name, sorted(cluster.partitions))}",
                "correct the name, or add the partition to slurm.conf",
            )


def _shared(policy: Policy, cluster: Cluster) -> Iterator[Finding]:
    """Nodes that a job without a tag reaches by another partition."""
    protected = bool(dataset_paths(policy) or owned_file_systems(policy))
    for name in policy.demanding_partitions():
        by_other: dict[str, list[str]] = {}
        for node in cluster.nodes:
            if name in node.partitions:
                for other in node.partitions:
                    if not policy.partition(other).demand_tag:
                        by_other.setdefault(other, []).append(node.name)
        for other, nodes in sorted(by_other.items()):
            yield Finding(
                "error" if protected else "warning",
                "slurm-node-shared",
                ("partitions", name),
                f"{_some(nodes)} of the partition {quote(name)} are in {quote(other)} as well, which demands no tag: "
                "jobs without one run beside its data",
                f"take them out of {other}, or set demand_tag for it",
            )


def _features(policy: Policy, cluster: Cluster) -> Iterator[Finding]:
    for name, partition in policy.partitions.items():
        if partition.jurisdiction is None or partition.jurisdiction not in policy.jurisdictions:
            continue
        feature = policy.jurisdictions[partition.jurisdiction].feature
        inside = [node for node in cluster.nodes if name in node.partitions]
        without = [node.name for node in inside if feature not in node.features]
        if without:
            yield Finding(
                "error",
                "slurm-feature-missing",
                ("partitions", name, "jurisdiction"),
                f"{_some(without)} of the partition {quote(name)} have not the feature {feature} of "
                f"{quote(partition.jurisdiction)}: no job with a residency runs there",
                f"add Feature={feature} in slurm.conf if they are there; else take them out of the partition",
            )
        foreign = [node.name for node in inside if node.features & (policy.features() - {feature})]
        if foreign:
            yield Finding(
                "error",
                "slurm-feature-foreign",
                ("partitions", name, "jurisdiction"),
                f"{_some(foreign)} of the partition {quote(name)}, in {quote(partition.jurisdiction)}, have another "
                "jurisdiction's feature",
                "correct Feature in slurm.conf, or take them out of the partition",
            )
    yield from _two_places(policy, cluster)


def _two_places(policy: Policy, cluster: Cluster) -> Iterator[Finding]:
    both: dict[tuple[str, ...], list[str]] = {}
    for node in cluster.nodes:
        found = tuple(name for name, each in policy.jurisdictions.items() if each.feature in node.features)
        if len(found) > 1:
            both.setdefault(found, []).append(node.name)
    for places, nodes in both.items():
        yield Finding(
            "error",
            "slurm-node-two-places",
            ("jurisdictions", places[1], "feature"),
            f"{_some(nodes)} have the features of {' and '.join(map(quote, places))}: a node is in one place",
            "leave in slurm.conf the feature of the place where they are",
        )


def _sharing(policy: Policy, cluster: Cluster) -> Iterator[Finding]:
    """OverSubscribe=FORCE outdoes --exclusive (slurm.conf(5)); such jobs are refused there, by partition.sharing."""
    for name, forced in cluster.partitions.items():
        classes = [each.name for each in policy.classes if each.exclusive_nodes and _reaches(each.name, name, policy)]
        if forced and classes:
            yield Finding(
                "error",
                "slurm-sharing-forced",
                ("partitions", name) if name in policy.partitions else ("classes",),
                f"the partition {quote(name)} has OverSubscribe=FORCE, and jobs of class {quote(classes[0])}, which "
                "need whole nodes, are refused there",
                "set OverSubscribe=EXCLUSIVE or NO in slurm.conf, or keep the class out of the partition",
            )


def _reaches(klass: str, partition: str, policy: Policy) -> bool:
    data_class, demands = policy.data_class(klass), policy.partition(partition)
    if data_class is None or (data_class.partitions is not None and partition not in data_class.partitions):
        return False
    if demands.least_class is not None and not policy.at_least(klass, demands.least_class):
        return False
    return any(role.partitions is None or partition in role.partitions for _, role in policy.roles_for(klass))


def _some(nodes: list[str]) -> str:
    listed = sorted(nodes)
    shown = ", ".join(listed[:SHOWN])
    return f"{shown} and {len(listed) - SHOWN} more nodes" if len(listed) > SHOWN else f"the nodes {shown}"
