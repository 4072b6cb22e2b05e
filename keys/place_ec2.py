"""Whether an EC2 instance identity document is genuine, and whether it is this machine's. Pure: no file, no network.

The document comes inside its ``rsa2048`` signature. It is verified with the certificates that an admin has pinned for
one region, and with nothing else: the message may bring certificates of its own, and the command that AWS documents
(``openssl smime -verify -noverify``) would believe them, so that anybody could sign a document of any region.
Source: EC2 user guide, "Use the RSA-2048 signature to verify the instance identity document".
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import json
import re
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from keys.cms import MalformedMessage, read_signed
from keys.place import NotProved

CLOCK_SKEW = 300.0
"""Seconds that a launch may lie in the future: clocks are in step, but not exactly."""
MAX_CERTIFICATES = 4
"""An old and a new one of a region, twice over."""
_MIN_KEY_BITS = 2048
_FORGED = "somebody may have put a forged document before this node: look at who answers on the metadata address"

_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
_ACCOUNT = re.compile(r"[0-9]{12}", re.ASCII)


class Expected(NamedTuple):
    """What the document must say. ``instance`` and ``account``: "" when that is not known.

    ``not_before``: the launch of a document that this node has shown before, in Unix seconds. ``oldest``: seconds since
    the launch.
    """

    region: str
    instance: str = ""
    account: str = ""
    not_before: float = 0.0
    oldest: float = 365 * 86400.0


class Identity(NamedTuple):
    """What a genuine document says. ``launched``: its ``pendingTime``, in Unix seconds; ``digest``: SHA-256, hex.

    ``address``: its ``privateIp``, as it stands there; "" when it has none.
    """

    instance: str
    region: str
    account: str
    launched: float
    digest: str
    address: str = ""


def verify(message: bytes, certificates: bytes, expected: Expected, now: float) -> Identity:
    """The identity in ``message`` (base64, as the metadata service gives it).

    ``certificates``: the pinned ones of ``expected.region``, PEM. ``now``: Unix seconds.

    :raises NotProved: anything is missing, malformed, not signed with a pinned key, or not what was expected.
    """
    keys = pinned_keys(certificates, expected.region, now)
    try:
        signed = read_signed(base64.b64decode(b"".join(message.split()), validate=True))
    except (binascii.Error, MalformedMessage) as error:
        raise NotProved(f"the identity document cannot be read: {error}", advice=_FORGED) from None
    digest = hashlib.sha256(signed.content).digest()
    if not hmac.compare_digest(digest, signed.digest):
        raise NotProved("the identity document was changed after it was signed", advice=_FORGED)
    if not any(_signed_by(key, signed.signature, signed.attributes) for key in keys):
        raise NotProved(
            f"the identity document is not signed with the certificate that is pinned for {expected.region}",
            advice=_FORGED + "; or is the certificate in node.ec2.certificates another region's, or replaced by AWS?",
        )
    return _judged(_parsed(signed.content), digest.hex(), expected, now)


def pinned_keys(certificates: bytes, region: str, now: float) -> list[rsa.RSAPublicKey]:
    """The keys of a region's pinned certificates. Refused: none or too many, not RSA with 2048 bits, out of date."""
    try:
        found = x509.load_pem_x509_certificates(certificates)
    except ValueError:
        found = []
    if not 0 < len(found) <= MAX_CERTIFICATES:
        raise NotProved(
            f"the pinned certificate of {region} cannot be read",
            advice="put AWS's RSA-2048 certificate of that region, PEM, into node.ec2.certificates",
        )
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    keys = []
    for certificate in found:
        key = certificate.public_key()
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size < _MIN_KEY_BITS:
            raise NotProved(
                f"the pinned certificate of {region} has no RSA key of {_MIN_KEY_BITS} bits",
                advice="AWS has three certificates for each region: the one for RSA-2048 is needed",
            )
        if certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
            keys.append(key)
    if not keys:
        raise NotProved(
            f"the pinned certificate of {region} is not valid today",
            advice="get the present one, and look at the clock",
        )
    return keys


def _signed_by(key: rsa.RSAPublicKey, signature: bytes, attributes: bytes) -> bool:
    try:
        key.verify(signature, attributes, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise NotProved("the identity document is signed, and is no JSON", advice=_FORGED) from None
    if not isinstance(document, dict):
        raise NotProved("the identity document is signed, and is no document", advice=_FORGED)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _judged(document: dict[str, Any], digest: str, expected: Expected, now: float) -> Identity:
    text = {name: document.get(name) for name in ("instanceId", "region", "accountId", "pendingTime")}
    instance, account = str(text["instanceId"]), str(text["accountId"])
    launched = _launch(text["pendingTime"])
    if not _INSTANCE.fullmatch(instance) or not _ACCOUNT.fullmatch(account) or launched is None:
        raise NotProved("the identity document does not say which instance it is of, or of when", advice=_FORGED)
    if text["region"] != expected.region:
        raise NotProved(
            f"this node says that it is in {expected.region}, its identity document says another region",
            advice="correct the place file; if it is right, this is another machine's document",
        )
    if expected.instance and instance != expected.instance:
        raise NotProved(
            f"the identity document is of {instance}, this machine is {expected.instance}",
            advice="another machine's document is shown here; or the instance file is left over from an image",
        )
    if expected.account and account != expected.account:
        raise NotProved("the identity document is of another account than node.ec2.account", advice=_FORGED)
    if launched > now + CLOCK_SKEW:
        raise NotProved("the identity document is of the future", advice="look at this machine's clock")
    if launched < expected.not_before:
        raise NotProved("the identity document is older than one that this node has shown before", advice=_FORGED)
    if launched < now - expected.oldest:
        raise NotProved(
            "the identity document is older than node.ec2.oldest allows",
            advice="stop and start the instance (a reboot is not enough), or raise node.ec2.oldest",
        )
    address = document.get("privateIp")
    return Identity(instance, expected.region, account, launched, digest, address if isinstance(address, str) else "")


def _launch(value: object) -> float | None:
    try:
        moment = datetime.datetime.strptime(str(value), "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return moment.replace(tzinfo=datetime.UTC).timestamp()
