"""The policies that are shipped for Vault, with the names of one cluster in them. Reads what is shipped, no more."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import InternalError
from keys.names import CERTIFICATE_KEY, node_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conf.site import Site

_MARK = re.compile(r"@[A-Z_]+@")


class Roles(NamedTuple):
    """The names that belong to one cluster."""

    head_policy: str
    node_policy: str
    head_role: str

    @classmethod
    def of(cls, cluster: str) -> Roles:
        """``secure-slurm-<cluster>-head`` and so on."""
        return cls(f"secure-slurm-{cluster}-head", f"secure-slurm-{cluster}-node", f"secure-slurm-{cluster}-head")


def node_word(site: Site, accessor: Callable[[str], str]) -> str:
    """What in a policy stands for the name of the node that has logged in. ``accessor``: that of an auth mount."""
    node = site.vault.node
    if node.method == "aws":
        return f"identity.entity.metadata.{node_key(site.cluster.name)}"
    return f"identity.entity.aliases.{accessor(node.jwt_mount if node.method == 'jwt' else node.cert_mount)}.name"


def policy_words(site: Site, node: str) -> dict[str, str]:
    """What stands for the marks in the shipped policies. ``node``: :func:`node_word`."""
    vault, roles = site.vault, Roles.of(site.cluster.name)
    return {
        **{"TRANSIT": vault.transit_mount, "GRANTS": vault.grants_mount, "NODE": node},
        **{"CERTIFICATES": CERTIFICATE_KEY, "HEAD_POLICY": roles.head_policy, "NODE_POLICY": roles.node_policy},
    }


def render_policy(file: str, words: Mapping[str, str]) -> str:
    """The shipped policy ``conf/vault/<file>`` with its marks replaced; a mark that is left is an InternalError."""
    text = resources.files("conf").joinpath("vault", file).read_text(encoding="utf-8")
    for mark, value in words.items():
        text = text.replace(f"@{mark}@", value)
    if left := _MARK.search(text):
        raise InternalError(f"{file} has the unknown mark {left[0]}")
    return text
