"""docs/parallelcluster.md says what the source says: every key of the answers file, and every check, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import attrs

from admin.parallelcluster import check as checking
from admin.parallelcluster.answers import Answers

PAGE = (Path(__file__).parents[3] / "docs/parallelcluster.md").read_text(encoding="utf-8")


def cells(section: str, column: int) -> list[list[str]]:
    """The words in backquotes in one column of a section's tables, row by row."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row[column]) for row in rows]


def keys_of(shape: Any, before: str = "") -> Iterator[str]:
    for field in attrs.fields(attrs.resolve_types(shape, include_extras=False)):
        inner = next((each for each in (field.type, *get_args(field.type)) if attrs.has(each)), None)
        many = "tuple" in str(field.type)
        if inner is None:
            yield f"{before}{field.name}"
        else:
            yield from keys_of(inner, f"{before}{field.name}{'[]' if many else ''}.")


def test_every_answer_is_explained_and_no_other() -> None:
    told: set[str] = set()
    for row in cells("The answers file", 1):
        told |= {row[0].rpartition(".")[0] + word if word.startswith(".") else word for word in row}
    assert told - {"directory"} == set(keys_of(Answers))


def test_every_check_is_explained_and_no_other() -> None:
    source = "".join(path.read_text() for path in Path(checking.__file__).parent.glob("rules_*.py"))
    known = set(re.findall(r'(?:error|warning|_missing)\(\s*"([a-z-]+)"', source)) | {"yaml"}
    assert {word for row in cells("The check", 1) for word in row} == known


def test_the_severity_of_each_check_is_told() -> None:
    source = "".join(path.read_text() for path in Path(checking.__file__).parent.glob("rules_*.py"))
    severities: dict[str, set[str]] = {"yaml": {"error"}}
    for severity, check in re.findall(r'(error|warning|_missing)\(\s*"([a-z-]+)"', source):
        severities.setdefault(check, set()).add("error" if severity == "_missing" else severity)
    text = PAGE.partition("\n## The check\n")[2].partition("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            words, told = re.findall(r"`([^`]+)`", line.split("|")[1]), set(line.split("|")[2].strip().split(", "))
            assert set.union(*(severities[word] for word in words)) == told, line
