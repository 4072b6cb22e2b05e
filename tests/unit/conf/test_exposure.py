"""``systemd-analyze security`` finds no more open in a unit than docs/units.md states."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.conf.test_systemd import ROOT

ROWS = re.findall(r"^\| `(secure-slurm-[a-z-]+)` \| ([0-9.]+) \|", (ROOT / "docs/units.md").read_text(), re.MULTILINE)
STATED = {name: float(figure) for name, figure in ROWS}
PRIVILEGED = {f"secure-slurm-{name}" for name in ("handd", "hookd", "reaper", "reaper-boot", "imds")}
LATER = 0.4
"""A later systemd looks at more than the one whose figures are stated."""


def exposure(path: Path) -> float:
    if not shutil.which("systemd-analyze"):
        reason = "systemd-analyze is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    done = subprocess.run(
        ["systemd-analyze", "--no-pager", "security", "--offline=true", str(path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert match is not None, done
    return float(match[1])


def test_every_service_is_stated() -> None:
    assert STATED.keys() == {path.stem for path in (ROOT / "conf/systemd").glob("*.service")}


@pytest.mark.parametrize("name", sorted(STATED))
def test_no_more_is_open_than_stated(name: str) -> None:
    found = exposure(ROOT / f"conf/systemd/{name}.service")
    assert found <= STATED[name] + LATER
    assert (found < 2.5) == (name not in PRIVILEGED)


def test_an_opened_one_is_noticed(tmp_path: Path) -> None:
    text = (ROOT / "conf/systemd/secure-slurm-decisiond.service").read_text()
    opened = tmp_path / "secure-slurm-decisiond.service"
    opened.write_text(
        re.sub(r"(?m)^(User|Group|CapabilityBoundingSet|NoNewPrivileges|SystemCallFilter)=.*\n", "", text)
    )
    assert exposure(opened) > 2.5
