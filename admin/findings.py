"""What a look at a policy finds: one thing, where it stands, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from conf.yamlmarks import Where

Severity = Literal["error", "warning"]


class Finding(NamedTuple):
    """One thing to look at. ``check`` is a stable word, ``where`` the path in the policy, ``advice`` what to do."""

    severity: Severity
    check: str
    where: Where
    message: str
    advice: str


class Use(NamedTuple):
    """A job that a role lets in. ``residency`` None: its tag names none; ``partition`` None: one that is not named."""

    klass: str
    residency: str | None
    partition: str | None
