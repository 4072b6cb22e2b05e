"""An explanation in plain text: the same lines from the login node's command and from the admin's. Pure.

The explanation is data from the daemon (:mod:`slurm_hooks.explained`); nothing in it may move a cursor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conf.units import format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Told = dict[str, Any]
_HEADERS = ("STEP", "VERDICT", "POLICY", "SETS")


def lines(told: Told) -> Iterator[str]:
    """The explanation, line by line, everything unprintable escaped."""
    for line in _lines(told):
        yield printable(line)


def _lines(told: Told) -> Iterator[str]:
    policy = told.get("policy") or {}
    yield f"{told.get('user') or 'you'}: {told.get('command') or ''}".rstrip()
    if policy:
        yield f"policy {policy.get('file')}, {str(policy.get('hash'))[:16]}"
    yield ""
    steps = told.get("steps") or []
    if steps:
        yield from table(_HEADERS, [_row(step, str(policy.get("file", ""))) for step in steps])
        yield ""
    if told.get("cut"):
        yield "(the explanation was too long: steps that passed are left out)"
    for step in steps:
        for each in step.get("shadowed") or []:
            yield f"In shadow, so not enforced ({each['rule']}): {each['message']}"
        for each in step.get("exemptions") or []:
            yield f"Allowed by break-glass alone, as long as that lasts: {each}"
    yield from _verdict(told)
    for note in told.get("notes") or []:
        yield f"Note: {note}"


def _row(step: Told, path: str) -> tuple[str, ...]:
    file = path.rpartition("/")[2]
    places = (
        f"{file}:{each['line']} {each['section']}" if each.get("line") else str(each["section"])
        for each in step.get("policy") or []
    )
    shadowed = "shadow" if step.get("shadowed") else "ok"
    return (
        str(step["step"]),
        str(step["rule"]) if step["verdict"] == "refuse" else shadowed,
        ", ".join(places),
        ", ".join(f"{name}={value}" for name, value in (step.get("set") or {}).items()),
    )


def _verdict(told: Told) -> Iterator[str]:
    if told["allowed"]:
        size = (told.get("tag") or {}).get("scratch")
        yield f"ALLOWED, with {format_size(size)} of encrypted scratch on each node" if size else "ALLOWED"
        slurm = told.get("slurm")
        if slurm:
            yield f"Slurm {'takes it' if slurm['accepted'] else 'REFUSES it'}: {slurm['message']}"
        return
    yield f"REFUSED ({told['rule']}): {told['message']}"
    if told.get("advice"):
        yield f"What to do: {told['advice']}"
    other = told.get("nearest")
    if not other:
        yield "No similar request with as much protection would be accepted, as far as was tried."
        return
    if other.get("command"):
        yield f"Would be accepted: {other['command']}"
    else:
        yield "Would be accepted with these changes:"
    yield f"  ({'; '.join(map(change_in_words, other['changes']))})"
    for note in other.get("notes") or []:
        yield f"  {note}"


def change_in_words(change: Told) -> str:
    """``say --partition=phi``, ``leave --constraint out``."""
    value = change.get("value")
    return f"leave {change['option']} out" if value is None else f"say {change['option']}={value}"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Aligned with spaces, never cut."""
    cells = [[printable(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """``text`` on one line, what cannot be seen escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
