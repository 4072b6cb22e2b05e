"""The node's side: which certificate counts, when it is time, and what is never written or overwritten."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from admin import enrol_cmd
from admin.main import main
from conf.errors import BackendUnavailable, ConfigError, Refused, UsageError
from conf.site import Cluster, Enrol, Ldap, Node, Site, Vault, VaultNode
from keys import nodecert
from slurm_hooks import enrolment as module
from slurm_hooks.enrolment import Enrolment

HOUR = 3600.0


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(
        version=1,
        cluster=Cluster(name="test", head_nodes=("head",)),
        vault=Vault(
            address="https://vault.example",
            ca_file="/ca",
            node=VaultNode(certificate=f"{tmp_path}/node.crt", private_key=f"{tmp_path}/node.key"),
        ),
        ldap=Ldap(
            flavour="openldap", uris=("ldaps://x",), ca_file="/x", bind_dn="cn=x", bind_password_file="/x", base="dc=x"
        ),
        node=Node(place_file=f"{tmp_path}/place"),
        enrol=Enrol(listen="127.0.0.1:6831", head=("127.0.0.1:1", "127.0.0.1:2"), ca_file=f"{tmp_path}/ca.crt"),
    )


@pytest.fixture
def enrolment(site: Site) -> Enrolment:
    return Enrolment(site, "n1")


def certificate(
    pem: bytes, *, node: str = "n1", cluster: str = "test", began: float = -HOUR, ends: float = HOUR
) -> bytes:
    """For the key in ``pem``; the times are seconds from now."""
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    uri = x509.UniformResourceIdentifier(nodecert.uri_of(cluster, node, "i-0123456789abcdef0"))
    return (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(seconds=began))
        .not_valid_after(now + datetime.timedelta(seconds=ends))
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def put(folder: Path, key: bytes, pem: bytes) -> None:
    for name, content, mode in (("node.key", key, 0o600), ("node.crt", pem, 0o644)):
        path = folder / name
        path.write_bytes(content)
        path.chmod(mode)


class Head:
    """Takes the place of the network; notes what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: list[Any] = []
        monkeypatch.setattr(module, "exchange", self.exchange)
        monkeypatch.setattr(module.link, "trusting_context", lambda ca: "bare")
        monkeypatch.setattr(module.link, "client_context", lambda *files: "with a certificate")
        monkeypatch.setattr(module.imds, "identity_document", lambda endpoint: b"doc\nument\n")

    def exchange(self, address: str, context: object, fields: dict[str, Any]) -> dict[str, bytes]:
        self.asked.append((f"{address} {context}", fields))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {k: v if isinstance(v, bytes) else v.encode() for k, v in answer(fields).items()}


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Head:
    (tmp_path / "place").write_text("eu-central-1\n")
    return Head(monkeypatch)


class TestHeld:
    def test_none(self, enrolment: Enrolment) -> None:
        assert enrolment.held() is None
        assert enrolment.due() == 0

    def test_not_for_this_node_cluster_or_key_or_ended(self, enrolment: Enrolment, tmp_path: Path) -> None:
        key, other = nodecert.new_key(), nodecert.new_key()
        for pem in (
            certificate(key, node="n2"), certificate(key, cluster="other"), certificate(other),
            certificate(key, ends=-1), b"", b"-----BEGIN CERTIFICATE-----\n",
        ):  # fmt: skip
            put(tmp_path, key, pem)
            assert enrolment.held() is None
            assert enrolment.due() == 0
        put(tmp_path, b"", certificate(key))
        assert enrolment.held() is None

    def test_a_key_that_others_can_read(self, enrolment: Enrolment, tmp_path: Path) -> None:
        key = nodecert.new_key()
        put(tmp_path, key, certificate(key))
        (tmp_path / "node.key").chmod(0o604)
        assert enrolment.held() is None
        with pytest.raises(ConfigError, match="holds a secret and is open to all"):
            enrolment.once()

    def test_is_due_when_half_of_its_life_is_over(self, enrolment: Enrolment, tmp_path: Path) -> None:
        key = nodecert.new_key()
        put(tmp_path, key, certificate(key, began=-HOUR, ends=HOUR - 60))
        assert enrolment.due() == 0
        put(tmp_path, key, certificate(key, began=-HOUR, ends=3 * HOUR))
        assert HOUR - 100 < enrolment.due() <= HOUR
        assert enrolment.held() is not None


