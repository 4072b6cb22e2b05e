"""Logging in to Vault with a token that the head node signs (JWT, RFC 7519, ES256), where certificates cannot reach.

Vault sees a node's certificate only when nothing between ends the TLS connection; a load balancer that does leaves a
site without cert auth. So the enrolment daemon, to which the node has shown its certificate, says in a signed token
which node it is. The token is good for a minute, for one cluster, and Vault verifies it with the public key alone.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from conf.errors import ConfigError, Refused
from keys.names import check_cluster, check_node
from keys.vault_errors import RULE_LOGIN, VaultDenied

if TYPE_CHECKING:
    from collections.abc import Callable

LIFE = 60
"""Seconds. Vault does not remember which tokens it has seen: one is worth that long to whoever gets hold of it."""
_HALF = 32


def audience(cluster: str) -> str:
    """Whom a token is for, and who says that he has signed it: one cluster."""
    return f"secure-slurm-{cluster}"


def sign(private_key: bytes, cluster: str, node: str, instance: str, now: float) -> str:
    """A token for one node of one cluster. ConfigError: the key is no P-256 key in PEM without a password."""
    name = audience(check_cluster(cluster))
    claims = {
        "iss": name,
        "aud": name,
        "sub": check_node(node),
        "instance": instance,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now) + LIFE,
        "jti": os.urandom(16).hex(),
    }
    head = {"alg": "ES256", "typ": "JWT"}
    text = b".".join(_encoded(json.dumps(part, separators=(",", ":")).encode("ascii")) for part in (head, claims))
    # RFC 7518, 3.4: R and S side by side, not the DER that libraries make
    r, s = decode_dss_signature(_key(private_key).sign(text, ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")
    return (text + b"." + _encoded(signature)).decode("ascii")


def public_key(private_key: bytes) -> str:
    """What Vault verifies with, PEM. ConfigError as for :func:`sign`."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _key(private_key).public_key().public_bytes(serialization.Encoding.PEM, form).decode("ascii")


def login(mount: str, role: str, token: Callable[[], str]) -> Callable[[Any], Any]:
    """The login request of a node; ``token`` gets one from the head node.

    :raises VaultDenied: ``vault.login``: the head node refuses it. :raises BackendUnavailable: it does not answer.
    """

    def request(client: Any) -> Any:  # noqa: ANN401 - hvac has no types
        try:
            jwt = token()
        except Refused as error:
            raise VaultDenied(
                f"there is no token to log in with: {error}", rule=RULE_LOGIN, advice=error.advice
            ) from None
        return client.adapter.post(f"/v1/auth/{mount}/login", json={"role": role, "jwt": jwt})

    return request


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(
            "enrol.token_key is no EC P-256 key in PEM without a password",
            advice="make one: secure-slurm vault init --token-key-out FILE",
        )
    return key
