"""The queue of starts: so many are made at a time, so many wait in the order they came, and the rest are told to wait.

Slurm may start hundreds of jobs at once. Each start takes a thread and a connection to Vault while its keys are made,
and what ends needs some as well. So the number of both is bounded, and so is the number of those who wait here: one
more is answered ``lifecycle.busy``, nothing of it is kept, and its PrologSlurmctld, where no node is blocked yet, asks
again a little later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from conf.errors import Refused

BUSY = "lifecycle.busy"
AT_ONCE = 12
"""Starts whose keys are made at the same time."""
MOST_WAITING = 600
"""Starts that wait for their turn; the socket takes more connections than that (:mod:`slurm_hooks.serve`)."""
PATIENCE = 2 / 3
"""The part of the deadline that a start may wait: what is left is for making its keys."""


class Admission:
    """First come, first served. For one event loop. ``deadline``: seconds for a whole start."""

    def __init__(self, deadline: float, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self.active = 0
        self.turned_away = 0
        self._patience = deadline * PATIENCE
        self._at_once = at_once
        self._most_waiting = most_waiting
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._queue)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it. Refused ``lifecycle.busy``: too many wait, or it took too long."""
        if self.active >= self._at_once or self._queue:
            await self._wait()
        else:
            self.active += 1
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self) -> None:
        if len(self._queue) >= self._most_waiting:
            raise self._busy()
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(mine)
        try:
            async with asyncio.timeout(self._patience):
                await mine
        except BaseException as error:
            if mine.done() and not mine.cancelled():
                # the turn came at the very moment
                self._pass_on()
            else:
                with contextlib.suppress(ValueError):
                    self._queue.remove(mine)
            if isinstance(error, TimeoutError):
                raise self._busy() from None
            raise

    def _pass_on(self) -> None:
        """The turn goes to the next, or is free."""
        while self._queue:
            mine = self._queue.popleft()
            if not mine.done():
                mine.set_result(None)
                return
        self.active -= 1

    def _busy(self) -> Refused:
        self.turned_away += 1
        return Refused(BUSY, f"{self.waiting} jobs are waiting for their keys", advice="it is asked again in a moment")
