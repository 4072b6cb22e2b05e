"""The tag of a job: its data class, residency, scratch size and datasets, and its text in Slurm's ``extra``.

The canonical text is ``secure-slurm:class=phi;residency=eu;scratch=209715200;datasets=a,b`` (keys in this order,
scratch in bytes, datasets sorted, absent keys left out). A tag that names datasets may leave the class out: the filter
puts in what they demand. Standard library only.
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
KEYS = ("class", "residency", "scratch", "datasets")
OPTIONS = {"class": "class", "residency": "residency", "scratch": "scratch", "dataset": "datasets"}
"""The word of an option, on the command line and in a script, and the tag's key."""
# SECURE_SCRATCH is not among them: it is the path that the running job gets
ENVIRONMENT = {
    "SECURE_CLASS": "class",
    "SECURE_RESIDENCY": "residency",
    "SECURE_SCRATCH_SIZE": "scratch",
    "SECURE_DATASETS": "datasets",
}
EXPLAIN = ";explain=1"
"""At the end of a tag: judge it, say everything about it, and refuse it. No tag with it can be read as one."""
MAX_DATASETS = 16
# slurmctld refuses a comment, extra or constraint of more than 1024 bytes (job_mgr.c, _test_job_desc_fields)
MAX_EXTRA = 1024

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_BYTES = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def is_name(text: str) -> bool:
    """Whether ``text`` may name a class, a jurisdiction or a role: ``[a-z0-9][a-z0-9-]{0,31}``."""
    return _NAME.fullmatch(text) is not None


class Tag(NamedTuple):
    """What the user says of a job. ``residency`` None: not stated; ``scratch`` None: none asked, else bytes > 0.

    ``datasets``: sorted, each once. ``klass`` may be "" only beside datasets, until the filter has derived it.

    The class itself checks nothing (a NamedTuple is built by unpickling, too): :meth:`from_pairs` and
    :func:`parse_extra` are the doors.
    """

    klass: str
    residency: str | None = None
    scratch: int | None = None
    datasets: tuple[str, ...] = ()

    def to_extra(self) -> str:
        """The canonical text. UsageError when a part would not be read back: nothing unreadable is ever written."""
        parts = [f"class={self.klass}"] if self.klass else []
        if self.residency is not None:
            parts.append(f"residency={self.residency}")
        if self.scratch is not None:
            parts.append(f"scratch={self.scratch}")
        if self.datasets:
            parts.append(f"datasets={','.join(self.datasets)}")
        text = PREFIX + ";".join(parts)
        if parse_extra(text) != self:
            raise UsageError(f"the tag {quote(text)} cannot be written", advice="report this: it is a defect")
        return text

    @classmethod
    def from_pairs(cls, pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> Self:
        """A tag from the :data:`KEYS` as a person writes them (``200M`` or bare bytes; datasets joined by commas).

        Raises UsageError for an unknown, repeated or empty key, a name outside the charset, or neither class nor
        datasets.
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
        if "class" not in found and "datasets" not in found:
            raise UsageError("the tag names neither a data class nor a dataset", advice="add --class=NAME")
        residency = found.get("residency")
        scratch = found.get("scratch")
        return cls(
            klass=_name("class", found["class"]) if "class" in found else "",
            residency=None if residency is None else _name("residency", residency),
            scratch=None if scratch is None else parse_scratch(scratch),
            datasets=parse_datasets(found["datasets"]) if "datasets" in found else (),
        )


def parse_scratch(text: str) -> int:
    """A scratch size in bytes from ``200M`` or, as the canonical tag writes it, ``209715200``; UsageError for zero."""
    size = int(text) if _BYTES.fullmatch(text) else parse_size(text)
    if not 0 < size <= MAX_SIZE:
        raise UsageError(
            f"a scratch of {quote(text)} cannot be made", advice="leave scratch out, or ask for 1M or more"
        )
    return size


def parse_datasets(text: str) -> tuple[str, ...]:
    """``b,a`` as ``("a", "b")``. UsageError for what is no name, and for more than :data:`MAX_DATASETS`."""
    found = tuple(sorted({_name("dataset", each) for each in text.split(",")}))
    if len(found) > MAX_DATASETS:
        raise UsageError(
            f"the tag names {len(found)} datasets", advice=f"name {MAX_DATASETS} at most; one may include others"
        )
    return found


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


def without_explain(text: str) -> str | None:
    """The tag's text without the word that asks for an explanation; None when it does not ask for one."""
    return text.removesuffix(EXPLAIN) if text.startswith(PREFIX) and text.endswith(EXPLAIN) else None


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
