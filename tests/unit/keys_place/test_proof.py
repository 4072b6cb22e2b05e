"""The verdict of a node: what it reads, whom it asks, what it remembers; against a metadata service on loopback."""

from __future__ import annotations

import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from conf.errors import BackendUnavailable, Refused
from conf.site import Ec2Proof, ManifestProof, Site, load_site
from keys import imds, machine, place_manifest
from keys.place import NotProved, Verdict
from keys.place_proof import MEMORY, Prover
from tests.testbed.imds import Imds, Region, document, pin

FRANKFURT, STRANGER = Region("eu-central-1"), Region("stranger")
SITE = """\
version: 1
cluster: {{name: test, head_nodes: [head], slurm_user: {user}}}
node: {{run_dir: {folder}/node-%n, place_file: {folder}/place{more}}}
vault: {{address: "https://vault.example:8200", ca_file: /etc/ca.crt}}
ldap:
  {{flavour: openldap, uris: ["ldaps://x"], ca_file: /etc/x, bind_dn: cn=x, bind_password_file: /etc/x, base: dc=x}}
"""
Make = Callable[..., Prover]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "node-n1/daemon").mkdir(parents=True, mode=0o755)
    return tmp_path


@pytest.fixture
def site(folder: Path) -> Site:
    return read(folder, "")


def read(folder: Path, more: str) -> Site:
    path = folder / "site.yaml"
    path.write_text(SITE.format(user=pwd.getpwuid(os.geteuid()).pw_name, folder=folder, more=more))
    path.chmod(0o644)
    return load_site(str(path))


@pytest.fixture
def service() -> Iterator[Imds]:
    with Imds() as running:
        running.answer = FRANKFURT.sign(document())
        yield running


