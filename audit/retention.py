"""How long an audit line must be kept: by the data class that it is about, or that its job has. Pure.

A file holds lines of many jobs and is kept as long as the line in it that must be kept longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from audit.facts import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from audit.story import Line

UNTAGGED = frozenset({"decision", "decision.differs", "decision.folded"})
"""Events that may be about a job without a tag."""


class Retention(NamedTuple):
    """Seconds: of every line but those below; of decisions about jobs without a tag; of lines of a data class."""

    keep: float
    untagged: float
    classes: Mapping[str, float]


def classes_of(lines: Iterable[Line]) -> dict[int, set[str]]:
    """The data classes under which each job was started or decided; a number that was used again has those of both."""
    found: dict[int, set[str]] = {}
    for line in lines:
        job, klass = line.get("job"), line.get("class")
        if isinstance(job, int) and isinstance(klass, str):
            found.setdefault(job, set()).add(klass)
    return found


def keep_until(line: Line, rule: Retention, classes: Mapping[int, set[str]]) -> float:
    """Unix seconds until which a line must be kept. One without a time that can be read: for ever."""
    at = seconds(str(line.get("time")))
    if not at:
        return float("inf")
    named = line.get("class")
    job = line.get("job")
    known = {named} if isinstance(named, str) else classes.get(job, set()) if isinstance(job, int) else set()
    if known:
        return at + max(rule.classes.get(one, rule.keep) for one in known)
    return at + (rule.untagged if line["event"] in UNTAGGED else rule.keep)
