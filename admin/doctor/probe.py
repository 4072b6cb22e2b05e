"""What runs in a child, as the account whose door it is: a question to Vault or to the directory, answered in JSON.

Nothing that is secret is in the answer, and nothing comes by the command line but names of files.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from admin.doctor import policies
from conf.errors import SecureSlurmError
from conf.policy import load_policy
from conf.site import Site, load_site
from keys.vault import VaultSession
from keys.vault_head import VaultHead
from keys.vault_node import VaultNode
from slurm_hooks.directory import CredentialsRefused, Directory, read_password
from slurm_hooks.enrolment import Enrolment

if TYPE_CHECKING:
    from collections.abc import Callable

HTTPS, LDAPS = 443, 636
_CONNECT = 5.0
"""Seconds for connecting and the TLS handshake, each wait of it."""


def main(words: list[str]) -> int:
    """``vault-server SITE``, ``vault-own SITE head|NODE``, ``ldap-tls URI CA``, ``ldap-groups SITE POLICY URI``,
    ``enrolled SITE NODE``.
    """
    verb, *rest = words
    asked: dict[str, Callable[..., dict[str, Any]]] = {
        "vault-server": vault_server,
        "vault-own": vault_own,
        "ldap-tls": ldap_tls,
        "ldap-groups": ldap_groups,
        "enrolled": enrolled,
    }
    try:
        sys.stdout.write(json.dumps(asked[verb](*rest)))
    except SecureSlurmError as error:
        # a file that this account may not read, for one
        sys.stderr.write(str(error))
        return error.exit_code
    return 0


def vault_server(site_file: str) -> dict[str, Any]:
    """Its certificate, and what it says of itself without a login."""
    vault = load_site(site_file).vault
    told: dict[str, Any] = {"address": vault.address, "status": 0, "version": "", "skew": None}
    certificate = _server_certificate("Vault's", vault.address, vault.ca_file, HTTPS)
    try:
        with VaultSession(vault.address, vault.ca_file, vault.timeout) as session:
            before = time.time()
            told["status"], answer = session.health()
            told["skew"] = skew(before, answer.get("server_time_utc"), time.time())
        told["version"] = str(answer.get("version") or "")[:64]
    except SecureSlurmError as error:
        told |= {"problem": str(error), "advice": error.advice}
    return {**told, "certificate": certificate}


def skew(before: float, told: object, after: float) -> float | None:
    """How far a clock that was read between two moments of ours is outside of them; it tells whole seconds."""
    if not isinstance(told, int | float) or isinstance(told, bool):
        return None
    return max(0.0, before - (told + 1.0), told - after)


def vault_own(site_file: str, who: str) -> dict[str, Any]:
    """A login with this machine's own identity (``who``: ``head``, or the node's name), and its policies."""
    site = load_site(site_file)
    role = "head" if who == "head" else "node"
    found = []
    try:
        own: VaultHead | VaultNode = (
            VaultHead.from_site(site.vault) if role == "head" else VaultNode.from_site(site.vault, who)
        )
        with own:
            own.session.log_in()
            for name in policies.own(site, role):
                try:
                    found.append({"name": name, "text": own.session.read_policy(name), "problem": ""})
                except SecureSlurmError as error:
                    found.append({"name": name, "text": "", "problem": str(error)})
    except SecureSlurmError as error:
        return {"problem": str(error), "advice": error.advice, "policies": []}
    return {"problem": "", "advice": "", "policies": found}


def ldap_tls(uri: str, ca_file: str) -> dict[str, Any]:
    """The server's certificate. The connection is closed after the handshake, and nothing is sent."""
    return {"uri": uri, "certificate": _server_certificate("the directory's", uri, ca_file, LDAPS)}


def ldap_groups(site_file: str, policy_file: str, uri: str) -> dict[str, Any]:
    """A login, and which groups of the policy are not there."""
    site: Site = load_site(site_file)
    groups = sorted(load_policy(policy_file).groups())
    told: dict[str, Any] = {"uri": uri, "asked": len(groups), "missing": []}
    try:
        with (
            read_password(site.ldap.bind_password_file) as password,
            Directory.open(uri, ca_file=site.ldap.ca_file, bind_dn=site.ldap.bind_dn, password=password) as directory,
        ):
            told["missing"] = [name for name in groups if directory.read(name, ("1.1",)) is None]
    except SecureSlurmError as error:
        told |= {"problem": str(error), "advice": error.advice, "refused": isinstance(error, CredentialsRefused)}
    return told


def enrolled(site_file: str, node: str) -> dict[str, Any]:
    """The certificate that is good for this node, cluster and key."""
    held = Enrolment(load_site(site_file), node).held()
    if held is None:
        return {"instance": "", "begins": 0.0, "ends": 0.0}
    return {"instance": held.instance, "begins": held.begins, "ends": held.ends}


def _server_certificate(what: str, address: str, ca_file: str, default: int) -> dict[str, Any]:
    """What a server shows, verified for its name against ``ca_file`` alone."""
    parts = urlsplit(address)
    where = f"{parts.hostname}:{parts.port or default}"
    told: dict[str, Any] = {"what": what, "where": where, "starts": 0.0, "ends": 0.0}
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=ca_file)
        with (
            socket.create_connection((parts.hostname or "", parts.port or default), timeout=_CONNECT) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as secured,
        ):
            shown: dict[str, Any] = secured.getpeercert() or {}
        told |= {
            "starts": float(ssl.cert_time_to_seconds(shown["notBefore"])),
            "ends": float(ssl.cert_time_to_seconds(shown["notAfter"])),
        }
    except ssl.SSLCertVerificationError as error:
        told["problem"] = error.verify_message[:200]
    except (OSError, KeyError, ValueError) as error:
        told["problem"] = str(getattr(error, "strerror", "") or getattr(error, "reason", "") or type(error).__name__)[
            :200
        ]
    return told