@pytest.fixture
def ec2(folder: Path, site: Site, service: Imds, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes provers of a node whose firmware names no instance and whose region is pinned."""
    monkeypatch.setattr(machine, "ASSET_TAG", "/nonexistent")
    pin(folder / "ec2", "eu-central-1", FRANKFURT)

    def make(lifetime: float = 60.0, **settings: Any) -> Prover:
        found = Ec2Proof(
            **{
                "certificates": f"{folder}/ec2",
                "instance_file": f"{folder}/instance-%n",
                "endpoint": service.endpoint,
                **settings,
            }
        )
        node = attrs.evolve(site.node, proof="ec2", ec2=found, proof_lifetime=lifetime)
        return Prover(attrs.evolve(site, node=node), "n1")

    return make


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


class TestNoProof:
    def test_is_the_default_and_refuses(self, site: Site) -> None:
        assert site.node.proof == "none"
        with pytest.raises(NotProved, match="names no proof") as caught:
            Prover(site, "n1").prove("eu-central-1")
        assert "node.proof" in caught.value.advice

    def test_a_declared_place_says_that_it_is_one(self, folder: Path) -> None:
        found = Prover(read(folder, ", proof: file"), "n1").prove("eu-central-1")
        assert (found.method, found.verified, found.region) == ("file", False, "eu-central-1")
        assert "self-declared" in found.summary()
        assert "not verified" in found.summary()

    @pytest.mark.parametrize("text", [None, "\xff", "x" * 300])
    def test_no_place_file(self, folder: Path, site: Site, text: str | None) -> None:
        if text:
            (folder / "place").write_bytes(text.encode("latin-1"))
        with pytest.raises(Refused, match="does not say where it is") as caught:
            Prover(site, "n1").read_place()
        assert caught.value.rule == "node.place"


class TestEc2:
    def test_genuine(self, ec2: Make, service: Imds) -> None:
        found = ec2().prove("eu-central-1")
        assert (found.method, found.verified, found.identity) == ("ec2", True, "i-0123456789abcdef0")
        assert found.binding == "first-contact"
        assert "first contact" in found.reason
        assert service.asked == ["PUT /latest/api/token", f"GET {imds.IDENTITY}"]

    def test_forged(self, ec2: Make, service: Imds) -> None:
        service.answer = STRANGER.sign(document(), embed=True)
        with pytest.raises(NotProved, match="not signed"):
            ec2().prove("eu-central-1")

    def test_a_region_that_nobody_pinned(self, ec2: Make, service: Imds) -> None:
        with pytest.raises(NotProved, match=r"eu-west-1\.pem does not exist"):
            ec2().prove("eu-west-1")
        assert service.asked == []

    def test_a_certificate_that_others_may_change(self, ec2: Make, folder: Path) -> None:
        (folder / "ec2/eu-central-1.pem").chmod(0o666)
        with pytest.raises(NotProved, match="written by group or others"):
            ec2().prove("eu-central-1")

    def test_the_instance_file_binds(self, ec2: Make, folder: Path) -> None:
        write(folder / "instance-n1", "i-0fedcba9876543210\n")
        with pytest.raises(NotProved, match="this machine is i-0fedcba9876543210"):
            ec2().prove("eu-central-1")
        write(folder / "instance-n1", "i-0123456789abcdef0\n")
        assert ec2().prove("eu-central-1").binding == "instance-file"

    @pytest.mark.parametrize("text", ["", "here", "i-0123456789abcdef0 i-1"])
    def test_an_instance_file_that_names_none(self, ec2: Make, folder: Path, text: str) -> None:
        write(folder / "instance-n1", text)
        with pytest.raises(NotProved, match="names no instance"):
            ec2().prove("eu-central-1")

    def test_the_firmware_binds(self, ec2: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(folder / "asset", "i-0fedcba9876543210\n")
        monkeypatch.setattr(machine, "ASSET_TAG", f"{folder}/asset")
        with pytest.raises(NotProved, match="this machine is i-0fedcba9876543210"):
            ec2().prove("eu-central-1")
        write(folder / "asset", "i-0123456789abcdef0\n")
        found = ec2().prove("eu-central-1")
        assert (found.binding, found.reason) == ("firmware", "")

    def test_first_contact_binds_the_next(self, ec2: Make, service: Imds, folder: Path) -> None:
        """Another instance's genuine document, after a restart of the daemon: it is remembered who was here first."""
        ec2().prove("eu-central-1")
        service.answer = FRANKFURT.sign(document(instanceId="i-0fedcba9876543210"))
        with pytest.raises(NotProved, match="this machine is i-0123456789abcdef0"):
            ec2().prove("eu-central-1")
        # what a reboot does to the folder
        (folder / "node-n1" / MEMORY).unlink()
        assert ec2().prove("eu-central-1").identity == "i-0fedcba9876543210"

    def test_an_older_document_of_the_same_instance(self, ec2: Make, service: Imds) -> None:
        ec2().prove("eu-central-1")
        service.answer = FRANKFURT.sign(document(pendingTime="2026-01-01T00:00:00Z"))
        with pytest.raises(NotProved, match="older than one"):
            ec2().prove("eu-central-1")

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"instance": "x", "launched": "y"}', "\xff"])
    def test_a_damaged_memory(self, ec2: Make, folder: Path, text: str) -> None:
        write(folder / "node-n1" / MEMORY, text)
        with pytest.raises(NotProved, match="damaged"):
            ec2().prove("eu-central-1")

    def test_a_memory_that_cannot_be_trusted_or_written(self, ec2: Make, folder: Path) -> None:
        memory = folder / "node-n1" / MEMORY
        memory.symlink_to("/dev/null")
        with pytest.raises(NotProved, match="cannot be trusted"):
            ec2().prove("eu-central-1")
        memory.unlink()
        memory.parent.rmdir()
        with pytest.raises(NotProved, match="cannot be written"):
            ec2().prove("eu-central-1")

    def test_the_account(self, ec2: Make) -> None:
        with pytest.raises(NotProved, match="another account"):
            ec2(account="210987654321").prove("eu-central-1")
        assert ec2(account="123456789012").prove("eu-central-1").verified

    def test_a_verdict_is_used_again_for_its_time_only(self, ec2: Make, service: Imds) -> None:
        prover = ec2()
        first = prover.prove("eu-central-1")
        service.answer = b"gone"
        assert prover.prove("eu-central-1") == first
        assert len(service.asked) == 2
        short = ec2(lifetime=0.0)
        with pytest.raises(NotProved):
            short.prove("eu-central-1")

    def test_a_verdict_is_of_its_region(self, ec2: Make, folder: Path) -> None:
        prover = ec2()
        prover.prove("eu-central-1")
        pin(folder / "ec2", "us-east-1", STRANGER)
        with pytest.raises(NotProved, match="not signed"):
            prover.prove("us-east-1")

    def test_a_failure_is_not_remembered(self, ec2: Make, service: Imds) -> None:
        prover, good = ec2(), service.answer
        service.answer = b""
        with pytest.raises(NotProved):
            prover.prove("eu-central-1")
        service.answer = good
        assert prover.prove("eu-central-1").verified


