"""A job as a filter sees it: what was asked for, decoded once, and what the filters change."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import attrs

from conf.tag import Tag
from slurm_hooks.wire import WireError

# Strings of users that end up in a hook's environment, a path or a scheduling decision.
STRINGS = [
    "account",
    "acctg_freq",
    "admin_comment",
    "array_inx",
    "batch_features",
    "burst_buffer",
    "clusters",
    "comment",
    "container",
    "cpus_per_tres",
    "default_account",
    "default_qos",
    "dependency",
    "exc_nodes",
    "extra",
    "features",
    "licenses",
    "mail_user",
    "mcs_label",
    "mem_per_tres",
    "name",
    "network",
    "partition",
    "prefer",
    "qos",
    "req_nodes",
    "reservation",
    "selinux_context",
    "std_err",
    "std_in",
    "std_out",
    "tres_bind",
    "tres_freq",
    "tres_per_job",
    "tres_per_node",
    "tres_per_socket",
    "tres_per_task",
    "wckey",
    "work_dir",
]

NUMBERS = ("mail_type", "max_nodes", "min_nodes", "ntasks_per_tres", "num_tasks", "time_limit")
"""The numbers that a judge looks at; ``time_limit`` in minutes (slurm.h)."""

_ENVIRONMENT = (
    *("env.secure_class", "env.secure_residency", "env.secure_scratch_size", "env.secure_datasets"),
    "env.slurm_get_user_env",
)


@attrs.frozen(kw_only=True)
class SubmitJob:
    """One submission, or one stored job merged with a change to it. ``None`` is unset.

    ``strings`` are the user's texts by Slurm's name, ``cut`` the fields that were too long to be sent whole,
    ``demand_nodes`` the node list of each partition that demands a tag, ``forced_sharing`` those of its partitions
    where no job has nodes of its own, ``changes`` what Slurm is told to set.
    ``partitions`` is resolved: empty means that not even the default is known. ``dependency_uids``: the owners of the
    jobs that it depends on, as far as slurmctld lists them. ``user_environment``: variables of the submitter's session
    come with it.
    """

    submit_uid: int
    user_id: int | None
    user_name: str | None
    strings: Mapping[str, str]
    partitions: tuple[str, ...] = ()
    has_script: bool = False
    script_lines: tuple[str, ...] = ()
    script_overflow: bool = False
    environment: Mapping[str, str] = attrs.field(factory=dict)
    alloc_node: str | None = None
    demand_nodes: Mapping[str, str] = attrs.field(factory=dict)
    forced_sharing: tuple[str, ...] = ()
    shared: int | None = None
    requeue: int | None = None
    het_offset: int | None = None
    cron: bool = False
    numbers: Mapping[str, int] = attrs.field(factory=dict)
    dependency_uids: tuple[str, ...] = ()
    script_burst_buffer: bool = False
    user_environment: bool = False
    cut: frozenset[str] = frozenset()
    tag: Tag | None = None
    changes: Mapping[str, str] = attrs.field(factory=dict)

    def string(self, name: str) -> str | None:
        """A text of the user's, as the filters have left it."""
        return self.strings.get(name)

    def number(self, name: str) -> int | None:
        """One of :data:`NUMBERS`, None when unset."""
        return self.numbers.get(name)

    def but(self, **changes: Any) -> SubmitJob:  # noqa: ANN401 - one of the attributes, as attrs.evolve takes them
        """A copy with other values: attrs.evolve at half its cost, and a tagged job is copied five times."""
        return SubmitJob(**{**dict(zip(_NAMES, _VALUES(self), strict=True)), **changes})

    def with_number(self, name: str, value: int) -> SubmitJob:
        """The job with a number set, which Slurm is told."""
        return self.but(numbers={**self.numbers, name: value}, changes={**self.changes, name: str(value)})

    def with_string(self, name: str, value: str) -> SubmitJob:
        """The job with a text set, which Slurm is told if it is another one than before."""
        if self.strings.get(name) == value:
            return self
        return self.but(strings={**self.strings, name: value}, changes={**self.changes, name: value})


_NAMES = tuple(field.name for field in attrs.fields(SubmitJob))
_VALUES = attrgetter(*_NAMES)


def from_fields(fields: Mapping[str, bytes]) -> SubmitJob:
    """The job in a ``submit`` request. WireError for a number that is none or a missing ``submit_uid``."""
    submit_uid = number(fields, "submit_uid")
    if submit_uid is None:
        raise WireError("the request lacks the field submit_uid")
    strings = {name: loose_text(fields[name]) for name in STRINGS if name in fields}
    return SubmitJob(
        submit_uid=submit_uid,
        user_id=number(fields, "user_id"),
        user_name=optional_text(fields, "user_name"),
        strings=strings,
        partitions=partitions(strings.get("partition") or optional_text(fields, "default_partition")),
        has_script="has_script" in fields,
        script_lines=lines(fields, "script_lines"),
        script_overflow="script_lines.overflow" in fields,
        environment={name: loose_text(fields[name]) for name in _ENVIRONMENT if name in fields},
        alloc_node=optional_text(fields, "alloc_node"),
        demand_nodes=demand_nodes(fields),
        forced_sharing=partitions(optional_text(fields, "forced_sharing")),
        shared=number(fields, "shared"),
        requeue=number(fields, "requeue"),
        het_offset=number(fields, "het_job_offset"),
        cron="cron_job" in fields,
        numbers=numbers(fields),
        dependency_uids=partitions(optional_text(fields, "dependency_uids")),
        script_burst_buffer="script_burst_buffer" in fields,
        user_environment="user_environment" in fields,
        cut=cut_fields(fields),
    )


def number(fields: Mapping[str, bytes], name: str) -> int | None:
    """A field as a whole number, None when unset. WireError for anything else."""
    value = fields.get(name)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 20:
        raise WireError(f"the field {name} is not a whole number")
    return int(value)


def numbers(fields: Mapping[str, bytes]) -> dict[str, int]:
    """Those of :data:`NUMBERS` that are set. WireError for what is no whole number."""
    found = ((name, number(fields, name)) for name in NUMBERS if name in fields)
    return {name: value for name, value in found if value is not None}


def loose_text(value: bytes) -> str:
    """Text from a user; bytes that are not UTF-8 become lone surrogates, which a judge refuses where it matters."""
    return value.decode("utf-8", "surrogateescape")


def optional_text(fields: Mapping[str, bytes], name: str) -> str | None:
    """A text, None when unset."""
    value = fields.get(name)
    return None if value is None else loose_text(value)


def partitions(text: str | None) -> tuple[str, ...]:
    """The names in a comma list, as Slurm splits it."""
    return tuple(name for name in (text or "").split(",") if name)


def lines(fields: Mapping[str, bytes], name: str) -> tuple[str, ...]:
    """The lines of a field that the filter joined with line feeds."""
    text = optional_text(fields, name)
    return () if text is None else tuple(text.split("\n"))


def demand_nodes(fields: Mapping[str, bytes]) -> dict[str, str]:
    """Partition to node list, from ``name=list`` lines."""
    found = (line.partition("=") for line in lines(fields, "demand_nodes") if line)
    return {name: nodes for name, _, nodes in found}


def cut_fields(fields: Mapping[str, bytes]) -> frozenset[str]:
    """The fields that the filter had to cut."""
    return frozenset(name.removesuffix(".cut") for name in fields if name.endswith(".cut"))
