"""The manifest of a node: what the site says of one machine, signed with the site's Ed25519 key. Pure.

Two lines: the manifest as JSON, and the signature in base64 over exactly the bytes of the first line, behind a prefix
that no other use of the key has. Nothing is normalised, so there is nothing to disagree about.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import json
import os
import re
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from conf.errors import UsageError
from conf.slurmnames import is_node_name
from keys.machine import SOURCES
from keys.place import NotProved

MAX_BYTES = 4096
CLOCK_SKEW = 300.0
"""Seconds that the signer's clock may be ahead."""
_PREFIX = b"secure-slurm node manifest 1\n"
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_ASK = "have the site sign one for this machine: secure-slurm node sign-manifest"

_FORMS = {
    "id": re.compile(r"[0-9a-f]{32}", re.ASCII),
    "cluster": re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII),
    "node": re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", re.ASCII),
    "region": re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII),
    "machine": re.compile(rf"(?:{'|'.join(SOURCES)}):[0-9a-f]{{64}}", re.ASCII),
}


class Manifest(NamedTuple):
    """``issued`` and ``expires`` in Unix seconds; ``machine``: a fingerprint (keys/machine.py); ``id``: 32 hex."""

    id: str
    cluster: str
    node: str
    region: str
    issued: float
    expires: float
    machine: str


def new(cluster: str, node: str, region: str, machine: str, *, now: float, seconds: float) -> Manifest:
    """A manifest with an id of its own. Raises UsageError for what could not be read again."""
    # whole seconds: that is what is written
    made = Manifest(os.urandom(16).hex(), cluster, node, region, float(int(now)), float(int(now + seconds)), machine)
    wrong = _wrong(made)
    if wrong:
        raise UsageError(f"not usable in a manifest: {wrong}", advice="see: secure-slurm node sign-manifest --help")
    return made


def sign(manifest: Manifest, private_key: bytes) -> bytes:
    """The manifest as a file. ``private_key``: Ed25519, PEM without a passphrase; else UsageError, without it."""
    try:
        key = load_pem_private_key(private_key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UsageError(
            "the key is no Ed25519 private key in PEM without a passphrase",
            advice="make one with: openssl genpkey -algorithm ed25519 -out manifest.key",
        )
    words = {name: _written(value) if isinstance(value, float) else value for name, value in manifest._asdict().items()}
    line = json.dumps({"v": 1, **words}, separators=(",", ":")).encode("ascii")
    return line + b"\n" + base64.b64encode(key.sign(_PREFIX + line)) + b"\n"


def verify(data: bytes, public_key: bytes, *, cluster: str, node: str, region: str, now: float) -> Manifest:
    """The manifest, signed by the site and about this node, place and time. Its machine is for the caller to compare.

    :raises NotProved: anything else.
    """
    line, signature = _split(data)
    try:
        key = load_pem_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise NotProved(
            "the site's public key cannot be read as Ed25519 in PEM",
            advice="make it with: openssl pkey -in manifest.key -pubout -out manifest.pub",
        )
    try:
        key.verify(signature, _PREFIX + line)
    except InvalidSignature:
        raise NotProved("the manifest is not signed with the site's key", advice=_ASK) from None
    manifest = _parsed(line)
    for name, wanted in (("cluster", cluster), ("node", node), ("region", region)):
        if getattr(manifest, name) != wanted:
            raise NotProved(
                f"the manifest is for the {name} {getattr(manifest, name)}, not for {wanted}",
                advice="it is another node's; or correct the place file",
            )
    if manifest.issued > now + CLOCK_SKEW:
        raise NotProved("the manifest is of the future", advice="look at this machine's clock")
    if manifest.expires <= now:
        raise NotProved(f"the manifest ended on {_written(manifest.expires)}", advice=_ASK)
    return manifest


def _split(data: bytes) -> tuple[bytes, bytes]:
    lines = data.split(b"\n")
    if len(data) > MAX_BYTES or len(lines) != 3 or lines[2]:
        raise NotProved("the manifest does not have its two lines", advice=_ASK)
    try:
        return lines[0], base64.b64decode(lines[1], validate=True)
    except binascii.Error:
        raise NotProved("the manifest's signature cannot be read", advice=_ASK) from None


def _parsed(line: bytes) -> Manifest:
    try:
        found = json.loads(line.decode("ascii"))
        if not isinstance(found, dict) or found.pop("v") != 1 or found.keys() != set(Manifest._fields):
            raise ValueError("fields")
        times = {name: _read(found[name]) for name in ("issued", "expires")}
        manifest = Manifest(**{**found, **times})
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotProved("the manifest is signed, and its fields are not those of a manifest", advice=_ASK) from None
    wrong = _wrong(manifest)
    if wrong:
        raise NotProved(f"the manifest is signed, and has a {wrong} that cannot be used", advice=_ASK)
    return manifest


def _wrong(manifest: Manifest) -> str:
    """The name of a field that does not have its form; empty when all do."""
    for name, form in _FORMS.items():
        value = getattr(manifest, name)
        if not isinstance(value, str) or not form.fullmatch(value):
            return name
    if not is_node_name(manifest.node):
        return "node"
    return "" if manifest.issued < manifest.expires else "expires"


def _read(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("no time")
    return datetime.datetime.strptime(value, _TIME).replace(tzinfo=datetime.UTC).timestamp()


def _written(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime(_TIME)
