"""What machine this is: its roles, its name in Slurm, and the files that say what should be here."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import ConfigError
from conf.slurmnames import for_node
from slurm_hooks import clear

if TYPE_CHECKING:
    from conf.policy import Policy
    from conf.site import Site
    from keys.secret import Secret

ROLES = ("head", "login", "compute", "vault")
HOOKS_DIR = str(Path(clear.SCRIPT).parent)
"""Where install.sh puts what Slurm calls."""
PREFIX = str(Path(HOOKS_DIR).parent)
_UNITS = "/etc/systemd/system"
_SIGNS = {"head": "lifecycled", "compute": "noded"}
_SERVERS = frozenset({"bao", "vault", "openbao"})


class Scene(NamedTuple):
    """``asked``: the roles were named, so that connections to the outside may be tried. ``node``: Slurm's name."""

    roles: frozenset[str]
    asked: bool
    node: str
    config: str
    policy_file: str
    site: Site | None
    policy: Policy | None
    token: Secret | None = None

    def need_site(self) -> Site:
        """The site file. ConfigError when it has none that can be used."""
        if self.site is None:
            raise ConfigError("secure-slurm.yaml cannot be used", advice="see configuration")
        return self.site

    def need_policy(self) -> Policy:
        """The policy. ConfigError when it has none that can be used."""
        if self.policy is None:
            raise ConfigError("policy.yaml cannot be used", advice="see configuration")
        return self.policy


def node_name(given: str, site: Site | None) -> str:
    """The name given, else the host's if it is set up as that node, else that of the one node which is set up here."""
    if given:
        return given
    host = socket.gethostname().partition(".")[0]
    names = _nodes_here(site)
    return host if host in names or len(names) != 1 else names[0]


def _nodes_here(site: Site | None) -> list[str]:
    """Every node that has a run_dir on this machine."""
    if site is None:
        return []
    before, _, after = Path(site.node.run_dir).name.partition("%n")
    try:
        found = os.listdir(Path(site.node.run_dir).parent)  # noqa: PTH208 - names are wanted, not paths
    except OSError:
        return []
    return sorted(name[len(before) : len(name) - len(after)] for name in found if _fits(name, before, after))


def _fits(name: str, before: str, after: str) -> bool:
    return name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)


def roles_here(site: Site | None, node: str) -> frozenset[str]:
    """By what is installed, or runs. Where nothing of ours but the commands is, it is a login node."""
    found = {role for role, name in _SIGNS.items() if Path(f"{_UNITS}/secure-slurm-{name}.service").exists()}
    if site is not None:
        host = socket.gethostname()
        if {host, host.partition(".")[0]} & set(site.cluster.head_nodes) or Path(site.lifecycle.socket).exists():
            found.add("head")
        if Path(for_node(site.node.run_dir, node)).is_dir():
            found.add("compute")
    if _serves_vault():
        found.add("vault")
    return frozenset(found or {"login"})


def _serves_vault() -> bool:
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsdecode(os.path.basename(words[0])) in _SERVERS and b"server" in words:  # noqa: PTH119 - bytes
            return True
    return False
