"""What the admin command prints: tables for people, JSON for programs, errors with what to do next.

Text that came from outside (a job's name, a reason, an audit line) is shown with everything unprintable escaped, so
that it cannot move the reader's cursor or colour a line. rich is imported for a table on a terminal only; it obeys
NO_COLOR (no-color.org) by itself.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from conf.errors import SecureSlurmError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROGRAM = "secure-slurm"


def printable(value: object) -> str:
    """``value`` on one line, what cannot be seen escaped; text that can be seen stays as it is."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str = "") -> None:
    """One line of ours on stdout."""
    sys.stdout.write(text + "\n")


def say_json(value: object) -> None:
    """One JSON document on stdout, ASCII, in the order given."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def say_error(error: SecureSlurmError) -> None:
    """What happened, then what to do next, on stderr."""
    lines = [f"{PROGRAM}: error: {error}"]
    if error.advice:
        lines.append(f"{PROGRAM}: {error.advice}")
    sys.stderr.write("".join(f"{printable(line)}\n" for text in lines for line in text.split("\n")))


def say_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; on a terminal fitted to its width, else aligned with spaces and never cut."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headers, cells)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in [list(headers), *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(headers: Sequence[str], cells: list[list[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - 70 ms that only a terminal should cost
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in cells:
        # Text: a cell must not be read as markup
        table.add_row(*map(Text, row))
    Console(file=sys.stdout).print(table)
