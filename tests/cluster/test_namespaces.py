"""Slurm's own namespace plugin copies the mounts of a node into every job that starts while they exist."""

from __future__ import annotations

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster, with_own_tmp

TAG = ("--secure-class=internal", "--secure-residency=eu", "--secure-scratch=32M")


OWN_TMP_ELSEWHERE = "AutoBasePath=true\nBasePath=/var/tmp/jc-%n Dirs=/tmp\n"


@pytest.mark.parametrize("container", [settings.JOB_CONTAINER, OWN_TMP_ELSEWHERE], ids=["on the scratch", "elsewhere"])
def test_scratch_pinned_by_another_jobs_namespace_is_closed_all_the_same(clean: Cluster, container: str) -> None:
    def change(conf: str) -> str:
        return with_own_tmp(conf).replace("CPUs=1", "CPUs=2") + "SlurmdParameters=config_overrides\n"

    with clean.other_slurm(change, job_container=container):
        first = clean.submit("alice", *TAG, "-w", "n1", "-n1", "--mem=100", "--wrap=sleep 600")
        clean.until(lambda: clean.leftovers(first)["task"], "scratch of the first job", 60)
        done = clean.as_user(
            "bob", ["sbatch", "-w", "n1", "--mem=100", "-o", "pin.out", "--wrap=cat /proc/self/mounts; sleep 600"]
        )
        second = int(done.stdout.split()[-1])
        clean.wait_state(second, "RUNNING")
        path = f"/secure-scratch/{first}"
        clean.until(
            lambda: path in clean.command(["sh", "-c", "cat /home/bob/pin.out"], check=False).stdout, "the copy", 30
        )
        clean.command(["scancel", str(first)])
        clean.wait_state(first, "CANCELLED")
        clean.wait_gone(first, 60)
        assert clean.state(second) == "RUNNING"
        assert clean.drained() == ""