class TestMetadataService:
    @pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404])
    def test_an_answer_that_is_no_document(self, service: Imds, status: int) -> None:
        service.status = status
        service.headers = {"Location": "http://127.0.0.1:1/"}
        with pytest.raises(NotProved, match=f"HTTP {status}"):
            imds.identity_document(service.endpoint)
        # nobody went after it
        assert len(service.asked) == 2

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_overloaded(self, service: Imds, status: int) -> None:
        service.status = status
        with pytest.raises(BackendUnavailable):
            imds.identity_document(service.endpoint)

    def test_too_long(self, service: Imds) -> None:
        service.answer = b"A" * (imds.LIMIT + 1)
        with pytest.raises(NotProved):
            imds.identity_document(service.endpoint)

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(BackendUnavailable):
            imds.identity_document(f"http://127.0.0.1:{port}")

    @pytest.mark.parametrize(
        "words", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", b"\0"]
    )
    def test_who_is_slow_on_purpose_does_not_keep_us(self, words: bytes) -> None:
        """A byte now and then: each wait is short, the whole of them would never end."""
        over = threading.Event()
        with socket.create_server(("127.0.0.1", 0)) as server:

            def drip() -> None:
                connection, _ = server.accept()
                with connection:
                    try:
                        connection.sendall(words)
                        while not over.wait(0.05):
                            connection.sendall(b"x")
                    except OSError:
                        pass

            thread = threading.Thread(target=drip, daemon=True)
            thread.start()
            with pytest.raises((BackendUnavailable, NotProved)):
                imds.identity_document(f"http://127.0.0.1:{server.getsockname()[1]}", timeout=0.4)
            over.set()
            thread.join(20)
        assert not thread.is_alive()

    def test_no_proxy_is_used(self, service: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        assert imds.identity_document(service.endpoint) == service.answer


class TestManifest:
    KEY = ed25519.Ed25519PrivateKey.generate()

    @pytest.fixture
    def prover(self, folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Prover:
        write(folder / "machine-id", "0123456789abcdef0123456789abcdef\n")
        monkeypatch.setattr(
            machine, "SOURCES", {"machine-id": f"{folder}/machine-id", "product-uuid": f"{folder}/product-uuid"}
        )
        public = self.KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write(folder / "manifest.pub", public.decode())
        proof = ManifestProof(file=f"{folder}/%n.manifest", public_key=f"{folder}/manifest.pub")
        self.give(folder, str(machine.fingerprint("machine-id")))
        return Prover(attrs.evolve(site, node=attrs.evolve(site.node, proof="manifest", manifest=proof)), "n1")

    def give(self, folder: Path, fingerprint: str) -> None:
        made = place_manifest.new("test", "n1", "eu-central-1", fingerprint, now=time.time(), seconds=60)
        key = self.KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write(folder / "n1.manifest", place_manifest.sign(made, key).decode())

    def test_of_another_machine(self, prover: Prover, folder: Path) -> None:
        write(folder / "machine-id", "ffffffffffffffffffffffffffffffff\n")
        with pytest.raises(NotProved, match="another machine"):
            prover.prove("eu-central-1")

    def test_of_a_machine_that_cannot_be_told(self, prover: Prover, folder: Path) -> None:
        (folder / "machine-id").unlink()
        with pytest.raises(NotProved, match="another machine"):
            prover.prove("eu-central-1")

    @pytest.mark.parametrize("name", ["n1.manifest", "manifest.pub"])
    def test_missing_or_unsafe(self, prover: Prover, folder: Path, name: str) -> None:
        (folder / name).chmod(0o666)
        with pytest.raises(NotProved, match="written by group or others"):
            prover.prove("eu-central-1")
        (folder / name).unlink()
        with pytest.raises(NotProved, match="does not exist"):
            prover.prove("eu-central-1")

    def test_another_region(self, prover: Prover) -> None:
        with pytest.raises(NotProved, match="for the region eu-central-1, not for us-east-1"):
            prover.prove("us-east-1")

    def test_this_machines(self, prover: Prover) -> None:
        found = prover.prove("eu-central-1")
        assert (found.method, found.verified, found.binding) == ("manifest", True, "machine-id")

    def test_what_only_root_can_read_is_left_to_the_prolog(self, prover: Prover, folder: Path) -> None:
        fingerprint = "product-uuid:" + "5e" * 32
        self.give(folder, fingerprint)
        found = prover.prove("eu-central-1")
        assert (found.binding, found.machine) == ("product-uuid", fingerprint)
        write(folder / "product-uuid", "12345678-1234-1234-1234-123456789abc\n")
        with pytest.raises(NotProved, match="another machine"):
            prover.prove("eu-central-1")


class TestMachine:
    @pytest.mark.parametrize("text", ["", "0" * 32, "00000000-0000-0000-0000-000000000000", "uninitialized", "x" * 32])
    def test_no_fingerprint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        write(tmp_path / "id", text)
        monkeypatch.setattr(machine, "SOURCES", {"machine-id": str(tmp_path / "id")})
        assert machine.fingerprint("machine-id") is None
        assert machine.matches("machine-id:" + "0" * 64) is None

    def test_the_id_itself_is_not_shown(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "id", "0123456789abcdef0123456789abcdef\n")
        monkeypatch.setattr(machine, "SOURCES", {"machine-id": str(tmp_path / "id")})
        found = machine.fingerprint("machine-id")
        assert found
        assert "0123456789abcdef" not in found
        assert machine.matches(found) is True
        assert machine.matches(found[:-1] + ("0" if found[-1] != "0" else "1")) is False
        assert machine.matches("mac-address:" + "0" * 64) is None

    @pytest.mark.parametrize(
        "text", ["", "Not Specified", "i-", "i-012345678 ", "I-0123456789abcdef0", "i-0123456789abcdef0x"]
    )
    def test_a_firmware_that_names_no_instance(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
    ) -> None:
        write(tmp_path / "tag", text + "x")
        monkeypatch.setattr(machine, "ASSET_TAG", str(tmp_path / "tag"))
        assert machine.firmware_instance() == ""


class TestVerdict:
    def test_there_and_back(self) -> None:
        made = Verdict("ec2", "eu-central-1", True, "i-0123456789abcdef0", "ab" * 32, "firmware", reason="a b")
        answer = {
            name: value if isinstance(value, bytes) else value.encode() for name, value in made.to_answer().items()
        }
        assert Verdict.from_answer(answer) == made

    def test_none(self) -> None:
        assert Verdict.from_answer({"place": b"eu-central-1"}) is None

    @pytest.mark.parametrize(
        "change",
        [
            {"proof.verified": b"true"},
            {"proof.verified": b"no"},
            {"proof.method": b""},
            {"proof.method": b"a b"},
            {"proof.region": b"eu\ncentral"},
            {"proof.identity": b"\xff"},
            {"proof.digest": b"x" * 200},
            {"proof.machine": b"; rm"},
        ],
        ids=str,
    )
    def test_malformed(self, change: dict[str, bytes]) -> None:
        answer = {"proof.method": b"ec2", "proof.region": b"eu-central-1", "proof.verified": b"yes"}
        with pytest.raises(NotProved):
            Verdict.from_answer(answer | change)

    def test_a_reason_cannot_move_the_cursor(self) -> None:
        found = Verdict.from_answer({"proof.method": b"ec2", "proof.reason": b"a\x1b[2Jb" + b"x" * 1000})
        assert found is not None
        assert found.reason.startswith("a?[2Jb")
        assert len(found.reason) == 256
