"""What a look at audit files finds."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong: ``kind`` is a stable word, ``line`` counts from 1 (0: the file as a whole)."""

    kind: str
    file: str
    line: int
    message: str


class Report(NamedTuple):
    """What was read and what is wrong; ``notes`` are honest accidents (a line torn by a crash, and told of)."""

    files: int
    events: int
    writers: list[str]
    findings: list[Finding]
    notes: list[Finding]

    @property
    def whole(self) -> bool:
        """Nothing is wrong; notes do not count."""
        return not self.findings
