"""A server with the right certificate that is no directory: what it sends after the handshake is up to the test.

It is a process with a child for each connection, for the reader forks and must not do that in a process with threads.
BER as in X.690, messages as in RFC 4511, no more of either than is needed here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from tests.testbed.pki import Pair

PATIENCE = 60.0
ELSEWHERE = b"ldaps://elsewhere.example:636/dc=example,dc=org"
_BIND, _ENTRY, _DONE, _REFERENCE, _EXTENDED = 0x61, 0x64, 0x65, 0x73, 0x78
_PAGES = b"1.2.840.113556.1.4.319"


class Session:
    """One connection after the handshake."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.connection = connection
        self.number = 0

    def hear(self) -> None:
        """Wait for a request; its number is what an answer has to repeat."""
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionResetError
        # sequence, its length, then the number as an integer (RFC 4511, 4.1.1)
        start = 2 + (data[1] & 0x7F if data[1] & 0x80 else 0)
        self.number = int.from_bytes(data[start + 2 : start + 2 + data[start + 1]], "big")

    def send(self, data: bytes) -> None:
        """Any bytes."""
        self.connection.sendall(data)

    def let_in(self) -> None:
        """A login that succeeds."""
        self.hear()
        self.send(message(self.number, result(_BIND)))

    def forget(self) -> None:
        """Read until the other side goes away."""
        while self.connection.recv(65536):
            pass


Behaviour = Callable[[Session], None]


