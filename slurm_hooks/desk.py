"""The decision daemon's server: each connection has a thread, which reads, decides and answers without anybody's help.

slurmctld waits with its locks held, and between two wake-ups of an event loop more time passes than a decision takes
(measured: decision 0018). So there is none: a request is one blocking read, a call and one write. As in
:mod:`slurm_hooks.serve`, who asks is read from the kernel, unknown verbs, other users, garbage and late requests get a
refusal and the end of the connection, every wait has a deadline, and nothing that a client does ends the daemon.

Beside requests there are notes: what was decided elsewhere and is only told. They come on a connection of their own,
where each batch is confirmed by its running count, so that nobody waits for them and none is lost unseen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping

from conf.errors import SecureSlurmError
from slurm_hooks import answering, wire
from slurm_hooks.answering import Answer, Fields, Peer, refusal

LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
"""slurmctld has two, an admin one now and then; each costs a thread."""
NOTES_PAUSE = 0.1
"""Seconds between two looks at the notes: taken together they cost a third of what they cost one by one."""
CLOSE_DEADLINE = 2.0
_PIECE = 65536

Handler = Callable[[Fields, Peer], Answer]
Handlers = Mapping[str, tuple[frozenset[int], Handler]]


class Desk:
    """A server on the Unix socket ``path``, from :meth:`open` to :meth:`close`.

    ``handlers`` maps each verb to the uids that may use it and the function that answers; ``notes`` does the same for
    verbs that are told and not asked. Handlers run in several threads at once. ``deadline`` (seconds) bounds the
    arrival of a request once its first byte is there, its handling (a later yes becomes a no) and the sending of the
    answer. ``mode`` and ``group`` (gid) are set before the first connection is possible.
    """

    def __init__(self, path: str, handlers: Handlers, notes: Handlers, *, deadline: float) -> None:
        self._path = path
        self._doors = {**handlers, **notes}
        self._notes = frozenset(notes)
        self._known = frozenset[int]().union(*(uids for uids, _ in self._doors.values()))
        self._deadline = deadline
        self._open: dict[socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._listening: socket.socket | None = None
        self._inode = 0

    def open(self, *, mode: int, group: int | None) -> None:
        """Accept connections from now on. Raises ConfigError when the path is not free."""
        self._listening = answering.bind(self._path, mode, group)
        self._inode = os.stat(self._path).st_ino  # noqa: PTH116  as bound, no Path needed
        self._listening.listen(MAX_CONNECTIONS)
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True, name="accept").start()

    def close(self) -> None:
        """Accept nothing more, take what was sent already, and remove the socket. May be called again."""
        if self._listening is None:
            return
        listening, self._listening = self._listening, None
        self._closing.set()
        answering.unbind(self._path, self._inode)
        # who has connected already may have told something
        listening.setblocking(False)
        with contextlib.suppress(OSError):
            while True:
                self._take_on(listening.accept()[0])
        _shut(listening, socket.SHUT_RDWR)
        listening.close()
        with self._lock:
            open_ones = dict(self._open)
        for connection in open_ones:
            # what was sent before can still be read; then comes the end
            _shut(connection, socket.SHUT_RD)
        end = time.monotonic() + CLOSE_DEADLINE
        for thread in open_ones.values():
            thread.join(max(0.0, end - time.monotonic()))

    def _accept(self, listening: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                connection, _ = listening.accept()
            except OSError as error:
                if not self._closing.wait(0.1):
                    LOG.error("%s: no connection can be accepted: %s", self._path, error.strerror)
                continue
            self._take_on(connection)

    def _take_on(self, connection: socket.socket) -> None:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                LOG.warning("%s: more than %d connections, one was closed unread", self._path, MAX_CONNECTIONS)
                connection.close()
                return
            thread = threading.Thread(target=self._talk, args=(connection,), daemon=True, name="connection")
            self._open[connection] = thread
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        try:
            # as the kernel's own limit it costs nothing; socket.settimeout() would poll before each act
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self._deadline))
            peer = answering.peer_of(connection)
            # who may ask nothing shall not keep a thread waiting either
            inbox = _Inbox(connection, self._deadline, patient=peer.uid in self._known)
            while self._one(connection, inbox, peer):
                pass
        except OSError:
            # gone, too slow to read its answer, or the daemon stops: there is nobody to tell
            LOG.debug("%s: a connection ended early", self._path)
        except Exception:
            LOG.exception("%s: a connection failed", self._path)
        finally:
            with self._lock:
                self._open.pop(connection, None)
            connection.close()

    def _one(self, connection: socket.socket, inbox: _Inbox, peer: Peer) -> bool:
        """Answer one request; false when the connection must be closed."""
        nonce = ""
        keep = False
        answer: Answer
        try:
            fields = inbox.take()
            if fields is None:
                return False
            nonce = wire.valid_nonce(fields.get("nonce"))
            answer, keep = self._dispatch(fields, peer)
            if keep and answering.verb_of(fields) in self._notes:
                return self._noted(connection, inbox, peer, fields, answer)
        except TimeoutError:
            answer, keep = refusal("wire.timeout", "the request did not arrive in time"), False
        except wire.WireError as error:
            answer, keep = refusal("wire.malformed", str(error)), False
        _send(connection, answering.encoded(answer, nonce))
        return keep

    def _noted(self, connection: socket.socket, inbox: _Inbox, peer: Peer, first: Fields, answer: Answer) -> bool:
        """Take notes until the peer closes. Each confirmation says how many of this connection's were taken."""
        verb, nonce, count = answering.verb_of(first), wire.valid_nonce(first.get("nonce")), 1
        while answer["verdict"] in ("allow", b"allow"):
            if inbox.is_empty():
                _send(connection, answering.encoded({**answer, "count": str(count)}, nonce))
                self._closing.wait(NOTES_PAUSE)
            fields = inbox.take()
            if fields is None:
                return False
            if answering.verb_of(fields) != verb:
                raise wire.WireError("a request came among notes")
            answer, _ = self._dispatch(fields, peer)
            count += 1
        # one that could not be taken is not counted, nor are those behind it: they will be told again
        _send(connection, answering.encoded(answer, nonce))
        return False

    def _dispatch(self, fields: Fields, peer: Peer) -> tuple[Answer, bool]:
        """The answer and whether the connection may be kept."""
        verb = answering.verb_of(fields)
        uids, handler = self._doors.get(verb, (None, None))
        no = answering.not_admitted(self._path, fields, peer, uids, self._known)
        if no is not None or handler is None:
            return no or answering.broken(), False
        end = time.monotonic() + self._deadline
        try:
            answer = handler(fields, peer)
        except SecureSlurmError as error:
            return answering.refused(self._path, verb, error), not isinstance(error, wire.WireError)
        except Exception:
            LOG.exception("%s: %s failed", self._path, verb)
            return answering.broken(), True
        if time.monotonic() > end:
            LOG.error("%s: %s took longer than %.3f s", self._path, verb, self._deadline)
            return refusal("engine.timeout", "the daemon could not answer in time", "try again in a moment"), False
        return answering.decided(self._path, verb, answer), True


