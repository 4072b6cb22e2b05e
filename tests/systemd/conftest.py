"""The cluster under systemd: it starts once. On a machine whose PID 1 is anything else it is absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.supervised import Supervised

UNDER_SYSTEMD = Path("/src/tests/testbed/guest/systemd.sh").exists() and Path("/run/systemd/system").is_dir()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Supervised]:
    """The running cluster; without systemd a skip by hand, and a failure in CI."""
    if not UNDER_SYSTEMD:
        reason = "not in the guest whose PID 1 is systemd: run tests/testbed/uml.sh trixie systemd ARGS=tests/systemd"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with Supervised() as running:
        yield running