class TestOnce:
    def test_the_first_time(self, enrolment: Enrolment, head: Head, tmp_path: Path) -> None:
        head.answers = [
            lambda _: {"verdict": "allow", "certificate": certificate((tmp_path / "node.key").read_bytes())}
        ]
        found = enrolment.once()
        ((who, fields),) = head.asked
        assert who == "127.0.0.1:1 bare"
        assert (fields["verb"], fields["region"], fields["document"]) == ("enrol", "eu-central-1", b"document")
        assert nodecert.read_request(fields["request"]) == found.key
        assert b"PRIVATE" not in b"".join(v if isinstance(v, bytes) else v.encode() for v in fields.values())
        assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
        assert enrolment.held() == found

    def test_a_renewal_shows_no_document(self, enrolment: Enrolment, head: Head, tmp_path: Path) -> None:
        key = nodecert.new_key()
        put(tmp_path, key, certificate(key))
        head.answers = [lambda _: {"verdict": "allow", "certificate": certificate(key, ends=2 * HOUR)}] * 2
        enrolment.once()
        ((who, fields),) = head.asked
        assert who == "127.0.0.1:1 with a certificate"
        assert fields.keys() == {"verb", "node", "cluster", "request"}
        assert fields["verb"] == "renew"
        assert (tmp_path / "node.key").read_bytes() == key
        enrolment.once(anew=True)
        assert head.asked[-1][1]["verb"] == "enrol"

    @pytest.mark.parametrize("wrong", ["node", "cluster", "key", "none"])
    def test_a_wrong_certificate_replaces_nothing(
        self, enrolment: Enrolment, head: Head, tmp_path: Path, wrong: str
    ) -> None:
        key = nodecert.new_key()
        before = certificate(key)
        put(tmp_path, key, before)
        given = {
            "node": certificate(key, node="n2"), "cluster": certificate(key, cluster="other"),
            "key": certificate(nodecert.new_key()), "none": b"",
        }[wrong]  # fmt: skip
        head.answers = [lambda _: {"verdict": "allow", "certificate": given}]
        with pytest.raises(Refused) as caught:
            enrolment.once()
        assert caught.value.rule == "enrol.certificate"
        assert (tmp_path / "node.crt").read_bytes() == before

    def test_a_refusal_is_the_last_word_and_an_absence_is_not(self, enrolment: Enrolment, head: Head) -> None:
        no = {"verdict": "refuse", "rule": "enrol.old", "message": "too old", "advice": "do"}
        head.answers = [BackendUnavailable("away"), lambda _: no]
        with pytest.raises(Refused, match="too old") as caught:
            enrolment.once()
        assert (caught.value.rule, caught.value.advice) == ("enrol.old", "do")
        assert [who.split()[0] for who, _ in head.asked] == ["127.0.0.1:1", "127.0.0.1:2"]
        cannot = {"verdict": "refuse", "rule": "enrol.unavailable", "message": "not now", "advice": ""}
        head.answers = [lambda _: cannot, BackendUnavailable("away")]
        with pytest.raises(BackendUnavailable, match="away"):
            enrolment.once()
        head.answers = [BackendUnavailable("away"), lambda _: cannot]
        with pytest.raises(BackendUnavailable, match="not now"):
            enrolment.once()

    def test_the_key_stays_when_it_is_refused(self, enrolment: Enrolment, head: Head, tmp_path: Path) -> None:
        no = {"verdict": "refuse", "rule": "enrol.instance", "message": "no", "advice": ""}
        keys = set()
        for _ in range(2):
            head.answers = [lambda _: no]
            with pytest.raises(Refused):
                enrolment.once()
            keys.add((tmp_path / "node.key").read_bytes())
        assert len(keys) == 1

    def test_no_folder(self, site: Site, head: Head) -> None:
        gone = attrs.evolve(site.vault.node, certificate="/nonexistent/a", private_key="/nonexistent/b")
        with pytest.raises(ConfigError, match="cannot be written"):
            Enrolment(attrs.evolve(site, vault=attrs.evolve(site.vault, node=gone)), "n1").once()

    def test_a_link_in_place_of_the_key_is_not_followed(self, enrolment: Enrolment, head: Head, tmp_path: Path) -> None:
        target = tmp_path / "elsewhere"
        target.write_bytes(nodecert.new_key())
        target.chmod(0o600)
        (tmp_path / "node.key").symlink_to(target)
        with pytest.raises(ConfigError, match="symbolic link"):
            enrolment.once()


