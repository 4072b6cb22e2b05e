"""The port at which nodes enrol: strangers speak here, so everything is small, short and few.

TLS 1.3 with the daemon's certificate; a peer may show one of its own, which then must be good, or none. One request and
one answer for each connection. Before any of that an address that comes too often is turned away, so that nobody pays
for a handshake with it; so is whoever comes while too many are served. All of it together has one deadline.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from conf.errors import ConfigError, SecureSlurmError
from conf.site import Enrol
from slurm_hooks import link, wire
from slurm_hooks.answering import Answer, Fields

LOG = logging.getLogger(__name__)

MAX_REQUEST = 32 * 1024
"""Bytes: a request and a document have some 4000."""
MOST = 512
"""Connections at a time: who has a job on a hundred nodes must not fill them all. Below systemd's 1024 descriptors."""
MOST_OF_ONE = 4
"""Connections at a time from one address."""
AT_ONCE = 8
"""Requests that are judged at a time: what Vault and slurmctld have to bear when a hundred nodes start."""
DEADLINE = 30.0
"""Seconds for handshake, request, turn, judgement and answer."""
ARRIVE = 5.0
"""Seconds for the request, and again for the answer."""
BURST, EVERY = 10, 6.0
"""Connections that one address may make at once, and the seconds after which it may make one more."""
ADDRESSES = 4096
"""Addresses that are remembered for that; the one that was away for longest is forgotten."""
RELOAD_EVERY = 60.0

Judge = Callable[[Fields, str, bytes | None], Answer]


def server_context(enrol: Enrol) -> ssl.SSLContext:
    """The daemon's side of TLS; ConfigError when a file is missing or wrong."""
    context = link.server_context(enrol.certificate, enrol.private_key, enrol.ca_file)
    # a node that enrols for the first time has none
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


class Limit:
    """How often each address may come: a bucket of :data:`BURST` that fills by one in :data:`EVERY` seconds."""

    def __init__(self, burst: int = BURST, every: float = EVERY, most: int = ADDRESSES) -> None:
        self._burst, self._every, self._most = float(burst), every, most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> bool:
        """Whether it may come now; ``now`` by a clock that never goes back."""
        left, at = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - at) / self._every)
        allowed = left >= 1
        self._left[address] = (left - 1 if allowed else left, now)
        while len(self._left) > self._most:
            self._left.popitem(last=False)
        return allowed


class EnrolServer:
    """Use as an async context manager: it listens meanwhile. ``judge`` blocks, and is called on threads of its own."""

    def __init__(
        self,
        enrol: Enrol,
        judge: Judge,
        *,
        limit: Limit | None = None,
        deadline: float = DEADLINE,
        most_of_one: int = MOST_OF_ONE,
    ) -> None:
        self._enrol = enrol
        self._judge = judge
        self._limit = limit or Limit()
        self._deadline = deadline
        self._most_of_one = most_of_one
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="enrol")
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: Counter[str] = Counter()
        self._context = server_context(enrol)
        self._listening: socket.socket | None = None
        self.port = 0
        self.turned_away = 0
        self.works: list[asyncio.Task[None]] = []
        self._answered = 0

    async def __aenter__(self) -> Self:
        host, _, port = self._enrol.listen.rpartition(":")
        host = host.strip("[]")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listening = socket.create_server((host, int(port)), family=family, backlog=256)
        except OSError as error:
            raise ConfigError(f"enrol.listen: cannot listen at {self._enrol.listen}: {error.strerror}") from None
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        self.works = [
            asyncio.create_task(self._accept(self._listening)),
            asyncio.create_task(self._renew_certificate()),
        ]
        for work in self.works:
            self._keep(work)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listening is not None:
            self._listening.close()
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def words(self) -> str:
        """For ``systemctl status``: where it listens, and how many came."""
        return f"listening at {self._enrol.listen}: {self._answered} answered, {self.turned_away} turned away"

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listening)
            except OSError as error:
                # out of descriptors, or the peer is gone already: neither is a reason to stop
                LOG.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            address = str(peer[0])
            crowded = self._open.total() >= MOST or self._open[address] >= self._most_of_one
            if crowded or not self._limit.take(address, time.monotonic()):
                self.turned_away += 1
                connection.close()
                continue
            self._open[address] += 1
            self._keep(asyncio.create_task(self._serve(connection, address)))

    async def _serve(self, connection: socket.socket, address: str) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._deadline):
                reader, writer = await self._secured(connection)
                await self._one(reader, writer, address)
            self._answered += 1
        except (
            SecureSlurmError,
            OSError,
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ) as error:
            LOG.info("%s: nothing came of a connection: %s", address, str(error) or type(error).__name__)
        except Exception:
            LOG.exception("%s: a connection failed", address)
        finally:
            if writer is not None:
                writer.transport.abort()
            connection.close()
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    async def _secured(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        reader = asyncio.StreamReader(limit=MAX_REQUEST, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=link.HANDSHAKE
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        async with asyncio.timeout(ARRIVE):
            size = wire.decode_header(await reader.readuntil(b"\n"))
            if size > MAX_REQUEST:
                raise wire.WireError(f"a request of {size} bytes is no enrolment")
            fields = wire.decode_body(await reader.readexactly(size))
        nonce = wire.valid_nonce(fields.get("nonce"))
        if not nonce:
            raise wire.WireError("a request without a nonce")
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._pool, self._judge, fields, address, certificate)
        async with asyncio.timeout(ARRIVE):
            writer.write(wire.encode({**answer, "nonce": nonce}))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def _renew_certificate(self) -> None:
        """The daemon's own certificate is renewed in its file; half a change must not break what is in use."""
        while True:
            await asyncio.sleep(RELOAD_EVERY)
            try:
                self._context = server_context(self._enrol)
            except SecureSlurmError as error:
                LOG.error("the certificate stays as it was: %s", error)
