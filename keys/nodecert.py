"""A node's own key, its certificate signing request, and the certificate that comes back. No network, and no clock.

The key is EC P-256 and is made where it stays. A request is signed with it, which shows that who asks has it; names in
a request count for nothing, for the head node says what stands in the certificate: the node's Slurm name as the common
name, by which Vault and the link know it, and one URI that names cluster, node and instance.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from conf.errors import Refused
from conf.slurmnames import is_node_name

RULE_REQUEST = "enrol.request"
RULE_CERTIFICATE = "enrol.certificate"
MAX_BYTES = 16 * 1024
"""Of one PEM: a request has some 400 bytes, a certificate some 900."""

_URI = re.compile(
    r"secure-slurm://([a-z0-9][a-z0-9_-]{0,39})/([A-Za-z0-9][A-Za-z0-9.-]{0,62})/(i-[0-9a-f]{8,17})", re.ASCII
)
# what x509 raises for bytes of anybody's making: not all of it is a ValueError
_UNREADABLE = (
    *(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.UnsupportedGeneralNameType),
)


class NodeCertificate(NamedTuple):
    """What a certificate says. ``key``: SHA-256 of the public key, in hex as ``serial`` is; times in Unix seconds."""

    cluster: str
    node: str
    instance: str
    key: str
    serial: str
    begins: float
    ends: float


def uri_of(cluster: str, node: str, instance: str) -> str:
    """The URI in a node's certificate."""
    return f"secure-slurm://{cluster}/{node}/{instance}"


def new_key() -> bytes:
    """A new private key, PEM (PKCS #8) without a password: it is for a file that one account alone can read."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_digest(private_key: bytes) -> str:
    """SHA-256 of the public half, hex. Refused ``enrol.request``: no P-256 key in PEM."""
    return _digest(_private(private_key).public_key())


def new_request(private_key: bytes, node: str) -> bytes:
    """A signing request, PEM. Refused ``enrol.request``: no P-256 key in PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(_private(private_key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> str:
    """The digest of the key in a request, which is signed with it. Refused ``enrol.request``: anything else."""
    try:
        if len(pem) > MAX_BYTES:
            raise ValueError("too long")
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        if not request.is_signature_valid:
            raise ValueError("signature")
    except _UNREADABLE:
        raise Refused(
            RULE_REQUEST,
            "the signing request cannot be read, or is not signed with its own key",
            advice="secure-slurm node enrol makes one",
        ) from None
    return _digest(key)


def read_certificate(data: bytes) -> NodeCertificate:
    """A certificate, PEM or DER, that names one node of one cluster and its instance. Who signed it is not looked at.

    :raises Refused: ``enrol.certificate``: anything else, such as one that was made without enrolment.
    """
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("too long")
        pem = data.lstrip().startswith(b"-----BEGIN")
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = found.get_values_for_type(x509.UniformResourceIdentifier)
        (match,) = [_URI.fullmatch(uri) for uri in uris]
        if match is None or len(found) != 1 or names != [match[2]] or not is_node_name(match[2]):
            raise ValueError("names")
        key = _digest(certificate.public_key())
    except (*_UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension, Refused):
        raise Refused(
            RULE_CERTIFICATE,
            "the certificate does not name one node of a cluster and its instance, as those of an enrolment do",
            advice="remove the node's certificate and enrol it: secure-slurm node enrol",
        ) from None
    return NodeCertificate(
        *(match[1], match[2], match[3]),
        key,
        f"{certificate.serial_number:x}",
        _seconds(certificate.not_valid_before_utc),
        _seconds(certificate.not_valid_after_utc),
    )


def _private(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused(
            RULE_REQUEST,
            "the node's private key is no EC P-256 key in PEM without a password",
            advice="remove the file: the next enrolment makes another (and an admin must unbind the node)",
        )
    return key


def _digest(key: object) -> str:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Refused(RULE_REQUEST, "the key is not EC P-256", advice="secure-slurm node enrol makes one")
    encoded = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(encoded).hexdigest()


def _seconds(moment: datetime.datetime) -> float:
    return moment.timestamp()
