"""When what lies on a node is an orphan, and when nobody may touch it. Pure: no file, no clock, no program.

A node destroys only what Slurm has called ended or unknown twice, 20 seconds apart, and of which nothing lives here.
Every doubt is a reason to wait. Ages are seconds since boot; no wall clock has a say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from slurm_hooks.slurmword import Word

APART = 20.0
"""Seconds between the two times that Slurm has to say it."""

ALIVE, BUSY, YOUNG, SILENT, SUSPECT, FOREIGN, ORPHAN = (
    "alive", "busy", "young", "silent", "suspect", "foreign", "orphan",
)  # fmt: skip
"""What a job's remains are. Only an orphan is destroyed."""


class Seen(NamedTuple):
    """What earlier looks remember of a job: when its remains were first seen, and when Slurm first called it ended or
    unknown since it was last alive (-1: it did not). Seconds since boot. ``start`` tells one start from another.
    """

    start: str
    first: float
    ended: float = -1.0


class Remains(NamedTuple):
    """What one look found of a job.

    ``start``: its incarnation, or "" where nothing says it. ``begun``: when its set-up began, in seconds since this
    boot; None when that is not known; ``-1`` when there is neither journal nor record, so that no set-up can be under
    way. ``locked``: somebody works on it. ``life``: what of the job runs on this machine, in words. ``foreign``: why a
    mapping of its name is not ours.
    """

    start: str
    begun: float | None
    locked: bool = False
    life: str = ""
    foreign: str = ""


class Ruling(NamedTuple):
    """``kind`` is one of those above, ``why`` for people; ``wait``: seconds until an orphan could be one (0: unknown or
    now); ``seen`` is to be remembered, None: nothing.
    """

    kind: str
    why: str
    wait: float
    seen: Seen | None


def needs_slurm(remains: Remains) -> bool:
    """Whether Slurm has to be asked at all: not about what is alive, foreign or being worked on."""
    return not (remains.foreign or remains.locked or remains.life)


def rule(remains: Remains, word: Word | None, seen: Seen | None, now: float, deadline: float) -> Ruling:
    """What the remains of a job are.

    :param word: Slurm's; None when it was not asked (:func:`needs_slurm`).
    :param seen: of the earlier looks of this boot.
    :param now: seconds since boot.
    :param deadline: seconds that a Prolog may take (``node.prolog_deadline``).
    """
    if seen is None or seen.start != remains.start or not seen.first <= now:
        seen = Seen(remains.start, now)
    if remains.foreign:
        return Ruling(FOREIGN, remains.foreign, 0.0, None)
    if remains.locked:
        return Ruling(BUSY, "a Prolog, an Epilog or a clean-up works on it", 0.0, seen)
    if remains.life or (word is not None and word.kind == "alive"):
        why = remains.life or (f"Slurm has the job: {word.why}" if word else "")
        return Ruling(ALIVE, why, 0.0, seen._replace(ended=-1.0))
    if word is None or word.kind not in ("over", "unknown"):
        # what was said before is not forgotten: it takes two good answers, and this is none
        return Ruling(SILENT, word.why if word else "Slurm was not asked", 0.0, seen)
    return _gone(remains, word, seen if 0 <= seen.ended <= now else seen._replace(ended=now), now, deadline)


def _gone(remains: Remains, word: Word, seen: Seen, now: float, deadline: float) -> Ruling:
    """Slurm has no such job any more: whether it has said so for long enough."""
    again = APART - (now - seen.ended)
    young = _young(remains, seen, now, deadline)
    if young > 0:
        return Ruling(YOUNG, f"its Prolog may still run ({word.why})", max(again, young), seen)
    if again > 0:
        return Ruling(SUSPECT, f"Slurm says so for the first time: {word.why}", again, seen)
    return Ruling(ORPHAN, word.why, 0.0, seen)


def _young(remains: Remains, seen: Seen, now: float, deadline: float) -> float:
    """Seconds for which a Prolog of this start may still be under way."""
    if remains.begun is not None and remains.begun < 0:
        return 0.0
    begun = seen.first if remains.begun is None or remains.begun > now else remains.begun
    return deadline - (now - begun)
