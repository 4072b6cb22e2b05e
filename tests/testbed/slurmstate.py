"""What slurmctld has saved, for tests that crash it: what it had not saved is undone when it starts again."""

from __future__ import annotations

import time
from pathlib import Path

from tests.testbed.cluster import Cluster

SPOOL = "/var/spool/slurmctld"


def saved(cluster: Cluster) -> None:
    """Wait until slurmctld would start again with what it knows now, wherever in its work a crash meets it.

    It saves some seconds after a change, all jobs at once; a crash while it renames leaves the save before that. A job
    that came after all else must be in both.
    """
    marker = f"saved-{time.monotonic_ns()}"

    def submitted() -> int:
        return cluster.submit("alice", "--hold", "-J", marker, "--wrap=true", command="sbatch")

    def has(name: str) -> bool:
        try:
            return marker.encode() in Path(SPOOL, name).read_bytes()
        except FileNotFoundError:
            return False

    jobs = [submitted()]
    cluster.until(lambda: has("job_state"), "slurmctld to save its state")
    # a submission is always saved
    jobs.append(submitted())
    cluster.until(lambda: has("job_state.old") and not Path(SPOOL, "job_state.new").exists(), "its next save")
    cluster.command(["scancel", *map(str, jobs)])
