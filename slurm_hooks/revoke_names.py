"""The names that an admin gives to ``secure-slurm revoke`` and ``resume``: checked before anything happens."""

from __future__ import annotations

import json
import pwd

from conf.errors import BackendUnavailable, Refused, UsageError
from conf.policy import Policy
from slurm_hooks import revoked
from slurm_hooks.filters.verdict import Context


def check_value(kind: str, value: str) -> None:
    """UsageError for what can be no name of its kind."""
    if kind not in revoked.RULES or not kind or not revoked.safe_value(value):
        raise UsageError("this cannot be revoked", advice="see: secure-slurm revoke --help")
    if kind == "job" and not (value.isascii() and value.isdigit() and not value.startswith("0") and len(value) <= 10):
        raise UsageError(f"{value!r} is not a job id")


def check_known(kind: str, value: str, context: Context) -> None:
    """A name with a slip in it must not be taken for done."""
    policy: Policy = context.policy
    names = {"role": policy.roles, "dataset": policy.datasets, "jurisdiction": policy.jurisdictions}.get(kind)
    if names is not None and value not in names:
        raise Refused(
            "revocation.unknown",
            f"the policy knows no {kind} {value!r}",
            advice=f"it knows {', '.join(sorted(names)[:20]) or 'none'}",
        )
    if kind == "role" and context.members is None:
        raise BackendUnavailable(
            f"who holds the role is not known: {context.members_problem}", advice="name users instead: --user"
        )


def uid_of(name: str) -> int:
    """The uid of a login name, or of a number as it is. Refused ``revocation.unknown``."""
    try:
        return int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise Refused("revocation.unknown", f"there is no user {name!r}", advice="give the uid instead") from None


def name_of(uid: int) -> str:
    """The login name; "" for a uid without one."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def encode(value: object) -> str:
    """A report for the wire."""
    return json.dumps(value, separators=(",", ":"))
