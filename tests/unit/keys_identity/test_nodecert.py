"""A node's key, request and certificate: what is taken for one, and what is not."""

from __future__ import annotations

import base64
import contextlib
import datetime
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from keys import nodecert

KEY = nodecert.new_key()
URI = "secure-slurm://test/n1/i-0123456789abcdef0"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def pem_of(key: Key | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def made(
    names: tuple[str, ...] = ("n1",), uris: tuple[str, ...] = (URI,), dns: tuple[str, ...] = (), key: Key | None = None
) -> bytes:
    """A certificate that signs itself: who signed is for TLS and Vault."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    sans = [*(x509.UniformResourceIdentifier(uri) for uri in uris), *(x509.DNSName(name) for name in dns)]
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 0xABC, now, now + datetime.timedelta(1))
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def refused_certificate(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        nodecert.read_certificate(data)
    assert caught.value.rule == "enrol.certificate"
    assert caught.value.advice


def refused_request(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        nodecert.read_request(data)
    assert caught.value.rule == "enrol.request"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"-----BEGIN CERTIFICATE-----\n", made(names=()), made(names=("n1", "n1")), made(names=("n2",)),
        made(uris=()),
        made(uris=(URI, URI)), made(uris=(URI, "secure-slurm://test/n2/i-0123456789abcdef0")), made(dns=("head",)),
        made(uris=("https://test/n1/i-0123456789abcdef0",)), made(uris=(URI + "/x",)), made(uris=("x" + URI,)),
        made(uris=("secure-slurm://test/n1/",)), made(names=("a_b",), uris=("secure-slurm://test/a_b/i-0123456789abcdef0",)),
        made(uris=("secure-slurm://TEST/n1/i-0123456789abcdef0",)), b"x" * 20000, made() + b"\0" * 20000,
        made(key=ec.generate_private_key(ec.SECP384R1())), made(key=rsa.generate_private_key(65537, 2048)),
    ],
)  # fmt: skip
def test_no_nodes_certificate(data: bytes) -> None:
    refused_certificate(data)


def test_a_nodes_certificate() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = made(key=key)
    found = nodecert.read_certificate(pem)
    assert found[:3] == ("test", "n1", "i-0123456789abcdef0")
    assert found.key == nodecert.key_digest(pem_of(key))
    assert found.serial == "abc"
    assert found.ends - found.begins == 86400
    assert nodecert.read_certificate(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)) == found
    assert nodecert.uri_of("test", "n1", "i-0123456789abcdef0") == URI


def test_a_request_is_for_the_key_that_signed_it() -> None:
    request = nodecert.new_request(KEY, "n1")
    assert nodecert.read_request(request) == nodecert.key_digest(KEY)
    assert nodecert.key_digest(nodecert.new_key()) != nodecert.key_digest(KEY)


def test_a_request_with_somebody_elses_key() -> None:
    """The public key of another node, in a request that its owner did not sign."""
    mine, theirs = nodecert.new_request(KEY, "n1"), nodecert.new_request(nodecert.new_key(), "n1")
    der = x509.load_pem_x509_csr(mine).public_bytes(Encoding.DER)
    other = x509.load_pem_x509_csr(theirs).public_key()
    own = x509.load_pem_x509_csr(mine).public_key()
    assert isinstance(other, ec.EllipticCurvePublicKey)
    assert isinstance(own, ec.EllipticCurvePublicKey)
    point = [
        each.public_numbers().x.to_bytes(32, "big") + each.public_numbers().y.to_bytes(32, "big")
        for each in (own, other)
    ]
    assert der.count(point[0]) == 1
    forged = base64.encodebytes(der.replace(*point))
    refused_request(b"-----BEGIN CERTIFICATE REQUEST-----\n" + forged + b"-----END CERTIFICATE REQUEST-----\n")


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_another_kind_of_key(key: Key) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    refused_request(request.public_bytes(Encoding.PEM))
    for use in (nodecert.key_digest, lambda pem: nodecert.new_request(pem, "n1")):
        with pytest.raises(Refused, match="no EC P-256 key"):
            use(pem_of(key))


@pytest.mark.parametrize("data", [b"", b"x", KEY[:-40], pem_of(ed25519.Ed25519PrivateKey.generate())])
def test_no_key(data: bytes) -> None:
    with pytest.raises(Refused, match="no EC P-256 key") as caught:
        nodecert.key_digest(data)
    assert "PRIVATE" not in str(caught.value)


CERTIFICATE = x509.load_pem_x509_certificate(made()).public_bytes(Encoding.DER)
REQUEST = x509.load_pem_x509_csr(nodecert.new_request(KEY, "n1")).public_bytes(Encoding.DER)


def changed(der: bytes, before: bytes, after: bytes) -> bytes:
    assert before in der
    return der.replace(before, after, 1)


def test_a_version_that_there_is_not() -> None:
    refused_certificate(changed(CERTIFICATE, b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"))
    der = changed(REQUEST, b"\x02\x01\x00", b"\x02\x01\x09")
    refused_request(
        b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE REQUEST-----\n"
    )


def test_a_kind_of_name_that_there_is_not() -> None:
    """An X.400 address in the place of the URI (RFC 5280, 4.2.1.6)."""
    uri = URI.encode()
    refused_certificate(changed(CERTIFICATE, bytes([0x86, len(uri)]) + uri, bytes([0xA3, len(uri)]) + uri))


@given(st.integers(0, len(CERTIFICATE) - 1), st.integers(0, 255))
def test_whatever_byte_is_changed(at: int, byte: int) -> None:
    with contextlib.suppress(Refused):
        nodecert.read_certificate(CERTIFICATE[:at] + bytes([byte]) + CERTIFICATE[at + 1 :])


@given(st.binary(max_size=200), st.integers(0, 600))
def test_any_bytes_are_refused_or_read_and_nothing_else(data: bytes, at: int) -> None:
    request = nodecert.new_request(KEY, "n1")
    for broken in (data, request[:at] + data + request[at + len(data) :]):
        for read in (nodecert.read_request, nodecert.read_certificate):
            try:
                read(broken)
            except Refused:
                continue
            assert b"BEGIN CERTIFICATE REQUEST" in broken


def test_openssl_agrees(tmp_path: Path) -> None:
    """What is made here is a request to others as well."""
    assert shutil.which("openssl")
    file = tmp_path / "request"
    file.write_bytes(nodecert.new_request(KEY, "n1"))
    done = subprocess.run(
        ["openssl", "req", "-in", str(file), "-verify", "-noout", "-subject"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "n1" in done.stdout
    assert "verify OK" in done.stdout + done.stderr
