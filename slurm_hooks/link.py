"""The link between a node and the head node: TLS 1.3, a certificate on both sides, numbered messages.

The messages are those of :mod:`slurm_hooks.wire`. Each has a ``verb`` and a ``nonce``, ``<session>.<side>.<number>``:
the session is 32 random hex digits of the head node's, in the welcome that it sends first, the side ``h`` or ``n``, and
the numbers go up by one. A message that is repeated, left out or from another session ends the connection, and so does
silence.

Who the node is, its certificate alone says: the common name, by which Vault knows it too (cert auth's alias).
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

from conf.errors import BackendUnavailable, ConfigError, Refused
from conf.slurmnames import is_node_name
from slurm_hooks import wire

HEAD, NODE = "h", "n"
PING_EVERY = 2.0
"""Seconds between two reports of a node, each of which is answered."""
SILENCE = 4 * PING_EVERY
"""Seconds without a message, after which a connection counts as dead."""
HANDSHAKE = 5.0
SEND = 5.0
LIMIT = wire.MAX_BODY + 1024

_NONCE = re.compile(r"([0-9a-f]{32})\.([hn])\.([1-9][0-9]{0,18})", re.ASCII)

Fields = dict[str, bytes]


def server_context(certificate: str, private_key: str, ca_file: str) -> ssl.SSLContext:
    """The head node's side; ConfigError when a file is missing or is not what it should be."""
    return _context(ssl.PROTOCOL_TLS_SERVER, certificate, private_key, ca_file)


def client_context(certificate: str, private_key: str, ca_file: str) -> ssl.SSLContext:
    """A node's side, which checks the head node's name as well."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate, private_key, ca_file)


def trusting_context(ca_file: str) -> ssl.SSLContext:
    """The side of a node that has no certificate yet: it checks the head node's, and shows none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca_file)
    except OSError as error:
        raise ConfigError(f"{ca_file}: cannot be used: {error.strerror or type(error).__name__}") from None
    return context


def _context(protocol: ssl._SSLMethod, certificate: str, private_key: str, ca_file: str) -> ssl.SSLContext:
    server = protocol == ssl.PROTOCOL_TLS_SERVER
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # a session that is resumed would be one whose certificate nobody has looked at
    if server:
        context.num_tickets = 0
    path = ca_file
    try:
        context.load_verify_locations(ca_file)
        path = certificate
        context.load_cert_chain(certificate, private_key, password=_no_password)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(
            f"{path}: cannot be used for the link: {error.strerror or type(error).__name__}",
            advice="see link and vault.node in secure-slurm.yaml; PEM, and the key must belong to the certificate",
        ) from None
    return context


def _no_password() -> str:
    # without this OpenSSL would ask on the terminal
    raise ConfigError("the link's private key has a password", advice="store it without one, mode 0400")


def peer_name(certificate: Mapping[str, Any] | None) -> str:
    """The node that a verified certificate (``getpeercert``) is for; Refused ``link.name`` for any other."""
    subject = (certificate or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    if len(names) != 1 or not is_node_name(names[0]):
        raise Refused("link.name", "the peer's certificate does not carry one node's name as its common name")
    return str(names[0])


def valid_until(certificate: Mapping[str, Any] | None) -> float:
    """When a verified certificate ends, Unix seconds; 0 when it does not say."""
    try:
        return float(ssl.cert_time_to_seconds((certificate or {})["notAfter"]))
    except (KeyError, ValueError, TypeError):
        return 0.0


class Channel:
    """One open connection, from one side. Any failure is a WireError; then nothing is left but :meth:`close`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, side: str, session: str = ""
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._side = side
        self._session = os.urandom(16).hex() if side == HEAD and not session else session
        self._sent = 0
        self._received = 0
        self._turn = asyncio.Lock()

    async def send(self, verb: str, fields: Mapping[str, bytes | str] | None = None) -> str:
        """Send one message; its nonce. The other side must take it within :data:`SEND` seconds."""
        async with self._turn:
            self._sent += 1
            nonce = f"{self._session}.{self._side}.{self._sent}"
            try:
                async with asyncio.timeout(SEND):
                    self._writer.write(wire.encode({**(fields or {}), "verb": verb, "nonce": nonce}))
                    await self._writer.drain()
            except (OSError, TimeoutError) as error:
                raise wire.WireError(f"the other side does not take what is sent: {error}") from None
        return nonce

    async def receive(self, within: float = SILENCE) -> tuple[str, Fields]:
        """The next message: its verb and its fields. ``within``: seconds for all of it."""
        try:
            async with asyncio.timeout(within):
                header = await self._reader.readuntil(b"\n")
                fields = wire.decode_body(await self._reader.readexactly(wire.decode_header(header)))
        except TimeoutError:
            raise wire.WireError(f"nothing was heard for {within:.0f} s") from None
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise wire.WireError(f"the connection broke: {type(error).__name__}") from None
        self._in_turn(wire.text(fields, "nonce"))
        return wire.text(fields, "verb"), fields

    def _in_turn(self, nonce: str) -> None:
        found = _NONCE.fullmatch(nonce)
        if found is None:
            raise wire.WireError("a message has no proper nonce")
        session, side, number = found.groups()
        if not self._session:
            self._session = session
        self._received += 1
        if (session, side, int(number)) != (self._session, NODE if self._side == HEAD else HEAD, self._received):
            raise wire.WireError("a message was repeated, is missing, or belongs to another connection")

    def close(self) -> None:
        """Break it off; whoever waits for a message is told. May be called again."""
        self._writer.transport.abort()


async def dial(address: str, context: ssl.SSLContext) -> tuple[Channel, str]:
    """A node's connection to ``host:port``, and the welcome's node name: whom the head node takes us for."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        async with asyncio.timeout(2 * HANDSHAKE):
            reader, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname=host, ssl_handshake_timeout=HANDSHAKE, limit=LIMIT
            )
    except (OSError, TimeoutError, ssl.SSLError) as error:
        raise BackendUnavailable(f"{address}: {_why(error)}") from None
    channel = Channel(reader, writer, NODE)
    try:
        # what the head node has against our certificate comes after the handshake (RFC 8446, 4.4.2.4)
        verb, fields = await channel.receive(HANDSHAKE)
        if verb != "welcome":
            raise wire.WireError(f"{address}: it is no lifecycle daemon that answers")
        return channel, wire.text(fields, "node")
    except BaseException:
        channel.close()
        raise


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    return getattr(error, "strerror", None) or str(error) or "no connection in time"


def addresses(head: Sequence[str], listen: str, head_nodes: Sequence[str]) -> tuple[str, ...]:
    """Where the nodes connect to."""
    return tuple(head) or tuple(f"{name}:{listen.rpartition(':')[2]}" for name in head_nodes)


def boottime() -> float:
    """Seconds of a clock that nobody can set, and that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
