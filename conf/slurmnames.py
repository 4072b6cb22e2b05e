"""Names that Slurm gives, where they become part of a path. Standard library only: root hooks use it."""

from __future__ import annotations

import re

from conf.errors import ConfigError
from conf.quote import quote

# no '_': it ends the node's name in the names of its transit keys, by which the Vault policy keeps nodes apart
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", re.ASCII)


def is_node_name(name: str) -> bool:
    """Whether the suite can protect a node of this name: ``[A-Za-z0-9][A-Za-z0-9.-]{0,62}``."""
    return _NODE_NAME.fullmatch(name) is not None


def for_node(pattern: str, node: str) -> str:
    """``pattern`` with ``%n`` replaced by the node's Slurm name. ConfigError when that name could leave the path."""
    if not is_node_name(node):
        raise ConfigError(
            f"the node name {quote(node)} is not supported",
            advice="use letters, digits, '.' and '-' in NodeName (slurm.conf), no '_'",
        )
    return pattern.replace("%n", node)
