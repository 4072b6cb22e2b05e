"""What our hooks wrote behind a job's decision record: that its start failed through no fault of its own, how often.

``<word> try=<n> restart=<r>: [<rule>] <text>``. It is kept in the job's admin comment, which only slurmctld's side may
write, and which outlives every daemon of ours, a take-over by the backup controller, and Vault. ``restart`` is Slurm's
count at the start that it is about: what was written at the start before this one counts, what is older does not.

A refusal that is the job's own fault begins with ``[``, whatever a user had quoted in it: it is never taken for a mark.
Standard library only.
"""

from __future__ import annotations

import re
from typing import NamedTuple

WAITING = "waiting"
"""Its PrologSlurmctld waits for a service at this moment, or did."""
REQUEUED = "requeued"
"""It was sent back into the queue, once."""
WAITS = "waits"
"""It is held until the service is back; the head node releases it."""
TWICE = "twice"
"""It is held after it was tried twice: nobody but a person releases it."""

ENOUGH = 2
"""Tries after which a job is not sent back any more."""
MOST = 6
"""Tries after which it is not even released when the service is back: then the job itself is what fails."""

_WORDS = f"{WAITING}|{REQUEUED}|{WAITS}|{TWICE}"
_MARK = re.compile(rf"({_WORDS}) try=([0-9]{{1,4}}) restart=([0-9]{{1,9}}): (\[.*)", re.DOTALL)


class Mark(NamedTuple):
    """One such text. ``tries``: starts in a row that failed, this one included; ``text``: the reason."""

    word: str
    tries: int
    restarts: int
    text: str


def write(mark: Mark) -> str:
    """The text for the admin comment, behind the record."""
    return f"{mark.word} try={mark.tries} restart={mark.restarts}: {mark.text}"


def read(reason: str) -> Mark | None:
    """The mark in what stands behind a record; None when it is another text."""
    found = _MARK.fullmatch(reason)
    return Mark(found[1], int(found[2]), int(found[3]), found[4]) if found else None


def of_comment(comment: object) -> Mark | None:
    """The mark in a whole admin comment."""
    return read(comment.partition(" | ")[2]) if isinstance(comment, str) else None


def so_far(mark: Mark | None, restarts: int) -> int:
    """The starts in a row that have failed before this one, whose restart count is ``restarts``."""
    if mark is None:
        return 0
    return mark.tries if mark.restarts in (restarts - 1, restarts) else 0


def judge(tries: int, *, tried: bool, outage: bool) -> str:
    """What becomes of a job. ``tries``: this one included, if it was ``tried``: it was not, when it was held back.

    ``outage``: the service is away for everybody, as far as the head node knows.
    """
    if tries >= MOST:
        return TWICE
    if tried and tries < ENOUGH:
        return REQUEUED
    return WAITS if outage or not tried else TWICE
