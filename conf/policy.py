"""``policy.yaml``: who may run what, where, with which data. Pure values and questions to them; no clock, no network.

No is the default: a class, role, region, dataset or partition that is not named here gives nothing. What a class does
not limit is not limited; what may carry data out (mail, containers, burst buffers) is refused unless it says otherwise.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import attrs

from conf import forms
from conf.inclusion import closure
from conf.load import load

DEFAULT_PATH = "/etc/secure-slurm/policy.yaml"


@attrs.frozen(kw_only=True)
class Jurisdiction:
    """A place in law: the node feature that marks it in Slurm, and the region ids that lie in it.

    ``adequate``: jurisdictions to which its data may go, for datasets that say ``transfers: adequate`` (GDPR, Art. 45).
    ``file_systems``: the network file systems, by mount point or source, that may be writable where its jobs run.
    """

    feature: forms.Feature
    regions: tuple[forms.Region, ...]
    adequate: tuple[forms.Name, ...] = ()
    file_systems: tuple[forms.FileSystem, ...] = ()


@attrs.frozen(kw_only=True)
class DataClass:
    """A data class. ``required``: the tag must state it; sizes in bytes, times in seconds; None: not limited.

    ``max_scratch`` None: jobs of this class get no encrypted scratch at all. ``default_scratch``: for a job whose class
    requires scratch and whose tag names no size; None: the tag must name one. ``exclusive_nodes``: whole nodes only.
    ``max_array``: tasks of an array; ``gres``: the names that may be asked for. ``work_dirs``, ``output_dirs``: the
    directories in which the working directory, and standard input, output and error, must lie.
    ``mail`` ``owner``: to nobody but the job's owner. ``environment``: no variables of the submitter's (``none``), nor
    what the login files of the user set on the node (``nil``; sbatch(1), ``--export``).
    ``private_tmp``: what /tmp and /var/tmp of a job must be: on its ``scratch``, its own on something ``encrypted``, or
    anything (``none``). None: on the scratch, where the class requires one (:attr:`tmp`).
    """

    name: forms.Name
    residency: Literal["optional", "required"]
    scratch: Literal["optional", "required"]
    default_scratch: forms.Size | None = None
    max_scratch: forms.Size | None = None
    exclusive_nodes: bool = True
    partitions: tuple[forms.PartitionName, ...] | None = None
    max_nodes: forms.Count | None = None
    default_time: forms.Duration | None = None
    max_time: forms.Duration | None = None
    max_gpus: forms.Count | None = None
    max_array: forms.Count | None = None
    gres: tuple[forms.SlurmWord, ...] | None = None
    work_dirs: tuple[forms.Path, ...] | None = None
    output_dirs: tuple[forms.Path, ...] | None = None
    mail: Literal["refuse", "owner", "allow"] = "refuse"
    containers: Literal["refuse", "allow"] = "refuse"
    burst_buffers: Literal["refuse", "allow"] = "refuse"
    environment: Literal["any", "none", "nil"] = "any"
    private_tmp: Literal["scratch", "encrypted", "none"] | None = None

    @property
    def tmp(self) -> str:
        """``private_tmp``, with its default."""
        return self.private_tmp or ("scratch" if self.scratch == "required" else "none")


@attrs.frozen(kw_only=True)
class Role:
    """What the members of any of ``groups`` may do. None: with any partition, account, QOS, reservation or licence.

    ``until``: the last day, in UTC; a data-use agreement ends. ``includes``: roles that its members have as well.
    """

    groups: tuple[forms.DistinguishedName, ...]
    classes: tuple[forms.Name, ...]
    jurisdictions: tuple[forms.Name, ...]
    partitions: tuple[forms.PartitionName, ...] | None = None
    accounts: tuple[forms.SlurmWord, ...] | None = None
    qos: tuple[forms.SlurmWord, ...] | None = None
    reservations: tuple[forms.SlurmWord, ...] | None = None
    licenses: tuple[forms.SlurmWord, ...] | None = None
    until: forms.Date | None = None
    includes: tuple[forms.Name, ...] = ()


@attrs.frozen(kw_only=True)
class Dataset:
    """Data with an agreement of its own. Naming it sets the job's class and place, and needs one of ``roles``.

    ``residency``: the jurisdictions where it may be used; with ``transfers`` ``adequate`` also those that they find
    adequate. ``paths``: where it is mounted. ``includes``: datasets whose data is in it, and whose terms hold as well.
    """

    klass: forms.Name = attrs.field(metadata={"key": "class"})
    residency: tuple[forms.Name, ...]
    roles: tuple[forms.Name, ...]
    transfers: Literal["none", "adequate"] = "none"
    paths: tuple[forms.Path, ...] = ()
    until: forms.Date | None = None
    includes: tuple[forms.Name, ...] = ()


@attrs.frozen(kw_only=True)
class Partition:
    """What a partition demands. ``jurisdiction``: where its nodes and file systems are.

    ``least_class``: the weakest class whose jobs it takes, None: any. Only a partition that demands a tag has one.
    """

    demand_tag: bool = False
    least_class: forms.Name | None = None
    jurisdiction: forms.Name | None = None


@attrs.frozen(kw_only=True)
class BreakGlass:
    """Who may ask for an exception, who may approve one (never the same person), and for how many seconds at most."""

    requesters: tuple[forms.DistinguishedName, ...]
    approvers: tuple[forms.DistinguishedName, ...]
    longest: forms.Duration


@attrs.frozen
class Holding:
    """The groups that hold a role, and the last day on which they do (None: no end)."""

    groups: frozenset[str]
    until: datetime.date | None


_NO_DEMAND = Partition()


@attrs.frozen(kw_only=True)
class Policy:
    """The whole file. ``classes`` runs from weak to strong; ``hash`` is the sha256 (hex) of the file's bytes.

    ``shadow``: rules that are decided and recorded but not enforced, each until the end of its day.
    """

    version: Literal[1]
    jurisdictions: Mapping[forms.Name, Jurisdiction]
    classes: tuple[DataClass, ...]
    roles: Mapping[forms.Name, Role]
    datasets: Mapping[forms.Name, Dataset] = attrs.field(factory=dict)
    partitions: Mapping[forms.PartitionName, Partition] = attrs.field(factory=dict)
    break_glass: BreakGlass | None = None
    shadow: Mapping[forms.Rule, forms.Date] = attrs.field(factory=dict)
    hash: str = attrs.field(default="", metadata={"in_file": False})

    @cached_property
    def _ranks(self) -> dict[str, int]:
        # the first of a name, should there be two
        return {each.name: rank for rank, each in reversed(list(enumerate(self.classes)))}

    @cached_property
    def _by_class(self) -> dict[str, tuple[tuple[str, Role], ...]]:
        names = {klass for role in self.roles.values() for klass in role.classes}
        return {
            klass: tuple((name, role) for name, role in self.roles.items() if klass in role.classes) for klass in names
        }

    @cached_property
    def _holdings(self) -> dict[str, tuple[Holding, ...]]:
        found: dict[str, list[Holding]] = {name: [] for name in self.roles}
        for name, role in self.roles.items():
            for held, until in self._ends_from(name).items():
                found[held].append(Holding(frozenset(role.groups), until))
        return {name: tuple(holdings) for name, holdings in found.items()}

    def _ends_from(self, start: str) -> dict[str, datetime.date | None]:
        """The roles that a role includes in the end, itself too, and until when: each way ends with the first on it.

        Of several ways to one role the longest-lived counts.
        """
        ends: dict[str, datetime.date | None] = {}
        waiting: list[tuple[str, datetime.date | None]] = [(start, None)]
        while waiting:
            name, until = waiting.pop()
            role = self.roles.get(name)
            if role is None:
                continue
            until = _first_end(until, role.until)
            if name in ends and _lasts(ends[name], until):
                continue
            ends[name] = until
            waiting.extend((each, until) for each in role.includes)
        return ends

    @cached_property
    def _by_group(self) -> dict[str, tuple[tuple[str, datetime.date | None], ...]]:
        found: dict[str, list[tuple[str, datetime.date | None]]] = {}
        for name, holdings in self._holdings.items():
            for each in holdings:
                for group in each.groups:
                    found.setdefault(group, []).append((name, each.until))
        return {group: tuple(held) for group, held in found.items()}

    @cached_property
    def _demanding(self) -> tuple[str, ...]:
        return tuple(sorted(name for name, each in self.partitions.items() if each.demand_tag))

    def data_class(self, name: str) -> DataClass | None:
        """The class of that name, or None: unknown."""
        rank = self._ranks.get(name)
        return None if rank is None else self.classes[rank]

    def class_rank(self, name: str) -> int | None:
        """The strength of a class, 0 the weakest, or None: unknown, which a caller must refuse."""
        return self._ranks.get(name)

    def at_least(self, name: str, floor: str) -> bool:
        """Whether class ``name`` is as strong as ``floor``. An unknown one is never strong enough."""
        rank, least = self.class_rank(name), self.class_rank(floor)
        return rank is not None and least is not None and rank >= least

    def roles_for(self, klass: str) -> tuple[tuple[str, Role], ...]:
        """The roles that give a class, by name, in the order of the file."""
        return self._by_class.get(klass, ())

    def holdings(self, role: str) -> tuple[Holding, ...]:
        """Who holds a role: its own groups, and those of every role that includes it. A way in a cycle counts once."""
        return self._holdings.get(role, ())

    def held_by(self, groups: frozenset[str], now: float) -> tuple[str, ...]:
        """The roles that somebody in these groups holds at ``now`` (Unix seconds), by :meth:`holdings`.

        By an index, for a site has hundreds of roles, a user a few, and slurmctld waits.
        """
        found = (held for group in groups for held in self._by_group.get(group, ()))
        return tuple(sorted({name for name, until in found if not ended(until, now)}))

    def with_included(self, datasets: tuple[str, ...]) -> tuple[str, ...]:
        """The datasets and those that they include; an unknown name stays in it, for the caller to refuse."""
        return closure(datasets, {name: each.includes for name, each in self.datasets.items()})

    def places_of(self, dataset: Dataset) -> frozenset[str]:
        """The jurisdictions where a dataset itself may be used, whatever it includes."""
        places = frozenset(dataset.residency)
        if dataset.transfers == "none":
            return places
        return places.union(*(self.jurisdictions[name].adequate for name in places if name in self.jurisdictions))

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
        people = self.break_glass
        exceptions = () if people is None else (*people.requesters, *people.approvers)
        return frozenset(exceptions).union(*(role.groups for role in self.roles.values()))

    def partition(self, name: str) -> Partition:
        """What a partition demands; one that is not named demands nothing."""
        return self.partitions.get(name, _NO_DEMAND)

    def demanding_partitions(self) -> tuple[str, ...]:
        """The partitions in which every job must carry a tag, sorted."""
        return self._demanding


def ended(until: datetime.date | None, now: float) -> bool:
    """Whether the day ``until`` is over in UTC. ``now``: Unix seconds; None never ends."""
    return until is not None and datetime.datetime.fromtimestamp(now, datetime.UTC).date() > until


def _lasts(one: datetime.date | None, other: datetime.date | None) -> bool:
    """Whether ``one`` ends no earlier than ``other``."""
    return one is None or (other is not None and one >= other)


def _first_end(one: datetime.date | None, other: datetime.date | None) -> datetime.date | None:
    return min((each for each in (one, other) if each is not None), default=None)


def load_policy(path: str = DEFAULT_PATH, *, owner: int | None = None) -> Policy:
    """The checked policy file.

    Raises ConfigError with every mistake in it, one a line. ``owner``: the one uid besides root that may own the file
    (default: who runs this).
    """
    from conf.policy_checks import check_policy  # noqa: PLC0415 - only who loads needs it

    policy, digest = load(path, Policy, check_policy, owner=owner)
    return attrs.evolve(policy, hash=digest)
