"""Vault as the lifecycle daemon sees it: make, configure and delete transit keys, keep the grants.

It can never use a job's key: its policy (``conf/vault/head.hcl``) has no datakey, encrypt, decrypt, export or backup.
Of the key that signs certificates it can do nothing but that.
Errors are those of :meth:`keys.vault.VaultSession.call`. Safe for any number of threads.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Self

from conf.errors import BackendUnavailable, ConfigError, Refused
from conf.safefile import read_safely
from keys.names import CERTIFICATE_KEY, check_job, check_node, grant_path, parse_key_name
from keys.vault import VaultSession
from keys.vault_errors import DeletionNotAllowed, VaultError, VaultNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conf.site import Vault

KEY_TYPE = "aes256-gcm96"
NEVER_WRITTEN = 0
PUBLIC_KEY_BYTES = 32
_SIGNATURE = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/]{86}==)", re.ASCII)


class VaultHead:
    """One AppRole identity. Close it, or use it as a context manager: closing revokes its token."""

    def __init__(self, session: VaultSession, *, transit_mount: str, grants_mount: str) -> None:
        self._session = session
        self._transit = transit_mount
        self._grants = grants_mount

    @classmethod
    def from_site(cls, vault: Vault) -> Self:
        """The client for ``vault`` of secure-slurm.yaml. The files of the AppRole are read anew at every login."""
        head = vault.head

        def login(client: Any) -> Any:  # noqa: ANN401 - hvac has no types
            return client.auth.approle.login(
                one_line(head.role_id_file, secret=False),
                one_line(head.secret_id_file, secret=True),
                use_token=False,
                mount_point=head.approle_mount,
            )

        session = VaultSession(vault.address, vault.ca_file, vault.timeout, login=login)
        return cls(session, transit_mount=vault.transit_mount, grants_mount=vault.grants_mount)

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

    def create_key(self, name: str) -> None:
        """Make a transit key that can be neither exported nor backed up. Making one that exists changes nothing."""
        parse_key_name(name)
        self._session.call(
            f"create the key {name}",
            lambda client: client.secrets.transit.create_key(
                name, key_type=KEY_TYPE, exportable=False, allow_plaintext_backup=False, mount_point=self._transit
            ),
        )

    def allow_deletion(self, name: str) -> None:
        """Make the key deletable. VaultNotFound when there is none."""
        parse_key_name(name)
        self._session.call(
            f"make the key {name} deletable",
            lambda client: client.secrets.transit.update_key_configuration(
                name, deletion_allowed=True, mount_point=self._transit
            ),
        )

    def delete_key(self, name: str) -> None:
        """Delete the key, whether or not it was made deletable; fine when there is none."""
        parse_key_name(name)
        try:
            try:
                self._delete_key(name)
            except DeletionNotAllowed:
                self.allow_deletion(name)
                self._delete_key(name)
        except VaultNotFound:
            return

    def key_exists(self, name: str) -> bool:
        """Whether the active server has the key: False means that reading it was answered with 404.

        A "no" of a standby that answers reads itself (OpenBao 2.5 and later, Vault Enterprise) proves nothing, since it
        may be behind: it is BackendUnavailable.
        """
        parse_key_name(name)
        try:
            self._session.call(
                f"read the key {name}",
                lambda client: client.secrets.transit.read_key(name, mount_point=self._transit),
            )
        except VaultNotFound:
            self._check_active()
            return False
        return True

    def lock_key(self, name: str) -> None:
        """Have the key refuse every data key that was wrapped before; may be repeated. VaultNotFound: there is none.

        The key is kept: a newer version of it is made, and those before it are not to decrypt. :meth:`unlock_key`
        undoes that. Vault and OpenBao both have it (transit: ``rotate``, ``min_decryption_version``).
        """
        latest, oldest = self._versions(name)
        if oldest > 1:
            return
        if latest < 2:  # a job's key has one version, and once it was locked two
            self._session.call(
                f"rotate the key {name}",
                lambda client: client.secrets.transit.rotate_key(name, mount_point=self._transit),
            )
        self._oldest_version(name, 2)

    def unlock_key(self, name: str) -> None:
        """Have the key take what it wrapped before; may be repeated. VaultNotFound: there is none."""
        if self._versions(name)[1] > 1:
            self._oldest_version(name, 1)

    def _versions(self, name: str) -> tuple[int, int]:
        parse_key_name(name)
        answer = self._session.call(
            f"read the key {name}",
            lambda client: client.secrets.transit.read_key(name, mount_point=self._transit),
        )
        data = answer.get("data") or {}
        latest, oldest = data.get("latest_version"), data.get("min_decryption_version")
        if type(latest) is not int or type(oldest) is not int:
            raise VaultError(f"Vault describes the key {name} in a form that is not known")
        return latest, oldest

    def _oldest_version(self, name: str, version: int) -> None:
        # as a string: a policy can compare strings and no numbers (allowed_parameters)
        body = {"min_decryption_version": str(version)}
        self._session.call(
            f"say which versions of the key {name} may decrypt",
            lambda client: client.adapter.post(f"/v1/{self._transit}/keys/{name}/config", json=body),
        )

    def write_grant(self, node: str, job: str, data: Mapping[str, str], cas: int = NEVER_WRITTEN) -> None:
        """Write the grant if its version is ``cas`` (0: there is none); else VaultConflict."""
        self._session.call(
            f"write the grant of job {job} for {node}",
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                grant_path(node, job), dict(data), cas=cas, mount_point=self._grants
            ),
        )

    def read_grant(self, node: str, job: str) -> dict[str, Any] | None:
        """What :meth:`write_grant` wrote, for :meth:`keys.grant.Grant.from_dict` to check; None: there is none."""
        return read_grant(self._session, self._grants, node, job)

    def delete_grant(self, node: str, job: str) -> None:
        """Delete every version of the grant; fine when there is none."""
        self._session.call(
            f"delete the grant of job {job} for {node}",
            lambda client: client.secrets.kv.v2.delete_metadata_and_all_versions(
                grant_path(node, job), mount_point=self._grants
            ),
        )

    def list_grants(self) -> list[tuple[str, str]]:
        """Every (node, job) that has a grant, sorted. What is not named like one was not written by us: left out."""
        found = []
        for folder in self._list(""):
            node = folder.removesuffix("/")
            if node == folder or not _is(check_node, node):
                continue
            found += [(node, job) for job in self._list(node) if _is(check_job, job)]
        return sorted(found)

    def sign(self, data: bytes) -> tuple[bytes, int]:
        """An Ed25519 signature with the cluster's key for certificates, and the version of the key."""
        body = {"input": base64.b64encode(data).decode("ascii")}
        answer = self._session.call(
            "sign a certificate",
            lambda client: client.adapter.post(f"/v1/{self._transit}/sign/{CERTIFICATE_KEY}", json=body),
        )
        match = _SIGNATURE.fullmatch(str((answer.get("data") or {}).get("signature", "")))
        if match is None:
            raise VaultError("Vault gave a signature in a form that is not known")
        return base64.b64decode(match[2]), int(match[1])

    def public_keys(self) -> dict[int, bytes]:
        """The public keys (32 bytes) of the key for certificates, by version. VaultNotFound: there is no such key."""
        answer = self._session.call(
            f"read the key {CERTIFICATE_KEY}",
            lambda client: client.adapter.get(f"/v1/{self._transit}/keys/{CERTIFICATE_KEY}"),
        )
        try:
            found = {
                int(version): base64.b64decode(key["public_key"], validate=True)
                for version, key in answer["data"]["keys"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            found = {}
        if not found or any(len(key) != PUBLIC_KEY_BYTES for key in found.values()):
            raise VaultError("Vault gave the key for certificates in a form that is not known")
        return found

    def check_access(self) -> None:
        """Raise what keeps us from the grants: Vault away, a login or a policy that says no."""
        self._list("")

    def _delete_key(self, name: str) -> None:
        self._session.call(
            f"delete the key {name}",
            lambda client: client.secrets.transit.delete_key(name, mount_point=self._transit),
        )

    def _list(self, path: str) -> list[str]:
        try:
            answer = self._session.call(
                "list the grants",
                lambda client: client.secrets.kv.v2.list_secrets(path, mount_point=self._grants),
            )
        except VaultNotFound:
            # an empty folder is no folder
            return []
        names = (answer.get("data") or {}).get("keys")
        if not isinstance(names, list):
            raise VaultError("Vault listed the grants in a form that is not known", advice="is the mount KV version 2?")
        return [str(name) for name in names]

    def _check_active(self) -> None:
        """The health of the server behind the same connection; 429 and 473 (standbys) are BackendUnavailable."""
        answer = self._session.call("tell whether it is active", lambda client: client.adapter.get("/v1/sys/health"))
        if answer.get("standby") is not False:
            raise BackendUnavailable(
                "a standby of Vault answers, whose 'not found' proves nothing",
                advice="set vault.address to the active server (a load balancer that asks sys/health for status 200)",
            )


def read_grant(session: VaultSession, mount: str, node: str, job: str) -> dict[str, Any] | None:
    """The data of a grant, or None when there is none."""
    try:
        answer = session.call(
            f"read the grant of job {job} for {node}",
            lambda client: client.secrets.kv.v2.read_secret_version(
                grant_path(node, job), mount_point=mount, raise_on_deleted_version=True
            ),
        )
    except VaultNotFound:
        return None
    data = (answer.get("data") or {}).get("data")
    if not isinstance(data, dict):
        raise VaultError("Vault gave a grant in a form that is not known", advice="is the mount KV version 2?")
    return data


def _is(check: Callable[[str], object], value: str) -> bool:
    try:
        check(value)
    except Refused:
        return False
    return True


def one_line(path: str, *, secret: bool) -> str:
    """The one word in a credential file; ConfigError when it is unsafe (``secret``: also when all can read it)."""
    try:
        word = read_safely(path, secret=secret, limit=4096).decode("ascii").strip()
    except UnicodeDecodeError:
        word = ""
    if not word or not word.isprintable() or " " in word:
        raise ConfigError(f"{path} does not hold one word", advice="write it anew: secure-slurm vault init")
    return word
