"""Refusals of one user in the audit trail: the first ones a line each, and the rest counted.

A refused submission leaves nothing in Slurm, so nothing there limits how many a user can cause; a line for each would
let one user fill the disk, and a full disk refuses everybody's tagged jobs. So each user has an allowance. What is
beyond it is counted by rule and verb, and told by a line ``decision.folded`` a minute later: how many, in how many
seconds. The first of them is told at once (``state=begun``): the count of a minute in which the daemon died is unknown,
and that this is so can be seen.

Not thread-safe: the caller has a lock. Pure but for the clock that it is given.
"""

from __future__ import annotations

from typing import NamedTuple

BURST = 100.0
PER_SECOND = 10 / 60
"""Refusals of one user that have lines of their own: so many at once, and so many for ever."""
EVERY = 60.0
"""Seconds of refusals that one folded line tells."""
MOST = 4096
"""Users that are counted one by one, and sums; the refusals of further ones are one sum without a rule."""
OTHERS = "others"


class Sum(NamedTuple):
    """What was folded. ``uid`` None: of several users. ``seconds``: between the first and the time of the line."""

    uid: int | None
    rule: str
    verb: str
    number: int
    seconds: float


class Folding:
    """What users have left, and what is counted."""

    def __init__(self) -> None:
        self._left: dict[int, tuple[float, float]] = {}
        self._sums: dict[tuple[int | None, str, str], tuple[int, float]] = {}

    def has_line(self, uid: int, now: float) -> bool:
        """Whether the next refusal of a user has a line of its own. ``now``: seconds of any steady clock."""
        left, since = self._left.get(uid, (BURST, now))
        left = min(BURST, left + (now - since) * PER_SECOND)
        if len(self._left) >= MOST and uid not in self._left:
            self._forget(now)
            if len(self._left) >= MOST:
                return False
        has = left >= 1.0
        self._left[uid] = (left - 1.0 if has else left, now)
        return has

    def count(self, uid: int, rule: str, verb: str, now: float) -> bool:
        """Count a refusal that has no line; True: it is the first of its kind, which is to be told now."""
        which: tuple[int | None, str, str] = (uid, rule, verb)
        if which not in self._sums and len(self._sums) >= MOST:
            which = (None, OTHERS, verb)
        number, since = self._sums.get(which, (0, now))
        self._sums[which] = (number + 1, since)
        return number == 0

    def due(self, now: float, *, everything: bool = False) -> list[Sum]:
        """The sums that are old enough to be told; they are forgotten here."""
        ready = [which for which, (_, since) in self._sums.items() if everything or now - since >= EVERY]
        return [Sum(*which, number, now - since) for which in ready for number, since in [self._sums.pop(which)]]

    def _forget(self, now: float) -> None:
        """Users whose allowance is whole again."""
        for uid, (left, since) in list(self._left.items()):
            if left + (now - since) * PER_SECOND >= BURST:
                del self._left[uid]
