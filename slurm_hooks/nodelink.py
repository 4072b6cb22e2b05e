"""The node's end of the link: tells the head node which secured jobs are here, and has the hand do what it orders.

The node daemon itself may not look at the journal, freeze or wipe: it passes on what root's hand says and takes back
what the hand has done. The lease is the hand's as well; here it is only renewed, as of the moment when the report was
sent that the head node has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path

from conf.errors import BackendUnavailable, SecureSlurmError
from conf.site import Site
from conf.slurmnames import for_node
from conf.version import __version__
from keys.secret import Secret
from slurm_hooks import link, wire
from slurm_hooks.segments_send import Sender

LOG = logging.getLogger(__name__)

PLACE = 2.0
"""Seconds for the node's place to be proved, or the head node is told none."""
ASK = 5.0
"""Seconds for the hand to say which jobs are here."""
HAND = 40.0
"""Seconds for the hand to freeze and wipe one job."""
WAIT_FIRST, WAIT_MOST = 0.2, 5.0
"""Seconds between two rounds through the head nodes; doubled, and each a random part shorter: not all at once."""


class NodeLink:
    """One node's end. ``jurisdiction`` is asked at each new connection; it may fail, and then none is told.

    ``unwrap(job, incarnation, key, wrapped)`` has Vault give a data key again, and blocks.
    """

    def __init__(
        self, site: Site, node: str, jurisdiction: Callable[[], str], unwrap: Callable[[str, str, str, str], Secret]
    ) -> None:
        self._node = node
        self._hand = f"{for_node(site.node.run_dir, node)}/hand.sock"
        self._files = (
            for_node(site.vault.node.certificate, node),
            for_node(site.vault.node.private_key, node),
            site.link.ca_file,
        )
        self._heads = link.addresses(site.link.head, site.link.listen, site.cluster.head_nodes)
        self._jurisdiction = jurisdiction
        self._unwrap = unwrap
        self._orders: set[asyncio.Task[None]] = set()
        self.connected = False

    async def keep(self) -> None:
        """Hold a connection, for ever. What is wrong is logged once, until it changes."""
        wait, told = WAIT_FIRST, ""
        while True:
            for address in self._heads:
                try:
                    # read anew each time: certificates are renewed
                    channel, name = await link.dial(address, link.client_context(*self._files))
                    try:
                        LOG.info("connected to the head node at %s", address)
                        wait, told = WAIT_FIRST, ""
                        self.connected = True
                        await self._session(channel, name)
                    finally:
                        self.connected = False
                        channel.close()
                except SecureSlurmError as error:
                    told = _tell(told, f"no connection to the head node at {address}: {error}")
                except Exception:
                    LOG.exception("the connection to %s failed", address)
            await asyncio.sleep(wait * (0.5 + random.random() / 2))  # noqa: S311  no secret
            wait = min(wait * 2, WAIT_MOST)

    async def _session(self, channel: link.Channel, name: str) -> None:
        if name != self._node:
            raise BackendUnavailable(f"this node's certificate is for {name}, not {self._node}")
        await channel.send("hello", await self._hello())
        sent: dict[str, float] = {}
        reports = asyncio.create_task(self._report(channel, sent))
        sender = Sender(self._ask)
        lines = asyncio.create_task(sender.keep(channel))
        try:
            while True:
                verb, fields = await channel.receive()
                if verb == "heard":
                    await self._heard(sent, wire.text(fields, "report"))
                elif verb in ("stop", "freeze", "thaw"):
                    order = asyncio.create_task(self._order(channel, verb, fields))
                    self._orders.add(order)
                    order.add_done_callback(self._orders.discard)
                elif verb == "kept":
                    sender.kept(fields)
                else:
                    raise wire.WireError(f"the head node says {verb[:40]!r}, which is not known here")
        finally:
            reports.cancel()
            lines.cancel()

    async def _hello(self) -> dict[str, str]:
        place = ""
        with contextlib.suppress(SecureSlurmError, TimeoutError):
            # a metadata service that hangs must not keep the node from being connected
            async with asyncio.timeout(PLACE):
                place = await asyncio.to_thread(self._jurisdiction)
        boot = await asyncio.to_thread(Path("/proc/sys/kernel/random/boot_id").read_text)
        return {"node": self._node, "boot": boot.strip(), "version": __version__, "jurisdiction": place}

    async def _report(self, channel: link.Channel, sent: dict[str, float]) -> None:
        """What is here, every few seconds. When the hand does not say, nothing is reported, and the link falls."""
        try:
            while True:
                answer = await self._ask({"verb": "jobs"}, ASK)
                report = wire.new_nonce()
                sent[report] = link.boottime()
                await channel.send("jobs", {"report": report, "jobs": wire.text(answer, "jobs")})
                await asyncio.sleep(link.PING_EVERY)
        except SecureSlurmError as error:
            LOG.error("this node's jobs cannot be reported: %s", error)
            channel.close()

    async def _heard(self, sent: dict[str, float], report: str) -> None:
        at = sent.pop(report, None)
        if at is None:
            raise wire.WireError("the head node answers a report that was not sent")
        await self._ask({"verb": "renew", "age": f"{link.boottime() - at:.3f}"}, ASK)

    async def _order(self, channel: link.Channel, verb: str, fields: link.Fields) -> None:
        """One order: the hand acts, its word goes back. What fails is answered as failed, and ordered again."""
        request: dict[str, bytes | str] = {"verb": verb}
        request |= {name: fields.get(name, b"") for name in ("job", "incarnation", "reason")}
        result = b"failed"
        try:
            answer = await (self._thaw(request) if verb == "thaw" else self._ask(request, HAND))
            result = answer.get("result", result)
        except SecureSlurmError as error:
            LOG.error("job %s: the order %r failed: %s", wire.text(fields, "job", "?")[:12], verb, error)
        with contextlib.suppress(SecureSlurmError):
            await channel.send("stopped", {"result": result, "order": fields.get("order", b"")})

    async def _thaw(self, request: dict[str, bytes | str]) -> dict[str, bytes]:
        """The wrapped key from the hand, the key from Vault, the key to the hand, which lets the job go on."""
        try:
            found = await self._ask({**request, "verb": "wrapped"}, ASK)
        except BackendUnavailable:
            # it runs already, or was stopped: the hand says which, and without a key it can do nothing else
            return await self._ask(request, HAND)
        if found.get("result") != b"frozen":
            return found
        name, wrapped = wire.text(found, "key"), wire.text(found, "wrapped")
        if not name:
            return await self._ask(request, HAND)
        job, incarnation = request["job"], wire.text(found, "incarnation")
        job = job.decode("ascii", "replace") if isinstance(job, bytes) else job
        with await asyncio.to_thread(self._unwrap, job, incarnation, name, wrapped) as key:
            return await self._ask({**request, "plaintext": bytes(key.reveal())}, HAND)

    async def _ask(self, request: dict[str, bytes | str], seconds: float) -> dict[str, bytes]:
        answer = await asyncio.to_thread(wire.exchange, self._hand, request, timeout=seconds)
        if answer.get("verdict") != b"allow":
            if wire.text(answer, "rule", "") == "freeze.stopped":
                return {"result": b"stopped"}
            raise BackendUnavailable(f"the hand refuses: {wire.text(answer, 'message', '')}")
        return answer


def _tell(told: str, message: str) -> str:
    if message != told:
        LOG.warning("%s", message)
    return message
