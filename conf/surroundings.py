"""What the node's hooks are told of the policy about file systems: rendered into hooks.json and hooks.sh. Pure.

Root reads it from files that root wrote, and that are bound to the policy by its hash: the node daemon, which has a
policy as well, is not root, and its word alone must not say which file system may be written to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conf.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable

PATH_RULES = ("path.work-dir", "path.output")


def for_node(policy: Policy) -> dict[str, Any]:
    """``file_systems``: by jurisdiction; ``datasets``: protected path to its dataset; ``owned``: protected file system
    to its jurisdiction; ``classes``: all of them, with the directories of ``work`` and ``output`` (None: not limited);
    ``shadow``: the last day, as text, of each path rule that is in shadow.
    """
    return {
        "file_systems": {name: list(each.file_systems) for name, each in policy.jurisdictions.items()},
        "datasets": dataset_paths(policy),
        "owned": owned_file_systems(policy),
        "classes": {
            each.name: {"work": _listed(each.work_dirs), "output": _listed(each.output_dirs)} for each in policy.classes
        },
        "shadow": {rule: policy.shadow[rule].isoformat() for rule in PATH_RULES if rule in policy.shadow},
    }


def dataset_paths(policy: Policy) -> dict[str, str]:
    """Each path of a dataset, and the first that names it. Data whose agreement has ended is protected all the same."""
    found: dict[str, str] = {}
    for name, dataset in policy.datasets.items():
        for path in dataset.paths:
            found.setdefault(path, name)
    return found


def owned_file_systems(policy: Policy) -> dict[str, str]:
    """The file systems that are one jurisdiction's: listed for it and no other, where there are others.

    What several list, such as /home, is nobody's; with one jurisdiction nothing is foreign to it.
    """
    if len(policy.jurisdictions) == 1:
        return {}
    owners: dict[str, list[str]] = {}
    for name, each in policy.jurisdictions.items():
        for entry in dict.fromkeys(each.file_systems):
            owners.setdefault(entry, []).append(name)
    return {entry: names[0] for entry, names in owners.items() if len(names) == 1}


def for_stub(policy: Policy) -> dict[str, str]:
    """Variables for the Prolog's stub, each ``|word|word|`` or empty: PROTECTED, the paths; PROTECTED_TOPS, the first
    component of each, by which most mounts are passed over; PROTECTED_SOURCES, the sources.

    Without slashes at the end: sh compares texts only, and takes the slash off what it compares.
    """
    return in_bars(dataset_paths(policy), owned_file_systems(policy))


def private_tmp(policy: Policy) -> dict[str, str]:
    """What the /tmp of each class's jobs must be: ``scratch``, ``encrypted`` or ``none``."""
    return {each.name: each.tmp for each in policy.classes}


def for_tasks(policy: Policy) -> dict[str, str]:
    """For TaskProlog: PRIVATE_TMP, the classes whose jobs must have /tmp on their scratch."""
    return {"PRIVATE_TMP": _in_bars(each.name for each in policy.classes if each.tmp == "scratch")}


def in_bars(datasets: Iterable[str], owned: Iterable[str]) -> dict[str, str]:
    """:func:`for_stub`, of protected paths and file systems."""
    sources = {each.rstrip("/") for each in owned}
    words = {each.rstrip("/") or "/" for each in datasets} | {each or "/" for each in sources}
    # //server/share is a source and nothing else
    paths = {each for each in words if each.startswith("/") and not each.startswith("//")}
    return {
        "PROTECTED": _in_bars(paths),
        "PROTECTED_TOPS": _in_bars("/" + each.split("/")[1] for each in paths),
        "PROTECTED_SOURCES": _in_bars(sources - {""}),
    }


def _in_bars(words: Iterable[str]) -> str:
    found = sorted(set(words))
    return f"|{'|'.join(found)}|" if found else ""


def _listed(directories: Iterable[str] | None) -> list[str] | None:
    return None if directories is None else list(directories)
