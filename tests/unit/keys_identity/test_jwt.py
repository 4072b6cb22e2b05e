"""The token that the head node signs: what it says, and that its signature has the form of RFC 7518."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from conf.errors import BackendUnavailable, ConfigError, Refused
from keys import nodecert, vault_jwt
from keys.vault_errors import VaultDenied

KEY = nodecert.new_key()
NOW = 1_790_000_000.9


def decoded(part: str) -> bytes:
    assert "=" not in part
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_what_it_says() -> None:
    head, claims, _ = vault_jwt.sign(KEY, "test", "n1", "i-0123456789abcdef0", NOW).split(".")
    assert json.loads(decoded(head)) == {"alg": "ES256", "typ": "JWT"}
    found = json.loads(decoded(claims))
    assert len(found.pop("jti")) == 32
    assert found == {
        "iss": "secure-slurm-test", "aud": "secure-slurm-test", "sub": "n1", "instance": "i-0123456789abcdef0",
        "iat": 1_790_000_000, "nbf": 1_790_000_000, "exp": 1_790_000_060,
    }  # fmt: skip


def test_the_signature_is_r_and_s_and_anybody_can_verify_it() -> None:
    public = serialization.load_pem_public_key(vault_jwt.public_key(KEY).encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    # a number that begins with zeros is as long as any other
    for _ in range(600):
        text, _, signature = vault_jwt.sign(KEY, "test", "n1", "i-0123456789abcdef0", NOW).rpartition(".")
        raw = decoded(signature)
        assert len(raw) == 64
        der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
        public.verify(der, text.encode(), ec.ECDSA(hashes.SHA256()))


def test_no_two_are_the_same() -> None:
    assert len({vault_jwt.sign(KEY, "test", "n1", "i-0123456789abcdef0", NOW).split(".")[1] for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("cluster", "node"), [("Test", "n1"), ("", "n1"), ("test", "a_b"), ("test", ""), ("test", "n/*")]
)
def test_names_that_could_be_somebody_elses(cluster: str, node: str) -> None:
    with pytest.raises(Refused):
        vault_jwt.sign(KEY, cluster, node, "i-0123456789abcdef0", NOW)


def test_another_kind_of_key() -> None:
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem in (b"", b"x", other):
        with pytest.raises(ConfigError, match="no EC P-256 key"):
            vault_jwt.sign(pem, "test", "n1", "i-0123456789abcdef0", NOW)


def test_a_head_node_that_refuses_is_a_refused_login() -> None:
    def refuse() -> str:
        raise Refused("enrol.superseded", "replaced", advice="terminate it")

    with pytest.raises(VaultDenied, match="replaced") as caught:
        vault_jwt.login("m", "r", refuse)(None)
    assert (caught.value.rule, caught.value.advice) == ("vault.login", "terminate it")

    def away() -> str:
        raise BackendUnavailable("away")

    with pytest.raises(BackendUnavailable):
        vault_jwt.login("m", "r", away)(None)
