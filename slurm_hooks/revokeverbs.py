"""The admin's verbs of the lifecycle daemon: ``secure-slurm revoke`` and ``resume`` ask by them, as root.

All but one are taken by the head node that acts alone (:mod:`slurm_hooks.acting`), which is Refused elsewhere.
"""

from __future__ import annotations

import asyncio
import json

from slurm_hooks import wire
from slurm_hooks.acting import Acting
from slurm_hooks.revoke_names import encode
from slurm_hooks.revoked import STOP
from slurm_hooks.revoker import Revoker
from slurm_hooks.serve import Answer, Fields, Peer

REASON = 200
"""Characters of an admin's reason that are kept."""


class RevokeVerbs:
    """``within``: seconds that an answer waits for nodes and Vault to confirm."""

    def __init__(self, acting: Acting, revoker: Revoker, within: float) -> None:
        self._acting = acting
        self._revoker = revoker
        self._within = within

    async def revoke(self, fields: Fields, _peer: Peer) -> Answer:
        """End what runs, or freeze it, and refuse what is like it."""
        self._acting.check()
        kind, value = wire.text(fields, "kind"), wire.text(fields, "value")
        reason, mode = wire.text(fields, "reason", "")[:REASON], wire.text(fields, "mode", STOP)
        report = await self._revoker.revoke(kind, value, reason, self._within, mode)
        return {"verdict": "allow", "report": encode(report)}

    async def resume(self, fields: Fields, _peer: Peer) -> Answer:
        """Have go on what a revocation has frozen."""
        self._acting.check()
        kind, value = wire.text(fields, "kind"), wire.text(fields, "value")
        report = await self._revoker.resume(kind, value, wire.text(fields, "reason", "")[:REASON], self._within)
        return {"verdict": "allow", "report": encode(report)}

    async def revocations(self, _fields: Fields, _peer: Peer) -> Answer:
        """What is revoked, and which nodes are connected."""
        self._acting.check()
        nodes = {name: int(one.since) for name, one in sorted(self._revoker.links.nodes.items())}
        return {"verdict": "allow", "report": encode(self._revoker.reports()), "nodes": encode(nodes)}

    async def lift(self, fields: Fields, _peer: Peer) -> Answer:
        """Take a revocation back."""
        self._acting.check()
        return {"verdict": "allow", "words": self._revoker.lift(wire.text(fields, "id"))}

    async def matching(self, fields: Fields, _peer: Peer) -> Answer:
        """Which of the waiting jobs that the command has found are revoked; whichever head node is asked."""
        try:
            candidates = json.loads(wire.text(fields, "jobs"))
        except (ValueError, RecursionError):
            raise wire.WireError("the list of jobs is not JSON") from None
        found = await asyncio.to_thread(self._revoker.matching, candidates)
        return {"verdict": "allow", "jobs": encode(found)}
