"""What YAML read, looked at without its classes: the shared part of the checks on whole files.

Whatever has the wrong shape is passed over here: the loader has already said so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from conf import units
from conf.errors import UsageError
from conf.quote import did_you_mean, quote
from conf.yamlmarks import Where

Findings = Iterator[tuple[Where, str]]
Raw = dict[str, Any]


def known(entry: Raw, where: Where, names: Collection[str], what: str) -> Findings:
    """A finding when the entry's word is none of ``names``."""
    word = entry.get(str(where[-1]))
    if isinstance(word, str) and word not in names:
        yield where, unknown(word, names, what)


def unknown(word: str, names: Collection[str], what: str) -> str:
    """The message for a word that refers to nothing."""
    return f"unknown {what} {quote(word)}{did_you_mean(word, sorted(names))}"


def section(raw: Raw, key: str) -> Raw:
    """The mapping below a key, empty when there is none."""
    found = raw.get(key)
    return found if isinstance(found, dict) else {}


def items(raw: Raw, key: str) -> list[Any]:
    """The list below a key, empty when there is none."""
    found = raw.get(key)
    return found if isinstance(found, list) else []


def mappings(raw: Raw, key: str) -> Iterator[tuple[str, Raw]]:
    """The entries below a key that are mappings, by name."""
    return ((name, each) for name, each in section(raw, key).items() if isinstance(each, dict))


def texts(raw: Raw, key: str) -> Iterator[tuple[int, str]]:
    """The texts in a list below a key, each with its index."""
    return ((index, each) for index, each in enumerate(items(raw, key)) if isinstance(each, str))


def size(raw: Raw, key: str) -> int | None:
    """A size in bytes, None when it is absent or none."""
    try:
        return units.parse_size(raw[key]) if isinstance(raw.get(key), str) else None
    except UsageError:
        return None


def duration(raw: Raw, key: str, default: float) -> float | None:
    """A duration in seconds, ``default`` when it is absent, None when it is none."""
    if key not in raw:
        return default
    try:
        return units.parse_duration(raw[key]) if isinstance(raw[key], str) else None
    except UsageError:
        return None
