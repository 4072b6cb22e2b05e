"""What a daemon with threads does beside answering, so that nobody who waits for an answer waits for it too."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections.abc import Callable

LOG = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.00005
"""Seconds for which a request waits for the interpreter when the background has it; Python's own 5 ms are too long."""
SWEEP_EVERY = 60.0
"""Seconds between two collections of cyclic garbage, which happen at no other time."""


def give_way() -> None:
    """Set the interpreter up for short answers, when everything that lives for long has been read."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.disable()
    sweep()


def sweep() -> None:
    """Collect cyclic garbage now, and never look again at what has survived: policy and members live for long.

    Left to itself the collector would go through all members of all groups while slurmctld waits. What is replaced
    later goes by its reference count.
    """
    gc.collect()
    gc.freeze()


def start(stop: threading.Event, *works: tuple[float, Callable[[], None]]) -> list[threading.Thread]:
    """Threads that do each work again and again, after so many seconds, until ``stop``; and sweep if nobody else does.

    A failure is logged, and is no reason to stop looking.
    """
    all_works = works if gc.isenabled() else (*works, (SWEEP_EVERY, sweep))
    threads = [threading.Thread(target=_again, args=(stop, *each), daemon=True) for each in all_works]
    for thread in threads:
        thread.start()
    return threads


def _again(stop: threading.Event, seconds: float, work: Callable[[], None]) -> None:
    while not stop.wait(seconds):
        try:
            work()
        except Exception:
            LOG.exception("a background task failed")
