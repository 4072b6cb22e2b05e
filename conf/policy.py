"""``policy.yaml``: who may run what, where. Pure values and questions to them; nothing here reads a clock or a network.

No is the default: a class, role, region or partition that is not named here gives nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from conf import forms
from conf.load import load

DEFAULT_PATH = "/etc/secure-slurm/policy.yaml"


@attrs.frozen(kw_only=True)
class Jurisdiction:
    """A place in law: the node feature that marks it in Slurm, and the region ids that lie in it."""

    feature: forms.Feature
    regions: tuple[forms.Region, ...]


@attrs.frozen(kw_only=True)
class DataClass:
    """A data class. ``required``: the tag must state it; sizes in bytes.

    ``max_scratch`` None: jobs of this class get no encrypted scratch at all. ``default_scratch``: for a job whose class
    requires scratch and whose tag names no size; None: the tag must name one. ``exclusive_nodes``: whole nodes only.
    """

    name: forms.Name
    residency: Literal["optional", "required"]
    scratch: Literal["optional", "required"]
    default_scratch: forms.Size | None = None
    max_scratch: forms.Size | None = None
    exclusive_nodes: bool = True


@attrs.frozen(kw_only=True)
class Role:
    """What the members of any of ``groups`` may do. ``partitions`` None: in every partition."""

    groups: tuple[forms.DistinguishedName, ...]
    classes: tuple[forms.Name, ...]
    jurisdictions: tuple[forms.Name, ...]
    partitions: tuple[forms.PartitionName, ...] | None = None


@attrs.frozen(kw_only=True)
class Partition:
    """What a partition demands. ``jurisdiction``: where its nodes and file systems are.

    ``least_class``: the weakest class whose jobs it takes, None: any. Only a partition that demands a tag has one.
    """

    demand_tag: bool = False
    least_class: forms.Name | None = None
    jurisdiction: forms.Name | None = None


_NO_DEMAND = Partition()


@attrs.frozen(kw_only=True)
class Policy:
    """The whole file. ``classes`` runs from weak to strong; ``hash`` is the sha256 (hex) of the file's bytes."""

    version: Literal[1]
    jurisdictions: Mapping[forms.Name, Jurisdiction]
    classes: tuple[DataClass, ...]
    roles: Mapping[forms.Name, Role]
    partitions: Mapping[forms.PartitionName, Partition] = attrs.field(factory=dict)
    hash: str = attrs.field(default="", metadata={"in_file": False})

    def data_class(self, name: str) -> DataClass | None:
        """The class of that name, or None: unknown."""
        return next((each for each in self.classes if each.name == name), None)

    def class_rank(self, name: str) -> int | None:
        """The strength of a class, 0 the weakest, or None: unknown, which a caller must refuse."""
        return next((rank for rank, each in enumerate(self.classes) if each.name == name), None)

    def at_least(self, name: str, floor: str) -> bool:
        """Whether class ``name`` is as strong as ``floor``. An unknown one is never strong enough."""
        rank, least = self.class_rank(name), self.class_rank(floor)
        return rank is not None and least is not None and rank >= least

    def jurisdiction_of_region(self, region: str) -> str | None:
        """The jurisdiction that lists the region id, or None. By table only: eu-west-2 is not in the EU."""
        return next((name for name, each in self.jurisdictions.items() if region in each.regions), None)

    def jurisdiction_of_feature(self, feature: str) -> str | None:
        """The jurisdiction that a node feature stands for, or None."""
        return next((name for name, each in self.jurisdictions.items() if each.feature == feature), None)

    def features(self) -> frozenset[str]:
        """Every node feature that stands for a jurisdiction."""
        return frozenset(each.feature for each in self.jurisdictions.values())

    def regions(self) -> dict[str, str]:
        """Region id to jurisdiction, sorted."""
        return dict(sorted((region, name) for name, each in self.jurisdictions.items() for region in each.regions))

    def groups(self) -> frozenset[str]:
        """The distinguished names, as written, of every group whose members must be known."""
        return frozenset(group for role in self.roles.values() for group in role.groups)

    def partition(self, name: str) -> Partition:
        """What a partition demands; one that is not named demands nothing."""
        return self.partitions.get(name, _NO_DEMAND)

    def demanding_partitions(self) -> tuple[str, ...]:
        """The partitions in which every job must carry a tag, sorted."""
        return tuple(sorted(name for name, each in self.partitions.items() if each.demand_tag))


def load_policy(path: str = DEFAULT_PATH, *, owner: int | None = None) -> Policy:
    """The checked policy file.

    Raises ConfigError with every mistake in it, one a line. ``owner``: the one uid besides root that may own the file
    (default: who runs this).
    """
    from conf.checks import check_policy  # noqa: PLC0415 - only who loads needs it

    policy, digest = load(path, Policy, check_policy, owner=owner)
    return attrs.evolve(policy, hash=digest)
