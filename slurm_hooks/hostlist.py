"""Slurm's host lists: ``n[1-3,07],gpu1`` written out. Standard library only: root hooks use it.

Only what slurmctld itself writes is understood (slurm.conf(5), "node ranges"; several brackets multiply). Anything
else is a UsageError: a guess about which nodes are meant could put a job's data on the wrong one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from conf.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 65536
_ITEM = re.compile(r"(?:[A-Za-z0-9_.-]|\[[0-9,-]+\])+", re.ASCII)
_PART = re.compile(r"\[([0-9,-]+)\]|([A-Za-z0-9_.-]+)", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", re.ASCII)


def expand(text: str, *, limit: int = LIMIT) -> list[str]:
    """The nodes of a host list in the order written, duplicates kept; none for an empty text.

    UsageError for anything that is not a host list, and for more than ``limit`` nodes.
    """
    nodes: list[str] = []
    for item in _items(text):
        for node in _product(item, limit):
            if len(nodes) >= limit:
                raise UsageError(f"the host list names more than {limit} nodes")
            nodes.append(node)
    return nodes


def contains(text: str, node: str) -> bool:
    """Whether the host list names the node. Nothing is written out, so a list of any length is cheap. UsageError."""
    return any(pattern.matches(node) for pattern in _patterns(text))


@lru_cache(maxsize=64)
def _patterns(text: str) -> tuple[_Pattern, ...]:
    """The list, understood. The same few come with every job: the nodes of the partitions that demand a tag."""
    return tuple(_pattern_of(item) for item in _items(text))


def _items(text: str) -> list[str]:
    items: list[str] = []
    start = depth = 0
    for at, char in enumerate(text):
        if char == "," and depth == 0:
            items.append(text[start:at])
            start = at + 1
        depth += (char == "[") - (char == "]")
    items.append(text[start:])
    if items == [""]:
        return []
    for item in items:
        if not _ITEM.fullmatch(item):
            raise UsageError("the list of nodes is not one that Slurm writes")
    return items


class _Pattern:
    """One item: literal texts and, between them, sets of ranges."""

    def __init__(self, parts: list[str | list[tuple[int, int, int]]]) -> None:
        self.parts = parts

    def matches(self, node: str, index: int = 0, at: int = 0) -> bool:
        if index == len(self.parts):
            return at == len(node)
        part = self.parts[index]
        if isinstance(part, str):
            return node.startswith(part, at) and self.matches(node, index + 1, at + len(part))
        end = at
        while end < len(node) and node[end] in "0123456789" and end - at < 18:
            end += 1
            if _among(part, node[at:end]) and self.matches(node, index + 1, end):
                return True
        return False


def _among(ranges: list[tuple[int, int, int]], digits: str) -> bool:
    value = int(digits)
    return any(low <= value <= high and f"{value:0{width}d}" == digits for low, high, width in ranges)


def _pattern_of(item: str) -> _Pattern:
    return _Pattern([_ranges(found[1]) if found[1] else found[2] for found in _PART.finditer(item)])


def _ranges(text: str) -> list[tuple[int, int, int]]:
    ranges: list[tuple[int, int, int]] = []
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise UsageError("the list of nodes has a range that Slurm would not write")
        low, high = int(found[1]), int(found[2] or found[1])
        if low > high:
            raise UsageError("the list of nodes has a range that runs backwards")
        ranges.append((low, high, len(found[1])))
    return ranges


def _product(item: str, limit: int) -> Iterator[str]:
    names = [""]
    for part in _pattern_of(item).parts:
        if isinstance(part, str):
            names = [name + part for name in names]
            continue
        if len(names) * sum(high - low + 1 for low, high, _ in part) > limit:
            raise UsageError(f"the host list names more than {limit} nodes")
        numbers = [f"{value:0{width}d}" for low, high, width in part for value in range(low, high + 1)]
        names = [name + number for name in names for number in numbers]
    yield from names
