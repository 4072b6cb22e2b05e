"""What a check says, and what stands in a fact's place when nothing answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

State = Literal["ok", "warn", "fail"]
SHOWN = 5
"""Things of one kind that a line names; ``and N more`` stands for the rest."""


class Finding(NamedTuple):
    """``seen``: what there is, in words; ``fix``: what to do, empty when nothing is wrong."""

    state: State
    seen: str
    fix: str = ""


class Silence(NamedTuple):
    """A door gave no fact: nobody answered in time, or it is not to be had. Not knowing counts as wrong."""

    why: str
    advice: str = ""


def ok(seen: str) -> Finding:
    """Nothing to do."""
    return Finding("ok", seen)


def warn(seen: str, fix: str) -> Finding:
    """To be looked at; nothing that is promised is broken by it."""
    return Finding("warn", seen, fix)


def fail(seen: str, fix: str) -> Finding:
    """Jobs fail, or something that is promised does not hold."""
    return Finding("fail", seen, fix)


def of_silence(silence: Silence) -> Finding:
    """What a check says that cannot know."""
    return fail(silence.why, silence.advice or "find out why it does not answer; not knowing counts as wrong")


def some(words: Sequence[str] | Iterable[str], between: str = "; ") -> str:
    """The first of them, and how many more there are."""
    told = list(words)
    more = f"{between}and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return between.join(told[:SHOWN]) + more


def amount(size: float) -> str:
    """Bytes for people: ``1.5 GiB``."""
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
