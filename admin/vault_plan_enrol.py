"""What Vault must have besides when nodes enrol: a CA of their own, a role that says what it signs, and the daemon's.

The CA's key is made inside Vault and never leaves it. What a role is asked to sign counts for nothing but its key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from admin.vault_plan import CREATED, MISSING, SECRET_ID_TTL, UNCHANGED, Setup, Step, Wishes, token
from admin.vault_policies import render_policy
from conf.errors import UsageError
from keys.vault_enrol import crl_name
from keys.vault_errors import VaultError
from keys.vault_jwt import audience

if TYPE_CHECKING:
    from conf.site import Site
    from keys.vault import VaultSession

CA_LIFE = 10 * 365 * 86400
"""Seconds. Replacing it means a new cert role and new files on every node, so it is long."""
LEEWAY = 10
"""Seconds by which the clocks of Vault and the head node may differ, for tokens."""
BACKDATED = 60
"""Seconds by which a certificate begins earlier, for a node whose clock is a little behind."""


def setup_of(session: VaultSession, site: Site, wishes: Wishes, *, check: bool) -> Setup:
    """What this site needs: with enrolment more than without."""
    return (EnrolSetup if site.enrol.listen else Setup)(session, site, wishes, check=check)


class EnrolSetup(Setup):
    """As :class:`Setup`, and nodes' certificates come from Vault PKI."""

    def __init__(self, session: VaultSession, site: Site, wishes: Wishes, *, check: bool) -> None:
        own = wishes._replace(node_uris=(f"secure-slurm://{site.cluster.name}/*",))
        super().__init__(session, site, own, check=check)
        self._role = f"secure-slurm-{site.cluster.name}-enrol"

    @property
    def method(self) -> str:
        """How nodes log in."""
        return self._site.vault.node.method

    def steps(self) -> list[Step]:
        """The CA first, for the nodes' login needs its certificate."""
        mount = self._site.enrol.pki_mount
        first = [self._mount("sys/mounts", mount, "pki"), self._longest_life(), self._ca()]
        if self.method == "aws" and not self._accessor(self._site.vault.node.aws_mount) and not self._check:
            raise UsageError(
                f"there is no auth method at {self._site.vault.node.aws_mount}/",
                advice="enable and configure aws first: docs/admin.md, Node identity",
            )
        if self.method == "jwt":
            first += self._tokens()
        if not self._wishes.node_ca:
            self._wishes = self._wishes._replace(node_ca=self.nodes_ca())
        return [*first, *super().steps(), self._signing_role(), self._policy(), self._daemon_role()]

    def nodes_ca(self) -> str:
        """The certificate of the CA, PEM; "" when there is none yet."""
        try:
            found = self._read(f"{self._site.enrol.pki_mount}/issuer/default")
        except VaultError:
            # an engine without an issuer answers 500
            return ""
        return str((found or {}).get("certificate", "")).strip()

    def enrol_role_id(self) -> str:
        """The role id of the enrolment daemon; "" when there is no such role yet."""
        return self.role_id(self._role)

    def new_enrol_secret_id(self) -> str:
        """A new secret id of the enrolment daemon."""
        return self.new_secret_id(self._role)

    def trust(self, public_key: str) -> Step:
        """Have Vault take the tokens that are signed with this key, and no others."""
        mount, name = self._site.vault.node.jwt_mount, audience(self._site.cluster.name)
        wanted = {"jwt_validation_pubkeys": [public_key.strip()], "bound_issuer": name}
        return self._object(f"key of nodes' tokens in {mount}/", f"auth/{mount}/config", wanted, {})

    def _tokens(self) -> list[Step]:
        node, name = self._site.vault.node, audience(self._site.cluster.name)
        wanted: dict[str, Any] = {
            **token(self._roles.node_policy),
            "role_type": "jwt",
            "user_claim": "sub",
            "bound_audiences": [name],
            # without it Vault adds a minute to the life of every token
            "clock_skew_leeway": LEEWAY,
        }
        if self._wishes.node_cidrs:
            wanted["token_bound_cidrs"] = self._wishes.node_cidrs
        path = f"auth/{node.jwt_mount}/role/{node.jwt_role}"
        steps = [self._mount("sys/auth", node.jwt_mount, "jwt")]
        if steps[0].state == MISSING:
            return [*steps, Step(f"role {node.jwt_role} ({node.jwt_mount})", MISSING)]
        return [*steps, self._object(f"role {node.jwt_role} ({node.jwt_mount})", path, wanted, {})]

    def _longest_life(self) -> Step:
        mount = self._site.enrol.pki_mount
        what = f"longest life of what {mount}/ signs"
        if f"{mount}/" not in self._mounts("sys/mounts"):
            return Step(what, MISSING)
        return self._object(what, f"sys/mounts/{mount}/tune", {"max_lease_ttl": CA_LIFE}, {})

    def _ca(self) -> Step:
        """Made once; a site that wants its own imports it before (an intermediate whose key Vault has)."""
        mount = self._site.enrol.pki_mount
        what = f"CA of the nodes in {mount}/"
        if self.nodes_ca():
            return Step(what, UNCHANGED)
        if self._check:
            return Step(what, MISSING)
        body = {
            "common_name": f"secure-slurm nodes of {self._site.cluster.name}",
            "issuer_name": "secure-slurm-nodes",
            "key_type": "ec",
            "key_bits": 256,
            "ttl": f"{CA_LIFE}s",
            "max_path_length": 0,
        }
        self._write(f"{mount}/root/generate/internal", body)
        if not self.nodes_ca():
            raise VaultError("Vault made a CA for the nodes and did not give its certificate")
        return Step(what, CREATED)

    def _signing_role(self) -> Step:
        enrol = self._site.enrol
        what, path = f"role {enrol.pki_role} ({enrol.pki_mount})", f"{enrol.pki_mount}/roles/{enrol.pki_role}"
        wanted: dict[str, Any] = {
            "ttl": int(enrol.lifetime),
            "max_ttl": int(enrol.lifetime),
            "not_before_duration": BACKDATED,
            "key_type": "ec",
            "key_bits": 256,
            # nobody reads them there, and every node makes one twice a day
            "no_store": True,
            "generate_lease": False,
            # a node's certificate can be no server's, or one node could be the head node to another
            "server_flag": False,
            "client_flag": True,
            "code_signing_flag": False,
            "email_protection_flag": False,
            "key_usage": ["DigitalSignature"],
            # nothing but the key is taken from a request
            "use_csr_common_name": False,
            "use_csr_sans": False,
            "require_cn": True,
            "allow_any_name": False,
            "allow_localhost": False,
            "allow_subdomains": False,
            "allow_ip_sans": False,
            "allowed_other_sans": [],
            "allowed_uri_sans": self._wishes.node_uris,
            # without these the common name would be compared with no pattern at all, and a pattern with "*" would let
            # pass what is no name: "n1/x", "n*" (measured: OpenBao 2.6)
            "cn_validations": ["hostname"],
            "enforce_hostnames": True,
            "allow_wildcard_certificates": False,
            "allow_glob_domains": True,
            "allow_bare_domains": True,
        }
        if self._wishes.node_names:
            wanted["allowed_domains"] = self._wishes.node_names
        needed = None
        if not self._wishes.node_names:
            needed = UsageError(
                f"the role {enrol.pki_role} is not there yet, and cannot be made without the nodes' names",
                advice="add --node-name PATTERN",
            )
        return self._object(what, path, wanted, {}, needed=needed)

    def _policy(self) -> Step:
        words = {
            **{"PKI": self._site.enrol.pki_mount, "PKI_ROLE": self._site.enrol.pki_role},
            **{"GRANTS": self._site.vault.grants_mount, "CERT": self._site.vault.node.cert_mount},
            "CRL": crl_name(self._site.cluster.name),
        }
        text = render_policy("enrol.hcl", words)
        if self.method == "aws":
            mount = self._site.vault.node.aws_mount
            text += render_policy("enrol-aws.hcl", {"AWS": mount, "AWS_ACCESSOR": self._accessor(mount)})
        wanted = {"policy": text}
        return self._object(f"policy {self._role}", f"sys/policies/acl/{self._role}", wanted, {})

    def _daemon_role(self) -> Step:
        mount = self._site.vault.head.approle_mount
        wanted: dict[str, Any] = {**token(self._role), "bind_secret_id": True, "secret_id_num_uses": 0}
        if self._wishes.head_cidrs:
            wanted |= {"token_bound_cidrs": self._wishes.head_cidrs, "secret_id_bound_cidrs": self._wishes.head_cidrs}
        if self._wishes.secret_id_ttl:
            wanted["secret_id_ttl"] = self._wishes.secret_id_ttl
        path = f"auth/{mount}/role/{self._role}"
        return self._object(f"role {self._role} ({mount})", path, wanted, {"secret_id_ttl": SECRET_ID_TTL})
