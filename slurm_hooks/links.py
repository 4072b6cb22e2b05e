"""The head node's end of the link: one connection for each node, and what the node said last.

What a node says counts for that node alone, by the name in its certificate; a second connection takes the place of the
first. :class:`Links` does no more than that: what follows from a report is for who made it to say.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from typing import Self

import attrs

from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError
from conf.site import Link
from slurm_hooks import link, presence, wire
from slurm_hooks.presence import Present
from slurm_hooks.segments_link import Intake
from slurm_hooks.succession import Succession, check_enrolled, machine_of

LOG = logging.getLogger(__name__)

MAX_UNKNOWN = 256
"""Connections that have not said hello yet; further ones are closed."""
RELOAD_EVERY = 60.0


@attrs.define(eq=False)
class Connected:
    """A node that is connected. ``jobs`` None: it has not reported yet. ``since`` in Unix seconds.

    ``machine``: the instance that its certificate names, or "".
    """

    node: str
    channel: link.Channel
    version: str
    jurisdiction: str
    since: float
    jobs: dict[int, Present] | None = None
    orders: dict[str, asyncio.Future[str]] = attrs.Factory(dict)
    machine: str = attrs.field(default="", kw_only=True)


class Links:
    """Use as an async context manager: it listens meanwhile. ``heard`` is told of each report.

    ``arrived(node, machine)`` is told of each node that has connected, before it can say anything. ``enrolled_in``: the
    cluster, where nodes enrol; no other certificate counts there.
    """

    def __init__(self, site_link: Link, heard: Callable[[Connected], None], enrolled_in: str = "") -> None:
        self._files = (site_link.certificate, site_link.private_key, site_link.ca_file)
        self._listen = site_link.listen
        self._heard = heard
        self._enrolled_in = enrolled_in
        self.nodes: dict[str, Connected] = {}
        self.intake = Intake(None)
        self.arrived: Callable[[str, str], None] = lambda _node, _machine: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._succession = Succession()
        self._unknown = 0
        self._server: asyncio.Server | None = None
        self._stamp: tuple[int, ...] = ()
        self.port = 0
        self._shut = False

    def shut(self) -> None:
        """Another head node acts: let go of every node, and take none. Only the one that acts may renew a lease."""
        self._shut = True
        for connected in list(self.nodes.values()):
            connected.channel.close()

    def open(self) -> None:
        """Take nodes again."""
        self._shut = False

    async def __aenter__(self) -> Self:
        if not self._listen:
            return self
        host, _, port = self._listen.rpartition(":")
        context = link.server_context(*self._files)
        self._stamp = self._stamps()
        try:
            self._server = await asyncio.start_server(
                self._accept,
                host.strip("[]"),
                int(port),
                ssl=context,
                ssl_handshake_timeout=link.HANDSHAKE,
                limit=link.LIMIT,
                backlog=1024,
            )
        except OSError as error:
            raise ConfigError(f"link.listen: cannot listen at {self._listen}: {error.strerror}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks.add(asyncio.create_task(self._renew_certificate(context)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        for connected in self.nodes.values():
            connected.channel.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self, node: str, job: int, reason: str, within: float) -> str:
        """Have a node freeze a job and wipe its key: ``stopped``, ``gone`` or ``failed``.

        Raises BackendUnavailable when the node is not connected or does not answer in ``within`` seconds.
        """
        return await self._order("stop", node, job, reason, within)

    async def freeze(self, node: str, job: int, reason: str, within: float) -> str:
        """As :meth:`stop`, so that the job may go on: ``frozen``, ``stopped`` (for good), ``gone``, ``failed``."""
        return await self._order("freeze", node, job, reason, within)

    async def thaw(self, node: str, job: int, reason: str, within: float) -> str:
        """Have a frozen job go on, with its key as Vault gives it: ``running``, ``stopped``, ``gone`` or ``failed``."""
        return await self._order("thaw", node, job, reason, within)

    async def _order(self, verb: str, node: str, job: int, reason: str, within: float) -> str:
        connected = self.nodes.get(node)
        if connected is None:
            raise BackendUnavailable(f"node {node} is not connected")
        known = (connected.jobs or {}).get(job)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        incarnation = known.incarnation if known else ""
        order = wire.new_nonce()
        connected.orders[order] = answer
        said = {"order": order, "job": str(job), "incarnation": incarnation, "reason": reason}
        try:
            async with asyncio.timeout(within):
                await connected.channel.send(verb, said)
                return await answer
        except TimeoutError:
            raise BackendUnavailable(f"node {node} has not answered within {within:.0f} s") from None
        finally:
            connected.orders.pop(order, None)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        channel = link.Channel(reader, writer, link.HEAD)
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        try:
            certificate = tls.getpeercert() if tls is not None else None
            async with asyncio.timeout_at(_loop_time(link.valid_until(certificate))):
                node = link.peer_name(certificate)
                if self._enrolled_in:
                    check_enrolled(node, self._enrolled_in, certificate)
                self._succession.check(node, certificate)
                connected = await self._greeted(channel, node)
                # once more: its successor may have come while it took its time to greet
                self._succession.check(node, certificate)
                connected.machine = machine_of(certificate)
                await self._one(connected)
        except TimeoutError:
            LOG.warning("a node's connection was closed: its certificate has ended")
        except (SecureSlurmError, OSError) as error:
            LOG.warning("a node's connection ended: %s", error)
        except Exception:
            LOG.exception("a node's connection failed")
        finally:
            channel.close()

    async def _one(self, connected: Connected) -> None:
        node = connected.node
        before = self.nodes.get(node)
        if before is not None:
            before.channel.close()
        self.nodes[node] = connected
        self.arrived(node, connected.machine)
        LOG.info("node %s is connected", node)
        try:
            while True:
                verb, fields = await connected.channel.receive()
                await self._take(connected, verb, fields)
        finally:
            if self.nodes.get(node) is connected:
                del self.nodes[node]
            for answer in connected.orders.values():
                if not answer.done():
                    answer.set_exception(BackendUnavailable(f"the connection to node {node} broke"))

    async def _greeted(self, channel: link.Channel, node: str) -> Connected:
        self._check_open()
        if self._unknown >= MAX_UNKNOWN:
            raise BackendUnavailable("too many connections have not said who they are")
        self._unknown += 1
        try:
            await channel.send("welcome", {"node": node})
            verb, fields = await channel.receive(link.HANDSHAKE)
        finally:
            self._unknown -= 1
        self._check_open()
        if verb != "hello" or wire.text(fields, "node") != node:
            raise Refused("link.name", f"the daemon of another node speaks with the certificate of node {node}")
        version, place = wire.text(fields, "version")[:32], wire.text(fields, "jurisdiction", "")[:32]
        return Connected(node, channel, version, place, time.time())

    def _check_open(self) -> None:
        if self._shut:
            raise BackendUnavailable("this head node stands by")

    async def _take(self, connected: Connected, verb: str, fields: link.Fields) -> None:
        if verb == "jobs":
            connected.jobs = presence.read(wire.text(fields, "jobs"))
            await connected.channel.send("heard", {"report": fields.get("report", b"")})
            self._heard(connected)
        elif verb == "stopped":
            answer = connected.orders.get(wire.text(fields, "order"))
            result = wire.text(fields, "result")
            if result not in ("stopped", "frozen", "running", "gone", "failed"):
                raise wire.WireError("a node's answer to an order is none")
            if answer is not None and not answer.done():
                answer.set_result(result)
        elif verb == "trail":
            self.intake.take(connected.node, connected.channel, fields)
        else:
            raise wire.WireError(f"a node says {verb[:40]!r}, which is not known here")

    async def _renew_certificate(self, context: ssl.SSLContext) -> None:
        """A certificate is renewed in its file; connections that are open keep the old one."""
        while True:
            await asyncio.sleep(RELOAD_EVERY)
            try:
                stamp = self._stamps()
                if stamp != self._stamp:
                    # tried on a context of its own first: half a change must not break the one in use
                    link.server_context(*self._files)
                    context.load_cert_chain(self._files[0], self._files[1])
                    self._stamp = stamp
                    LOG.info("the link's certificate was read again")
            except (SecureSlurmError, OSError, ssl.SSLError) as error:
                LOG.error("the link's certificate stays as it was: %s", error)

    def _stamps(self) -> tuple[int, ...]:
        return tuple(os.stat(path).st_mtime_ns for path in self._files[:2])  # noqa: PTH116


def _loop_time(until: float) -> float:
    """A moment of Unix time by the loop's clock."""
    return asyncio.get_running_loop().time() + max(0.0, until - time.time())
