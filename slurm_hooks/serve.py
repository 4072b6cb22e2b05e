"""A Unix-socket server for the daemons: who asks is read from the kernel, every wait has a deadline, nothing kills it.

One request at a time on a kept connection. Unknown verbs, other users, garbage and late requests get a refusal and the
connection is closed. For daemons whose handlers wait for others (Vault, Slurm); :mod:`slurm_hooks.desk` is for the one
that never does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

from conf.errors import SecureSlurmError
from slurm_hooks import answering, wire
from slurm_hooks.answering import Answer, Fields, Peer, refusal

LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
BACKLOG = 1024
"""Connections that wait to be accepted: a hook that finds this full is turned away by the kernel (EAGAIN, unix(7))."""

Handler = Callable[[Fields, Peer], Awaitable[Answer]]
Handlers = Mapping[str, tuple[frozenset[int] | None, Handler]]


async def serve(
    path: str,
    handlers: Handlers,
    *,
    mode: int,
    group: int | None,
    deadline: float,
    most_of_one: int = MAX_CONNECTIONS,
    given: socket.socket | None = None,
) -> Listener:
    """Listen on ``path``; returns once connections are accepted. Close the returned listener to stop.

    ``handlers`` maps each verb to the uids that may use it (None: whoever can connect) and the coroutine that answers.
    An answer without ``verdict`` is sent as a refusal. ``mode`` and ``group`` (gid) are set before the first connection
    is possible. ``deadline`` (seconds) bounds the arrival of a request once its first byte is there, and then its
    handling and answer. ``most_of_one``: connections that one user may have at a time. ``given``: a socket that
    listens there already, and stays when this ends (:mod:`slurm_hooks.handed`); ``mode`` and ``group`` are then its
    giver's. Raises ConfigError when the path is taken by something that is not a dead socket of an earlier run.
    """
    listening = answering.bind(path, mode, group) if given is None else given
    listening.setblocking(False)
    inode = os.stat(path).st_ino if given is None else 0  # noqa: PTH116  as bound, no Path needed
    listener = Listener(path, inode, handlers, deadline, most_of_one)
    try:
        await listener.start(listening)
    except BaseException:
        listening.close()
        raise
    return listener


class Listener:
    """A running server. Usable as an async context manager that closes it."""

    def __init__(self, path: str, inode: int, handlers: Handlers, deadline: float, most_of_one: int) -> None:
        self._path = path
        self._inode = inode
        self._handlers = dict(handlers)
        self._known = frozenset[int]().union(*(uids for uids, _ in self._handlers.values() if uids is not None))
        self._open = any(uids is None for uids, _ in self._handlers.values())
        self._deadline = deadline
        self._most_of_one = most_of_one
        self._of_one = Counter[int]()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accept connections on a bound socket."""
        # Python 3.13 and later would remove the socket at the end, also one that systemd holds and goes on listening at
        stays: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.start_unix_server(
            self._accept, sock=listening, limit=wire.MAX_BODY + 1024, backlog=BACKLOG, **stays
        )

    async def close(self) -> None:
        """Stop accepting, drop the open connections, remove the socket. May be called again."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        if self._inode:
            answering.unbind(self._path, self._inode)

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
            peer = answering.peer_of(writer.get_extra_info("socket"))
            if self._of_one[peer.uid] >= self._most_of_one:
                LOG.warning("%s: too many connections of uid %d, one was closed unread", self._path, peer.uid)
                return
            self._of_one[peer.uid] += 1
            try:
                while await self._one(reader, writer, peer):
                    pass
            finally:
                self._of_one[peer.uid] -= 1
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
            answer, keep = await self._dispatch(fields, peer)
        except TimeoutError:
            answer = refusal("wire.timeout", "the request did not arrive in time")
        except wire.WireError as error:
            answer = refusal("wire.malformed", str(error))
        async with asyncio.timeout(self._deadline):
            writer.write(answering.encoded(answer, nonce))
            await writer.drain()
        return keep

    async def _dispatch(self, fields: Fields, peer: Peer) -> tuple[Answer, bool]:
        """The answer and whether the connection may be kept."""
        verb = answering.verb_of(fields)
        uids, handler = self._handlers.get(verb, (None, None))
        known, anybody = self._known, frozenset({peer.uid})
        if self._open:
            known, uids = known | anybody, anybody if handler is not None and uids is None else uids
        no = answering.not_admitted(self._path, fields, peer, uids, known)
        if no is not None or handler is None:
            return no or answering.broken(), False
        return await self._handle(handler, fields, peer, verb)

    async def _handle(self, handler: Handler, fields: Fields, peer: Peer, verb: str) -> tuple[Answer, bool]:
        try:
            async with asyncio.timeout(self._deadline):
                answer = await handler(fields, peer)
        except TimeoutError:
            LOG.error("%s: %s took longer than %.3f s", self._path, verb, self._deadline)
            return refusal("engine.timeout", "the daemon could not answer in time", "try again in a moment"), False
        except SecureSlurmError as error:
            return answering.refused(self._path, verb, error), not isinstance(error, wire.WireError)
        except Exception:
            LOG.exception("%s: %s failed", self._path, verb)
            return answering.broken(), True
        return answering.decided(self._path, verb, answer), True


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


__all__ = ["Answer", "Fields", "Listener", "Peer", "refusal", "serve"]
