"""The linters, as tests: what does not pass them does not pass at all."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tool: str, *argv: str) -> None:
    # Debian has ruff as a program, PyPI as a module too
    found = [sys.executable, "-m", tool] if importlib.util.find_spec(tool) else _program(tool)
    if not found:
        message = f"{tool} is not installed"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run([*found, *argv], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _program(tool: str) -> list[str]:
    places = [Path(sys.executable).parent, Path("/usr/bin"), Path("/usr/local/bin")]
    return next(([str(place / tool)] for place in places if (place / tool).is_file()), [])


def test_ruff_check() -> None:
    run("ruff", "check", "--no-cache", ".")


def test_ruff_format() -> None:
    run("ruff", "format", "--check", "--no-cache", ".")


def test_mypy(tmp_path: Path) -> None:
    run("mypy", f"--cache-dir={tmp_path}")
