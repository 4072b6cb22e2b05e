"""What stands between the cluster and Vault: it passes everything on, or answers as a Vault in trouble does.

Passing on is plain TCP: TLS is between client and server, so that the nodes' certificates still count.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
from typing import Self

from tests.testbed.pki import Pair

ANSWERS = {
    "Vault 403": (403, ["permission denied"]),
    "Vault 429": (429, ["request path is subject to rate limit quota"]),
    "Vault standby": (500, ["local node not active but active cluster node not found"]),
}
"""What a client gets in each kind of trouble. A standby's health is answered with 429, as by the real one."""

_BUFFER = 65536


class VaultProxy:
    """Listens on ``address``; ``with`` starts and ends it. ``trouble``: "" (all is well), ``Vault stopped`` (nobody
    listens), or one of :data:`ANSWERS`.
    """

    def __init__(self, address: tuple[str, int], upstream: tuple[str, int], pair: Pair) -> None:
        self._address, self._upstream = address, upstream
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(pair.certificate, pair.private_key)
        self._trouble = ""
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    def set(self, trouble: str) -> None:
        """Begin or end the trouble; connections that are open are cut."""
        assert trouble in ("", "Vault stopped", *ANSWERS)
        self._close()
        self._trouble = trouble
        if trouble != "Vault stopped":
            self._listen()

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self._address)
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        with self._lock:
            everything = [*self._open, *([listener] if listener else [])]
            self._open.clear()
        for each in everything:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self._lock:
                    self._open.add(client)
                threading.Thread(target=self._serve, args=(client, self._trouble), daemon=True).start()

    def _serve(self, client: socket.socket, trouble: str) -> None:
        try:
            with contextlib.suppress(OSError, ValueError):
                if trouble:
                    self._answer(client, trouble)
                else:
                    self._pass(client)
        finally:
            with self._lock:
                self._open.discard(client)
            client.close()

    def _pass(self, client: socket.socket) -> None:
        with socket.create_connection(self._upstream, 10) as server:
            with self._lock:
                self._open.add(server)
            try:
                ways = {client: server, server: client}
                while True:
                    for source in select.select(list(ways), [], [])[0]:
                        data = source.recv(_BUFFER)
                        if not data:
                            return
                        ways[source].sendall(data)
            finally:
                with self._lock:
                    self._open.discard(server)

    def _answer(self, client: socket.socket, trouble: str) -> None:
        client.settimeout(10)
        status, errors = ANSWERS[trouble]
        with self._tls.wrap_socket(client, server_side=True) as tls:
            request = b""
            while b"\r\n\r\n" not in request:
                data = tls.recv(_BUFFER)
                if not data:
                    return
                request += data
            head, _, body = request.partition(b"\r\n\r\n")
            if trouble == "Vault standby" and b"/v1/sys/health" in head.split(b"\r\n", 1)[0]:
                status = 429
            length = next(
                (
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                0,
            )
            while len(body) < length and (data := tls.recv(_BUFFER)):
                body += data
            text = json.dumps({"errors": errors}).encode()
            tls.sendall(
                b"HTTP/1.1 %d Trouble\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Retry-After: 1\r\nConnection: close\r\n\r\n%s" % (status, len(text), text)
            )
