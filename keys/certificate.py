"""Checking a certificate of destruction offline: the file, and the public key that Vault once gave. No network."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from audit.certificate import check, parse, signed_bytes
from conf.errors import Refused, UsageError
from keys.names import CERTIFICATE_KEY

ALGORITHM = "ed25519"
_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def seal(certificate: dict[str, Any], signature: bytes, version: int) -> dict[str, Any]:
    """The whole document. ``version``: of the key that signed."""
    return {"certificate": certificate, "signature": block(signature, version)}


def verify(data: bytes, public_keys: bytes) -> dict[str, Any]:
    """The certificate in a document that one of the keys (PEM, one or more) has signed.

    Refused ``certificate.form``: it is none; ``certificate.signature``: none of the keys has signed these bytes.
    UsageError: the public keys are none.
    """
    keys = _read_keys(public_keys)
    document = parse(data)
    if document.keys() != {"certificate", "signature"}:
        raise Refused("certificate.form", "the document has not the two parts of a certificate of destruction")
    certificate = check(document["certificate"])
    signature = _signature(document["signature"])
    if is_signed(signed_bytes(certificate), signature, keys):
        return certificate
    raise Refused(
        "certificate.signature",
        "the certificate was changed, or was signed with another key",
        advice="compare the public key with Vault's: secure-slurm audit public-key",
    )


def is_signed(data: bytes, signature: bytes, keys: list[Ed25519PublicKey]) -> bool:
    """Whether one of the keys has signed these bytes."""
    for key in keys:
        try:
            key.verify(signature, data)
        except InvalidSignature:
            continue
        return True
    return False


def block(signature: bytes, version: int) -> dict[str, Any]:
    """A signature as it is written. ``version``: of the key."""
    value = base64.b64encode(signature).decode("ascii")
    return {"algorithm": ALGORITHM, "key": CERTIFICATE_KEY, "version": version, "value": value}


def verify_block(data: bytes, part: object, public_keys: bytes) -> bool:
    """Whether one of the public keys (PEM) has signed these bytes. Refused ``certificate.form``: that is no signature.

    UsageError: the public keys are none.
    """
    return is_signed(data, _signature(part), _read_keys(public_keys))


def pem(public_key: bytes) -> str:
    """A public key of 32 bytes as PEM, as ``openssl pkeyutl -verify`` takes it as well."""
    key = Ed25519PublicKey.from_public_bytes(public_key)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _signature(part: object) -> bytes:
    if isinstance(part, dict) and part.get("algorithm") == ALGORITHM and isinstance(part.get("value"), str):
        try:
            return base64.b64decode(part["value"], validate=True)
        except (binascii.Error, ValueError):
            pass
    raise Refused("certificate.form", "the certificate has no Ed25519 signature that can be read")


def _read_keys(data: bytes) -> list[Ed25519PublicKey]:
    found = []
    for block in _BLOCK.findall(data):
        try:
            key = load_pem_public_key(block + b"\n")
        except (ValueError, UnsupportedAlgorithm):
            continue
        if isinstance(key, Ed25519PublicKey):
            found.append(key)
    if not found:
        raise UsageError(
            "there is no Ed25519 public key in PEM in that file",
            advice="Vault gives it: secure-slurm audit public-key > certificates.pub",
        )
    return found
