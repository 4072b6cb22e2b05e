"""Vault: does it answer, is it open, who vouches for it, does it let us in, and are the policies the shipped ones?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from admin.doctor.finding import Finding, Silence, fail, ok, some, warn
from admin.vault_plan import DIFFERENT, MISSING

if TYPE_CHECKING:
    from admin.doctor.facts import Clock, VaultOwn, VaultPolicy, VaultServer, VaultStep

# sys/health (Vault API): anything else is a broken server or a proxy
_HEALTH = {
    429: "a standby answers, and nobody else",
    472: "a disaster recovery secondary answers",
    473: "a performance standby answers",
    501: "it is not initialised",
    503: "it is sealed",
}
_STANDBY = (429, 473)
_LOOK = "bao status (or vault status) on its machines; unseal it, or start it"
# certificates, tokens and members have dates; beyond the second number ours refuse what the other wrote
SKEW_WARN, SKEW_FAIL = 5.0, 60.0


def vault(seen: VaultServer) -> Finding:
    """An active, unsealed server answers."""
    if not seen.status:
        return fail(f"{seen.address}: {seen.problem}", seen.advice or _LOOK)
    if seen.status == 200:
        return ok(f"{seen.address}: unsealed and active, version {seen.version or 'not told'}")
    words = _HEALTH.get(seen.status, f"its answer is {seen.status}")
    if seen.status in _STANDBY:
        advice = "set vault.address to the active server, or to a load balancer that asks sys/health for 200"
        return warn(f"{seen.address}: {words}", advice)
    return fail(f"{seen.address}: {words}", _LOOK)


def login(seen: VaultOwn) -> Finding:
    """This machine's own identity gets a token."""
    if seen.problem:
        return fail(seen.problem, seen.advice or "compare with the shipped roles: secure-slurm vault init --check")
    return ok("this machine's own identity is let in")


def policies(seen: VaultOwn) -> Finding:
    """What Vault holds is the shipped text, but for blank lines and comments."""
    if seen.problem:
        return fail("they cannot be read without a login", "see vault-login")
    wrong = [words for each in seen.policies if (words := policy_fault(each))]
    if wrong:
        return fail(some(wrong), "find out who changed it (Vault's audit log), then: secure-slurm vault init")
    return ok(f"as shipped: {', '.join(each.name for each in seen.policies)}")


def policy_fault(seen: VaultPolicy) -> str:
    """What differs; empty when nothing does. Comments and blank lines have no meaning in a policy."""
    if seen.problem:
        # the shipped policy lets its owner read it
        return f"{seen.name}: {seen.problem}; the shipped one could be read"
    found, shipped = statements(seen.text.split("\n")), statements(seen.shipped)
    for line, pattern in zip(found, shipped, strict=False):
        if not re.fullmatch(pattern, line):
            return f"{seen.name} is not the shipped one: it has {line[:80]!r}"
    if len(found) > len(shipped):
        return f"{seen.name} is not the shipped one: it has {found[len(shipped)][:80]!r} as well"
    if len(found) < len(shipped):
        return f"{seen.name} is not the shipped one: its end is missing"
    return ""


def statements(lines: list[str] | tuple[str, ...]) -> list[str]:
    """The lines that mean something. A '#' inside a text would end a line here: none of the shipped ones has it."""
    return [text for line in lines if (text := line.split("#", 1)[0].strip())]


def setup(steps: tuple[VaultStep, ...]) -> Finding:
    """Everything that ``vault init`` makes is there and as it should be."""
    wrong = [
        f"{each.what}: {each.state} {each.detail}".rstrip() for each in steps if each.state in (MISSING, DIFFERENT)
    ]
    if wrong:
        return fail(some(wrong), "secure-slurm vault init")
    return ok(f"{len(steps)} mounts, policies and roles are as they should be")


def clock(seen: Clock, server: VaultServer | Silence) -> Finding:
    """In step with Vault, and kept so by something."""
    if isinstance(server, Silence) or server.skew is None:
        if seen.synchronised:
            return ok("kept in step, as the kernel says; Vault's clock is not known")
        return warn("nothing says that the clock is right", "run chronyd or systemd-timesyncd")
    advice = "run chronyd or systemd-timesyncd; in a VPC the source is 169.254.169.123"
    if server.skew > SKEW_FAIL:
        return fail(f"{server.skew:.0f} s apart from Vault's clock", advice)
    if server.skew > SKEW_WARN:
        return warn(f"{server.skew:.0f} s apart from Vault's clock", advice)
    if seen.synchronised is False:
        return warn("in step with Vault, but the kernel says that nothing keeps it so", advice)
    return ok("in step with Vault")
