"""A large site: the policy and the group members that the submission path is measured with. Made by rule, not drawn."""

from __future__ import annotations

import time

from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot

USERS = 50_000
ROLES = 200
DATASETS = 500
# groups that a user is in besides the one for everybody
GROUPS_EACH = 3

_HEAD = """\
version: 1
jurisdictions:
  eu: {feature: eu, regions: [eu-central-1, eu-west-1], adequate: [us]}
  us: {feature: us, regions: [us-east-1, us-west-2]}
classes:
  - {name: internal, residency: optional, scratch: optional, max_scratch: 1G, exclusive_nodes: false}
  - {name: phi, residency: required, scratch: required, default_scratch: 64M, max_scratch: 200G, exclusive_nodes: true}
partitions:
  phi: {demand_tag: true, jurisdiction: eu}
  us: {jurisdiction: us}
"""


def policy() -> str:
    """The text of policy.yaml."""
    lines = [_HEAD, "roles:\n"]
    for number in range(ROLES - 1):
        place = ("eu", "us")[number % 2]
        lines.append(f"  role-{number:03}: {{groups: [{_quoted(number)}], classes: [phi], jurisdictions: [{place}]}}\n")
    lines.append(f"  everybody: {{groups: [{_quoted(ROLES - 1)}], classes: [internal, phi], jurisdictions: [eu]}}\n")
    lines.append("datasets:\n")
    for number in range(DATASETS):
        lines.append(
            f"  data-{number:03}: {{class: phi, residency: [eu], roles: [role-{number % (ROLES - 1):03}, everybody],"
            f" paths: [/data/{number:03}]}}\n"
        )
    return "".join(lines)


def members(turn: int = 0) -> Snapshot:
    """Everybody in one group, and each in a few of the others, alice too. Each turn differs by one person."""
    names = [f"user{number:06d}" for number in range(USERS - 1)] + ["alice"]
    found: list[set[str]] = [set() for _ in range(ROLES)]
    for number, name in enumerate(names):
        for step in range(GROUPS_EACH):
            found[(number + step * 67) % (ROLES - 1)].add(name)
    found[ROLES - 1] = set(names)
    found[0].add(f"turn{turn}")
    groups = {_dn(number): Group(f"group-{number:03}", frozenset(each)) for number, each in enumerate(found)}
    return Snapshot(time.time(), "bench", groups)


def _dn(number: int) -> str:
    return f"cn=group-{number:03},ou=groups,dc=example,dc=org"


def _quoted(number: int) -> str:
    return f'"{_dn(number)}"'
