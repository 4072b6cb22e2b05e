"""The directory: does it let us in, are the policy's groups in it, and how old is what was read?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from admin.doctor.finding import Finding, fail, ok, some, warn

if TYPE_CHECKING:
    from admin.doctor.facts import LdapGroups, LdapServer, Members

_RENAMED = "mend the name in policy.yaml (roles.NAME.groups, break_glass), or ask the directory's administrator"


def ldap(seen: LdapGroups, servers: tuple[LdapServer, ...]) -> Finding:
    """One of the servers lets ldap.bind_dn in; the others could."""
    if seen.problem:
        return fail(seen.problem, seen.advice or "check the servers, their certificates (ldap.ca_file) and the account")
    away = [f"{each.uri}: {each.certificate.problem}" for each in servers if each.certificate.problem]
    if away:
        return warn(
            f"{seen.uri} lets us in, but not {some(away)}", "mend it: when the others fail too, no role is known"
        )
    return ok(f"{seen.uri} lets ldap.bind_dn in")


def groups(seen: LdapGroups) -> Finding:
    """Every group that the policy names is there."""
    if seen.problem:
        return fail("they cannot be looked for without a login", "see ldap")
    if seen.missing:
        return fail(f"not in the directory: {some(seen.missing)}", _RENAMED)
    return ok(f"all {seen.asked} groups of the policy are in the directory")


def members(seen: Members) -> Finding:
    """What ldapd has read is fresh and whole: it, not the directory, is what jobs are judged by."""
    if seen.problem:
        return fail(seen.problem, seen.advice)
    if seen.missing:
        return fail(f"ldapd did not find {some(seen.missing)}", _RENAMED)
    if seen.empty:
        return warn(f"nobody is in {some(seen.empty)}", "is that so? Then nobody has the roles that they give")
    return ok(f"read {seen.age:.0f} s ago")
