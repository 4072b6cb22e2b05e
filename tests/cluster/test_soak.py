"""The soak (tests/faults/soak.py): SOAK_JOBS jobs with faults at random; 1,000 by ``make soak``, a few in every test.

``SOAK_SEED`` asks for the jobs and faults of an earlier run.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from tests.faults.bed import fault_bed
from tests.faults.soak import Soak
from tests.testbed.cluster import Cluster

OUT = Path("/out/soak.json")
JOBS = int(os.environ.get("SOAK_JOBS") or 16)
SEED = int(os.environ.get("SOAK_SEED") or secrets.randbelow(10**6))
A_FAULT_FOR = 4 if JOBS < 100 else 10


def test_nothing_is_left_and_no_node_is_drained_for_what_was_not_its_own(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    with capfd.disabled():
        print(f"\nsoak: {JOBS} jobs, SOAK_SEED={SEED}", flush=True)
        with fault_bed(cluster, hurried=False) as bed:
            result = Soak(bed, JOBS, SEED, A_FAULT_FOR).run()
        result["seed"] = SEED
        OUT.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1), flush=True)
    assert result["jobs"] == JOBS
    assert result["leftovers"] == 0
    assert result["wrong_drains"] == 0
    assert result["audit_verified"] is True
    assert result["faults_injected"] > 0
    assert result["unexpected_ends"] == []
