"""What Vault must look like for one cluster, and how what it looks like is compared with that. No I/O but by the door.

Mounts, policies and roles bear the cluster's name, so that clusters which share a Vault cannot take each other's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from admin.vault_policies import Roles, node_word, policy_words, render_policy
from conf.errors import Refused, UsageError
from keys.names import CERTIFICATE_KEY
from keys.vault_errors import VaultError, VaultNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conf.site import Site
    from keys.vault import VaultSession

CREATED, UNCHANGED, CHANGED = "created", "unchanged", "changed"
MISSING, DIFFERENT = "missing", "different"

TOKEN_TTL = 600
TOKEN_MAX_TTL = 3600
SECRET_ID_TTL = 365 * 24 * 3600
# a KV mount answers 400 until the server has upgraded it, within a second or so
KV_READY = 30.0

_SIGNING = {"type": "ed25519", "exportable": False, "allow_plaintext_backup": False}


class Step(NamedTuple):
    """What was found or done: ``state`` is one of the five words above, ``detail`` names the fields that differ."""

    what: str
    state: str
    detail: str = ""


class Wishes(NamedTuple):
    """What the admin said beside secure-slurm.yaml; empty means: leave it as it is (a new node role cannot be)."""

    node_ca: str = ""
    node_names: tuple[str, ...] = ()
    head_cidrs: tuple[str, ...] = ()
    node_cidrs: tuple[str, ...] = ()
    secret_id_ttl: int = 0
    node_uris: tuple[str, ...] = ()


class Setup:
    """Brings Vault to what ``site`` needs; with ``check`` only compares. Running it again changes nothing."""

    def __init__(self, session: VaultSession, site: Site, wishes: Wishes, *, check: bool) -> None:
        self._session = session
        self._site = site
        self._wishes = wishes
        self._check = check
        self._roles = Roles.of(site.cluster.name)
        self._description = f"secure-slurm: cluster {site.cluster.name}"

    def steps(self) -> list[Step]:
        """Every step in order; raises at the first that Vault refuses. UsageError: the node role lacks something."""
        vault = self._site.vault
        steps = [
            self._mount("sys/mounts", vault.transit_mount, "transit"),
            self._mount("sys/mounts", vault.grants_mount, "kv", {"version": "2"}),
            self._grants_config(),
            self._mount("sys/auth", vault.head.approle_mount, "approle", ours=False),
            self._mount("sys/auth", vault.node.cert_mount, "cert", ours=False),
        ]
        return [*steps, self._certificate_key(), *self._policies(), self._head_role(), self._node_role()]

    def role_id(self, role: str = "") -> str:
        """The role id of the head node, or of another AppRole; "" when there is no such role yet."""
        path = f"auth/{self._site.vault.head.approle_mount}/role/{role}" if role else self._head_path()
        answer = self._read(f"{path}/role-id")
        return str((answer or {}).get("role_id", ""))

    def new_secret_id(self, role: str = "") -> str:
        """A new secret id, of the head node's role or of another AppRole; it is in the answer alone."""
        path = f"auth/{self._site.vault.head.approle_mount}/role/{role}" if role else self._head_path()
        data = self._write(f"{path}/secret-id", {})
        secret_id = data.get("secret_id")
        if not isinstance(secret_id, str) or not secret_id:
            raise VaultError("Vault made a secret id and did not give it")
        return secret_id

    def _head_path(self) -> str:
        return f"auth/{self._site.vault.head.approle_mount}/role/{self._roles.head_role}"

    def _mount(
        self, where: str, path: str, kind: str, options: Mapping[str, str] | None = None, *, ours: bool = True
    ) -> Step:
        what = f"{'auth method' if where == 'sys/auth' else 'secrets engine'} {path}/ ({kind})"
        found = self._mounts(where).get(f"{path}/")
        if found is None:
            if self._check:
                return Step(what, MISSING)
            body = {"type": kind, "description": self._description if ours else "", "options": dict(options or {})}
            self._write(f"{where}/{path}", body)
            return Step(what, CREATED)
        version = (found.get("options") or {}).get("version")
        if found.get("type") != kind or (options and version != options["version"]):
            raise Refused(
                "vault.mount",
                f"{where} has {path}/ already, of type {found.get('type')} (version {version})",
                advice="name other mounts in secure-slurm.yaml: nothing that is there is ever replaced",
            )
        description = str(found.get("description") or "")
        if ours and description.startswith("secure-slurm: ") and description != self._description:
            raise Refused(
                "vault.mount",
                f"{path}/ belongs to another cluster ({description!r})",
                advice="each cluster needs mounts of its own: nodes of the same name would share their grants",
            )
        return Step(what, UNCHANGED)

    def _mounts(self, where: str) -> dict[str, Any]:
        return self._read(where) or {}

    def _grants_config(self) -> Step:
        # one version: a grant is written once, and no older one may be left when it is deleted
        wanted = {"cas_required": True, "max_versions": 1}
        path = f"{self._site.vault.grants_mount}/config"
        what = f"settings of {self._site.vault.grants_mount}/"
        if self._check and f"{self._site.vault.grants_mount}/" not in self._mounts("sys/mounts"):
            return Step(what, MISSING)
        deadline = time.monotonic() + KV_READY
        while True:
            try:
                return self._object(what, path, wanted, {})
            except VaultError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _certificate_key(self) -> Step:
        """Made once. One that is there and could be exported or deleted is refused: what it signed proves nothing."""
        mount = self._site.vault.transit_mount
        what, path = f"key {CERTIFICATE_KEY} in {mount}/", f"{mount}/keys/{CERTIFICATE_KEY}"
        if self._check and f"{mount}/" not in self._mounts("sys/mounts"):
            return Step(what, MISSING)
        found = self._read(path)
        if found is None:
            if self._check:
                return Step(what, MISSING)
            self._write(path, dict(_SIGNING))
            return Step(what, CREATED)
        differ = [name for name, value in {**_SIGNING, "deletion_allowed": False}.items() if found.get(name) != value]
        if differ:
            raise Refused(
                "vault.key",
                f"{mount}/ has a key {CERTIFICATE_KEY} already, with another {', '.join(sorted(differ))}",
                advice="look who made it; keep its public key for the certificates that it signed, and delete it",
            )
        return Step(what, UNCHANGED)

    def _policies(self) -> list[Step]:
        words = policy_words(self._site, node_word(self._site, self._accessor))
        steps = []
        for file, name in (("head.hcl", self._roles.head_policy), ("node.hcl", self._roles.node_policy)):
            text = render_policy(file, words)
            steps.append(self._object(f"policy {name}", f"sys/policies/acl/{name}", {"policy": text}, {}))
        return steps

    def _accessor(self, mount: str) -> str:
        return str(self._mounts("sys/auth").get(f"{mount}/", {}).get("accessor", ""))

    def _head_role(self) -> Step:
        wanted: dict[str, Any] = {**token(self._roles.head_policy), "bind_secret_id": True, "secret_id_num_uses": 0}
        if self._wishes.head_cidrs:
            wanted |= {"token_bound_cidrs": self._wishes.head_cidrs, "secret_id_bound_cidrs": self._wishes.head_cidrs}
        if self._wishes.secret_id_ttl:
            wanted["secret_id_ttl"] = self._wishes.secret_id_ttl
        return self._object(
            f"role {self._roles.head_role} ({self._site.vault.head.approle_mount})",
            self._head_path(),
            wanted,
            {"secret_id_ttl": SECRET_ID_TTL},
        )

    def _node_role(self) -> Step:
        node = self._site.vault.node
        wanted = token(self._roles.node_policy)
        if self._wishes.node_ca:
            wanted["certificate"] = self._wishes.node_ca
        if self._wishes.node_names:
            wanted["allowed_common_names"] = self._wishes.node_names
        if self._wishes.node_cidrs:
            wanted["token_bound_cidrs"] = self._wishes.node_cidrs
        if self._wishes.node_uris:
            wanted["allowed_uri_sans"] = self._wishes.node_uris
        needed = None
        if not (self._wishes.node_ca and self._wishes.node_names):
            needed = UsageError(
                f"the role {node.cert_role} is not there yet, and cannot be made without the nodes' CA and names",
                advice="add --node-ca FILE and --node-name PATTERN",
            )
        what, path = f"role {node.cert_role} ({node.cert_mount})", f"auth/{node.cert_mount}/certs/{node.cert_role}"
        other = set((self._read(path) or {}).get("token_policies") or []) - {self._roles.node_policy}
        if any(policy.startswith("secure-slurm-") for policy in other):
            raise Refused(
                "vault.role",
                f"the {what} belongs to another cluster (it has {', '.join(sorted(other))})",
                advice="name another with vault.node.cert_role in secure-slurm.yaml",
            )
        return self._object(what, path, wanted, {}, needed=needed)

    def _object(
        self,
        what: str,
        path: str,
        wanted: Mapping[str, Any],
        at_first: Mapping[str, Any],
        *,
        needed: UsageError | None = None,
    ) -> Step:
        """Make ``path`` hold ``wanted``, whatever else it holds; ``at_first``: also this, when it is made."""
        found = self._read(path)
        if found is None:
            if self._check:
                return Step(what, MISSING)
            if needed is not None:
                raise needed
            self._write(path, {**at_first, **wanted})
            return Step(what, CREATED)
        differ = [name for name, value in wanted.items() if not same(found.get(name), value)]
        if not differ:
            return Step(what, UNCHANGED)
        detail = ", ".join(sorted(differ))
        if self._check:
            return Step(what, DIFFERENT, detail)
        self._write(path, dict(wanted))
        return Step(what, CHANGED, detail)

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            data = self._call("read", path, lambda client: client.adapter.get(f"/v1/{path}")).get("data")
        except VaultNotFound:
            return None
        except VaultError:
            # a role below an auth method that is not mounted: there is nothing, and in a check no reason to stop
            if self._check:
                return None
            raise
        return data if isinstance(data, dict) else None

    def _write(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._call("write", path, lambda client: client.adapter.post(f"/v1/{path}", json=dict(body)))
        return answer.get("data") or {}

    def _call(self, verb: str, path: str, request: Callable[[Any], Any]) -> dict[str, Any]:
        return self._session.call(f"{verb} {path}", request)


def same(found: object, wanted: object) -> bool:
    """Whether Vault's answer says what we want: lists in any order, text without the space around it."""
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and sorted(map(str, found)) == sorted(map(str, wanted))
    if isinstance(wanted, str):
        return isinstance(found, str) and found.strip() == wanted.strip()
    return type(found) is type(wanted) and found == wanted


def token(policy: str) -> dict[str, Any]:
    """Short tokens with one policy, renewed by a new login; service tokens, because they can be revoked."""
    return {
        "token_policies": [policy],
        "token_no_default_policy": True,
        "token_type": "service",
        "token_ttl": TOKEN_TTL,
        "token_max_ttl": TOKEN_MAX_TTL,
        "token_num_uses": 0,
    }
