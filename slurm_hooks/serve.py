"""A Unix-socket server for the daemons: who asks is read from the kernel, every wait has a deadline, nothing kills it.

One request at a time on a kept connection. The peer's uid comes from SO_PEERCRED (unix(7)), never from the message.
Unknown verbs, other users, garbage and late requests get a refusal and the connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError
from slurm_hooks import wire

LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
_UCRED = struct.Struct("3i")

Fields = dict[str, bytes]
Answer = Mapping[str, bytes | str]


class Peer(NamedTuple):
    """The process at the other end, as the kernel recorded it when it connected."""

    pid: int
    uid: int
    gid: int


Handler = Callable[[Fields, Peer], Awaitable[Answer]]
Handlers = Mapping[str, tuple[frozenset[int], Handler]]


def refusal(rule: str, message: str, advice: str = "") -> dict[str, bytes | str]:
    """An answer that says no."""
    return {"verdict": "refuse", "rule": rule, "message": message, "advice": advice}


async def serve(path: str, handlers: Handlers, *, mode: int, group: int | None, deadline: float) -> Listener:
    """Listen on ``path``; returns once connections are accepted. Close the returned listener to stop.

    ``handlers`` maps each verb to the uids that may use it and the coroutine that answers. An answer without
    ``verdict`` is sent as a refusal. ``mode`` and ``group`` (gid) are set before the first connection is possible.
    ``deadline`` (seconds) bounds the arrival of a request once its first byte is there, and then its handling and
    answer. Raises ConfigError when the path is taken by something that is not a dead socket of an earlier run.
    """
    listening = _bind(path, mode, group)
    listener = Listener(path, os.stat(path).st_ino, handlers, deadline)  # noqa: PTH116  as bound, no Path needed
    try:
        await listener.start(listening)
    except BaseException:
        listening.close()
        raise
    return listener


class Listener:
    """A running server. Usable as an async context manager that closes it."""

    def __init__(self, path: str, inode: int, handlers: Handlers, deadline: float) -> None:
        self._path = path
        self._inode = inode
        self._handlers = dict(handlers)
        self._known = frozenset[int]().union(*(uids for uids, _ in self._handlers.values()))
        self._deadline = deadline
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accept connections on a bound socket."""
        self._server = await asyncio.start_unix_server(self._accept, sock=listening, limit=wire.MAX_BODY + 1024)

    async def close(self) -> None:
        """Stop accepting, drop the open connections, remove the socket. May be called again."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        try:
            if os.lstat(self._path).st_ino == self._inode:
                Path(self._path).unlink()
        except FileNotFoundError:
            return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is always handled in a task")
        self._connections.add(task)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                LOG.warning("%s: more than %d connections, one was closed unread", self._path, MAX_CONNECTIONS)
                return
            peer = _peer(writer)
            while await self._one(reader, writer, peer):
                pass
        except (OSError, TimeoutError, asyncio.CancelledError):
            # gone, too slow to read its answer, or the daemon stops: there is nobody to tell
            LOG.debug("%s: a connection ended early", self._path)
        except Exception:
            LOG.exception("%s: a connection failed", self._path)
        finally:
            self._connections.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> bool:
        """Answer one request; false when the connection must be closed."""
        first = await reader.read(1)
        if not first:
            return False
        nonce = ""
        keep = False
        answer: Answer
        try:
            async with asyncio.timeout(self._deadline):
                fields = await _read(reader, first)
            nonce = wire.valid_nonce(fields.get("nonce"))
            answer, keep = await self._dispatch(fields, nonce, peer)
        except TimeoutError:
            answer = refusal("wire.timeout", "the request did not arrive in time")
        except wire.WireError as error:
            answer = refusal("wire.malformed", str(error))
        async with asyncio.timeout(self._deadline):
            writer.write(_encode(answer, nonce))
            await writer.drain()
        return keep

    async def _dispatch(self, fields: Fields, nonce: str, peer: Peer) -> tuple[Answer, bool]:
        """The answer and whether the connection may be kept."""
        verb = fields.get("verb", b"").decode("ascii", "replace")
        uids, handler = self._handlers.get(verb, (frozenset[int](), None))
        if peer.uid not in self._known or (handler is not None and peer.uid not in uids):
            LOG.warning("%s: uid %d (pid %d) may not ask for %r", self._path, peer.uid, peer.pid, verb[:64])
            return refusal("peer.refused", "this user may not ask this of the daemon"), False
        if handler is None:
            return refusal("wire.verb", "the daemon does not know this request"), False
        if not nonce:
            return refusal("wire.nonce", "the request has no usable nonce"), False
        return await self._handle(handler, fields, peer, verb)

    async def _handle(self, handler: Handler, fields: Fields, peer: Peer, verb: str) -> tuple[Answer, bool]:
        try:
            async with asyncio.timeout(self._deadline):
                answer = await handler(fields, peer)
        except TimeoutError:
            LOG.error("%s: %s took longer than %.3f s", self._path, verb, self._deadline)
            return refusal("engine.timeout", "the daemon could not answer in time", "try again in a moment"), False
        except SecureSlurmError as error:
            return self._refused(error, verb), not isinstance(error, wire.WireError)
        except Exception:
            LOG.exception("%s: %s failed", self._path, verb)
            return _broken(), True
        if not _decides(answer):
            LOG.error("%s: %s ended without a verdict", self._path, verb)
            return refusal("engine.no-verdict", "nothing decided this request, so it is refused"), True
        return answer, True

    def _refused(self, error: SecureSlurmError, verb: str) -> Answer:
        if isinstance(error, Refused):
            return refusal(error.rule, str(error), error.advice)
        LOG.warning("%s: %s: %r", self._path, verb, str(error))
        if isinstance(error, wire.WireError):
            return refusal("wire.malformed", str(error))
        if isinstance(error, BackendUnavailable):
            return refusal("backend.unavailable", str(error), error.advice)
        return refusal("engine.error", str(error), error.advice)


def _decides(answer: object) -> bool:
    """Whether a handler's answer says yes or no; a handler that falls off its end answers None."""
    return isinstance(answer, Mapping) and answer.get("verdict") in ("allow", b"allow", "refuse", b"refuse")


