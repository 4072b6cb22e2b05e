"""The programs themselves, each as its account: the enrolment daemon, `secure-slurm node enrol`, the node daemon."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from admin.doctor.doors_ours import enrolled
from admin.doctor.facts import Clock
from admin.doctor.finding import Finding
from admin.doctor.judge_ours import enrolment
from admin.doctor.scene import Scene
from audit.verify import verify
from conf.site import load_site
from keys.vault_node import VaultNode
from tests.testbed.enrol_world import Cluster, genuine
from tests.testbed.imds import Imds
from tests.testbed.openbao import OpenBao, _free_port
from tests.testbed.pki import CA

ROOT = Path(__file__).parents[3]
PLACE = Path("/run/enrol-test")
INSTANCE = "i-0123456789abcdef0"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
POLICY = """\
version: 1
jurisdictions: {eu: {feature: eu, regions: [eu-central-1]}}
classes: [{name: phi, residency: required, scratch: optional}]
roles: {all: {groups: ["cn=a,dc=example"], classes: [phi], jurisdictions: [eu]}}
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Cluster]:
    """Head node and node in one: accounts, folders and files as the installation leaves them."""
    if os.geteuid() != 0 or not Path("/src/tests").exists():
        message = "needs the test bed's root, in which accounts can be made (make test-services)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    subprocess.run(["sh", str(ROOT / "requirements/accounts.sh")], check=True, timeout=120)
    shutil.rmtree(PLACE, ignore_errors=True)
    with OpenBao(PLACE / "bao", CA(PLACE / "ca")) as bao, Imds() as imds:
        cluster = Cluster(bao, PLACE / "head")
        imds.answer = genuine(INSTANCE)
        cluster.port = _free_port("127.0.0.1")
        text = cluster.site_file.read_text()
        for old, new in (
            ("127.0.0.1:6831", f"127.0.0.1:{cluster.port}"),
            ("/nodes/%n.crt", "/identity-%n/node.crt"),
            ("/nodes/%n.key", "/identity-%n/node.key"),
            ("account: '123456789012'", f"account: '123456789012', endpoint: '{imds.endpoint}'"),
            ("node: {place_file", f"node: {{run_dir: {PLACE}/run-%n, proof: ec2, place_file"),
            ("enrol:\n", f"audit: {{directory: {PLACE}/audit}}\nenrol:\n  head: ['127.0.0.1:{cluster.port}']\n"),
        ):
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        cluster.site_file.write_text(text)
        (cluster.directory / "policy.yaml").write_text(POLICY)
        for path in (PLACE, PLACE / "bao", *PLACE.rglob("*.yaml"), *PLACE.rglob("*.crt"), *PLACE.rglob("*.pem")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert cluster.init("--enrol-owner", "secure-enrol") == 0
        shutil.chown(cluster.directory / "enrol.key", "secure-enrol")
        for folder, owner in (
            ("audit", "root"), ("audit/enrol", "secure-enrol"), ("head/identity-n1", "secure-node"),
            ("run-n1", "root"), ("run-n1/daemon", "secure-node"),
        ):  # fmt: skip
            (PLACE / folder).mkdir(mode=0o700 if "identity" in folder else 0o755)
            shutil.chown(PLACE / folder, owner, owner)
        cluster.means(n1=INSTANCE)
        yield cluster


class Daemon:
    """One of the programs, as its account; ends with the block."""

    def __init__(self, user: str, module: str, *words: str) -> None:
        self.log = PLACE / f"{module}.log"
        code = f"import sys; from slurm_hooks.{module} import main; sys.exit(main(sys.argv[1:]))"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, *words],
                user=user, group=user, extra_groups=[], cwd="/", env=ENVIRONMENT, stdout=log, stderr=log,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        assert code == 0, self.log.read_text()

    def said(self, words: str) -> str:
        """Its log, once these words are in it."""
        end = time.monotonic() + 60
        while words not in self.log.read_text():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return self.log.read_text()


@pytest.fixture(scope="module")
def enrold(machine: Cluster) -> Iterator[Daemon]:
    with Daemon("secure-enrol", "enrold", "--config", str(machine.site_file)) as daemon:
        daemon.said("serving 127.0.0.1")
        yield daemon


def command(machine: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        "-m",
        "admin.main",
        "--config",
        str(machine.site_file),
        "node",
        "enrol",
        "--node",
        "n1",
        *words,
    ]
    return subprocess.run(argv, env=ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False, timeout=120)


def doctor(machine: Cluster) -> Finding:
    """What secure-slurm doctor says of it."""
    path = str(machine.site_file)
    seen = enrolled(Scene(frozenset({"compute"}), False, "n1", path, "", load_site(path), None))
    return enrolment(seen, Clock(time.time(), synchronised=True))


def test_refused_while_nobody_says_that_the_node_is_this_instance(machine: Cluster, enrold: Daemon) -> None:
    machine.means(n1="i-0123456789abcdef1")
    done = command(machine)
    machine.means(n1=INSTANCE)
    assert done.returncode == 1
    assert "says that the node n1 is i-0123456789abcdef1" in done.stderr
    assert command(machine, "--show").returncode == 1
    assert doctor(machine).state == "fail"


def test_the_command_leaves_the_node_daemons_files(machine: Cluster, enrold: Daemon) -> None:
    done = command(machine)
    assert done.returncode == 0, done.stderr + enrold.log.read_text()
    assert f"node n1 of test is {INSTANCE}" in done.stdout
    found = doctor(machine)
    assert (found.state, INSTANCE in found.seen) == ("ok", True)
    uid = pwd.getpwnam("secure-node").pw_uid
    folder = machine.directory / "identity-n1"
    for name, mode in (("node.key", 0o600), ("node.crt", 0o644)):
        found = (folder / name).stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, mode)
    # as the enrolment daemon nobody can read the key, and the secret id of the daemon is no node's
    for account, path in (
        ("secure-enrol", folder / "node.key"),
        ("secure-node", machine.directory / "enrol-secret-id"),
    ):
        assert subprocess.run(["cat", str(path)], user=account, check=False, capture_output=True).returncode == 1


def test_the_node_daemon_enrols_by_itself_and_logs_in(machine: Cluster, enrold: Daemon) -> None:
    crt = machine.directory / "identity-n1/node.crt"
    crt.unlink(missing_ok=True)
    words = ("--node", "n1", "--config", str(machine.site_file), "--policy", str(machine.directory / "policy.yaml"))
    with Daemon("secure-node", "noded", *words) as daemon:
        log = daemon.said(f"node n1 is {INSTANCE}, certificate ")
        assert "PRIVATE" not in log
        assert crt.exists()
        # it is what Vault knows the node by
        with VaultNode.from_site(load_site(str(machine.site_file)).vault, "n1") as vault:
            assert vault.read_grant("1") is None


def test_the_audit_trail_is_whole_and_says_it(machine: Cluster, enrold: Daemon) -> None:
    folder = PLACE / "audit/enrol"
    (file,) = folder.glob("*-enrol.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    told = [(line["event"], line.get("rule") or line.get("result")) for line in lines]
    assert told[:3] == [("daemon.start", None), ("enrol.refused", "enrol.instance"), ("node.enrolled", "first")]
    assert ("node.enrolled", "again") in told
    assert not verify([file]).findings
