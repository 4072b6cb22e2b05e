"""The identity document: genuine, forged, replayed, of another place or machine, old. Only the first passes."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.cms import MalformedMessage, read_signed
from keys.place import NotProved
from keys.place_ec2 import Expected, Identity, verify
from tests.testbed.imds import Region, as_ec2_writes_it, document
from tests.testbed.pki import CA

FRANKFURT = Region("eu-central-1")
VIRGINIA = Region("us-east-1")
STRANGER = Region("a stranger")
EXPECTED = Expected("eu-central-1", "i-0123456789abcdef0", "123456789012")


def check(message: bytes, expected: Expected = EXPECTED, pinned: bytes = FRANKFURT.pem) -> Identity:
    return verify(message, pinned, expected, time.time())


def refused(message: bytes, words: str, expected: Expected = EXPECTED, pinned: bytes = FRANKFURT.pem) -> None:
    with pytest.raises(NotProved, match=words) as caught:
        check(message, expected, pinned)
    assert caught.value.rule == "node.place-proof"
    assert caught.value.advice


def moment(**ago: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


class TestForged:
    def test_signed_by_a_stranger(self) -> None:
        refused(STRANGER.sign(document()), "not signed with the certificate that is pinned")

    def test_a_strangers_certificate_in_the_message_counts_for_nothing(self, tmp_path: Path) -> None:
        """The message that the documented openssl command believes: it is asked here, to be sure that it does."""
        text = json.dumps(document()).encode()
        der = STRANGER.der(text, embed=True)
        (tmp_path / "message").write_bytes(der)
        (tmp_path / "pinned").write_bytes(FRANKFURT.pem)
        believed = subprocess.run(
            [
                *("openssl", "smime", "-verify", "-inform", "DER", "-in", str(tmp_path / "message")),
                *("-certfile", str(tmp_path / "pinned"), "-noverify"),
            ],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert believed.returncode == 0, believed.stderr
        refused(base64.b64encode(der), "not signed with the certificate that is pinned")
        refused(base64.b64encode(as_ec2_writes_it(der)), "not signed with the certificate that is pinned")

    def test_content_changed_after_signing(self) -> None:
        der = FRANKFURT.der(json.dumps(document()).encode())
        assert der.count(b'"i-0123456789abcdef0"') == 1
        changed = der.replace(b'"i-0123456789abcdef0"', b'"i-0123456789abcdef1"')
        refused(base64.b64encode(changed), "changed after it was signed")

    def test_digest_changed_with_the_content(self) -> None:
        import hashlib

        text = json.dumps(document()).encode()
        other = text.replace(b"abcdef0", b"abcdef1")
        der = FRANKFURT.der(text).replace(text, other)
        der = der.replace(hashlib.sha256(text).digest(), hashlib.sha256(other).digest())
        refused(base64.b64encode(der), "not signed with the certificate that is pinned")

    def test_the_signature_of_another_document(self) -> None:
        one, two = FRANKFURT.der(b'{"a":1}'), FRANKFURT.der(b'{"a":2}')
        signature = read_signed(two).signature
        refused(base64.b64encode(one.replace(read_signed(one).signature, signature)), "not signed with")

    @pytest.mark.parametrize("at", range(0, 1400, 97))
    def test_any_changed_byte(self, at: int) -> None:
        message = bytearray(base64.b64decode(FRANKFURT.sign(document())))
        at %= len(message)
        message[at] ^= 0x01
        try:
            found = check(base64.b64encode(bytes(message)))
        except NotProved:
            return
        # a byte that nobody signed, such as one of the issuer's name
        assert (found.region, found.instance, found.account) == EXPECTED[:3]

    def test_another_digest(self) -> None:
        refused(FRANKFURT.sign(document(), digest=hashes.SHA512()), "not RSA with SHA-256")

    @pytest.mark.parametrize("message", [b"", b"AAAA", b"MIAG", b"not base64!", b"\xff", b"MIA=" * 50_000])
    def test_no_message(self, message: bytes) -> None:
        refused(message, "cannot be read")

    def test_without_signed_attributes(self) -> None:
        """Else the attributes of a genuine message could be passed off as a content of their own."""
        der = FRANKFURT.der(json.dumps(document()).encode())
        attributes = read_signed(der).attributes
        cut = der.replace(b"\xa0" + attributes[1:], b"")
        refused(base64.b64encode(cut), "cannot be read")

    def test_cut_short_or_longer(self) -> None:
        der = base64.b64decode(FRANKFURT.sign(document()))
        for end in range(0, len(der), 41):
            refused(base64.b64encode(der[:end]), "cannot be read")
        refused(base64.b64encode(der + b"\0"), "bytes follow")


class TestReplayed:
    def test_of_another_instance(self) -> None:
        refused(FRANKFURT.sign(document(instanceId="i-0fedcba9876543210")), "of i-0fedcba9876543210, this machine is")

    def test_of_the_same_instance_before_it_was_started_again(self) -> None:
        seen = Expected(*EXPECTED[:3], not_before=time.time() - 1800)
        refused(FRANKFURT.sign(document(pendingTime=moment(hours=2))), "older than one", seen)
        assert check(FRANKFURT.sign(document()), seen)

    def test_older_than_the_site_allows(self) -> None:
        old = Expected(*EXPECTED[:3], oldest=3600.0)
        refused(FRANKFURT.sign(document(pendingTime=moment(hours=2))), "older than node.ec2.oldest", old)
        assert check(FRANKFURT.sign(document(pendingTime=moment(minutes=50))), old)
        refused(FRANKFURT.sign(document(pendingTime=moment(days=366))), "older than node.ec2.oldest")

    def test_of_the_future(self) -> None:
        refused(FRANKFURT.sign(document(pendingTime=moment(minutes=-10))), "of the future")
        assert check(FRANKFURT.sign(document(pendingTime=moment(minutes=-1))))


class TestWrongPlace:
    def test_genuine_and_of_another_region(self) -> None:
        """Signed by Virginia, shown with Virginia's certificate in the place of Frankfurt's."""
        virginia = document(region="us-east-1", availabilityZone="us-east-1a")
        refused(VIRGINIA.sign(virginia), "not signed with the certificate that is pinned for eu-central-1")
        refused(VIRGINIA.sign(virginia), "says another region", pinned=VIRGINIA.pem)

    def test_one_region_says_that_it_is_another(self) -> None:
        refused(VIRGINIA.sign(document()), "not signed with the certificate that is pinned for eu-central-1")
        refused(FRANKFURT.sign(document(region="us-east-1")), "says another region")

    @pytest.mark.parametrize(
        "region", ["EU-CENTRAL-1", "eu-central-1 ", "eu-central-10", "", None, ..., 7, ["eu-central-1"]]
    )
    def test_a_region_that_is_nearly_ours(self, region: Any) -> None:
        refused(FRANKFURT.sign(document(region=region)), "says another region")

    def test_another_account(self) -> None:
        refused(FRANKFURT.sign(document(accountId="210987654321")), "another account")
        assert (
            check(FRANKFURT.sign(document(accountId="210987654321")), Expected("eu-central-1")).account
            == "210987654321"
        )


class TestFields:
    @pytest.mark.parametrize("name", ["instanceId", "accountId", "pendingTime"])
    @pytest.mark.parametrize(
        "value", [..., None, "", 5, [], "i-xyz", "12345", "2026-02-30T00:00:00Z", "2026-01-01", "i-01234567\n"]
    )
    def test_missing_or_malformed(self, name: str, value: Any) -> None:
        refused(FRANKFURT.sign(document(**{name: value})), "does not say which instance", Expected("eu-central-1"))

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 5000, b'{"region":"a","region":"b"}']
    )
    def test_signed_and_no_document(self, content: bytes) -> None:
        refused(FRANKFURT.sign(content or b" "), "is signed, and is no")

    def test_other_fields_do_not_matter(self) -> None:
        assert check(FRANKFURT.sign(document(newField={"a": 1}, privateIp=...)))


class TestPinned:
    def test_none(self) -> None:
        refused(FRANKFURT.sign(document()), "pinned certificate of eu-central-1 cannot be read", pinned=b"")
        refused(
            FRANKFURT.sign(document()),
            "cannot be read",
            pinned=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )

    def test_too_many(self) -> None:
        refused(FRANKFURT.sign(document()), "cannot be read", pinned=FRANKFURT.pem * 5)

    def test_out_of_date(self) -> None:
        old, young = Region(start=-10, days=-1), Region(start=1, days=10)
        refused(old.sign(document()), "not valid today", pinned=old.pem)
        refused(young.sign(document()), "not valid today", pinned=young.pem)
        # the one that is to come may lie beside the present one
        assert check(FRANKFURT.sign(document()), pinned=old.pem + FRANKFURT.pem + young.pem)
        refused(old.sign(document()), "not signed with", pinned=old.pem + FRANKFURT.pem)

    def test_a_weak_key(self) -> None:
        weak = Region(bits=1024)
        refused(weak.sign(document()), "RSA key of 2048 bits", pinned=weak.pem)

    def test_an_elliptic_key(self, tmp_path: Path) -> None:
        refused(FRANKFURT.sign(document()), "RSA key", pinned=CA(tmp_path).certificate.read_bytes())

    def test_who_signed_the_certificate_does_not_matter(self) -> None:
        """A chain proves nothing here: pinned is this certificate, and no issuer of it."""
        refused(STRANGER.sign(document()), "not signed with", pinned=FRANKFURT.pem + VIRGINIA.pem)


class TestGenuine:
    def test_as_ec2_writes_it(self) -> None:
        found = check(FRANKFURT.sign(document()))
        assert found[:3] == ("i-0123456789abcdef0", "eu-central-1", "123456789012")
        assert len(found.digest) == 64

    def test_as_openssl_and_others_write_it(self) -> None:
        assert check(base64.b64encode(FRANKFURT.der(json.dumps(document()).encode())))

    def test_with_certificates_inside(self) -> None:
        assert check(FRANKFURT.sign(document(), embed=True))

    def test_without_knowing_the_instance(self) -> None:
        assert check(FRANKFURT.sign(document()), Expected("eu-central-1")).instance == "i-0123456789abcdef0"

    def test_openssl_agrees(self, tmp_path: Path) -> None:
        """The message of these tests is one that OpenSSL takes, too, with the pinned certificate and no other."""
        (tmp_path / "message").write_bytes(base64.b64decode(FRANKFURT.sign(document())))
        (tmp_path / "pinned").write_bytes(FRANKFURT.certificate.public_bytes(Encoding.PEM))
        done = subprocess.run(
            [
                *("openssl", "smime", "-verify", "-inform", "DER", "-in", str(tmp_path / "message")),
                *("-certfile", str(tmp_path / "pinned"), "-nointern", "-noverify"),
            ],
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert b"i-0123456789abcdef0" in done.stdout


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_signed(data)


@pytest.mark.parametrize(
    "data", [b"\x30\x80" * 30_000, b"\x24\x80" + b"\x04\x00" * 3000 + b"\0\0", b"\x30\x84\xff\xff\xff\xff"]
)
def test_no_nesting_breaks_the_reader(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_signed(data)
