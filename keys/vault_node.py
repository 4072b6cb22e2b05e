"""Vault as a compute node sees it: its own grants, and data keys under the transit keys that bear its name.

Errors are those of :meth:`keys.vault.VaultSession.call`; for another node's key or grant that is VaultDenied.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Self

from conf.slurmnames import for_node
from keys.names import check_node, parse_key_name
from keys.secret import Secret
from keys.vault import VaultSession
from keys.vault_errors import VaultError
from keys.vault_head import read_grant

if TYPE_CHECKING:
    from collections.abc import Callable

    from conf.site import Vault

# AES-256-XTS takes two keys of 256 bits
DATA_KEY_BITS = 512
DATA_KEY_BYTES = DATA_KEY_BITS // 8


class VaultNode:
    """One node's TLS certificate, whose CN is the node's Slurm name. Closing revokes the token."""

    def __init__(self, session: VaultSession, node: str, *, transit_mount: str, grants_mount: str) -> None:
        self._session = session
        self._node = check_node(node)
        self._transit = transit_mount
        self._grants = grants_mount

    @classmethod
    def from_site(cls, vault: Vault, node: str, other: Callable[[Any], Any] | None = None) -> Self:
        """The client of the node ``node`` (Slurm's name) for ``vault`` of secure-slurm.yaml.

        ``other``: the login request of another ``vault.node.method`` than ``cert``, which then needs no certificate.
        """
        mounts = {"transit_mount": vault.transit_mount, "grants_mount": vault.grants_mount}
        if other is not None:
            return cls(VaultSession(vault.address, vault.ca_file, vault.timeout, login=other), node, **mounts)

        def login(client: Any) -> Any:  # noqa: ANN401 - hvac has no types
            # hvac's own cert.login guesses between file names and PEM text; the connection has the certificate already
            return client.adapter.post(f"/v1/auth/{vault.node.cert_mount}/login", json={"name": vault.node.cert_role})

        session = VaultSession(
            vault.address,
            vault.ca_file,
            vault.timeout,
            login=login,
            certificate=(for_node(vault.node.certificate, node), for_node(vault.node.private_key, node)),
        )
        return cls(session, node, **mounts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def session(self) -> VaultSession:
        """The session behind it, for what is asked of Vault itself."""
        return self._session

    def close(self) -> None:
        """Revoke the token and close the connections."""
        self._session.close()

    def read_grant(self, job: str) -> dict[str, Any] | None:
        """This node's grant of the job, not yet checked by :meth:`keys.grant.Grant.from_dict`; None: there is none."""
        return read_grant(self._session, self._grants, self._node, job)

    def data_key(self, key_name: str) -> tuple[Secret, str]:
        """A new data key of 64 bytes, and its wrapped form, from which :meth:`unwrap` gets it again.

        VaultNotFound when the transit key is not there (or, from a standby that answers reads, not yet).
        """
        parse_key_name(key_name)
        answer = self._session.call(
            f"make a data key under {key_name}",
            lambda client: client.secrets.transit.generate_data_key(
                key_name, key_type="plaintext", bits=DATA_KEY_BITS, mount_point=self._transit
            ),
        )
        data = answer.get("data") or {}
        secret = _secret(data.pop("plaintext", None))
        wrapped = data.get("ciphertext")
        if not isinstance(wrapped, str) or not wrapped:
            secret.wipe()
            raise VaultError("Vault made a data key without its wrapped form", advice="is the mount a transit engine?")
        return secret, wrapped

    def unwrap(self, key_name: str, wrapped: str) -> Secret:
        """The data key again. VaultNotFound once the transit key is gone."""
        parse_key_name(key_name)
        answer = self._session.call(
            f"unwrap a data key with {key_name}",
            lambda client: client.secrets.transit.decrypt_data(key_name, wrapped, mount_point=self._transit),
        )
        return _secret((answer.get("data") or {}).pop("plaintext", None))


def _secret(text: object) -> Secret:
    try:
        secret = Secret(base64.b64decode(text, validate=True)) if isinstance(text, str) else Secret(b"")
    except binascii.Error:
        secret = Secret(b"")
    if len(secret) != DATA_KEY_BYTES:
        length = len(secret)
        secret.wipe()
        raise VaultError(f"Vault gave a data key of {length} bytes, not {DATA_KEY_BYTES}")
    return secret
