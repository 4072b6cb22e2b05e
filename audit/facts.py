"""What the audit lines of all hosts and writers say about jobs and keys, put together once. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audit.story import Line


class Backwards(NamedTuple):
    """A line whose time is before that of the line it follows."""

    trail: str
    seq: int
    seconds: float


class Key:
    """One transit key. Times are Unix seconds, 0.0: not told."""

    def __init__(self, name: str, job: int, node: str, incarnation: str) -> None:
        self.name, self.job, self.node, self.incarnation = name, job, node, incarnation
        self.made = self.deleted = self.unmade = 0.0
        self.uses = 0
        self.ready = 0.0
        self.taken_back = False

    @property
    def over(self) -> bool:
        """Whether its end is told, or that it never was."""
        return bool(self.deleted or self.unmade)


class Start:
    """One start of a job that was allowed."""

    def __init__(self, job: int, at: float, line: Line) -> None:
        self.job, self.at = job, at
        self.incarnation, self.nonce = str(line.get("incarnation", "")), str(line.get("nonce", ""))
        self.nodes = tuple(filter(None, str(line.get("nodes", "")).split(",")))
        self.has_scratch = bool(line.get("scratch"))
        self.refused = False


class Facts:
    """Everything that the checks need. ``first`` and ``last``: of all lines, Unix seconds."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.made_for: dict[tuple[str, str], Key] = {}
        self.ready: dict[tuple[str, str], float] = {}
        self.starts: dict[tuple[int, str], Start] = {}
        self.nonces: set[str] = set()
        self.decisions_from = 0.0
        self.done: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        self.certified: dict[int, float] = {}
        self.gone: dict[tuple[str, int], float] = {}
        self.hosts: set[str] = set()
        self.folded = 0
        self.has_lifecycle = False
        self.backwards: list[Backwards] = []
        self.first = self.last = 0.0


CLOCK = 1.0
"""Seconds by which a clock may go back between two lines of one trail: NTP slews, and steps only further."""


def gather(lines: Iterable[Line]) -> Facts:
    """The facts. Lines of one trail must come in its order; the trails in any."""
    facts = Facts()
    before: dict[str, tuple[int, float]] = {}
    for line in lines:
        at = seconds(str(line["time"]))
        trail, seq = f"{line['host']}-{line['writer']}", int(str(line["seq"]))
        number, then = before.get(trail, (0, at))
        if seq == number + 1 and at < then - CLOCK:
            facts.backwards.append(Backwards(trail, seq, then - at))
        before[trail] = seq, at
        facts.first = min(facts.first or at, at)
        facts.last = max(facts.last, at)
        facts.has_lifecycle = facts.has_lifecycle or line["writer"] == "lifecycle"
        if line["writer"] == "node":
            facts.hosts.add(str(line["host"]))
        _take(facts, line, at)
    return facts


def _take(facts: Facts, line: Line, at: float) -> None:
    event, job = str(line["event"]), line.get("job")
    number = job if isinstance(job, int) else 0
    if event.startswith("decision"):
        _take_decision(facts, line, at)
    elif event == "start.judged" and line.get("verdict") == "allow":
        facts.starts[number, str(line.get("incarnation", ""))] = Start(number, at, line)
    elif event == "start.refused":
        _refused(facts, number, at)
    elif number and (event == "reaper.healed" or (event == "revocation.pending" and _is_end(line))):
        facts.ends[number] = max(facts.ends.get(number, 0.0), at)
    elif event == "revocation.done" and number:
        facts.done[number] = max(facts.done.get(number, 0.0), at)
    elif event == "destruction.certificate":
        facts.certified[number] = max(facts.certified.get(number, 0.0), at)
    elif event == "scratch.gone" and line["writer"] == "node":
        where = str(line.get("node")), number
        facts.gone[where] = max(facts.gone.get(where, 0.0), at)
    elif "key" in line or "incarnation" in line:
        _take_key(facts, line, at, event)


def _take_decision(facts: Facts, line: Line, at: float) -> None:
    if line["event"] == "decision.folded":
        facts.folded += int(str(line.get("count", 0)))
    elif line["event"] == "decision":
        facts.decisions_from = min(facts.decisions_from or at, at)
        if line.get("nonce"):
            facts.nonces.add(str(line["nonce"]))


def _is_end(line: Line) -> bool:
    """What the lifecycle daemon writes when a job has ended; a revocation by an admin says something else."""
    return str(line.get("reason", "")).startswith(("the job ended", "the reaper"))


def _refused(facts: Facts, job: int, at: float) -> None:
    """The last start of a job that was allowed before has failed after all."""
    started = [start for (number, _), start in facts.starts.items() if number == job and start.at <= at]
    if started:
        max(started, key=lambda start: start.at).refused = True


def _take_key(facts: Facts, line: Line, at: float, event: str) -> None:
    name = str(line.get("key", ""))
    if event == "key.create":
        key = facts.keys.setdefault(
            name, Key(name, int(str(line["job"])), str(line["node"]), str(line.get("incarnation", "")))
        )
        key.made = at
        start = key.node, key.incarnation
        facts.made_for[start] = key
        # the node's trail may be read before the head node's
        key.ready = facts.ready.get(start, 0.0)
    elif event == "key.delete":
        key = facts.keys.setdefault(name, Key(name, int(str(line.get("job", 0))), str(line.get("node", "")), ""))
        key.deleted = max(key.deleted, at)
        key.taken_back = key.taken_back or line.get("result") == "taken-back"
    elif event == "key.unmade" and name in facts.keys:
        facts.keys[name].unmade = at
    elif event in ("node.datakey", "node.unwrap"):
        key = facts.keys.setdefault(
            name, Key(name, int(str(line["job"])), str(line["node"]), str(line.get("incarnation", "")))
        )
        key.uses += 1
    elif event == "scratch.ready":
        found = facts.made_for.get((str(line.get("node")), str(line.get("incarnation"))))
        facts.ready[str(line.get("node")), str(line.get("incarnation"))] = at
        if found is not None:
            found.ready = at


def seconds(text: str) -> float:
    """Unix seconds of a time with its zone; 0.0 for what is none. Digits below a microsecond are left out."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
