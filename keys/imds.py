"""The one door to the instance metadata service: an address on the machine itself, plain HTTP, without credentials.

IMDSv2 (EC2 user guide, "Use the Instance Metadata Service"): a token by PUT, then GET with it. No proxy is used, no
redirect is followed, and every exchange has a deadline for the whole of it, for whoever answers may be slow on purpose.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from urllib.parse import urlsplit

from conf.errors import BackendUnavailable
from keys.place import NotProved

TIMEOUT = 3.0
"""Seconds for one request; the service is on the same machine and answers in milliseconds."""
LIMIT = 64 * 1024
IDENTITY = "/latest/dynamic/instance-identity/rsa2048"
"""The document inside its RSA-2048 signature: one thing to fetch, and no unsigned copy to mix it up with."""
ROLE = "/latest/meta-data/iam/security-credentials/"
"""The name of the instance's role, and below it its credentials."""
# IAM user guide, "Name requirements": a role's name
_ROLE_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}", re.ASCII)
_TOKEN = "/latest/api/token"  # noqa: S105 - a path
_TOKEN_LIFE = "60"  # noqa: S105 - seconds
_BUSY = 429
_ADVICE = "is this an EC2 instance with IMDSv2, and may the account secure-node reach it? secure-slurm node imds"


def identity_document(endpoint: str, *, timeout: float = TIMEOUT) -> bytes:
    """The signed identity document, base64, as the service gives it.

    :raises BackendUnavailable: nobody answers in time, or the service is overloaded: it may work in a minute.
    :raises NotProved: there is an answer, and it is no document.
    """
    return _exchange(endpoint, "GET", IDENTITY, _with_token(endpoint, timeout), timeout)


def role_credentials(endpoint: str, *, timeout: float = TIMEOUT) -> tuple[str, bytes]:
    """The name of the instance's role, and its credentials as the service gives them (JSON). Raises as above."""
    headers = _with_token(endpoint, timeout)
    name = _exchange(endpoint, "GET", ROLE, headers, timeout).decode("ascii", "replace").strip()
    if not _ROLE_NAME.fullmatch(name):
        raise NotProved("the metadata service names no role that could be one", advice="has the instance a role?")
    return name, _exchange(endpoint, "GET", ROLE + name, headers, timeout)


def _with_token(endpoint: str, timeout: float) -> dict[str, str]:
    token = _exchange(endpoint, "PUT", _TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_LIFE}, timeout)
    if not token.isascii() or not token.decode("ascii").isprintable() or not token:
        raise NotProved("the metadata service gave no token that could be one", advice=_ADVICE)
    return {"X-aws-ec2-metadata-token": token.decode("ascii")}


def _exchange(endpoint: str, method: str, path: str, headers: dict[str, str], timeout: float) -> bytes:
    where = urlsplit(endpoint)
    # http.client reads no environment, so there is no proxy, and follows no redirect
    connection = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=timeout)
    late = threading.Event()
    timer = None
    try:
        connection.connect()
        # the socket's timeout is for each single wait: a byte now and then would keep us for ever
        timer = threading.Timer(timeout, _cut, (connection.sock, late))
        timer.daemon = True
        timer.start()
        connection.request(method, path, headers={**headers, "Connection": "close"})
        response = connection.getresponse()
        body = response.read(LIMIT + 1)
        status = response.status
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = "in time" if late.is_set() or isinstance(error, TimeoutError) else f"({type(error).__name__})"
        raise BackendUnavailable(f"the metadata service does not answer {reason}", advice=_ADVICE) from None
    finally:
        if timer is not None:
            timer.cancel()
        connection.close()
    if late.is_set() or status == _BUSY or status >= http.client.INTERNAL_SERVER_ERROR:
        raise BackendUnavailable(f"the metadata service is overloaded (HTTP {status})", advice="try again in a minute")
    if status != http.client.OK or len(body) > LIMIT:
        raise NotProved(f"the metadata service gave HTTP {status} and no document for {path}", advice=_ADVICE)
    return body


def _cut(connected: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
