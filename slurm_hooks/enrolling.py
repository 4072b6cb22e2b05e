"""The head node's side of enrolment: who asks is looked at from every side, then Vault signs. Blocks; no sockets.

``enrol`` comes without a certificate: an identity document and a signing request. ``renew`` comes with the certificate
of before, over TLS that has verified it. Nothing that the peer says of itself counts by itself: the document must be
AWS's, of the region and account; its address must be the peer's; the instance must be the one that somebody else says
the node is (:mod:`slurm_hooks.instances`); and its launch must be new, or known with this very key.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError
from conf.safefile import read_safely
from conf.slurmnames import is_node_name
from keys import nodecert, place_ec2, vault_aws, vault_jwt
from keys.enrol import AGAIN, Binding, Issued, Known, judge
from keys.vault_errors import VaultConflict
from slurm_hooks import wire
from slurm_hooks.answering import Answer, Fields, refusal
from slurm_hooks.instances import RULE, Source, normal_address

if TYPE_CHECKING:
    from conf.site import Site
    from keys.vault_enrol import VaultEnrol

LOG = logging.getLogger(__name__)
MAX_DOCUMENT = 16 * 1024
"""Bytes of a document in base64; EC2's have some 2000."""
SLACK = 120.0
"""Seconds by which a certificate may live longer than was asked: it begins a little earlier than now."""
RENEWED = "renewed"


class Say(Protocol):
    """Writes an audit line that is on disk when it returns."""

    def __call__(self, event: str, **fields: object) -> None:
        """One event of audit/events.py."""


