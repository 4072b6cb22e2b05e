"""The head node's end of the link, for audit lines: taken beside the reports, one message of a node at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from audit.line import GENESIS
from conf.errors import SecureSlurmError
from slurm_hooks import link, wire

NOT_KEPT: dict[str, bytes | str] = {
    "seq": str(GENESIS.seq),
    "hash": GENESIS.hash,
    "problem": "this head node keeps no audit lines of nodes",
}

LOG = logging.getLogger(__name__)


class Taker(Protocol):
    """:class:`slurm_hooks.segments.Segments`."""

    def take(self, node: str, writer: str, lines: bytes) -> dict[str, bytes | str]: ...  # noqa: D102


class Intake:
    """What is being written, by node. Without a ``taker`` nothing is kept, and the node is told so."""

    def __init__(self, taker: Taker | None) -> None:
        self._taker = taker
        self._writing: dict[str, tuple[link.Channel, asyncio.Task[None]]] = {}

    def take(self, node: str, channel: link.Channel, fields: link.Fields) -> None:
        """Have it written and answered. :raises WireError: the node has not waited for the answer before."""
        writer, lines = wire.text(fields, "writer"), fields.get("lines", b"")
        before = self._writing.get(node)
        if before is not None and before[0] is channel and not before[1].done():
            raise wire.WireError("a node sends audit lines without waiting for an answer")
        task = asyncio.create_task(self._write(node, channel, writer, lines, before[1] if before else None))
        self._writing[node] = (channel, task)

    async def _write(
        self, node: str, channel: link.Channel, writer: str, lines: bytes, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            # of an older connection of the same node
            await asyncio.wait({before})
        try:
            answer = await asyncio.to_thread(self._taker.take, node, writer, lines) if self._taker else NOT_KEPT
        except Exception:
            LOG.exception("node %s: its audit lines could not be kept", node)
            channel.close()
            return
        with contextlib.suppress(SecureSlurmError):
            await channel.send("kept", answer)
