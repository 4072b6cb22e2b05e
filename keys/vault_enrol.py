"""Vault as the enrolment daemon sees it: sign nodes' certificates, remember which instance a node is, revoke.

Its policy (``conf/vault/enrol.hcl``) has nothing of keys and grants. What is remembered lies in the grants' mount under
names that no node can have. Errors are those of :meth:`keys.vault.VaultSession.call`. For any number of threads.
"""

from __future__ import annotations

import datetime
import re
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from conf.errors import Refused
from keys.enrol import Binding, Issued
from keys.names import check_node, node_key
from keys.vault import VaultSession
from keys.vault_errors import VaultError, VaultNotFound
from keys.vault_head import NEVER_WRITTEN, one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conf.site import Site

NODES, INSTANCES, REVOKED = "_nodes", "_instances", "_revoked/nodes"
"""Folders in the grants' mount. No node name has ``_``, so that no node's policy and no list of grants reaches them."""
CRL_LIFE = "8760h"
"""How long the list of revoked certificates says that it is good for: longer than anything on it."""
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
_ENTITY = re.compile(r"[0-9a-f-]{36}", re.ASCII)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?", re.ASCII)
_SERIALS = re.compile(r"(?:[0-9a-f]{1,40}:[0-9]{1,12}(?: |\Z))*", re.ASCII)


class Kept(NamedTuple):
    """A binding and the version of what holds it, for the next write: 0 when there is none."""

    binding: Binding | None
    version: int


class VaultEnrol:
    """One AppRole identity. Close it, or use it as a context manager: closing revokes its token."""

    def __init__(self, session: VaultSession, site: Site) -> None:
        self._session = session
        self._site = site
        self._revoking = threading.Lock()

    @classmethod
    def from_site(cls, site: Site) -> Self:
        """The client for ``site``. The files of the AppRole are read anew at every login."""

        def login(client: Any) -> Any:  # noqa: ANN401 - hvac has no types
            return client.auth.approle.login(
                one_line(site.enrol.role_id_file, secret=False),
                one_line(site.enrol.secret_id_file, secret=True),
                use_token=False,
                mount_point=site.vault.head.approle_mount,
            )

        return cls(VaultSession(site.vault.address, site.vault.ca_file, site.vault.timeout, login=login), site)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Revoke the token and close the connections."""
        self._session.close()

    def node(self, node: str) -> Kept:
        """What is remembered of a node's name. Refused ``enrol.binding``: it cannot be read."""
        return self._binding(f"{NODES}/{check_node(node)}")

    def instance(self, instance: str) -> Kept:
        """What is remembered of an instance."""
        return self._binding(f"{INSTANCES}/{_checked_instance(instance)}")

    def bind_node(self, binding: Binding, version: int) -> None:
        """Remember which instance a node is, if nobody has written since ``version``; else VaultConflict."""
        self._write(f"{NODES}/{check_node(binding.node)}", binding.to_dict(), version)

    def bind_instance(self, binding: Binding, version: int) -> None:
        """Remember which node an instance is, if nobody has written since ``version``; else VaultConflict."""
        self._write(f"{INSTANCES}/{_checked_instance(binding.instance)}", binding.to_dict(), version)

    def forget_instance(self, instance: str) -> None:
        """Forget which node an instance was; fine when nothing is remembered."""
        path = f"/v1/{self._site.vault.grants_mount}/metadata/{INSTANCES}/{_checked_instance(instance)}"
        self._session.call("forget an instance", lambda client: client.adapter.delete(path))

    def sign(self, request: bytes, node: str, uri: str, seconds: float) -> bytes:
        """The certificate for a request, PEM. Vault takes nothing but the key from the request."""
        body = {
            "csr": request.decode("ascii", "replace"),
            "common_name": check_node(node),
            # Slurm's names need not be host names
            "exclude_cn_from_sans": True,
            "uri_sans": uri,
            "ttl": f"{int(seconds)}s",
        }
        path = f"/v1/{self._site.enrol.pki_mount}/sign/{self._site.enrol.pki_role}"
        answer = self._session.call(
            f"sign the certificate of {node}", lambda client: client.adapter.post(path, json=body)
        )
        found = (answer.get("data") or {}).get("certificate")
        if not isinstance(found, str) or not _PEM.fullmatch(found if found.endswith("\n") else f"{found}\n"):
            raise VaultError("Vault signed a certificate and gave it in a form that is not known")
        return found.strip().encode("ascii") + b"\n"

    def name_principal(self, principal: str, node: str) -> None:
        """Have Vault take whoever logs in as ``principal`` by aws for the node; "": for nobody any more, at once.

        One word in the metadata of an entity, which the nodes' policy is made of: it counts for tokens that there are.
        """
        accessor = self._aws_accessor()
        where = {"alias_name": principal, "alias_mount_accessor": accessor}
        # made if it is not there; it says nothing of one that is
        self._post("identity/entity-alias", "name an instance", {"name": principal, "mount_accessor": accessor})
        found = self._post("identity/lookup/entity", "find an instance's entity", where)
        entity = str((found.get("data") or {}).get("id", ""))
        if not _ENTITY.fullmatch(entity):
            raise VaultError("Vault does not say which entity an instance is")
        metadata = {node_key(self._site.cluster.name): check_node(node)} if node else {}
        self._post(f"identity/entity/id/{entity}", "say which node an instance is", {"metadata": metadata})

    def _aws_accessor(self) -> str:
        mount = self._site.vault.node.aws_mount
        answer = self._session.call(
            "say which auth method aws is",
            lambda client: client.adapter.get(f"/v1/sys/internal/ui/mounts/auth/{mount}"),
        )
        return str((answer.get("data") or {}).get("accessor", ""))

    def _post(self, path: str, action: str, body: Mapping[str, object]) -> dict[str, Any]:
        return self._session.call(action, lambda client: client.adapter.post(f"/v1/{path}", json=dict(body)))

    def revoke(self, issued: Iterable[Issued], now: float) -> None:
        """Have Vault accept these certificates no more, which is so when this returns; may be repeated.

        A certificate of a role without storage (``no_store``) cannot be revoked by PKI itself. So a list is signed with
        the PKI's key and given to cert auth, which compares serial numbers. It holds those that have not ended.
        """
        issued = tuple(issued)
        with self._revoking:
            version = -1
            # Cert auth keeps the list that came last. Another head node may have made a longer one since this one was
            # read, and have given it before this: then it is given once more.
            while self._read(REVOKED)[1] != version:
                version = self._push(issued, now)

    def _push(self, issued: Iterable[Issued], now: float) -> int:
        """Give cert auth the whole list; the version of what it was made of. VaultConflict: another is writing."""
        found, version = self._read(REVOKED)
        text = str((found or {}).get("serials", ""))
        if not _SERIALS.fullmatch(text):
            raise Refused("enrol.binding", "what Vault remembers of revoked certificates cannot be read")
        before = {serial: int(ends) for serial, _, ends in (each.partition(":") for each in text.split())}
        wanted = before | {each.serial: each.ends for each in issued}
        wanted = {serial: ends for serial, ends in wanted.items() if ends > now}
        # pushed each time, also when nothing is new: the last attempt may have ended between the two
        if wanted != before:
            self._write(REVOKED, {"serials": " ".join(f"{s}:{e}" for s, e in sorted(wanted.items()))}, version)
            version += 1
        when = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = {
            "crl_number": version + 1,
            "next_update": CRL_LIFE,
            "revoked_certs": [{"serial_number": _colons(each), "revocation_time": when} for each in sorted(wanted)],
        }
        pki, mount = self._site.enrol.pki_mount, self._site.vault.node.cert_mount
        answer = self._session.call(
            "sign the list of revoked certificates",
            lambda client: client.adapter.post(f"/v1/{pki}/issuer/default/sign-revocation-list", json=body),
        )
        crl = (answer.get("data") or {}).get("crl")
        if not isinstance(crl, str) or not crl.startswith("-----BEGIN X509 CRL-----"):
            raise VaultError("Vault signed a list of revoked certificates and did not give it")
        self._session.call(
            "take the list of revoked certificates",
            lambda client: client.adapter.post(
                f"/v1/auth/{mount}/crls/{crl_name(self._site.cluster.name)}", json={"crl": crl}
            ),
        )
        return version

    def _binding(self, path: str) -> Kept:
        found, version = self._read(path)
        return Kept(None if found is None else Binding.from_dict(found), version)

    def _read(self, path: str) -> tuple[dict[str, Any] | None, int]:
        return _read(self._session, self._site.vault.grants_mount, path)

    def _write(self, path: str, data: Mapping[str, str], version: int) -> None:
        mount = self._site.vault.grants_mount
        body = {"data": dict(data), "options": {"cas": version}}
        self._session.call(
            "remember which instance a node is",
            lambda client: client.adapter.post(f"/v1/{mount}/data/{path}", json=body),
        )


