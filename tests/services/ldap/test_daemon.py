"""The daemon as it runs: a real directory, its own process, the file that it leaves."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conf.errors import EXIT_BACKEND, EXIT_CONFIG, Refused
from slurm_hooks.snapshot import Snapshot, SnapshotCache
from tests.testbed import hostile_ldap as hostile
from tests.testbed.hostile_ldap import HostileLdap
from tests.testbed.pki import CA
from tests.testbed.slapd import SUFFIX, Slapd, group, group_dn, person, user

ROOT = Path(__file__).parents[3]
PATIENCE = 60.0

SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head]}}
vault: {{address: "https://vault.test:8200", ca_file: /etc/secure-slurm/ca.crt}}
ldap:
  flavour: openldap
  uris: ["{uri}"]
  ca_file: {ca}
  bind_dn: {bind_dn}
  bind_password_file: {password}
  base: {base}
  refresh: 1s
  max_age: 10m
  snapshot: {snapshot}
"""
POLICY = """\
version: 1
jurisdictions: {{eu: {{feature: eu, regions: [eu-central-1]}}}}
classes: [{{name: phi, residency: required, scratch: optional}}]
roles:
  phi-eu: {{groups: [{groups}], classes: [phi], jurisdictions: [eu]}}
"""


class Daemon:
    """Configuration files for one slapd, and the program started on them."""

    def __init__(self, directory: Path, server: Slapd) -> None:
        self.directory, self.server = directory, server
        self.snapshot = directory / "members.json"
        self.site, self.policy = directory / "secure-slurm.yaml", directory / "policy.yaml"
        self.password = directory / "password"
        self.password.touch(mode=0o600)
        self.password.write_text(server.reader_password)
        self.site.write_text(
            SITE.format(
                uri=server.uri,
                ca=server.ca.certificate,
                bind_dn=server.reader_dn,
                password=self.password,
                base=SUFFIX,
                snapshot=self.snapshot,
            )
        )
        self.use_groups("phi-eu")
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def use_groups(self, *names: str) -> None:
        replace(self.policy, POLICY.format(groups=", ".join(f'"{group_dn(name)}"' for name in names)))

    def argv(self, *more: str) -> list[str]:
        program = [sys.executable, "-m", "slurm_hooks.ldapd"]
        return [*program, "--config", str(self.site), "--policy", str(self.policy), *more]

    def once(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv("--once"), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def start(self, **environment: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def load(self) -> Snapshot:
        return Snapshot.load(self.snapshot, os.geteuid(), max_age=600.0, now=time.time())

    def people(self, name: str = "phi-eu") -> frozenset[str]:
        found = self.load().groups.get(group_dn(name))
        return found.members if found else frozenset()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for what the daemon does by itself."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            try:
                if true():
                    return
            except Refused:
                pass
            time.sleep(0.05)
        pytest.fail(self.log.read_text())


def replace(path: Path, text: str) -> None:
    """In one step: the daemon looks every second, and half a file is a wrong one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def daemon(tmp_path: Path, own: Slapd) -> Iterator[Daemon]:
    own.add(user("alice") + user("bob") + group("phi-eu", [person("alice"), person("bob")]))
    made = Daemon(tmp_path, own)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


def test_once_writes_the_members_and_tells_no_secret(daemon: Daemon) -> None:
    done = daemon.once()
    assert done.returncode == 0, done.stderr
    assert daemon.people() == {"alice", "bob"}
    assert daemon.load().source == daemon.server.uri
    assert daemon.load().groups_of("alice") == {group_dn("phi-eu")}
    whole = done.stdout + done.stderr + daemon.snapshot.read_text()
    assert daemon.server.reader_password not in whole
    assert "1 groups, 2 people" in done.stderr


def test_the_file_is_what_the_documentation_says(daemon: Daemon) -> None:
    daemon.use_groups("phi-eu", "no-such")
    assert daemon.once().returncode == 0
    assert daemon.snapshot.stat().st_mode & 0o777 == 0o640
    document = json.loads(daemon.snapshot.read_bytes())
    assert abs(document.pop("loaded_at") - time.time()) < PATIENCE
    assert document == {
        "version": 1,
        "source": daemon.server.uri,
        "groups": {
            group_dn("phi-eu"): {"name": "phi-eu", "members": ["alice", "bob"]},
            group_dn("no-such"): {"name": "no-such", "members": [], "missing": True},
        },
    }


def test_once_with_the_directory_away_writes_nothing(daemon: Daemon) -> None:
    daemon.server.stop()
    done = daemon.once()
    assert done.returncode == EXIT_BACKEND
    assert not daemon.snapshot.exists()


def test_once_with_a_wrong_password_does_not_tell_it(daemon: Daemon) -> None:
    daemon.password.write_text("open-sesame")
    done = daemon.once()
    assert done.returncode == EXIT_CONFIG
    assert "Invalid credentials" in done.stderr
    assert "open-sesame" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_once_with_an_open_password_file_does_not_even_ask(daemon: Daemon) -> None:
    daemon.password.chmod(0o644)
    done = daemon.once()
    assert done.returncode == EXIT_CONFIG
    assert daemon.server.reader_password not in done.stdout + done.stderr


def test_a_removed_member_disappears_by_itself(daemon: Daemon) -> None:
    daemon.start()
    daemon.until(lambda: daemon.people() == {"alice", "bob"})
    daemon.server.set_members("phi-eu", [person("alice")])
    daemon.until(lambda: daemon.people() == {"alice"})
    daemon.until(lambda: "-bob" in daemon.log.read_text())


def test_with_the_directory_away_the_old_members_stay_and_then_expire(daemon: Daemon) -> None:
    daemon.start()
    cache = SnapshotCache(daemon.snapshot, os.geteuid(), 600.0)
    daemon.until(lambda: cache.poll(time.time()))
    daemon.server.stop()
    daemon.until(lambda: "stays in use" in daemon.log.read_text())
    cache.poll(time.time())
    loaded_at = daemon.load().loaded_at
    assert cache.current(time.time()).groups_of("alice")
    # the clock of the reader is what ends it: nothing that the daemon did meanwhile made it younger
    count = daemon.log.read_text().count("stays in use")
    daemon.until(lambda: daemon.log.read_text().count("stays in use") > count)
    assert daemon.load().loaded_at == loaded_at
    with pytest.raises(Refused) as caught:
        cache.current(loaded_at + 600.1)
    assert caught.value.rule == "directory.stale"
    daemon.server.start()
    daemon.until(lambda: daemon.load().loaded_at > loaded_at)


def test_a_directory_that_answers_garbage_ends_nothing(daemon: Daemon, ca: CA, tmp_path: Path) -> None:
    daemon.start()
    daemon.until(lambda: daemon.people() == {"alice", "bob"})
    garbage = [hostile.noise, hostile.torn_login, hostile.noise_later, hostile.torn, hostile.name_outside_utf8]
    with HostileLdap(ca.server("hostile", ["127.0.0.1"], tmp_path), *garbage) as server:
        replace(daemon.site, daemon.site.read_text().replace(daemon.server.uri, server.uri))
        daemon.until(lambda: "the directory was not read" in daemon.log.read_text())
        loaded_at = daemon.load().loaded_at
        for number in range(1, len(garbage) + 1):
            daemon.send(signal.SIGHUP)
            daemon.until(lambda number=number: daemon.log.read_text().count("the directory was not read") > number)
        assert daemon.load().loaded_at == loaded_at
        assert daemon.people() == {"alice", "bob"}
        replace(daemon.site, daemon.site.read_text().replace(server.uri, daemon.server.uri))
    daemon.until(lambda: daemon.load().loaded_at > loaded_at)
    assert "Traceback" not in daemon.log.read_text()


def test_a_directory_that_comes_late_is_found(daemon: Daemon) -> None:
    daemon.server.stop()
    daemon.start()
    daemon.until(lambda: "no members to fall back on" in daemon.log.read_text())
    assert not daemon.snapshot.exists()
    daemon.server.start()
    daemon.until(lambda: daemon.people() == {"alice", "bob"})


def test_a_new_policy_is_taken_by_itself_and_a_wrong_one_is_not(daemon: Daemon) -> None:
    daemon.server.add(group("us", [person("bob")]))
    daemon.start()
    daemon.until(lambda: daemon.people() == {"alice", "bob"})
    daemon.use_groups("phi-eu", "us")
    daemon.until(lambda: daemon.people("us") == {"bob"})
    replace(daemon.policy, "nonsense: true\n")
    daemon.until(lambda: "the new one is refused" in daemon.log.read_text())
    written = daemon.snapshot.stat().st_mtime_ns
    daemon.until(lambda: daemon.snapshot.stat().st_mtime_ns != written)
    assert daemon.people("us") == {"bob"}
    assert daemon.log.read_text().count("the new one is refused") == 1


def test_hup_asks_for_a_reading_now(daemon: Daemon) -> None:
    daemon.site.write_text(daemon.site.read_text().replace("refresh: 1s", "refresh: 9m"))
    daemon.start()
    daemon.until(lambda: daemon.people() == {"alice", "bob"})
    daemon.server.set_members("phi-eu", [person("alice")])
    daemon.send(signal.SIGHUP)
    daemon.until(lambda: daemon.people() == {"alice"})


def test_systemd_is_told_and_term_ends_it_cleanly(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(daemon.directory / "n"))
        daemon.start(NOTIFY_SOCKET=str(daemon.directory / "n"))
        assert select.select([told], [], [], PATIENCE)[0]
        assert told.recv(1000).startswith(b"READY=1\nSTATUS=members read from ldaps://")
        assert daemon.people() == {"alice", "bob"}
        assert daemon.stop() == 0
        assert told.recv(1000).startswith(b"STOPPING=1\n")
    text = daemon.log.read_text()
    assert "Traceback" not in text
    assert daemon.server.reader_password not in text


def test_term_ends_it_while_a_server_hangs(daemon: Daemon) -> None:
    daemon.start()
    daemon.until(lambda: bool(daemon.people()))
    daemon.server.process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)  # the next reading hangs by now, or begins when the signal is there: both must end
    assert daemon.stop() == 0


def test_the_password_is_in_no_environment_or_command_line(daemon: Daemon) -> None:
    daemon.start()
    daemon.until(lambda: bool(daemon.people()))
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    secret = daemon.server.reader_password.encode()
    assert secret not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
