"""What holds for every unit test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """Hooks and daemons set their own, and here one process runs all tests."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)