class TestKeep:
    """The node daemon's part: it asks when it is time, never in a hurry, and never stops."""

    class Stub:
        def __init__(self, due: list[float], once: list[Any]) -> None:
            self.answers, self.results = due, once
            self.asked = 0

        def due(self) -> float:
            if not self.answers:
                raise asyncio.CancelledError
            return self.answers.pop(0)

        def once(self) -> Any:
            self.asked += 1
            result = self.results.pop(0)
            if isinstance(result, Exception):
                raise result
            return result

    def kept(self, monkeypatch: pytest.MonkeyPatch, due: list[float], once: list[Any]) -> tuple[Stub, list[float]]:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr(module.asyncio, "sleep", sleep)
        stub = self.Stub(due, once)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(module.keep(stub))  # type: ignore[arg-type]
        return stub, slept

    def test_waits_longer_after_each_failure_and_not_for_ever(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        failures: list[Any] = [BackendUnavailable("away"), Refused("enrol.old", "old"), KeyError("a defect")]
        stub, slept = self.kept(monkeypatch, [0.0] * 12, [*failures, *[BackendUnavailable("away")] * 9])
        assert stub.asked == 12
        limits = [min(module.WAIT_FIRST * 2**number, module.WAIT_MOST) for number in range(12)]
        assert all(limit / 2 <= wait <= limit for wait, limit in zip(slept, limits, strict=True))
        # what does not change is said once
        assert [record.message.count("away") for record in caplog.records if "away" in record.message] == [1, 1]

    def test_does_nothing_until_it_is_due(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stub, slept = self.kept(monkeypatch, [100.0, 1e6], [])
        assert stub.asked == 0
        assert 80 < slept[0] <= 100
        assert slept[1] <= module.LOOK_EVERY

    def test_a_certificate_that_is_due_at_once_is_not_asked_for_without_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = nodecert.NodeCertificate("test", "n1", "i-1", "", "", 0, 0)
        stub, slept = self.kept(monkeypatch, [0.0] * 3, [made] * 3)
        assert stub.asked == 3
        assert all(wait >= module.WAIT_FIRST / 2 for wait in slept)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _as_whoever_runs_this(self, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
        monkeypatch.setattr(enrol_cmd, "_become", lambda name: None)
        monkeypatch.setattr(enrol_cmd, "load_site", lambda path: site)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def enrol(self, *options: str) -> int:
        return main(["node", "enrol", "--node", "n1", *options])

    def test_refused(self, head: Head, capsys: pytest.CaptureFixture[str]) -> None:
        no = {"verdict": "refuse", "rule": "enrol.old", "message": "too old", "advice": "raise it"}
        head.answers = [lambda _: no]
        assert self.enrol("--wait", "5") == 1
        assert "too old" in capsys.readouterr().err

    def test_nobody_there(self, head: Head) -> None:
        head.answers = [BackendUnavailable("away")] * 2
        assert self.enrol() == 4

    def test_waits_for_whoever_says_which_instance_it_is(
        self, head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        not_yet = {"verdict": "refuse", "rule": "enrol.instance", "message": "not yet", "advice": ""}
        head.answers = [
            *(lambda _: not_yet, BackendUnavailable("away"), BackendUnavailable("away")),
            lambda _: {"verdict": "allow", "certificate": certificate((tmp_path / "node.key").read_bytes())},
        ]
        assert self.enrol("--wait", "100") == 0
        assert "node n1 of test is i-0123456789abcdef0" in capsys.readouterr().out
        assert self.enrol("--show", "--json") == 0
        assert json.loads(capsys.readouterr().out)["instance"] == "i-0123456789abcdef0"

    def test_shows_and_does_nothing(self, head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.enrol("--show") == 1
        assert "no certificate" in capsys.readouterr().out
        key = nodecert.new_key()
        put(tmp_path, key, certificate(key, ends=3 * HOUR))
        assert self.enrol("--show") == 0
        assert self.enrol("--if-due") == 0
        assert not head.asked

    def test_where_nodes_do_not_enrol(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        off = attrs.evolve(site, enrol=Enrol())
        monkeypatch.setattr(enrol_cmd, "load_site", lambda path: off)
        assert self.enrol() == UsageError.exit_code


def test_root_gives_up_being_root_for_good() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            enrol_cmd._become("nobody")
            try:
                os.setuid(0)
            except PermissionError:
                code = 0 if os.getresuid() == (os.getuid(),) * 3 and os.getuid() and 0 not in os.getgroups() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(ConfigError, match="no user"):
        enrol_cmd._become("no-such-account")