def instance_of(session: VaultSession, grants_mount: str, node: str) -> str:
    """Which instance a node is, for the lifecycle daemon, which may read that; "" when it has not enrolled.

    Refused ``enrol.binding``: what is remembered cannot be read.
    """
    found, _ = _read(session, grants_mount, f"{NODES}/{check_node(node)}")
    return "" if found is None else Binding.from_dict(found).instance


def _read(session: VaultSession, mount: str, path: str) -> tuple[dict[str, Any] | None, int]:
    try:
        answer = session.call(
            "read what it remembers of a node", lambda client: client.adapter.get(f"/v1/{mount}/data/{path}")
        )
    except VaultNotFound:
        return None, NEVER_WRITTEN
    data = answer.get("data") or {}
    found, version = data.get("data"), (data.get("metadata") or {}).get("version")
    if not isinstance(found, dict) or type(version) is not int:
        raise VaultError("Vault gave what it remembers in a form that is not known")
    return found, version


def crl_name(cluster: str) -> str:
    """What the cluster's list of revoked certificates is called in cert auth."""
    return f"secure-slurm-{cluster}"


def _colons(serial: str) -> str:
    """A serial number as PKI writes it: bytes in hex with colons."""
    digits = serial if len(serial) % 2 == 0 else f"0{serial}"
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def _checked_instance(instance: str) -> str:
    if not _INSTANCE.fullmatch(instance):
        raise Refused("enrol.binding", "that is no instance's id")
    return instance
