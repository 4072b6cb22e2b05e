"""Forcing a node feature into a user's constraint, so that no reading of the result leaves the feature out.

Slurm reads ``--constraint`` from left to right, without precedence (slurmctld, job_scheduler.c), so that in front of
``a|b`` a feature binds ``a`` only. But as soon as one named feature is changeable (NodeFeaturesPlugins) it reads ``&``
before ``|``, and a final ``&eu`` binds ``b`` only. So a ``|`` stands in brackets, the feature is appended, and what it
could not bind for certain is refused: sound and simple before complete. Counts (``a*2``) are per group of nodes and
escape a final ``&eu`` in every version measured (docs/decisions/0016).
"""

from __future__ import annotations

import re

from conf.errors import Refused
from conf.quote import quote

RULE = "residency.constraint"
# slurmctld refuses longer ones (job_mgr.c, _test_job_desc_fields)
MAX_LENGTH = 1024

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.:=+-]*"
_GROUP = rf"\({_NAME}(?:[&|,]{_NAME})*\)"
_OPERAND = rf"(?:{_NAME}|{_GROUP})"
# what a final "&eu" binds whole in both readings
_ALL = re.compile(rf"{_OPERAND}(?:[&,]{_OPERAND})*", re.ASCII)
_FLAT = re.compile(rf"{_NAME}(?:[&|,]{_NAME})*", re.ASCII)
_EITHER = re.compile(rf"\[{_NAME}(?:\|{_NAME})*\]", re.ASCII)
_NAMES = re.compile(_NAME, re.ASCII)


def force(expression: str | None, feature: str) -> str:
    """``expression`` with ``&feature`` behind it; the feature alone when there is none; unchanged when already there.

    ``a|b`` becomes ``(a|b)&feature``. Refuses (Refused ``residency.constraint``) counts, nested groups, ``|`` between
    groups, ``[..]`` with anything but ``|`` between names or beside another term, characters outside a feature's
    charset, and a result that Slurm would find too long.
    """
    if not expression:
        return feature
    if is_forced(expression, feature) and len(expression) <= MAX_LENGTH:
        return expression
    check(expression)
    bound = _ALL.fullmatch(expression) or _EITHER.fullmatch(expression)
    forced = f"{expression}&{feature}" if bound else f"({expression})&{feature}"
    if len(forced) > MAX_LENGTH:
        raise Refused(RULE, f"the constraint is longer than {MAX_LENGTH} characters", advice="shorten --constraint")
    return forced


def is_forced(expression: str, feature: str) -> bool:
    """Whether the feature binds the whole expression, written as :func:`force` writes it."""
    if expression == feature:
        return True
    asked, found, rest = expression.rpartition(f"&{feature}")
    return bool(found) and not rest and (_ALL.fullmatch(asked) or _EITHER.fullmatch(asked)) is not None


def check(expression: str) -> None:
    """Refuse (Refused ``residency.constraint``) an expression that a feature cannot be forced into."""
    if len(expression) > MAX_LENGTH:
        raise Refused(RULE, f"the constraint is longer than {MAX_LENGTH} characters", advice="shorten --constraint")
    if any(form.fullmatch(expression) for form in (_ALL, _FLAT, _EITHER)):
        return
    if "*" in expression:
        raise Refused(
            RULE,
            f"the constraint {quote(expression)} counts nodes, and a count would let some of them be elsewhere",
            advice="say the number with --nodes=N, and join plain features with '&' or '|' in --constraint",
        )
    raise Refused(
        RULE,
        f"the job's place cannot be forced into the constraint {quote(expression)}",
        advice="write it without ( ), as Slurm reads it from left to right (b&c|a for a|(b&c)), "
        "or join groups such as (a|b) with '&' only, or use [a|b] alone",
    )


def names(expression: str | None) -> frozenset[str]:
    """Every feature that an expression names, whatever its form."""
    return frozenset(_NAMES.findall(expression or ""))
