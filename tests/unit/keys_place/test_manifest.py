"""The manifest: every field, every signature but the site's, every machine but this one."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from conf.errors import UsageError
from keys import place_manifest
from keys.place import NotProved
from keys.place_manifest import Manifest, new, sign, verify

KEY, OTHER = ed25519.Ed25519PrivateKey.generate(), ed25519.Ed25519PrivateKey.generate()
MACHINE = "product-uuid:" + "5e" * 32
WANTED = {"cluster": "test", "node": "n1", "region": "eu-central-1"}


def private(key: Any = KEY) -> bytes:
    made: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made


def public(key: Any = KEY) -> bytes:
    made: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


def manifest(**changes: Any) -> Manifest:
    now = time.time()
    return new("test", "n1", "eu-central-1", MACHINE, now=now - 60, seconds=3600)._replace(**changes)


def refused(data: bytes, words: str, key: bytes | None = None, **wanted: str) -> None:
    with pytest.raises(NotProved, match=words) as caught:
        verify(data, public() if key is None else key, **{**WANTED, **wanted}, now=time.time())
    assert caught.value.advice


def signed(**fields: Any) -> bytes:
    """A line of any content, signed by the site itself."""
    good = json.loads(sign(manifest(), private()).split(b"\n")[0])
    line = json.dumps({name: value for name, value in {**good, **fields}.items() if value is not ...}).encode()
    return line + b"\n" + base64.b64encode(KEY.sign(b"secure-slurm node manifest 1\n" + line)) + b"\n"


def test_signed_with_another_key() -> None:
    refused(sign(manifest(), private(OTHER)), "not signed with the site's key")


@pytest.mark.parametrize(("before", "after"), [(b"eu-central-1", b"us-central-1"), (b'"n1"', b'"n2"'), (b"Z", b" ")])
def test_changed_after_signing(before: bytes, after: bytes) -> None:
    data = sign(manifest(), private())
    line, rest = data.split(b"\n", 1)
    assert before in line
    refused(line.replace(before, after) + b"\n" + rest, "not signed with the site's key")


def test_a_signature_for_another_purpose() -> None:
    """The same key may sign other things for the site; none of them is a manifest."""
    line = sign(manifest(), private()).split(b"\n")[0]
    refused(line + b"\n" + base64.b64encode(KEY.sign(line)) + b"\n", "not signed with the site's key")


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\n\n", b"{}\nAAAA\n\n", b"{}\n!!!\n", b"{}", b"x" * 5000, b"{}\r\nAAAA\r\n", b"\xff\nAAAA\n"]
)
def test_no_manifest(data: bytes) -> None:
    refused(data, "two lines|cannot be read|not signed")


@pytest.mark.parametrize("name", ["cluster", "node", "region"])
def test_about_something_else(name: str) -> None:
    refused(sign(manifest(), private()), f"for the {name} .*, not for other", **{name: "other"})


def test_over() -> None:
    now = time.time()
    refused(sign(manifest(issued=now - 20, expires=now - 10), private()), "ended on")
    refused(sign(manifest(issued=now - 86400, expires=now - 1), private()), "ended on")


def test_of_the_future() -> None:
    now = time.time()
    refused(sign(manifest(issued=now + 900, expires=now + 9000), private()), "of the future")


@pytest.mark.parametrize("name", [*Manifest._fields, "v"])
@pytest.mark.parametrize("value", [..., None, 5, "", [], "x y", "-", {"a": 1}])
def test_signed_and_malformed(name: str, value: Any) -> None:
    refused(signed(**{name: value}), "is signed, and|for the")


@pytest.mark.parametrize(
    "fields",
    [
        {"more": "x"},
        {"v": 2},
        {"v": True, "id": "x"},
        {"machine": "machine-id:xyz"},
        {"machine": "mac-address:" + "0" * 64},
        {"expires": "2020-01-01T00:00:00Z"},
        {"issued": "2026-01-01"},
        {"expires": "9999-99-99T00:00:00Z"},
    ],
    ids=str,
)
def test_signed_and_wrong(fields: dict[str, Any]) -> None:
    refused(signed(**fields), "is signed, and")


@pytest.mark.parametrize(
    "key",
    [b"", b"junk", private(), ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)],
    ids=["empty", "junk", "private", "elliptic"],
)  # fmt: skip
def test_no_public_key_of_the_site(key: bytes) -> None:
    refused(sign(manifest(), private()), "public key cannot be read", key)


@pytest.mark.parametrize("key", [b"", b"junk", public(), private(ec.generate_private_key(ec.SECP256R1()))])
def test_no_private_key_of_the_site(key: bytes) -> None:
    with pytest.raises(UsageError, match="no Ed25519 private key") as caught:
        sign(manifest(), key)
    assert not any(line in str(caught.value) for line in key.decode().split("\n") if len(line) > 20)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cluster": "Test"}, "cluster"),
        ({"node": "n_1"}, "node"),
        ({"node": "../n1"}, "node"),
        ({"region": "EU"}, "region"),
        ({"machine": ""}, "machine"),
        ({"machine": "product-uuid:12"}, "machine"),
        ({"seconds": 0}, "expires"),
        ({"seconds": -5}, "expires"),
    ],
    ids=str,
)
def test_what_cannot_be_made(change: dict[str, Any], field: str) -> None:
    values = {"cluster": "test", "node": "n1", "region": "eu-central-1", "machine": MACHINE, "seconds": 10.0, **change}
    seconds = values.pop("seconds")
    with pytest.raises(UsageError, match=field):
        new(**values, now=time.time(), seconds=seconds)


def test_the_sites_own() -> None:
    made = manifest()
    assert verify(sign(made, private()), public(), **WANTED, now=time.time()) == made
    assert len({manifest().id for _ in range(20)}) == 20


def test_a_file_of_one_is_small() -> None:
    assert len(sign(manifest(node="n" * 63, region="r" * 64), private())) < place_manifest.MAX_BYTES
