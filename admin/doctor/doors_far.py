"""Doors to what is on other machines: Vault, the directory, the outside, endpoints. All by way of a child."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from admin.doctor import children, policies
from admin.doctor.facts import (
    Attempt,
    Certificate,
    LdapGroups,
    LdapServer,
    VaultOwn,
    VaultPolicy,
    VaultServer,
    VaultStep,
)
from admin.vault_plan import Setup, Wishes
from conf.errors import BackendUnavailable, ConfigError
from keys.vault import VaultSession

if TYPE_CHECKING:
    from admin.doctor.scene import Scene

HEAD, NODE, LDAP = "secure-life", "secure-node", "secure-ldap"
TLS_WAIT = 15.0
"""Seconds for one server of the directory to show its certificate, beside the others."""
LDAP_WAIT = 20.0
OUT_WAIT = 3.0
"""Seconds for a place outside: those that there is a way to answer in a fraction of one."""
ENDPOINT_WAIT = 5.0
AWS_ENDPOINTS = ("s3", "logs", "ec2")
"""What a node of ParallelCluster cannot do without (user guide, "single subnet with no internet access"). STS is none
of it: who logs in to Vault as an IAM role has its request carried there by Vault, through the VPC's endpoint.
"""
_SUFFIX = {
    "cn-": ".amazonaws.com.cn",
    "eu-isoe-": ".cloud.adc-e.uk",
    "eusc-": ".amazonaws.eu",
    "us-iso-": ".c2s.ic.gov",
    "us-isob-": ".sc2s.sgov.gov",
    "us-isof-": ".csp.hci.ic.gov",
}
"""Of the partitions whose names do not end with amazonaws.com (botocore, endpoints.json)."""
_CONNECT = str((Path(__file__).parent / "connect").with_suffix(".py"))


def vault_wait(scene: Scene) -> float:
    """Seconds for Vault: two requests and a login, each under vault.timeout, and Python's start on a busy machine."""
    return 3 * scene.need_site().vault.timeout + 10.0


def ldap_wait(scene: Scene) -> float:
    """Seconds for the directory's servers, one after the other; what a third would say is not waited for."""
    return LDAP_WAIT * min(len(scene.need_site().ldap.uris), 2) + 1.0


def vault_server(scene: Scene) -> VaultServer:
    """As nobody: it needs no more than the CA."""
    told = children.probe(children.NOBODY, ["vault-server", scene.config], vault_wait(scene))
    return VaultServer(**{**told, "certificate": Certificate(**told["certificate"])})


def vault_own(scene: Scene) -> VaultOwn:
    """As the account whose identity it is."""
    site, role = scene.need_site(), "head" if "head" in scene.roles else "node"
    account, who = (HEAD, "head") if role == "head" else (NODE, scene.node)
    told = children.probe(account, ["vault-own", scene.config, who], vault_wait(scene))
    files = policies.own(site, role)
    found = [VaultPolicy(shipped=policies.shipped(files[each["name"]], site), **each) for each in told.pop("policies")]
    return VaultOwn(**told, policies=tuple(found))


def vault_setup(scene: Scene) -> tuple[VaultStep, ...]:
    """``vault init --check`` with the token that the admin gave; the file of the role id a login tries."""
    site = scene.need_site()
    if scene.token is None:
        raise ConfigError("there is no token", advice="--token-file FILE")
    vault = site.vault
    with VaultSession(vault.address, vault.ca_file, vault.timeout, token=scene.token) as session:
        steps = Setup(session, site, Wishes(), check=True).steps()
    return tuple(VaultStep(*each) for each in steps)


def ldap_servers(scene: Scene) -> tuple[LdapServer, ...]:
    """The certificate of each, all at once."""
    ldap = scene.need_site().ldap

    def look(uri: str) -> LdapServer:
        try:
            told = children.probe(LDAP, ["ldap-tls", uri, ldap.ca_file], TLS_WAIT)
        except BackendUnavailable as error:
            return LdapServer(uri, Certificate("the directory's", uri, 0.0, 0.0, problem=str(error)))
        return LdapServer(told["uri"], Certificate(**told["certificate"]))

    with ThreadPoolExecutor(len(ldap.uris)) as pool:
        return tuple(pool.map(look, ldap.uris))


def ldap_groups(scene: Scene) -> LdapGroups:
    """The first server that lets us in. A password that is refused is tried once: more may lock the account."""
    scene.need_policy()
    told: dict[str, Any] = {}
    for uri in scene.need_site().ldap.uris:
        try:
            told = children.probe(LDAP, ["ldap-groups", scene.config, scene.policy_file, uri], LDAP_WAIT)
        except BackendUnavailable as error:
            told = {"uri": uri, "asked": 0, "missing": [], "problem": f"{uri}: {error}", "advice": error.advice}
        if not told.get("problem") or told.pop("refused", False):
            break
    return LdapGroups(**{**told, "missing": tuple(told["missing"])})


def outside(scene: Scene) -> tuple[Attempt, ...]:
    """Connections to doctor.outside, as nobody."""
    return attempts(scene.need_site().doctor.outside if scene.site else default_outside(), OUT_WAIT)


def default_outside() -> tuple[str, ...]:
    """What is tried where there is no site file, as on a login node."""
    from conf.site import Doctor  # noqa: PLC0415 - read at the only place that needs it

    return Doctor().outside


def endpoints(scene: Scene) -> tuple[Attempt, ...]:
    """Connections to doctor.endpoints; on AWS, where it names none, to those that a node needs."""
    site = scene.need_site()
    region = ""
    if site.node.proof == "ec2" and "compute" in scene.roles:
        region = read_place(site.node.place_file)
    role = site.vault.node.method == "aws"
    return attempts(endpoint_targets(site.doctor.endpoints, region, role=role), ENDPOINT_WAIT)


def endpoint_targets(named: tuple[str, ...], region: str, *, role: bool) -> tuple[str, ...]:
    """``host:port`` of each. ``region``: the AWS region of this machine, empty: none or not known. ``role``: nodes log
    in to Vault as an IAM role.
    """
    if named or not region:
        return named
    suffix = next((end for start, end in _SUFFIX.items() if region.startswith(start)), ".amazonaws.com")
    return tuple(f"{service}.{region}{suffix}:443" for service in (*(["sts"] if role else []), *AWS_ENDPOINTS))


def read_place(path: str) -> str:
    """The region in the place file, empty when there is none."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def attempts(targets: tuple[str, ...], wait: float) -> tuple[Attempt, ...]:
    """Connections, each in ``wait`` seconds, tried as nobody by :mod:`admin.doctor.connect`."""
    if not targets:
        return ()
    argv = [sys.executable, "-IS", _CONNECT, str(wait), *targets]
    told = children.ask(children.NOBODY, argv, wait + 30.0)
    return tuple(Attempt(each["target"], tuple(each["resolved"]), each["result"]) for each in told)
