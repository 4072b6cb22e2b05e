"""One cluster for the whole suite, on real Slurm, OpenBao, slapd and dm-crypt; it starts once and is asserted clean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.cluster import Cluster

IN_GUEST = Path("/src/tests/testbed/guest/stage2.sh").exists() and Path("/sys/class/misc/device-mapper").is_dir()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The running cluster. On a machine without device mapper it is absent: a skip here, a failure in CI."""
    if not IN_GUEST:
        reason = "no device mapper here: run 'make test-cluster', which boots a guest that has one"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with Cluster() as running:
        yield running


@pytest.fixture
def clean(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, and afterwards: no mapping left, no node drained."""
    yield cluster
    cluster.cancel_all()
    cluster.until(
        lambda: not cluster.command(["squeue", "-h", "-t", "R,CF,CG", "-o", "%i"]).stdout.strip(), "all jobs to end"
    )
    cluster.until(lambda: not cluster.mappings(), "all mappings to be closed")
    assert cluster.drained() == ""
