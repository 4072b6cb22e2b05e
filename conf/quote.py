"""How a word that somebody else chose is shown in a message. Standard library only: root hooks use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN = 80


def quote(value: object) -> str:
    """``value`` in quotes, cut after 80 characters, with everything unprintable escaped.

    ``repr`` escapes control characters, newlines, bidirectional overrides and lone surrogates, so that a hostile
    name can neither forge a second line of a log nor send an escape sequence to the terminal that shows it.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    text = value if isinstance(value, str) else str(value)
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing `` (did you mean 'x'?)`` with the nearest known word, or nothing."""
    near = nearest(word, known)
    return f" (did you mean {quote(near)}?)" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like ``word``, or None. Long words are not compared: difflib is quadratic."""
    if len(word) > SHOWN:
        return None
    import difflib  # noqa: PLC0415 - 5 ms that only a wrong word should cost

    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def one_of(words: Iterable[object]) -> str:
    """``'a', 'b' or 'c'``."""
    quoted = [quote(word) if isinstance(word, str) else str(word).lower() for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
