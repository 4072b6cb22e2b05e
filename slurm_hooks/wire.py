"""The message format between Slurm's hooks and the daemons: length-prefixed fields, nothing to escape.

A message is the header ``SS1 <decimal bytes of the body>\\n`` and a body of netstrings ``<length>:<bytes>,`` that are
alternately key and value (netstrings: D. J. Bernstein, 1997). Values are bytes, so that a job name with a newline,
a NUL or broken UTF-8 travels as it is; stock Lua 5.1 has no JSON, and a hostile string must not need escaping.
Everything malformed is refused with :class:`WireError`, and nothing else is ever raised by the decoder.

Imported by root hooks under ``python3 -IS``: standard library only, and little of it.
"""

from __future__ import annotations

import os
import re
import socket
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from conf.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

MAGIC = b"SS1 "
MAX_BODY = 1024 * 1024
MAX_FIELDS = 256
MAX_KEY = 64
MAX_HEADER = len(MAGIC) + len(str(MAX_BODY)) + 1

_KEY = re.compile(rb"[a-z0-9_.]{1,%d}" % MAX_KEY)
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,6}")
_LENGTH_LIMIT = 8  # bytes of a length with its colon
_NONCE = re.compile(r"[0-9a-zA-Z._-]{1,64}")


class WireError(BackendUnavailable):
    """The other side broke off, was too slow or did not speak the protocol. The connection is of no further use."""


def new_nonce() -> str:
    """32 hex digits that the answer must repeat, so that a late answer is never taken for another request's."""
    return os.urandom(16).hex()


def encode(fields: Mapping[str, bytes | str]) -> bytes:
    """The whole message, header and body. ``str`` values become UTF-8; undecodable file names survive.

    Refuses (WireError) what the other side would refuse: keys outside ``[a-z0-9_.]``, too many fields, too many bytes.
    """
    if len(fields) > MAX_FIELDS:
        raise WireError(f"a message may have {MAX_FIELDS} fields, this one has {len(fields)}")
    parts: list[bytes] = []
    for name, value in fields.items():
        for item in (_encode_key(name), value if isinstance(value, bytes) else _encode_text(value)):
            parts += (b"%d:" % len(item), item, b",")
    body = b"".join(parts)
    if len(body) > MAX_BODY:
        raise WireError(f"a message may have {MAX_BODY} bytes, this one has {len(body)}")
    return b"%s%d\n%s" % (MAGIC, len(body), body)


def decode_header(line: bytes) -> int:
    """The body's length in bytes from the header line (with its newline). Refuses another version and any excess."""
    if not line.startswith(MAGIC):
        raise WireError("the message does not start with 'SS1 ': another protocol, or another version of it")
    digits = line[len(MAGIC) : -1]
    if not line.endswith(b"\n") or not _LENGTH.fullmatch(digits):
        raise WireError("the message's header is malformed")
    if int(digits) > MAX_BODY:
        raise WireError(f"the message announces {int(digits)} bytes; {MAX_BODY} are accepted")
    return int(digits)


def decode_body(body: bytes) -> dict[str, bytes]:
    """The fields of a body. Refuses duplicate or odd keys, a key without a value, and anything left over."""
    if len(body) > MAX_BODY:
        raise WireError(f"the message has {len(body)} bytes; {MAX_BODY} are accepted")
    items: list[bytes] = []
    offset, size, find = 0, len(body), body.find
    while offset < size:
        colon = find(b":", offset, offset + _LENGTH_LIMIT)
        digits = body[offset:colon]
        if colon < 0 or not digits.isdigit() or (digits[:1] == b"0" and digits != b"0"):
            raise WireError("the message has a field without a proper length")
        end = colon + 1 + int(digits)
        if body[end : end + 1] != b",":
            raise WireError("the message has a field that is cut off or not closed")
        items.append(body[colon + 1 : end])
        if len(items) > 2 * MAX_FIELDS:
            raise WireError(f"the message has more than {MAX_FIELDS} fields")
        offset = end + 1
    if len(items) % 2:
        raise WireError("the message has a key without a value")
    fields = dict(zip(map(_key, items[::2]), items[1::2], strict=True))
    if len(fields) != len(items) // 2:
        raise WireError("the message has a field twice")
    return fields