def ber(tag: int, *parts: bytes) -> bytes:
    """One element."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def text(value: bytes) -> bytes:
    """An octet string."""
    return ber(0x04, value)


def message(number: int, operation: bytes, controls: bytes = b"") -> bytes:
    """A whole message."""
    return ber(0x30, ber(0x02, bytes((number,))), operation, controls)


def result(tag: int, code: int = 0, *, referral: Sequence[bytes] = ()) -> bytes:
    """The end of an operation."""
    where = ber(0xA3, *map(text, referral)) if referral else b""
    return ber(tag, ber(0x0A, bytes((code,))), text(b""), text(b"said by the server"), where)


def page(cookie: bytes) -> bytes:
    """The control that says whether more is to come (RFC 2696)."""
    value = ber(0x30, ber(0x02, b"\0"), text(cookie))
    return ber(0xA0, ber(0x30, text(_PAGES), text(value)))


def entry(dn: bytes, **attributes: Iterable[bytes]) -> bytes:
    """One entry that was found."""
    found = (ber(0x30, text(name.encode()), ber(0x31, *map(text, values))) for name, values in attributes.items())
    return ber(_ENTRY, text(dn), ber(0x30, *found))


# -- what a server may do instead of letting somebody in ---------------------------------------------------------------


def noise(session: Session) -> None:
    """Random bytes."""
    session.send(os.urandom(100_000))


def another_protocol(session: Session) -> None:
    """A web server."""
    session.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def torn_login(session: Session) -> None:
    """Half of an answer, then the end."""
    session.hear()
    session.send(message(session.number, result(_BIND))[:9])


def giant_login(session: Session) -> None:
    """The beginning of a message of two gigabytes, and data for it without end."""
    session.send(b"\x30\x84\x7f\xff\xff\xff")
    while True:
        session.send(bytes(1 << 20))


def referred_login(session: Session) -> None:
    """Log in elsewhere."""
    session.hear()
    session.send(message(session.number, result(_BIND, 10, referral=[ELSEWHERE])))
    session.forget()


def refuses_politely(session: Session) -> None:
    """The notice of disconnection (RFC 4511, 4.4.1)."""
    session.hear()
    ended = ber(_EXTENDED, ber(0x0A, b"\x34"), text(b""), text(b""), ber(0x8A, b"1.3.6.1.4.1.1466.20036"))
    session.send(message(0, ended))


def silent(session: Session) -> None:
    """Nothing at all."""
    session.forget()


# -- after the login ---------------------------------------------------------------------------------------------------


def noise_later(session: Session) -> None:
    """Random bytes for an answer."""
    session.let_in()
    session.hear()
    noise(session)


def torn(session: Session) -> None:
    """An entry that breaks off."""
    session.let_in()
    session.hear()
    session.send(message(session.number, entry(b"uid=alice,dc=example,dc=org", uid=[b"alice"]))[:-4])


def silent_later(session: Session) -> None:
    """Lets in and answers nothing."""
    session.let_in()
    session.forget()


def another_number(session: Session) -> None:
    """The answer to a question that nobody asked."""
    session.let_in()
    session.hear()
    session.send(message(session.number + 1, result(_DONE), page(b"")))
    session.forget()


def no_end_of_entries(session: Session) -> None:
    """One entry after the other, each of a megabyte."""
    session.let_in()
    session.hear()
    one = message(session.number, entry(b"uid=x,dc=example,dc=org", uid=[b"x" * (1 << 20)]))
    while True:
        session.send(one)


def no_end_of_pages(session: Session) -> None:
    """Empty pages, after each of which more is to come."""
    session.let_in()
    while True:
        session.hear()
        session.send(message(session.number, result(_DONE), page(b"more")))


def no_word_about_pages(session: Session) -> None:
    """An answer that does not say whether it is complete."""
    session.let_in()
    session.hear()
    session.send(message(session.number, entry(b"uid=alice,dc=example,dc=org", uid=[b"alice"])))
    session.send(message(session.number, result(_DONE)))
    session.forget()


def name_outside_utf8(session: Session) -> None:
    """An entry with a name that is no text."""
    session.let_in()
    session.hear()
    session.send(message(session.number, entry(b"uid=\xff\xfe,dc=example,dc=org", uid=[b"alice"])))
    session.send(message(session.number, result(_DONE), page(b"")))
    session.forget()


def fails(code: int) -> Behaviour:
    """Every search ends with this result code."""

    def behave(session: Session) -> None:
        session.let_in()
        while True:
            session.hear()
            session.send(message(session.number, result(_DONE, code, referral=[ELSEWHERE] if code == 10 else ())))

    behave.__name__ = f"fails_{code}"
    return behave


def answers(*searches: Sequence[bytes]) -> Behaviour:
    """One search after the other succeeds with these elements (see :func:`entry`, :func:`reference`)."""

    def behave(session: Session) -> None:
        session.let_in()
        for found in searches:
            session.hear()
            for each in found:
                session.send(message(session.number, each))
            session.send(message(session.number, result(_DONE), page(b"")))
        session.forget()

    return behave


def reference(uri: bytes = ELSEWHERE) -> bytes:
    """A part of the answer that is elsewhere (RFC 4511, 4.5.3)."""
    return ber(_REFERENCE, text(uri))


class HostileLdap:
    """Answers the connections by ``behaviours`` in turn, beginning again after the last."""

    def __init__(self, pair: Pair, *behaviours: Behaviour) -> None:
        self._pair, self._behaviours = pair, behaviours
        self._waiting = socket.create_server(("127.0.0.1", 0))
        self.uri = f"ldaps://127.0.0.1:{self._waiting.getsockname()[1]}"
        self._pid = 0

    def __enter__(self) -> Self:
        self._pid = os.fork()
        if not self._pid:
            try:
                self._serve()
            finally:
                os._exit(0)
        self._waiting.close()
        return self

    def __exit__(self, *exc: object) -> None:
        # its children end with their connections
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _serve(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._pair.certificate, self._pair.private_key)
        count = 0
        while True:
            plain, _ = self._waiting.accept()
            behave = self._behaviours[count % len(self._behaviours)]
            count += 1
            if not os.fork():
                signal.alarm(int(PATIENCE))
                with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
                    behave(Session(connection))
                os._exit(0)
            plain.close()
