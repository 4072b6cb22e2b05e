"""Certificates: can they be read, and do they go on for a while?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from admin.doctor.finding import Finding, Silence, fail, of_silence, ok, some, warn

if TYPE_CHECKING:
    from admin.doctor.facts import Certificate, Clock, LdapServer, VaultServer

# A certificate of a day is renewed every few hours, one of ten years every ten years: what counts is the share of its
# life that is left, but nobody needs more than these days to renew one.
WARN_SHARE, FAIL_SHARE = 0.1, 0.02
WARN_MOST, FAIL_MOST = 60 * 86400.0, 7 * 86400.0
# as for the clock: what was made a moment ago on a machine beside us is valid
SLACK = 60.0


def vault_certificate(seen: VaultServer, now: Clock) -> Finding:
    """The server's own, by vault.ca_file, and for how long yet."""
    if not seen.certificate.ends and not seen.certificate.problem:
        return of_silence(Silence(f"{seen.address} does not show one", "see vault"))
    return certificates((seen.certificate,), now)


def ldap_certificates(seen: tuple[LdapServer, ...], now: Clock) -> Finding:
    """Each server's own, by ldap.ca_file."""
    return certificates(tuple(each.certificate for each in seen), now)


def certificates(seen: tuple[Certificate, ...], now: Clock) -> Finding:
    """Each can be read, goes on for a while, and is for whom it should be."""
    bad, soon, fine = [], [], []
    for each in seen:
        name = f"{each.what} ({each.where})"
        if each.problem:
            bad.append(f"{name}: {each.problem}")
            continue
        if each.wanted and each.name != each.wanted:
            bad.append(f"{name} is for {each.name or 'nobody'}, not for {each.wanted}")
            continue
        life, left = each.ends - each.starts, each.ends - now.now
        if each.starts > now.now + SLACK:
            bad.append(f"{name} is not valid yet")
        elif left <= 0:
            bad.append(f"{name} ended {_span(-left)} ago")
        elif left < min(FAIL_SHARE * life, FAIL_MOST):
            bad.append(f"{name} ends in {_span(left)}")
        elif left < min(WARN_SHARE * life, WARN_MOST):
            soon.append(f"{name} ends in {_span(left)}")
        else:
            fine.append(f"{each.what}: {_span(left)} left")
    advice = "renew it; a daemon reads it at its next connection"
    if bad:
        return fail(some([*bad, *soon]), advice)
    return warn(some(soon), advice) if soon else ok(some(fine) or "there is none to look at")


def _span(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} days"
    return f"{seconds / 3600:.0f} h" if seconds >= 2 * 3600 else f"{seconds / 60:.0f} min"
