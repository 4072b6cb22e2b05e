"""Whether a daemon that works on several threads or tasks is alive: all of it, and not only the part that says so.

A thread that is gone, or a task that has ended by an error, leaves a daemon that answers and no longer does its work.
Then systemd is told nothing more, and starts it anew (:mod:`slurm_hooks.notify`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection

from conf.errors import SecureSlurmError
from slurm_hooks import wire
from slurm_hooks.notify import Systemd

LOG = logging.getLogger(__name__)

ASK = 5.0
"""Seconds for a daemon to answer itself, which takes it a millisecond."""
LATE = 60.0
"""Seconds for which a thread's work may not have come round. It is due every second or so, and a disk may be slow."""
UNWATCHED = 10.0


class Rounds:
    """When each work of a daemon's threads came round last. ``clock``: seconds, never set back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, float] = {}

    def counted(self, name: str, work: Callable[[], None]) -> Callable[[], None]:
        """``work``, whose end is noted each time, whether it did what it was for or not."""
        self._last[name] = self._clock()

        def counting() -> None:
            try:
                work()
            finally:
                self._last[name] = self._clock()

        return counting

    def late(self) -> list[str]:
        """The works that have stood still for :data:`LATE` seconds."""
        return [name for name, last in self._last.items() if self._clock() - last > LATE]


def answers(path: str) -> bool:
    """Whether the daemon at ``path`` answers ``ping`` as it would anybody: accepts, reads, dispatches and writes."""
    try:
        return wire.exchange(path, {"verb": "ping"}, timeout=ASK).get("verdict") == b"allow"
    except (SecureSlurmError, OSError):
        return False


def beat(systemd: Systemd, stop: threading.Event, path: str, rounds: Rounds, status: Callable[[], str]) -> None:
    """For a daemon of threads: until ``stop``, tell systemd that all is well while it is. Blocks."""
    told = ""
    while not stop.wait(systemd.pace or UNWATCHED):
        late = rounds.late()
        wrong = f"stands still: {', '.join(late)}" if late else "" if answers(path) else "does not answer itself"
        if not wrong:
            systemd.alive(_words(status))
        elif wrong != told:
            LOG.critical("%s; systemd hears nothing more until that is over", wrong)
        told = wrong


async def keep(systemd: Systemd, works: Collection[asyncio.Task[None]], status: Callable[[], str]) -> None:
    """For a daemon of one event loop: tell systemd that it turns, until one of ``works`` has ended by an error.

    One that returns had nothing to do here, as has the watch for other head nodes where there is one.
    """
    while True:
        ended = [task for task in works if task.done() and (task.cancelled() or task.exception())]
        if ended:
            for task in ended:
                LOG.critical("a part of this daemon has ended: %s", _why(task))
            LOG.critical("systemd hears nothing more, and starts it anew")
            return
        systemd.alive(_words(status))
        await asyncio.sleep(systemd.pace or UNWATCHED)


def _words(status: Callable[[], str]) -> str:
    try:
        return status()
    except (SecureSlurmError, OSError) as error:
        # what cannot be said is no reason to fall silent
        return f"not known: {error}"


def _why(task: asyncio.Task[None]) -> str:
    error = None if task.cancelled() else task.exception()
    return f"{task.get_coro()!r}: {error!r}"


def allowed(*uids: int) -> frozenset[int]:
    """Who may ask for a ping: ``uids``, and the daemon itself."""
    return frozenset({*uids, os.geteuid()})
