"""Which checks a role has, which facts each needs, and by which door those come."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from admin.doctor import (
    doors_far,
    doors_files,
    doors_here,
    doors_ours,
    doors_slurm,
    judge_certificates,
    judge_ldap,
    judge_machine,
    judge_ours,
    judge_slurm,
    judge_vault,
)
from admin.doctor.finding import Finding, Silence, fail, of_silence
from admin.doctor.gather import Door

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from admin.doctor.scene import Scene

HERE = doors_ours.SHORT_WAIT
"""Seconds for what is on this machine. It answers at once; but an instance that boots is busy, and is given up when it
is called ill. Whatever hangs, all is told after 45 s with ``vault.timeout`` as shipped: no deadline is longer."""

DOORS = {
    "settings": Door(doors_ours.settings, HERE, needs_site=False),
    "rendered": Door(doors_ours.rendered, HERE),
    "daemons": Door(doors_ours.daemons, HERE),
    "head": Door(doors_ours.head, doors_ours.DAEMON_WAIT + 2.0),
    "decision": Door(doors_ours.decision, doors_ours.SHORT_WAIT + 2.0),
    "revocations": Door(doors_ours.revocations, doors_ours.SHORT_WAIT + 2.0),
    "members": Door(doors_ours.members, HERE),
    "node-daemon": Door(doors_ours.node_daemon, doors_ours.SHORT_WAIT + 2.0),
    "enrolled": Door(doors_ours.enrolled, doors_ours.SHORT_WAIT + 2.0),
    "node-jobs": Door(doors_ours.node_jobs, 30.0),
    "vault-server": Door(doors_far.vault_server, lambda scene: doors_far.vault_wait(scene) + 1.0),
    "vault-own": Door(doors_far.vault_own, lambda scene: doors_far.vault_wait(scene) + 1.0),
    "vault-setup": Door(doors_far.vault_setup, 40.0),
    "ldap-servers": Door(doors_far.ldap_servers, doors_far.TLS_WAIT + 2.0),
    "ldap-groups": Door(doors_far.ldap_groups, doors_far.ldap_wait),
    "outside": Door(doors_far.outside, doors_far.OUT_WAIT + 31.0, needs_site=False),
    "endpoints": Door(doors_far.endpoints, doors_far.ENDPOINT_WAIT + 31.0),
    "slurm": Door(doors_slurm.slurm, doors_slurm.WAIT + 2.0),
    "wanted": Door(doors_slurm.wanted, HERE),
    "filter": Door(doors_slurm.filter_, doors_slurm.WAIT + 2.0),
    "slurm-node": Door(doors_slurm.node, doors_slurm.WAIT + 2.0),
    "commands": Door(doors_slurm.commands, doors_slurm.WAIT + 2.0, needs_site=False),
    "clock": Door(doors_here.clock, HERE, needs_site=False),
    "fips": Door(doors_here.fips, HERE, needs_site=False),
    "leaks": Door(doors_here.leaks, HERE),
    "metadata": Door(doors_here.metadata, 45.0, needs_site=False),
    "space": Door(doors_here.space, HERE),
    "crypt": Door(doors_here.crypt, 25.0),
    "speed": Door(doors_here.speed, doors_here.BENCHMARK_WAIT + 1.0),
    "scratch": Door(doors_here.scratch, HERE),
    "file-systems": Door(doors_here.file_systems, HERE),
    "certificates": Door(doors_files.certificates, HERE),
    "secrets": Door(doors_files.secrets, HERE),
}


class Check(NamedTuple):
    """``needs``: the facts that ``judge`` takes, in its order. ``role``: those that have it.

    ``knows``: it is asked as well when only the first fact is there. ``asked``: it is made only where a role was named.
    ``token``: only with an admin's token.
    """

    name: str
    role: str
    needs: tuple[str, ...]
    judge: Callable[..., Finding]
    knows: bool = False
    asked: bool = False
    token: bool = False


_SWAP = "no swap, or encrypted"
_DUMPS = "core dumps reach no disk in clear"
_TMP = "each class's jobs get the /tmp that the policy wants"
_leaks = judge_machine.leaks
_head_leaks = judge_machine.head_leaks

CHECKS = (
    Check("configuration", "head compute vault", ("settings",), judge_ours.configuration),
    Check("rendered", "head compute", ("rendered",), judge_ours.rendered),
    Check("daemons", "head compute", ("daemons",), judge_ours.daemons),
    Check("secret-files", "head compute", ("secrets",), judge_ours.secrets),
    Check("certificates", "head compute vault", ("certificates", "clock"), judge_certificates.certificates),
    Check("clock", "head compute login vault", ("clock", "vault-server"), judge_vault.clock, knows=True),
    Check("vault", "head compute vault", ("vault-server",), judge_vault.vault),
    Check("vault-certificate", "head compute vault", ("vault-server", "clock"), judge_certificates.vault_certificate),
    Check("vault-login", "head compute", ("vault-own",), judge_vault.login),
    Check("vault-policies", "head compute", ("vault-own",), judge_vault.policies),
    Check("vault-setup", "head vault", ("vault-setup",), judge_vault.setup, token=True),
    Check("ldap", "head", ("ldap-groups", "ldap-servers"), judge_ldap.ldap),
    Check("ldap-certificate", "head", ("ldap-servers", "clock"), judge_certificates.ldap_certificates),
    Check("ldap-groups", "head", ("ldap-groups",), judge_ldap.groups),
    Check("members", "head", ("members",), judge_ldap.members),
    Check("lifecycle", "head", ("head",), judge_ours.head),
    Check("decision", "head", ("decision",), judge_ours.decision),
    Check("pending", "head", ("head",), judge_ours.pending),
    Check("orphans", "head", ("head",), judge_ours.orphans),
    Check("revocations", "head", ("revocations",), judge_ours.revocations),
    Check("slurm", "head", ("slurm", "wanted"), judge_slurm.answers),
    Check("slurm-version", "head", ("slurm",), judge_slurm.version),
    Check("slurm-identity", "head", ("slurm",), judge_slurm.identity),
    Check("slurm-prolog-flags", "head", ("slurm",), judge_slurm.prolog_flags),
    Check("slurm-filter", "head", ("slurm", "filter"), judge_slurm.job_submit),
    Check("lua-socket", "head", ("filter",), judge_slurm.lua_socket),
    Check("slurm-hooks", "head", ("slurm",), judge_slurm.hooks),
    Check("slurm-hook-order", "head", ("slurm",), judge_slurm.order),
    Check("slurm-timeouts", "head", ("slurm", "wanted"), judge_slurm.timeouts),
    Check("slurm-private-data", "head", ("slurm", "daemons"), judge_slurm.private_data),
    Check("slurm-accounting", "head", ("slurm",), judge_slurm.accounting),
    Check("node-daemon", "compute", ("node-daemon",), judge_ours.node_daemon),
    Check("enrolment", "compute", ("enrolled", "clock"), judge_ours.enrolment),
    Check("node-scratch", "compute", ("node-jobs",), judge_ours.node_jobs),
    Check("slurm-node", "compute", ("slurm-node",), judge_slurm.node),
    Check("encryption", "compute", ("crypt",), judge_machine.encryption),
    Check("encryption-speed", "compute", ("speed",), judge_machine.speed),
    Check("scratch", "compute", ("scratch", "slurm-node"), judge_machine.scratch, knows=True),
    Check("swap", "compute", ("leaks",), partial(_leaks, rule="node.swap", fine=_SWAP)),
    Check("core-dumps", "compute", ("leaks",), partial(_leaks, rule="node.core-dumps", fine=_DUMPS)),
    Check("private-tmp", "compute", ("leaks",), partial(_leaks, rule="node.private-tmp", fine=_TMP)),
    Check("swap", "head vault", ("leaks",), partial(_head_leaks, rule="node.swap", fine=_SWAP)),
    Check("core-dumps", "head vault", ("leaks",), partial(_head_leaks, rule="node.core-dumps", fine=_DUMPS)),
    Check("file-systems", "compute", ("file-systems",), judge_machine.file_systems),
    Check("commands", "login", ("commands",), judge_ours.commands),
    Check("fips", "head compute login vault", ("fips",), judge_machine.fips),
    Check("disk-space", "head compute vault", ("space",), judge_machine.space),
    Check("metadata-service", "head compute login", ("metadata",), judge_machine.metadata),
    Check("no-way-out", "head compute login", ("outside",), judge_machine.no_way_out, asked=True),
    Check("endpoints", "head compute", ("endpoints",), judge_machine.endpoints),
)
# a door whose silence is no fault of this machine's: what it says then
SOFT = {"encryption-speed", "slurm-node"}


def chosen(scene: Scene) -> list[Check]:
    """The checks of this machine's roles, each name once: the stricter comes first.

    Without a site file only those that need none, and ``configuration``, which says why.
    """
    found: dict[str, Check] = {}
    for check in CHECKS:
        fits = scene.roles & set(check.role.split())
        wanted = (scene.asked or not check.asked) and (scene.token is not None or not check.token)
        possible = scene.site is not None or not DOORS[check.needs[0]].needs_site
        if fits and wanted and possible:
            found.setdefault(check.name, check)
    return list(found.values())


def doors_of(checks: list[Check], scene: Scene) -> dict[str, Door]:
    """The doors that these need, each once; those that need a site file only where there is one."""
    names = dict.fromkeys(name for check in checks for name in check.needs)
    return {name: DOORS[name] for name in names if scene.site is not None or not DOORS[name].needs_site}


def judge(check: Check, facts: Mapping[str, object]) -> Finding:
    """What a check makes of the facts. A fact that is missing is a fault, whatever the others say."""
    needed = [facts.get(name, Silence("it was not looked at")) for name in check.needs]
    silent = [fact for fact in (needed[:1] if check.knows else needed) if isinstance(fact, Silence)]
    if silent:
        found = of_silence(silent[0])
        return found._replace(state="warn") if check.name in SOFT else found
    try:
        return check.judge(*needed)
    except Exception as error:  # noqa: BLE001 - one check must not hide the others
        return fail(
            f"a defect of secure-slurm ({type(error).__name__})", "report it, with --debug before the subcommand"
        )
