"""The grant: what the head node says of one start of a job, for one node. Pure, standard library only.

It lies in Vault's KV store, where only this node and the lifecycle daemon can read it. The node makes no scratch
unless the grant agrees with what slurmd told its Prolog: Slurm lets a job start when PrologSlurmctld is missing or was
killed, and then there is no grant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

from conf.errors import Refused
from conf.quote import quote
from conf.tag import is_name
from keys.names import check_cluster, check_incarnation, check_job, check_nodes, parse_key_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

VERSION = "1"
NO_SCRATCH = "0"
# "class" is a word of Python
_WORDS = {"klass": "class"}
_DEFECT = "no scratch is made without a sound grant; the lifecycle daemon's log says who wrote it"

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_UID_LIMIT = 2**32 - 2
# useradd(8) and directories differ; nothing here is used as a path or in a shell
_USER = re.compile(r"[^\s,=|\x00-\x1f\x7f]{1,256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """All fields are text. Making one checks them all (Refused ``grant.field``).

    ``v``: version of this form. ``incarnation``: this start of the job, 32 hex. ``key``: the node's transit key.
    ``nodes``: every node of the job, expanded, with commas. ``restarts``: Slurm's restart count. ``scratch``: bytes,
    "0" for none. ``klass`` ("class" in the dict) and ``residency``: the tag; residency may be "" (none).
    ``datasets``: their names with commas, "" for none. ``created``: Unix seconds.
    """

    v: str
    incarnation: str
    key: str
    cluster: str
    job: str
    uid: str
    user: str
    nodes: str
    restarts: str
    scratch: str
    klass: str
    residency: str
    datasets: str
    created: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) or not _sound(field.name, value):
                raise _bad(f"{_WORDS.get(field.name, field.name)} is {quote(value)}")
        key = parse_key_name(self.key)
        if (key.cluster, key.job) != (self.cluster, self.job) or key.node not in self.node_list:
            raise _bad(f"the key {self.key} is not one of job {self.job}")

    @property
    def node(self) -> str:
        """The node that this grant is for: the one whose key it names."""
        return parse_key_name(self.key).node

    @property
    def node_list(self) -> tuple[str, ...]:
        """``nodes``, taken apart."""
        return tuple(self.nodes.split(","))

    def to_dict(self) -> dict[str, str]:
        """What is written to Vault."""
        return {_WORDS.get(field.name, field.name): getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """The grant that Vault gave; Refused ``grant.field`` unless every field, and no other, is there and sound."""
        names = {_WORDS.get(field.name, field.name): field.name for field in fields(cls)}
        if data.keys() != names.keys():
            odd = sorted(str(name) for name in data.keys() ^ names.keys())
            raise _bad(f"missing or unknown: {', '.join(quote(name) for name in odd)}")
        for word, value in data.items():
            if not isinstance(value, str):
                raise _bad(f"{word} is not text")
        return cls(**{names[word]: str(value) for word, value in data.items()})

    def matches(
        self, job: str, uid: str, cluster: str, restarts: str, nodes: Iterable[str], *, node: str | None = None
    ) -> None:
        """Return only if this is the grant of the job that slurmd is starting; else Refused, its rule ``grant.<what>``.

        The order of ``nodes`` does not matter. ``node``: this machine's Slurm name, checked when given.
        """
        self._same("job", self.job, job)
        self._same("uid", self.uid, uid)
        self._same("cluster", self.cluster, cluster)
        # an Epilog's count is already the next one: only a Prolog may ask
        self._same("restarts", self.restarts, restarts)
        if sorted(self.node_list) != sorted(nodes):
            raise Refused("grant.nodes", f"the grant of job {self.job} is for other nodes", advice=_DEFECT)
        if node is not None:
            self._same("node", self.node, node)

    def _same(self, what: str, granted: str, seen: str) -> None:
        if not seen or granted != seen:
            raise Refused(
                f"grant.{what}",
                f"the grant of job {self.job} says {what} {quote(granted)}, Slurm says {quote(seen)}",
                advice=_DEFECT,
            )


def _is_number(value: str, limit: int = 10**18) -> bool:
    return bool(_NUMBER.fullmatch(value)) and int(value) <= limit


def _accepts(check: Callable[[str], object], value: str) -> bool:
    try:
        check(value)
    except Refused:
        return False
    return True


_CHECKS: dict[str, Callable[[str], bool]] = {
    "v": lambda value: value == VERSION,
    "incarnation": lambda value: _accepts(check_incarnation, value),
    "key": lambda value: _accepts(parse_key_name, value),
    "cluster": lambda value: _accepts(check_cluster, value),
    "job": lambda value: _accepts(check_job, value),
    "uid": lambda value: _is_number(value, _UID_LIMIT),
    "user": lambda value: bool(_USER.fullmatch(value)),
    "nodes": lambda value: _accepts(lambda nodes: check_nodes(nodes.split(",")), value),
    "restarts": _is_number,
    "scratch": _is_number,
    "klass": is_name,
    "residency": lambda value: value == "" or is_name(value),
    "datasets": lambda value: value == "" or all(map(is_name, value.split(","))),
    "created": _is_number,
}


def _sound(name: str, value: str) -> bool:
    return _CHECKS[name](value)


def _bad(what: str) -> Refused:
    return Refused("grant.field", f"this is not a sound grant: {what}", advice=_DEFECT)
