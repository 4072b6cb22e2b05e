"""Names in Vault: transit keys ``<node>_<cluster>-<job>-<16 hex>`` and grants ``<node>/<job>``. Pure, standard library.

The node's policy in Vault is ``<its own name>_*``. So no node name may hold ``_``, or node ``a`` could use the keys of
node ``a_b``; and no two nodes may differ in letter case alone, since Vault takes such certificates for one identity
(measured: OpenBao 2.6; identity names ignore case).
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import Refused
from conf.quote import quote
from conf.slurmnames import is_node_name

if TYPE_CHECKING:
    from collections.abc import Iterable

# slurm.conf(5), ClusterName: at most 40 characters, kept in lower case
_CLUSTER = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
# Slurm's job ids are 26 bits and more in a federation; no leading zero, so that one job has one name
_JOB = re.compile(r"[1-9][0-9]{0,19}", re.ASCII)
_SUFFIX = re.compile(r"[0-9a-f]{16}", re.ASCII)
CERTIFICATE_KEY = "secure-slurm-certificates"
"""The transit key that signs certificates of destruction; no job's key can be called so."""

_INCARNATION = re.compile(r"[0-9a-f]{32}", re.ASCII)


class KeyName(NamedTuple):
    """The parts of a transit key's name."""

    node: str
    cluster: str
    job: str
    suffix: str

    def __str__(self) -> str:
        return f"{self.node}_{self.cluster}-{self.job}-{self.suffix}"


def check_node(name: str) -> str:
    """``name`` if it may be a node's name; Refused ``names.node``."""
    if not is_node_name(name):
        raise Refused(
            "names.node",
            f"the node name {quote(name)} is not supported",
            advice="use letters, digits, '.' and '-' in NodeName (slurm.conf), no '_'",
        )
    return name


def check_nodes(names: Iterable[str]) -> tuple[str, ...]:
    """The names, in their order. None at all, one twice, or two that differ in letter case alone: Refused."""
    nodes = tuple(check_node(name) for name in names)
    if not nodes:
        raise Refused("names.nodes", "the job has no nodes", advice="this is a defect: report it")
    if len({node.lower() for node in nodes}) != len(nodes):
        raise Refused(
            "names.nodes",
            "two of the job's nodes have the same name, or names that differ in letter case alone",
            advice="rename one of them in slurm.conf: to Vault they are the same machine",
        )
    return nodes


def check_cluster(name: str) -> str:
    """``name`` if it may be a cluster's name; Refused ``names.cluster``."""
    return _checked(_CLUSTER, name, "names.cluster", "cluster name")


def check_job(job: str) -> str:
    """``job`` if it is a job id in decimal; Refused ``names.job``."""
    return _checked(_JOB, job, "names.job", "job id")


def check_incarnation(incarnation: str) -> str:
    """``incarnation`` if it is one; Refused ``names.incarnation``."""
    return _checked(_INCARNATION, incarnation, "names.incarnation", "incarnation")


def new_key_name(node: str, cluster: str, job: str) -> str:
    """A name that no key ever had: job ids wrap, and a requeued job keeps its own."""
    return key_name(node, cluster, job, secrets.token_hex(8))


def new_incarnation() -> str:
    """What tells one start of a job from all others."""
    return secrets.token_hex(16)


def node_key(cluster: str) -> str:
    """In the metadata of a node's entity: the key under which its name stands (``vault.node.method: aws``)."""
    return f"secure-slurm-{check_cluster(cluster)}"


def key_name(node: str, cluster: str, job: str, suffix: str) -> str:
    """The name of a transit key; Refused ``names.*`` when a part is not of its form."""
    _checked(_SUFFIX, suffix, "names.key", "end of a key name")
    return str(KeyName(check_node(node), check_cluster(cluster), check_job(job), suffix))


def parse_key_name(name: str) -> KeyName:
    """The parts of a key's name; Refused ``names.key`` for anything that :func:`key_name` does not make."""
    node, _, rest = name.partition("_")
    parts = rest.rsplit("-", 2)
    try:
        cluster, job, suffix = parts
        if key_name(node, cluster, job, suffix) == name:
            return KeyName(node, cluster, job, suffix)
    except (ValueError, Refused):
        pass
    raise Refused("names.key", f"{quote(name)} is not the name of a key of ours", advice="this is a defect: report it")


def grant_path(node: str, job: str) -> str:
    """Where the grant of a job on a node lies in the KV mount; Refused ``names.*``."""
    return f"{check_node(node)}/{check_job(job)}"


def _checked(pattern: re.Pattern[str], value: str, rule: str, what: str) -> str:
    if not pattern.fullmatch(value):
        raise Refused(rule, f"{quote(value)} is not a {what}", advice="this is a defect: report it")
    return value