@lru_cache(maxsize=4 * MAX_FIELDS)
def _key(item: bytes) -> str:
    """A field's name; the same few come again and again."""
    if not _KEY.fullmatch(item):
        raise WireError("the message has a field whose name is not allowed")
    return item.decode("ascii")


def text(fields: Mapping[str, bytes], name: str, default: str | None = None) -> str:
    """A field as text. Refuses a missing field (unless there is a default) and bytes that are not UTF-8."""
    value = fields.get(name)
    if value is None:
        if default is None:
            raise WireError(f"the message lacks the field {name}")
        return default
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError(f"the field {name} is not UTF-8") from None


def valid_nonce(value: bytes | None) -> str:
    """The request's nonce as text, or an empty string when it is missing or could not be repeated safely."""
    if value is None:
        return ""
    decoded = value.decode("ascii", "replace")
    return decoded if _NONCE.fullmatch(decoded) else ""


CONNECT_AGAIN = 0.02
"""Seconds until a full socket is tried again."""


def exchange(path: str, fields: Mapping[str, bytes | str], *, timeout: float) -> dict[str, bytes]:
    """One request on a fresh connection to the Unix socket ``path``; the answer's fields.

    ``timeout`` (seconds) bounds the whole exchange. The nonce is added here and the answer's must be the same.
    Raises WireError for everything that is not a complete, matching answer, whatever its verdict.
    """
    end = time.monotonic() + timeout
    nonce = new_nonce()
    message = encode({"nonce": nonce, **fields})
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            _connect(connection, path, end)
            connection.settimeout(_left(end))
            connection.sendall(message)
            answer = decode_body(_receive(connection, decode_header(_receive_header(connection, end)), end))
    except OSError as error:
        raise WireError(f"{path}: {error.strerror or 'no answer in time'}") from None
    if answer.get("nonce") != nonce.encode():
        raise WireError(f"{path}: the answer belongs to another request")
    return answer


def receive(connection: socket.socket, timeout: float) -> dict[str, bytes]:
    """One message from a connection that somebody else opened, in ``timeout`` seconds. Raises WireError."""
    end = time.monotonic() + timeout
    try:
        return decode_body(_receive(connection, decode_header(_receive_header(connection, end)), end))
    except OSError as error:
        raise WireError(f"the request broke off: {error.strerror or 'too slow'}") from None


def _connect(connection: socket.socket, path: str, end: float) -> None:
    """Connect; wait when too many others are waiting to be accepted (EAGAIN, connect(2)), until the time is over."""
    while True:
        connection.settimeout(_left(end))
        try:
            connection.connect(path)
        except BlockingIOError:
            time.sleep(min(CONNECT_AGAIN, _left(end)))
        else:
            return


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise WireError("no answer in time")
    return left


def _receive_header(connection: socket.socket, end: float) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if len(line) >= MAX_HEADER:
            raise WireError("the answer's header is malformed")
        line += _receive(connection, 1, end)
    return line


def _receive(connection: socket.socket, size: int, end: float) -> bytes:
    parts: list[bytes] = []
    while size:
        connection.settimeout(_left(end))
        part = connection.recv(min(size, 65536))
        if not part:
            raise WireError("the connection was closed before the answer was complete")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _encode_key(name: str) -> bytes:
    key = name.encode("ascii", "replace")
    if not _KEY.fullmatch(key):
        raise WireError(f"{name!r} cannot be the name of a field")
    return key


def _encode_text(value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise WireError("a field's text cannot be encoded") from None
