"""The node daemon's part of bringing audit lines to the head node: it asks the hand for them and passes them on.

One message at a time, and the next one when the head node has said up to which line it holds this chain. So whatever is
lost on the way, and whoever restarts, it goes on behind the last line that the head node has.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from audit.continuity import WRITERS
from audit.line import Link
from conf.errors import BackendUnavailable, SecureSlurmError
from slurm_hooks import link, wire

LOG = logging.getLogger(__name__)

ASK = 10.0
KEPT = 60.0
"""Seconds for the head node to have it on its disk."""
AFTER_REFUSAL = 60.0

Ask = Callable[[dict[str, bytes | str], float], Awaitable[dict[str, bytes]]]


class Sender:
    """Of one connection. ``ask``: asks the hand."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._answer: asyncio.Future[dict[str, bytes]] | None = None
        self._held: dict[str, Link] = {}
        self._rest: dict[str, float] = {}
        self._told = ""

    def kept(self, fields: link.Fields) -> None:
        """The head node's answer. :raises WireError: nothing was sent that it could be about."""
        if self._answer is None or self._answer.done():
            raise wire.WireError("the head node answers audit lines that were not sent")
        self._answer.set_result(fields)

    async def keep(self, channel: link.Channel) -> None:
        """Send what there is, for ever. What goes wrong ends the connection or is tried again."""
        while True:
            sent = False
            for writer in WRITERS:
                if self._rest.get(writer, 0.0) > link.boottime():
                    continue
                try:
                    sent = await self._one(channel, writer) or sent
                except wire.WireError as error:
                    LOG.error("audit lines cannot be sent: %s", error)
                    channel.close()
                    return
                except SecureSlurmError as error:
                    self._tell(f"the hand does not give the audit lines: {error}")
            await asyncio.sleep(0 if sent else link.PING_EVERY)

    async def _one(self, channel: link.Channel, writer: str) -> bool:
        """Send what one trail has more; whether there was anything, and it was taken."""
        lines = b""
        held = self._held.get(writer)
        if held is not None:
            question: dict[str, bytes | str] = {"verb": "trail", "writer": writer}
            try:
                answer = await self._ask(question | {"seq": str(held.seq), "hash": held.hash}, ASK)
            except wire.WireError as error:
                # the hand's, not the head node's: the connection is whole
                raise BackendUnavailable(str(error)) from None
            lines = answer.get("lines", b"")
            if not lines:
                return False
        self._answer = asyncio.get_running_loop().create_future()
        await channel.send("trail", {"writer": writer, "lines": lines})
        try:
            async with asyncio.timeout(KEPT):
                fields = await self._answer
        except TimeoutError:
            raise wire.WireError(f"the head node has not taken them within {KEPT:.0f} s") from None
        self._held[writer] = _link(fields)
        problem = wire.text(fields, "problem", "")
        if problem:
            self._rest[writer] = link.boottime() + AFTER_REFUSAL
            self._tell(f"the head node does not take lines of the {writer} trail: {problem[:200]}")
        return bool(lines) and not problem

    def _tell(self, message: str) -> None:
        if message != self._told:
            LOG.warning("%s", message)
        self._told = message


def _link(fields: link.Fields) -> Link:
    seq, digest = wire.text(fields, "seq"), wire.text(fields, "hash")
    if not re.fullmatch(r"[0-9]{1,18}", seq, re.ASCII) or not re.fullmatch(r"[0-9a-f]{64}", digest, re.ASCII):
        raise wire.WireError("the head node's answer to audit lines cannot be read")
    return Link(int(seq), digest)
