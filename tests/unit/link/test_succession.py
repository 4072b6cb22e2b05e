"""A machine that was replaced, at the link: turned away, and the node's own connection stays."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from conf.errors import Refused
from slurm_hooks import link, wire
from slurm_hooks.succession import Succession, machine_of
from tests.testbed.pki import CA, Pair
from tests.unit.link.test_link import HELLO, Head, connect, context, ended, run, until

OLD, NEW = "i-0123456789abcdef0", "i-0123456789abcdef1"


def shown(instance: str, began: str, *, node: str = "n1") -> dict[str, object]:
    uri = (("URI", f"secure-slurm://test/{node}/{instance}"),) if instance else ()
    return {"subject": ((("commonName", node),),), "subjectAltName": uri, "notBefore": f"Nov 22 {began} 2026 GMT"}


def test_the_later_machine_is_the_node() -> None:
    seen = Succession()
    seen.check("n1", shown(OLD, "05:00:00"))
    seen.check("n1", shown(NEW, "06:00:00"))
    for began in ("05:00:00", "06:00:00"):
        with pytest.raises(Refused, match=f"is {NEW} by now, not {OLD}") as caught:
            seen.check("n1", shown(OLD, began))
        assert caught.value.rule == "link.superseded"
    # again, with the certificate of before, and with a renewed one
    for began in ("06:00:00", "18:00:00", "06:00:00"):
        seen.check("n1", shown(NEW, began))
    # what the renewal has shown is not forgotten when an older certificate is shown once more
    with pytest.raises(Refused):
        seen.check("n1", shown(OLD, "17:00:00"))
    # another node has nothing to do with it
    seen.check("n2", shown(OLD, "05:00:00", node="n2"))


def test_certificates_that_were_made_by_hand() -> None:
    seen = Succession()
    for began in ("05:00:00", "04:00:00", "06:00:00"):
        seen.check("n1", shown("", began))
    seen.check("n1", shown(NEW, "07:00:00"))
    with pytest.raises(Refused, match="not the one before"):
        seen.check("n1", shown("", "06:00:00"))


@pytest.mark.parametrize("certificate", [None, {}, {"notBefore": "yesterday"}, {"subjectAltName": ((("DNS", "n1")),)}])
def test_a_certificate_that_says_nothing(certificate: dict[str, object] | None) -> None:
    seen = Succession()
    seen.check("n1", certificate)
    seen.check("n1", shown(NEW, "06:00:00"))
    with pytest.raises(Refused):
        seen.check("n1", certificate)


class Nodes:
    """A CA of nodes that enrol: it says when a certificate began, and for which instance."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = CA(folder / "ca")

    def pair(self, instance: str, minutes_ago: int) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        issuer = x509.load_pem_x509_certificate(self.ca.certificate.read_bytes())
        began = now - datetime.timedelta(minutes=minutes_ago)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
        serial, ends = x509.random_serial_number(), now + datetime.timedelta(hours=1)
        builder = x509.CertificateBuilder(issuer.subject, name, key.public_key(), serial, began, ends)
        uri = x509.UniformResourceIdentifier(f"secure-slurm://test/n1/{instance}")
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.ca._key.public_key())
        for extension, critical in (
            (x509.SubjectAlternativeName([uri]), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (signer, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        made = builder.sign(self.ca._key, hashes.SHA256())
        pair = Pair(self.folder / f"{instance}.crt", self.folder / f"{instance}.key")
        pair.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        pair.private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def test_over_the_link(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    old, new = nodes.pair(OLD, 60), nodes.pair(NEW, 1)
    ca = nodes.ca

    async def act(head: Head) -> None:
        # kept: a connection that nobody holds is closed
        held = [await connect(head, old, ca)]
        await until(lambda: "n1" in head.links.nodes)
        first = head.links.nodes["n1"]
        held.append(await connect(head, new, ca))
        await until(lambda: head.links.nodes.get("n1") not in (None, first))
        second = head.links.nodes["n1"]
        # turned away before it is welcomed
        with pytest.raises(wire.WireError, match="broke"):
            await connect(head, old, ca)
        assert head.links.nodes["n1"] is second
        held[1].close()

    run(ca, ca.server("head", ["127.0.0.1"], tmp_path), act)


def test_what_ssl_shows_of_an_enrolled_nodes_certificate(tmp_path: Path) -> None:
    """``getpeercert`` of the real thing, and not of what we think that it looks like."""
    import ssl

    pair = Nodes(tmp_path).pair(NEW, 5)
    found = ssl._ssl._test_decode_cert(str(pair.certificate))  # type: ignore[attr-defined]
    assert machine_of(found) == NEW
    assert isinstance(found["notBefore"], str)


def test_who_has_arrived_is_told_with_its_instance(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    ca = nodes.ca

    async def act(head: Head) -> None:
        told: list[tuple[str, str]] = []
        head.links.arrived = lambda node, machine: told.append((node, machine))
        held = [await connect(head, nodes.pair(OLD, 60), ca)]
        await until(lambda: "n1" in head.links.nodes)
        assert head.links.nodes["n1"].machine == OLD
        held.append(await connect(head, nodes.pair(NEW, 1), ca))
        await until(lambda: len(told) == 2)
        assert told == [("n1", OLD), ("n1", NEW)]
        assert head.links.nodes["n1"].machine == NEW

    run(ca, ca.server("head", ["127.0.0.1"]), act)


def test_who_was_let_in_before_and_greets_after_its_successor(tmp_path: Path) -> None:
    """An instance that was replaced is slow on purpose: it was the node when it knocked, and is not when it speaks."""
    nodes = Nodes(tmp_path)
    ca = nodes.ca
    old, new = nodes.pair(OLD, 60), nodes.pair(NEW, 1)

    async def act(head: Head) -> None:
        told: list[tuple[str, str]] = []
        head.links.arrived = lambda node, machine: told.append((node, machine))
        slow, _ = await link.dial(head.address, context(old, ca))
        held = await connect(head, new, ca)
        await until(lambda: "n1" in head.links.nodes)
        node = head.links.nodes["n1"]
        await slow.send("hello", HELLO)
        await ended(slow)
        assert head.links.nodes["n1"] is node
        assert told == [("n1", NEW)]
        held.close()

    run(ca, ca.server("head", ["127.0.0.1"], tmp_path), act)


@pytest.mark.parametrize("cluster", ["test", "other"])
def test_where_nodes_enrol_no_other_certificate_counts(tmp_path: Path, cluster: str) -> None:
    """One that was made by hand is in an image still, and its node is powered down: nobody else would come."""
    nodes = Nodes(tmp_path)
    ca = nodes.ca
    by_hand, enrolled = ca.client("n1", tmp_path), nodes.pair(NEW, 1)

    async def act(head: Head) -> None:
        strangers = [by_hand] if cluster == "test" else [by_hand, enrolled]
        for each in strangers:
            with pytest.raises(wire.WireError, match="broke"):
                await connect(head, each, ca)
        assert not head.links.nodes
        if cluster == "test":
            held = await connect(head, enrolled, ca)
            await until(lambda: "n1" in head.links.nodes)
            held.close()

    run(ca, ca.server("head", ["127.0.0.1"], tmp_path), act, cluster)
