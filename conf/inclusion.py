"""Entries of a policy that include others: who is included in the end, and whether that ends at all. Pure.

Used for roles (whose members have the included roles too) and datasets (which hold the data of the included ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def closure(names: Iterable[str], included: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """``names`` and whatever they include, each once, in the order in which they are met. An unknown one is kept.

    Ends for a cycle too: that is a mistake which the checks report, and no reason for a daemon to run for ever.
    """
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting.extend(included.get(name, ()))
    return tuple(found)


def cycles(included: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """The names that include themselves in the end, and the way from each back to itself."""
    found: dict[str, tuple[str, ...]] = {}
    for start in included:
        way = _way_back(start, included)
        if way:
            found[start] = way
    return found


def _way_back(start: str, included: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    seen: set[str] = set()
    waiting: list[tuple[str, ...]] = [(start,)]
    while waiting:
        way = waiting.pop(0)
        for name in included.get(way[-1], ()):
            if name == start:
                return (*way, start)
            if name not in seen:
                seen.add(name)
                waiting.append((*way, name))
    return ()
