"""What a service test needs: absent on a developer's machine it is skipped, absent in CI it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest


def need(*programs: str, modules: tuple[str, ...] = (), root: bool = False) -> None:
    """Skip (or, with ``CI`` or ``SECURE_SLURM_REQUIRE_SERVICES`` in the environment, fail) unless all of it is here."""
    missing = [each for each in programs if shutil.which(each) is None]
    missing += [each for each in modules if importlib.util.find_spec(each) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if not missing:
        return
    message = f"not here: {', '.join(missing)}"
    if os.environ.get("CI") or os.environ.get("SECURE_SLURM_REQUIRE_SERVICES"):
        pytest.fail(message)
    pytest.skip(message)
