"""The tag of a job: its data class, residency and scratch size, and its text in Slurm's ``extra``.

The canonical text is ``secure-slurm:class=phi;residency=eu;scratch=209715200`` (keys in this order, scratch in bytes,
absent keys left out). Standard library only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, Self

from conf.errors import UsageError
from conf.quote import did_you_mean, one_of, quote
from conf.units import MAX_SIZE, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "secure-slurm:"
KEYS = ("class", "residency", "scratch")
# SECURE_SCRATCH is not among them: it is the path that the running job gets
ENVIRONMENT = {"SECURE_CLASS": "class", "SECURE_RESIDENCY": "residency", "SECURE_SCRATCH_SIZE": "scratch"}
# slurmctld refuses a comment, extra or constraint of more than 1024 bytes (job_mgr.c, _test_job_desc_fields)
MAX_EXTRA = 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_BYTES = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether ``text`` may name a class, a jurisdiction or a role: ``[a-z0-9][a-z0-9-]{0,31}``."""
    return _NAME.fullmatch(text) is not None


class Tag(NamedTuple):
    """What the user says of a job. ``residency`` None: not stated; ``scratch`` None: none asked, else bytes > 0.

    The class itself checks nothing (a NamedTuple is built by unpickling, too): :meth:`from_pairs` and
    :func:`parse_extra` are the doors.
    """

    klass: str
    residency: str | None = None
    scratch: int | None = None

    def to_extra(self) -> str:
        """The canonical text. UsageError when a part would not be read back: nothing unreadable is ever written."""
        parts = [f"class={self.klass}"]
        if self.residency is not None:
            parts.append(f"residency={self.residency}")
        if self.scratch is not None:
            parts.append(f"scratch={self.scratch}")
        text = PREFIX + ";".join(parts)
        if parse_extra(text) != self:
            raise UsageError(f"the tag {quote(text)} cannot be written", advice="report this: it is a defect")
        return text

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> Self:
        """A tag from ``class``, ``residency`` and ``scratch`` as a person writes them (``200M``, or bare bytes).

        Raises UsageError for an unknown, repeated or empty key, a name outside the charset, or a missing class.
        """
        items = pairs.items() if hasattr(pairs, "items") else pairs
        found: dict[str, str] = {}
        for key, value in items:
            if key not in KEYS:
                raise UsageError(
                    f"{quote(key)} is not part of a tag{did_you_mean(key, KEYS)}", advice=f"use {one_of(KEYS)}"
                )
            if key in found:
                raise UsageError(f"{key} is given twice in one tag", advice="give it once")
            found[key] = value
        if "class" not in found:
            raise UsageError("the tag names no data class", advice="add --class=NAME")
        residency = found.get("residency")
        scratch = found.get("scratch")
        return cls(
            klass=_name("class", found["class"]),
            residency=None if residency is None else _name("residency", residency),
            scratch=None if scratch is None else parse_scratch(scratch),
        )


def parse_scratch(text: str) -> int:
    """A scratch size in bytes from ``200M`` or, as the canonical tag writes it, ``209715200``; UsageError for zero."""
    size = int(text) if _BYTES.fullmatch(text) else parse_size(text)
    if not 0 < size <= MAX_SIZE:
        raise UsageError(
            f"a scratch of {quote(text)} cannot be made", advice="leave scratch out, or ask for 1M or more"
        )
    return size


def parse_extra(text: str) -> Tag:
    """The tag in Slurm's ``extra``: keys in any order, nothing else beside them. Raises UsageError."""
    if not text.startswith(PREFIX):
        raise UsageError(
            f"the job's extra {quote(text)} is not a tag", advice=f"it must be {PREFIX}class=NAME;... and nothing else"
        )
    if len(text.encode("utf-8", "surrogatepass")) > MAX_EXTRA:
        raise UsageError(
            f"the tag is longer than {MAX_EXTRA} bytes", advice="use secure-sbatch, which writes it for you"
        )
    pairs: list[tuple[str, str]] = []
    for part in text.removeprefix(PREFIX).split(";"):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{quote(part)} in the tag is not key=value", advice="write class=NAME;residency=NAME")
        pairs.append((key, value))
    return Tag.from_pairs(pairs)


def mentions_tag(text: str | None) -> bool:
    """Whether a job's ``extra`` means to be a tag, well-formed or not: such a job must never pass as untagged."""
    return text is not None and PREFIX.rstrip(":") in text.lower()


def _name(key: str, value: str) -> str:
    if not is_name(value):
        raise UsageError(
            f"{key} {quote(value)} is not a name",
            advice="a name has 1 to 32 of a-z, 0-9 and '-', and does not begin with '-'",
        )
    return value
