"""What a node says of the secured jobs on it: text for the wire, the same between hand, node daemon and head node.

``<job>:<incarnation>:<state>`` with commas; the state is ``running``, ``frozen`` once it stands still without its
key and may go on, ``stopped`` once it is so for good, or ``unsure`` when it was to be one of the two and its key may
still be there: that confirms nothing.
Standard library only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from slurm_hooks.wire import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

RUNNING, FROZEN, STOPPED, UNSURE = "running", "frozen", "stopped", "unsure"

_ONE = re.compile(r"([1-9][0-9]{0,9}):([0-9a-f]{32}|):(running|frozen|stopped|unsure)", re.ASCII)


class Present(NamedTuple):
    """One secured job on a node; ``incarnation`` is empty when nothing on the node says it any more."""

    job: int
    incarnation: str
    state: str


def write(jobs: Iterable[Present]) -> str:
    """The text."""
    return ",".join(f"{one.job}:{one.incarnation}:{one.state}" for one in jobs)


def read(text: str) -> dict[int, Present]:
    """The jobs by number; WireError for anything that :func:`write` does not write."""
    found: dict[int, Present] = {}
    for part in text.split(",") if text else ():
        match = _ONE.fullmatch(part)
        if match is None or int(match[1]) in found:
            raise WireError("the list of a node's jobs is malformed")
        found[int(match[1])] = Present(int(match[1]), match[2], match[3])
    return found
