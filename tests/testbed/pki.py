"""A small certificate authority for tests: P-256 keys, certificates of one day, files of 0600 for keys."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFE = datetime.timedelta(days=1)
SKEW = datetime.timedelta(minutes=5)
Span = tuple[datetime.datetime, datetime.datetime]


class Pair(NamedTuple):
    """Where a certificate and its private key lie (PEM)."""

    certificate: Path
    private_key: Path


class CA:
    """A self-signed CA whose files lie in ``directory``; ``ca.certificate`` is what the others must trust."""

    def __init__(self, directory: Path, name: str = "secure-slurm test CA") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
        self.certificate = directory / "ca.crt"
        self.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))

    def server(self, name: str, sans: list[str], directory: Path | None = None) -> Pair:
        """A server certificate for the DNS names and IP addresses in ``sans``."""
        alternatives = x509.SubjectAlternativeName([_general_name(san) for san in sans])
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, alternatives, directory)

    def client(
        self, common_name: str, directory: Path | None = None, *, valid: Span | None = None, instance: str = ""
    ) -> Pair:
        """A client certificate whose CN is ``common_name`` (a Slurm node name). ``valid``: from when to when.

        ``instance``: as after enrolment in the cluster ``test``.
        """
        uri = x509.UniformResourceIdentifier(f"secure-slurm://test/{common_name}/{instance}")
        names = x509.SubjectAlternativeName([uri]) if instance else None
        return self._issue(common_name, ExtendedKeyUsageOID.CLIENT_AUTH, names, directory, valid)

    def _issue(
        self,
        name: str,
        usage: x509.ObjectIdentifier,
        alternatives: x509.SubjectAlternativeName | None,
        directory: Path | None,
        valid: Span | None = None,
    ) -> Pair:
        directory = directory or self.directory
        directory.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), valid)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if alternatives is not None:
            builder = builder.add_extension(alternatives, critical=False)
        pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
        pair.certificate.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        pair.private_key.touch(mode=0o600)
        pair.private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair

    def _builder(
        self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey, valid: Span | None = None
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        starts, ends = valid or (now - SKEW, now + LIFE)
        # Python 3.13 verifies with VERIFY_X509_STRICT, which demands both key identifiers
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(starts)
            .not_valid_after(ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(san: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(san))
    except ValueError:
        return x509.DNSName(san)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
