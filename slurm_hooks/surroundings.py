"""What a node looks at around a tagged job just before it starts: what is mounted, and where the job's paths lead.

Both are judged by what ``conf render`` took from the policy (:mod:`conf.surroundings`), and both hold the job: a user
can have an automounter mount something, and can make any path lead anywhere, and neither may cost a node. What would
reach a disk in clear (:mod:`slurm_hooks.clear`) is root's doing, and does.
Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from conf.errors import BackendUnavailable, Refused, UsageError
from conf.safefile import read_safely
from conf.tag import parse_extra
from slurm_hooks import clear, mounts, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slurm_hooks.hookenv import HookJob

_RENDER = "run on this node: secure-slurm conf render"
SHOWN = 3
"""Mounts named in a message; an admin who mends these finds the others at the next start."""


def judge(config: dict[str, Any], job: HookJob, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The rules in shadow that would have kept the job from starting here.

    Asked before the node daemon, so that no key is in memory when a process of the user's is forked. By the tag in
    ``extra`` therefore, which is compared with the grant afterwards; one that cannot be read is refused there.

    :raises Refused: ``node.file-system``, ``class.unknown``, ``path.work-dir``, ``path.output``, and what
        :mod:`slurm_hooks.clear` finds, which is the node's own fault.
    :raises BackendUnavailable: it cannot be told what is mounted.
    """
    policy = section(config, "mounts")
    try:
        tag = parse_extra(job.extra)
    except UsageError:
        return ()
    place = tag.residency or _own_place(config)
    _file_systems(job.node, place, policy["file_systems"].get(place, ()))
    if tag.klass not in policy["classes"]:
        raise Refused("class.unknown", f"this node's policy has no data class {tag.klass!r}", advice=_RENDER)
    clear.judge(config, job.node, (tag.klass,), environ.get("SLURM_CONF", ""))
    shadowed = []
    for refused in resolve.refusals(policy["classes"][tag.klass], job, environ):
        if not _in_shadow(policy["shadow"].get(refused.rule, ""), time.time()):
            raise refused
        shadowed.append(refused.rule)
    return tuple(dict.fromkeys(shadowed))


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A section that hooks.json has had since it looks at mounts. Raises BackendUnavailable: it was rendered before."""
    found = config.get(name)
    if not isinstance(found, dict):
        raise BackendUnavailable(f"hooks.json says nothing of {name}", advice=_RENDER)
    return found


def _file_systems(node: str, place: str, listed: list[str]) -> None:
    found = mounts.unlisted(mounts.read(), listed)
    if not found:
        return
    shown = ", ".join(f"{each.point} ({each.source}, {each.fstype})" for each in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise Refused(
        "node.file-system",
        f"node {node} has writable network file systems that the policy does not list for {place or 'its place'!r}: "
        f"{shown}{more}",
        advice="unmount them, mount them read-only, or add them to the jurisdiction's file_systems",
    )


def _own_place(config: dict[str, Any]) -> str:
    """The jurisdiction of this node, for a job whose tag names none; empty: in none, for which nothing is listed."""
    region = read_safely(config["node"]["place_file"], limit=256).decode("ascii", "replace").strip()
    return str(config["regions"].get(region, ""))


def _in_shadow(until: str, now: float) -> bool:
    """Whether the day ``until``, in UTC, is not over; ISO 8601 dates sort as texts."""
    return bool(until) and time.strftime("%Y-%m-%d", time.gmtime(now)) <= until
