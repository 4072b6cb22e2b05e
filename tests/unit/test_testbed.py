"""The test bed's scripts: what they refuse, and what they say last."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

TESTBED = Path(__file__).resolve().parents[1] / "testbed"


@pytest.mark.parametrize("word", ["FAULTS=mount x Vault", "ARGS=-k\ta", "ARGS=a\nb"])
def test_a_word_with_a_blank_boots_no_guest(word: str) -> None:
    done = subprocess.run(
        ["bash", str(TESTBED / "uml.sh"), "trixie", "pytest", word],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 64
    assert "a blank in" in done.stderr


@pytest.mark.parametrize("guests", ["0", "-1", "two", "1 2"])
def test_a_suite_without_a_guest_does_not_pass(guests: str) -> None:
    done = subprocess.run(
        ["bash", str(TESTBED / "suite.sh"), "cluster", "sid"],
        env={**os.environ, "GUESTS": guests},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "GUESTS" in done.stderr


@pytest.mark.parametrize("result", [True, False])
def test_what_failed_is_told_last_and_where_a_guest_was_that_left_no_result(tmp_path: Path, result: bool) -> None:
    out = tmp_path / "build" / "sid-1"
    out.mkdir(parents=True)
    (out / "now").write_text("tests/cluster/test_ends.py::test_time_limit\n")
    if result:
        (out / "rc").write_text("1\n")
    (tmp_path / "build" / "cluster-sid-1.log").write_text(
        "..F\nE   assert 1 == 2\nFAILED tests/x.py::test_y - assert\n"
    )
    found = re.search(r"(?ms)^blame\(\) \{.*?^\}$", (TESTBED / "suite.sh").read_text())
    assert found
    program = f'set -uo pipefail\nrun() {{ echo "== $*"; }}\n{found.group()}\nblamed=("$@")\nblame'
    words = subprocess.run(
        ["bash", "-c", program, "_", "cluster-sid-1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    ).stdout
    assert words.startswith("== FAILED: cluster-sid-1\nFAILED tests/x.py::test_y - assert\n")
    assert "E   assert 1 == 2" in words
    assert ("last begun: tests/cluster/test_ends.py::test_time_limit" in words) is not result
