"""The fault matrix: each step of set-up and tear-down, and each fault at it (tests/faults/table.py).

``FAULTS=all`` runs all of it (``make faults``), ``FAULTS_PART=1/2`` every second cell, ``FAULTS=mount.x.Vault`` those
whose name has that in it (a regular expression); without it, the representative ones are run. Each cell is a line of
faults.json beside the other results.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bed import FaultBed, fault_bed
from tests.faults.cell import Run
from tests.faults.table import CELLS, FAULTS, REPRESENTATIVE, STEPS, Cell
from tests.testbed.cluster import Cluster

OUT = Path("/out/faults.json")


def chosen() -> tuple[Cell, ...]:
    """The cells that this run is for."""
    wanted = os.environ.get("FAULTS", "")
    cells = REPRESENTATIVE
    if wanted:
        cells = tuple(cell for cell in CELLS if wanted == "all" or re.search(wanted, str(cell)))
    part, _, parts = os.environ.get("FAULTS_PART", "1/1").partition("/")
    return cells[int(part) - 1 :: int(parts)]


@pytest.fixture(scope="module")
def bed(cluster: Cluster) -> Iterator[FaultBed]:
    with fault_bed(cluster, hurried=bool(os.environ.get("FAULTS"))) as ready:
        yield ready


@pytest.fixture(scope="module")
def lines() -> Iterator[list[dict[str, object]]]:
    found: list[dict[str, object]] = []
    yield found
    assert len(found) == len(chosen())


@pytest.mark.parametrize("cell", chosen(), ids=str)
def test_a_cell(bed: FaultBed, lines: list[dict[str, object]], capfd: pytest.CaptureFixture[str], cell: Cell) -> None:
    line = Run(bed, cell).run()
    lines.append(line)
    # as it goes: a run that is cut short has what it saw
    OUT.write_text(json.dumps({"cells": lines}, indent=1) + "\n")
    with capfd.disabled():
        words = "clean" if line["clean"] else "LEFT"
        drained = "drained" if line["drained"] else "-"
        print(
            f"{len(lines):4}/{len(chosen())}  {cell.step:24} {cell.fault:18} {words:6} {drained:8} "
            f"{line['end_state']:10} {line['how']:28} {line['seconds']:6} s  {line['times']}",
            *(f"\n        {problem:.600}" for problem in line.get("problems", ())),
            flush=True,
        )
    assert not line.get("problems"), "\n".join(map(str, line["problems"]))  # type: ignore[call-overload]


def test_the_representative_cells_have_every_step_and_every_fault() -> None:
    assert {cell.step for cell in REPRESENTATIVE} == set(STEPS)
    assert {cell.fault for cell in REPRESENTATIVE} == set(FAULTS)
    assert set(REPRESENTATIVE) <= set(CELLS)