def _broken() -> dict[str, bytes | str]:
    return refusal("engine.error", "the daemon failed", "tell an admin: the daemon's log has the details")


def _encode(answer: Answer, nonce: str) -> bytes:
    try:
        return wire.encode({**answer, "nonce": nonce})
    except wire.WireError:
        LOG.exception("an answer could not be encoded")
        return wire.encode({**_broken(), "nonce": nonce})


async def _read(reader: asyncio.StreamReader, first: bytes) -> Fields:
    header = first
    while not header.endswith(b"\n") and len(header) < wire.MAX_HEADER:
        part = await reader.read(1)
        if not part:
            raise wire.WireError("the request ended within its header")
        header += part
    try:
        return wire.decode_body(await reader.readexactly(wire.decode_header(header)))
    except asyncio.IncompleteReadError:
        raise wire.WireError("the request ended before it was complete") from None


def _peer(writer: asyncio.StreamWriter) -> Peer:
    connection: socket.socket = writer.get_extra_info("socket")
    return Peer(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def _bind(path: str, mode: int, group: int | None) -> socket.socket:
    """A bound, not yet listening socket: until listen() every connection is refused, so its mode is never too wide."""
    _remove_dead(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        mask = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, -1, group)
        Path(path).chmod(mode)
    except OSError as error:
        listening.close()
        raise ConfigError(f"{path}: cannot listen there: {error.strerror}") from None
    listening.setblocking(False)
    return listening


def _remove_dead(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot listen there: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"{path}: is not a socket", advice="remove it, or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(f"{path}: cannot tell whether a daemon runs: {error.strerror}") from None
    raise ConfigError(f"{path}: another daemon answers there", advice="stop it first")


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3)): ``READY=1``, ``STOPPING=1``. Without systemd: nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.connect(address)
            connection.sendall(state.encode())
        except OSError as error:
            LOG.warning("systemd was not told %s: %s", state, error.strerror)
