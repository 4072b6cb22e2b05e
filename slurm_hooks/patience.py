"""Asking again while a service is away, with jitter, until a moment that the caller names. Standard library only."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from slurm_hooks import wire
from slurm_hooks.blame import SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_WAIT, MOST_WAIT = 1.0, 8.0
"""Seconds between two tries, doubled up to the second figure; each wait is between half of that and all of it."""


def jitter(wait: float) -> float:
    """Between half of ``wait`` and all of it: what failed at the same moment must not come back at the same moment."""
    return wait * (0.5 + int.from_bytes(os.urandom(2), "big") / 2**17)


def ask(request: Callable[[], dict[str, bytes]], until: float) -> dict[str, bytes]:
    """The answer to ``request``, which is repeated while it says that a service is away, or nobody answers.

    ``until``: seconds of the monotonic clock, after which no other try begins. Raises WireError when nobody answered
    the last one.
    """
    wait = FIRST_WAIT
    while True:
        pause = jitter(wait)
        last = time.monotonic() + pause > until
        try:
            answer = request()
        except wire.WireError:
            if last:
                raise
        else:
            if last or answer.get("verdict") == b"allow" or wire.text(answer, "rule", "") not in SERVICES:
                return answer
        time.sleep(pause)
        wait = min(wait * 2, MOST_WAIT)