class _Inbox:
    """What has arrived on a connection and was not taken yet."""

    def __init__(self, connection: socket.socket, deadline: float, *, patient: bool) -> None:
        self._connection = connection
        self._deadline = deadline
        self._patient = patient
        self._held = b""

    def is_empty(self) -> bool:
        """Whether nothing is left to take without waiting."""
        return not self._held

    def take(self) -> Fields | None:
        """The next request, None when the peer has closed. Raises WireError and TimeoutError.

        A kept connection may be silent for as long as it likes; a request that has begun has to arrive in time.
        """
        if not self._held:
            if not self._patient:
                self._connection.settimeout(self._deadline)
            self._held = self._connection.recv(_PIECE)
            if not self._held:
                return None
        body = self._cut()
        return wire.decode_body(self._rest() if body is None else body)

    def _rest(self) -> bytes:
        """The body of a request of which a part is there."""
        end = time.monotonic() + self._deadline
        try:
            while True:
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._connection.settimeout(left)
                part = self._connection.recv(_PIECE)
                if not part:
                    raise wire.WireError("the request ended before it was complete")
                self._held += part
                body = self._cut()
                if body is not None:
                    return body
        finally:
            self._connection.settimeout(None)

    def _cut(self) -> bytes | None:
        """Take the first body off what is held, if all of it is there."""
        newline = self._held.find(b"\n", 0, wire.MAX_HEADER)
        if newline < 0:
            if len(self._held) >= wire.MAX_HEADER:
                raise wire.WireError("the request's header is malformed")
            return None
        start = newline + 1
        stop = start + wire.decode_header(self._held[:start])
        if len(self._held) < stop:
            return None
        body, self._held = self._held[start:stop], self._held[stop:]
        return body


def _send(connection: socket.socket, message: bytes) -> None:
    # one call, one deadline (SO_SNDTIMEO): a peer that reads a byte now and then does not stretch it
    if connection.send(message) != len(message):
        raise TimeoutError


def _shut(connection: socket.socket, how: int) -> None:
    try:
        connection.shutdown(how)
    except OSError:
        return  # gone already


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))
