"""One tag from three places: the command line, the script and the environment.

The command line may add to what script and environment say and may strengthen it, never weaken it. Which of two
classes is stronger is the policy's to say, and the policy is not read here: the class of the command line is sent, and
the filter, which sees the script and the environment as well, refuses it if it is weaker. Two residencies contradict
each other whoever reads them, and less scratch is less for everybody: both are refused at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conf.errors import UsageError
from conf.quote import quote
from conf.tag import ENVIRONMENT, Tag, is_name, parse_datasets, parse_scratch
from conf.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping

COMMAND_LINE = "the command line"


class Source(NamedTuple):
    """Where something was said, in words, and what, by tag key."""

    name: str
    values: Mapping[str, str]
    bare_bytes: bool = False


def from_environment(environ: Mapping[str, str]) -> Source:
    """What ``SECURE_*`` variables say (a tagged job that submits another has them). Scratch may be bare bytes here."""
    values = {key: environ[variable] for variable, key in ENVIRONMENT.items() if variable in environ}
    for variable, key in ENVIRONMENT.items():
        if values.get(key) == "":
            raise UsageError(f"{variable} is set but empty", advice=f"unset {variable}, or give it a value")
    return Source("the environment", values, bare_bytes=True)


def merge(sources: list[Source]) -> Tag | None:
    """The tag that all ``sources`` together ask for, the command line first; None when none says anything.

    Raises UsageError for a value that is none, for sources that contradict each other, and for a tag without a class.
    """
    if not any(source.values for source in sources):
        return None
    klass, residency, scratch = _classes(sources), _residencies(sources), _scratches(sources)
    datasets = _datasets(sources)
    if klass is None and not datasets:
        raise UsageError(
            "the tag names no data class and no dataset",
            advice="add --secure-class=NAME or --secure-dataset=NAME, or either to the #SECURE line",
        )
    # the class of datasets is the policy's to say
    return Tag(klass or "", residency, scratch, datasets)


def _said(sources: list[Source], key: str) -> list[tuple[Source, str]]:
    return [(source, source.values[key]) for source in sources if key in source.values]


def _names(sources: list[Source], key: str) -> list[tuple[Source, str]]:
    said = _said(sources, key)
    for source, value in said:
        if not is_name(value):
            raise UsageError(
                f"{source.name}: the {key} {quote(value)} is not a name",
                advice="a name has 1 to 32 of a-z, 0-9 and '-', and does not begin with '-'",
            )
    return said


def _classes(sources: list[Source]) -> str | None:
    said = _names(sources, "class")
    if not said:
        return None
    (first, klass), rest = said[0], said[1:]
    if first.name != COMMAND_LINE:
        for source, other in rest:
            if other != klass:
                raise _contradiction("class", said[0], (source, other), "say which with --secure-class=NAME")
    return klass


def _residencies(sources: list[Source]) -> str | None:
    said = _names(sources, "residency")
    if not said:
        return None
    residency, rest = said[0][1], said[1:]
    for source, other in rest:
        if other != residency:
            raise _contradiction("residency", said[0], (source, other), "data has one residency: remove the wrong one")
    return residency


def _scratches(sources: list[Source]) -> int | None:
    said = [(source, _size(source, value)) for source, value in _said(sources, "scratch")]
    if not said:
        return None
    most, size = max(said, key=lambda each: each[1])
    first, wanted = said[0]
    if first.name == COMMAND_LINE and wanted < size:
        raise UsageError(
            f"the command line asks for {format_size(wanted)} of scratch, {most.name} for {format_size(size)}",
            advice=f"ask for {format_size(size)} or more, or change {most.name}",
        )
    return size


def _datasets(sources: list[Source]) -> tuple[str, ...]:
    """All that any source names: more data can only ask for more protection."""
    named: list[str] = []
    for source, value in _said(sources, "datasets"):
        try:
            named += parse_datasets(value)
        except UsageError as error:
            raise UsageError(f"{source.name}: {error}", advice=error.advice) from None
    return parse_datasets(",".join(named)) if named else ()


def _size(source: Source, value: str) -> int:
    try:
        size = parse_scratch(value) if source.bare_bytes else parse_size(value)
    except UsageError as error:
        raise UsageError(f"{source.name}: the scratch size {error}", advice=error.advice) from None
    if size <= 0:
        raise UsageError(
            f"{source.name}: a scratch of {quote(value)} cannot be made",
            advice="leave scratch out, or ask for 1M or more",
        )
    return size


def _contradiction(key: str, one: tuple[Source, str], other: tuple[Source, str], advice: str) -> UsageError:
    return UsageError(
        f"{one[0].name} says {key} {quote(one[1])}, {other[0].name} says {quote(other[1])}",
        advice=advice,
    )
