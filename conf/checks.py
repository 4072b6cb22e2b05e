"""What only the whole file can show: names that refer to nothing, values that contradict each other.

The checks look at what YAML read, not at the finished classes, so that they are told together with every other mistake.
Whatever has the wrong shape is passed over here: the loader has already said so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conf import units
from conf.errors import UsageError
from conf.quote import did_you_mean, quote
from conf.yamlmarks import Where

Findings = Iterator[tuple[Where, str]]
Raw = dict[str, Any]

# BatchStartTimeout, MessageTimeout and cred_expire (slurm.conf(5)): the first of them that passes fails the job
PROLOG_LIMIT = 60.0
# slurmctld answers nobody while job_submit runs
CONTROLLER_LIMIT = 1.0


def check_policy(policy: Raw) -> Findings:
    """Every contradiction in a policy file: the path of the value, and what is wrong with it."""
    yield from _jurisdictions(policy)
    yield from _classes(policy)
    yield from _roles(policy)
    yield from _partitions(policy)


def _jurisdictions(policy: Raw) -> Findings:
    features: dict[str, str] = {}
    regions: dict[str, str] = {}
    for name, each in _mappings(policy, "jurisdictions"):
        feature = each.get("feature")
        if isinstance(feature, str) and features.setdefault(feature, name) != name:
            yield (
                ("jurisdictions", name, "feature"),
                f"the feature {quote(feature)} already stands for {quote(features[feature])}",
            )
        for index, region in _texts(each, "regions"):
            if regions.setdefault(region, name) != name:
                yield (
                    ("jurisdictions", name, "regions", index),
                    f"the region {quote(region)} is already in {quote(regions[region])}",
                )


def _classes(policy: Raw) -> Findings:
    seen: set[str] = set()
    for index, each in enumerate(_list(policy, "classes")):
        if not isinstance(each, dict):
            continue
        name = each.get("name")
        if isinstance(name, str):
            if name in seen:
                yield ("classes", index, "name"), f"the class {quote(name)} is defined twice"
            seen.add(name)
        least, most = _size(each, "default_scratch"), _size(each, "max_scratch")
        if each.get("scratch") == "required" and "max_scratch" not in each:
            yield ("classes", index), f"the class {quote(name)} requires scratch and needs 'max_scratch'"
        elif least is not None and "max_scratch" not in each:
            yield ("classes", index, "default_scratch"), "default_scratch without 'max_scratch': no scratch is allowed"
        if least is not None and most is not None and least > most:
            yield ("classes", index, "default_scratch"), "default_scratch is larger than max_scratch"


def _class_names(policy: Raw) -> set[str]:
    names = {each.get("name") for each in _list(policy, "classes") if isinstance(each, dict)}
    return {name for name in names if isinstance(name, str)}


def _partitions(policy: Raw) -> Findings:
    places, classes = set(_section(policy, "jurisdictions")), _class_names(policy)
    for name, partition in _mappings(policy, "partitions"):
        yield from _known(partition, ("partitions", name, "jurisdiction"), places, "jurisdiction")
        where = ("partitions", name, "least_class")
        yield from _known(partition, where, classes, "class")
        if "least_class" in partition and partition.get("demand_tag") is not True:
            yield where, "least_class without 'demand_tag: true': jobs without a tag would run there"


def _roles(policy: Raw) -> Findings:
    known = {"classes": _class_names(policy)}
    known["jurisdictions"] = set(_section(policy, "jurisdictions"))
    for name, role in _mappings(policy, "roles"):
        for key, singular in (("classes", "class"), ("jurisdictions", "jurisdiction")):
            for index, word in _texts(role, key):
                if word not in known[key]:
                    yield ("roles", name, key, index), _unknown(word, known[key], singular)


def check_site(site: Raw) -> Findings:
    """Every contradiction in a site file: the path of the value, and what is wrong with it."""
    yield from _deadlines(site)
    yield from _scratch(_section(site, "scratch"))
    vault = _section(site, "vault")
    transit = vault.get("transit_mount", "secure-slurm-transit")
    if transit == vault.get("grants_mount", "secure-slurm-grants"):
        yield ("vault", "grants_mount"), "grants_mount and transit_mount must be two mounts"
    ldap = _section(site, "ldap")
    refresh, max_age = _duration(ldap, "refresh", 30.0), _duration(ldap, "max_age", 600.0)
    if refresh is not None and max_age is not None and refresh >= max_age:
        yield ("ldap", "max_age" if "max_age" in ldap else "refresh"), "max_age must be longer than refresh"


def _deadlines(site: Raw) -> Findings:
    deadline = _duration(_section(site, "controller"), "deadline", 0.2)
    if deadline is not None and deadline > CONTROLLER_LIMIT:
        yield ("controller", "deadline"), "controller.deadline must be at most 1s: slurmctld stands still meanwhile"
    prolog = _duration(_section(site, "node"), "prolog_deadline", 45.0)
    if prolog is not None and prolog >= PROLOG_LIMIT:
        yield ("node", "prolog_deadline"), "node.prolog_deadline must be below 60s, or Slurm fails the job first"
    timeout = _duration(_section(site, "vault"), "timeout", 5.0)
    if prolog is not None and timeout is not None and timeout >= prolog:
        where = ("vault", "timeout") if "timeout" in _section(site, "vault") else ("node", "prolog_deadline")
        yield where, "vault.timeout must be shorter than node.prolog_deadline"


def _scratch(scratch: Raw) -> Findings:
    backing = scratch.get("backing", "file")
    needed = {"file": "directory", "lvm": "volume_group", "block": "device"}
    key = needed.get(backing) if isinstance(backing, str) else None
    if key and not scratch.get(key, "/var/lib" if key == "directory" else ""):
        where = ("scratch", key) if key in scratch else ("scratch", "backing")
        yield where, f"scratch.backing {quote(backing)} needs {quote(key)}"
    if scratch.get("overcommit") is True and backing != "file":
        yield ("scratch", "overcommit"), "scratch.overcommit is for scratch.backing 'file' only"
    root = scratch.get("mount_root")
    if isinstance(root, str) and root.rstrip("/") in {"", "/home", "/tmp", "/etc", "/usr", "/var", "/dev", "/proc"}:  # noqa: S108 - names to refuse
        yield ("scratch", "mount_root"), "scratch.mount_root must be a directory of its own"
    elif isinstance(root, str) and root == scratch.get("directory"):
        yield ("scratch", "mount_root"), "scratch.mount_root and scratch.directory must be two directories"


def _known(entry: Raw, where: Where, known: set[str], what: str) -> Findings:
    word = entry.get(str(where[-1]))
    if isinstance(word, str) and word not in known:
        yield where, _unknown(word, known, what)


def _unknown(word: str, known: set[str], what: str) -> str:
    return f"unknown {what} {quote(word)}{did_you_mean(word, sorted(known))}"


def _section(raw: Raw, key: str) -> Raw:
    section = raw.get(key)
    return section if isinstance(section, dict) else {}


def _list(raw: Raw, key: str) -> list[Any]:
    found = raw.get(key)
    return found if isinstance(found, list) else []


def _mappings(raw: Raw, key: str) -> Iterator[tuple[str, Raw]]:
    return ((name, each) for name, each in _section(raw, key).items() if isinstance(each, dict))


def _texts(raw: Raw, key: str) -> Iterator[tuple[int, str]]:
    return ((index, each) for index, each in enumerate(_list(raw, key)) if isinstance(each, str))


def _size(raw: Raw, key: str) -> int | None:
    try:
        return units.parse_size(raw[key]) if isinstance(raw.get(key), str) else None
    except UsageError:
        return None


def _duration(raw: Raw, key: str, default: float) -> float | None:
    if key not in raw:
        return default
    try:
        return units.parse_duration(raw[key]) if isinstance(raw[key], str) else None
    except UsageError:
        return None