class Desk:
    """Answers one request at a time on each thread."""

    def __init__(self, site: Site, vault: VaultEnrol, source: Source, say: Say) -> None:
        self._site = site
        self._vault = vault
        self._source = source
        self._say = say

    def answer(self, fields: Fields, address: str, certificate: bytes | None) -> Answer:
        """What the peer gets. ``certificate``: its own in DER, verified by TLS; None: it has shown none."""
        claimed = fields.get("node", b"").decode("ascii", "replace")
        node = claimed if is_node_name(claimed) else ""
        try:
            if not node:
                raise Refused("enrol.request", "the request names no node", advice="use letters, digits, '.' and '-'")
            return self._answer(node, fields, normal_address(address), certificate)
        except Refused as error:
            LOG.warning("%s: node %s was refused: [%s] %s", address, node or "?", error.rule, error)
            self._say("enrol.refused", node=node or None, rule=error.rule, reason=f"{address}: {error}")
            return refusal(error.rule, str(error), error.advice)
        except (BackendUnavailable, VaultConflict) as error:
            LOG.warning("%s: node %s has to ask again: %s", address, node, error)
            return refusal("enrol.unavailable", "the head node cannot enrol just now", "ask again in a minute")
        except SecureSlurmError as error:
            LOG.error("%s: node %s: %s %s", address, node, error, error.advice)
            return refusal("enrol.failed", "the head node cannot enrol", "its log says why: secure-slurm-enrold")

    def _answer(self, node: str, fields: Fields, address: str, certificate: bytes | None) -> Answer:
        verb, cluster = wire.text(fields, "verb"), wire.text(fields, "cluster")
        if cluster != self._site.cluster.name:
            raise Refused("enrol.request", f"this is the cluster {self._site.cluster.name}")
        if verb == "token":
            return self._token(node, address, certificate)
        request = fields.get("request", b"")
        key = nodecert.read_request(request)
        if verb == "renew":
            return self._renew(node, key, address, certificate, fields)
        if verb == "enrol":
            return self._enrol(node, request, key, address, fields)
        raise Refused("enrol.request", "the request is none that is known here")

    # -- by the identity document -----------------------------------------------------------------------------------

    def _enrol(self, node: str, request: bytes, key: str, address: str, fields: Fields) -> Answer:
        found = self._identity(wire.text(fields, "region"), fields.get("document", b""))
        if _normal(found.address) != address:
            raise Refused(
                RULE,
                f"the document of {found.instance} is of {found.address[:45] or 'nowhere'}, shown from {address}",
                advice="was it carried here from another machine, or is there an address translation between?",
            )
        self._source.check(node, found.instance, address)
        who = self._principal(found.region, found.instance, fields)
        asked = Binding(node, found.instance, int(found.launched), key, address, principal=who)
        of_node, of_instance = self._vault.node(node), self._vault.instance(found.instance)
        known = Known(of_node.binding, of_instance.binding)
        now = time.time()
        what = judge(asked, known, oldest=self._site.enrol.oldest, now=now)
        self._say("node.enrolled", node=node, identity=found.instance, digest=found.digest, result=what)
        before = known.of_node
        if what == AGAIN and before is not None:
            asked = asked._replace(issued=before.issued)
        else:
            # first: between here and the signature nobody else can use this launch
            if known.of_instance is None or known.of_instance != asked:
                self._vault.bind_instance(asked, of_instance.version)
            if before is not None:
                # what the earlier launch was given opens nothing any more
                self._vault.revoke(before.issued, now)
        if before is not None and before.principal not in ("", who):
            self._vault.name_principal(before.principal, "")
        answer = self._signed(asked, of_node.version, request, now)
        if before is not None and before.instance != asked.instance:
            # its document is older than what the name is bound to by now: it needs no memory of its own
            self._forget(before.instance)
        return answer

    def _principal(self, region: str, instance: str, fields: Fields) -> str:
        """Who the instance is to STS, where nodes log in to Vault with its role, which must be one of the site's."""
        if self._site.vault.node.method != "aws":
            return ""
        role = wire.text(fields, "role", "")
        if role not in self._site.enrol.instance_roles:
            raise Refused("enrol.role", "the instance has a role that enrol.instance_roles does not have")
        return vault_aws.principal(region, self._site.node.ec2.account, role, instance)

    def _forget(self, instance: str) -> None:
        try:
            self._vault.forget_instance(instance)
        except SecureSlurmError as error:
            LOG.warning("what Vault remembers of %s stays: %s", instance, error)

    def _identity(self, region: str, document: bytes) -> place_ec2.Identity:
        if region not in self._site.enrol.regions:
            raise Refused("enrol.region", "the node says that it is in a region that enrol.regions does not have")
        if len(document) > MAX_DOCUMENT:
            raise Refused("enrol.request", "the identity document is too long to be one")
        settings = self._site.node.ec2
        try:
            pinned = read_safely(f"{settings.certificates}/{region}.pem", limit=64 * 1024)
        except ConfigError as error:
            raise BackendUnavailable(f"the document cannot be verified: {error}") from None
        # how old it may be depends on whether it was used before: judge() says so
        expected = place_ec2.Expected(region, "", settings.account, oldest=float("inf"))
        return place_ec2.verify(document, pinned, expected, time.time())

    # -- by the certificate of before ---------------------------------------------------------------------------------

    def _renew(self, node: str, key: str, address: str, certificate: bytes | None, fields: Fields) -> Answer:
        bound, version = self._shown(node, address, certificate)
        if bound.key != key:
            raise Refused("enrol.certificate", "the request has another key than the certificate that was shown")
        self._source.check(node, bound.instance, address)
        if bound.principal and not bound.principal.endswith(
            f":assumed-role/{wire.text(fields, 'role', '')}/{bound.instance}"
        ):
            raise Refused("enrol.role", "the instance has another role than when it enrolled", advice="enrol --anew")
        self._say("node.enrolled", node=node, identity=bound.instance, result=RENEWED)
        return self._signed(bound, version, fields.get("request", b""), time.time())

    def _token(self, node: str, address: str, certificate: bytes | None) -> Answer:
        """For one login to Vault. Not in the trail: Vault's own log has every login, every few minutes."""
        if self._site.vault.node.method != "jwt":
            raise Refused("enrol.request", "nodes log in to Vault with their certificates here")
        bound, _ = self._shown(node, address, certificate)
        key = read_safely(self._site.enrol.token_key, secret=True, limit=nodecert.MAX_BYTES)
        return {
            "verdict": "allow",
            "token": vault_jwt.sign(key, self._site.cluster.name, node, bound.instance, time.time()),
        }

    def _shown(self, node: str, address: str, certificate: bytes | None) -> tuple[Binding, int]:
        """What is remembered of the node whose certificate was shown, if it is that node still, and its version."""
        if certificate is None:
            raise Refused("enrol.certificate", "this needs the node's certificate", advice="enrol again")
        shown = nodecert.read_certificate(certificate)
        if (shown.cluster, shown.node) != (self._site.cluster.name, node):
            raise Refused("enrol.certificate", f"the certificate that was shown is not {node}'s")
        kept = self._vault.node(node)
        bound = kept.binding
        if bound is None or (bound.instance, bound.key) != (shown.instance, shown.key):
            instance = bound.instance if bound else "no instance"
            raise Refused("enrol.superseded", f"node {node} is {instance} by now, not {shown.instance}")
        if bound.address != address:
            raise Refused(RULE, f"{shown.instance} has enrolled from {bound.address}, and asks from {address}")
        return bound, kept.version

    def _signed(self, binding: Binding, version: int, request: bytes, now: float) -> Answer:
        """Sign, remember, and only then give it away: what was not remembered nobody has."""
        binding.check_room(now)
        cluster = self._site.cluster.name
        uri = nodecert.uri_of(cluster, binding.node, binding.instance)
        pem = self._vault.sign(request, binding.node, uri, self._site.enrol.lifetime)
        made = nodecert.read_certificate(pem)
        wanted = (cluster, binding.node, binding.instance, binding.key)
        if (made.cluster, made.node, made.instance, made.key) != wanted or made.ends > now + self._longest():
            raise ConfigError(
                f"Vault's role {self._site.enrol.pki_role} signed something else than was asked",
                advice="compare it with the shipped one: secure-slurm vault init --check",
            )
        self._vault.bind_node(binding.with_issued(Issued(made.serial, int(made.ends) + 1), now), version)
        if binding.principal:
            self._vault.name_principal(binding.principal, binding.node)
        return {"verdict": "allow", "certificate": pem, "instance": binding.instance}

    def _longest(self) -> float:
        return self._site.enrol.lifetime + SLACK


def _normal(address: str) -> str:
    try:
        return normal_address(address)
    except ValueError:
        return ""
