"""Three real OpenBao servers with raft storage, and a load balancer before them, for tests of a fail-over.

A site gives ``vault.address`` one name, behind which a load balancer finds the active server by ``sys/health`` (200:
active; 429: standby). :class:`Balancer` is that one: it passes bytes on and understands none.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

from tests.testbed.openbao import REQUEST_TIMEOUT, START_DEADLINE, OpenBao, OpenBaoError
from tests.testbed.pki import CA

SERVERS = 3
LOOK_EVERY = 0.5
READ_TIMEOUT = 10.0
ACTIVE, STANDBY = 200, 429


class RaftServer(OpenBao):
    """One of the three: its storage is on disk, and it joins the others."""

    def __init__(self, directory: Path, ca: CA, address: str, number: int, ports: tuple[int, int]) -> None:
        super().__init__(directory / f"bao{number}", ca, address=address, port=ports[0])
        self.number = number
        self.others: list[RaftServer] = []
        self.cluster_port = ports[1]

    def _launch(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        storage = self.directory / "raft"
        storage.mkdir(exist_ok=True)
        pair = self.ca.server(f"openbao-{self.port}", [self.host, "127.0.0.1", "localhost"], self.directory)
        join = [
            {"leader_api_addr": other.url, "leader_ca_cert_file": str(self.ca.certificate)}
            for other in self.others
            if other is not self
        ]
        configuration = {
            "storage": {"raft": {"path": str(storage), "node_id": f"bao{self.number}", "retry_join": join}},
            "listener": {
                "tcp": {
                    "address": f"{self.host}:{self.port}",
                    "cluster_address": f"{self.host}:{self.cluster_port}",
                    "tls_cert_file": str(pair.certificate),
                    "tls_key_file": str(pair.private_key),
                    "tls_min_version": "tls12",
                }
            },
            "api_addr": self.url,
            "cluster_addr": f"https://{self.host}:{self.cluster_port}",
            "log_level": "warn",
        }
        self._serve(configuration)

    def health(self) -> int:
        """The status of ``sys/health``; 0 when it does not answer."""
        try:
            return self.status("GET", "sys/health", timeout=READ_TIMEOUT)[0]
        except OSError:
            return 0

    def kill(self) -> None:
        """As a machine that fails."""
        if self._process is not None:
            self._process.kill()
        self.stop()

    def rejoin(self, key: str) -> None:
        """Start it, or start it again, and unseal it."""
        self._launch()
        self._unseal_key = key
        end = time.monotonic() + START_DEADLINE
        while self.health() not in (ACTIVE, STANDBY):
            # until it has found the others it is not initialised, and cannot be unsealed
            with contextlib.suppress(OSError):
                self.status("PUT", "sys/unseal", {"key": key})
            if time.monotonic() > end:
                tail = self.server_log.read_text(errors="replace")[-2000:]
                raise OpenBaoError(f"server {self.number} did not join: {self.health()}\n{tail}")
            time.sleep(LOOK_EVERY)


class Balancer:
    """Passes connections on to the active server; while there is none, they are closed."""

    def __init__(self, address: str, port: int, servers: list[RaftServer]) -> None:
        self._servers = servers
        self._listening = socket.create_server((address, port))
        self.port = int(self._listening.getsockname()[1])
        self.target: RaftServer | None = None
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._look, self._accept)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End it with every connection."""
        self._stop.set()
        self._listening.close()

    def _look(self) -> None:
        while not self._stop.is_set():
            self.target = next((one for one in self._servers if one.health() == ACTIVE), None)
            self._stop.wait(LOOK_EVERY)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        target = self.target
        with client:
            if target is None:
                return
            try:
                server = socket.create_connection((target.host, target.port), timeout=5)
            except OSError:
                return
            server.settimeout(None)
            with server:
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _free_ports(address: str, count: int) -> list[int]:
    """So many different ones: each is held until all are chosen."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((address, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class OpenBaoRaft(OpenBao):
    """The three behind the balancer, to be used as the one server is: requests go to whichever is active."""

    def __init__(self, directory: Path, ca: CA, *, address: str = "127.0.0.1", port: int = 0) -> None:
        own, *others = _free_ports(address, 1 + 2 * SERVERS)
        super().__init__(directory, ca, address=address, port=port or own)
        directory.mkdir(parents=True, exist_ok=True)
        pairs = zip(others[::2], others[1::2], strict=True)
        self.servers = [RaftServer(directory, ca, address, number, pair) for number, pair in enumerate(pairs)]
        for server in self.servers:
            server.others = self.servers
        self._balancer: Balancer | None = None

    def start(self) -> None:
        """Start all three, as one cluster, and wait until the balancer has found the active one."""
        try:
            first = self.servers[0]
            first._launch()
            first._wait_for({501}, "to listen")
            answer = first.request("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
            self.root_token, self._unseal_key = answer["root_token"], answer["keys_base64"][0]
            first._unseal_key = self._unseal_key
            first.unseal()
            for server in self.servers[1:]:
                server.rejoin(self._unseal_key)
            self._balancer = Balancer(self.host, self.port, self.servers)
            self.wait_for_leader()
            self.wait_for_voters()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the balancer and all servers."""
        balancer, self._balancer = self._balancer, None
        if balancer is not None:
            balancer.stop()
        for server in self.servers:
            server.stop()

    def leader(self) -> RaftServer | None:
        """The one that is active, as the balancer sees it."""
        return self._balancer.target if self._balancer else None

    def wait_for_leader(self, but: RaftServer | None = None) -> RaftServer:
        """Wait until one is active, another one than ``but``."""
        end = time.monotonic() + START_DEADLINE
        while (found := self.leader()) is None or found is but:
            if time.monotonic() > end:
                raise OpenBaoError(f"no server became active: {[server.health() for server in self.servers]}")
            time.sleep(LOOK_EVERY / 5)
        return found

    def wait_for_voters(self) -> None:
        """Wait until all three may vote: one that has just joined may not, and two of three must be left."""
        end = time.monotonic() + START_DEADLINE
        while True:
            answer = self.request("GET", "sys/storage/raft/configuration")
            voters = [one for one in answer["data"]["config"]["servers"] if one["voter"]]
            if len(voters) == SERVERS:
                return
            if time.monotonic() > end:
                raise OpenBaoError(f"only {len(voters)} of {SERVERS} servers may vote")
            time.sleep(LOOK_EVERY)

    def kill_leader(self) -> RaftServer:
        """Kill the active server; it is returned, to be brought back with :meth:`bring_back`."""
        found = self.wait_for_leader()
        found.kill()
        return found

    def bring_back(self, server: RaftServer) -> None:
        """Start a server that was killed."""
        server.rejoin(self._unseal_key)
        self.wait_for_voters()

    def status(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = 0
    ) -> tuple[int, dict[str, Any]]:
        """One request as root to the active server; while there is none it waits for one.

        A server that loses its lead keeps a request until it is given up: one that only reads is asked again soon.
        """
        end = time.monotonic() + REQUEST_TIMEOUT + START_DEADLINE
        timeout = timeout or (READ_TIMEOUT if body is None else REQUEST_TIMEOUT)
        while True:
            try:
                status, answer = super().status(method, path, body, timeout=timeout)
            except OSError:
                if time.monotonic() > end:
                    raise
            else:
                if status < 500 or time.monotonic() > end:
                    return status, answer
            time.sleep(LOOK_EVERY)

    def __enter__(self) -> Self:
        self.start()
        return self
