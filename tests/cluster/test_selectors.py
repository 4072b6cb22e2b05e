"""Each of the six things that can be revoked, on a real cluster: what runs stands still, what waits is held, what comes
is refused, and what has nothing to do with it goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.test_freeze import linked, resume, suspended
from tests.cluster.test_mounts import put
from tests.cluster.test_revoke import EU, US, goes_on, revoke, stands_still, until_refused, writing
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.people import ClusterError

__all__ = ["linked"]
HEART = (*EU, "--secure-dataset=heart")
POLICY = settings.POLICY.replace(
    "partitions:\n  phi:", "datasets:\n  heart: {class: phi, residency: [eu], roles: [phi-eu]}\npartitions:\n  phi:"
)
LATER = ("--begin=now+1hour", "--wrap=true")


@pytest.fixture(scope="module")
def dataset(cluster: Cluster) -> Iterator[None]:
    path = Path(settings.ETC) / "policy.yaml"
    put(cluster, path, POLICY)
    words = ["secure-sbatch", *HEART, "--test-only", "--wrap=true"]
    cluster.until(lambda: cluster.as_user("alice", words).returncode == 0, "the policy to be in force")
    # the lifecycle daemon looks each second, as the decision daemon just did
    time.sleep(2)
    yield
    put(cluster, path, settings.POLICY)
    cluster.until(lambda: cluster.as_user("alice", words).returncode != 0, "the old policy again")


@pytest.mark.parametrize(
    ("kind", "value"), [("user", "alice"), ("role", "phi-eu"), ("dataset", "heart"), ("jurisdiction", "eu")]
)
def test_held_and_refused(linked: Cluster, dataset: None, kind: str, value: str) -> None:
    mine, other = writing(linked, "alice", *HEART), writing(linked, "carol", *US)
    waiting, others = linked.submit("alice", *HEART, *LATER), linked.submit("carol", *US, *LATER)
    report = revoke(linked, f"--{kind}", value, "--freeze")
    assert (list(report["jobs"]), report["held"], report["confirmed"]) == ([str(mine)], [waiting], True)
    assert stands_still(mine)
    assert linked.job(waiting)["Reason"] == "JobHeldAdmin"
    until_refused(linked, f"revoked.{kind}", *HEART)
    with pytest.raises(ClusterError, match=rf"revoked\.{kind}"):
        linked.submit("alice", *HEART, "--wrap=true")
    # released by an operator all the same, it is refused when it starts
    linked.command(["scontrol", "update", f"job={waiting}", "StartTime=now"])
    linked.command(["scontrol", "release", str(waiting)])
    goes_on(linked, other)
    assert linked.job(others)["Reason"] == "BeginTime"
    resume(linked, f"--{kind}", value)
    goes_on(linked, mine)
    linked.command(["scancel", str(mine), str(other), str(waiting), str(others)])
    for job in (mine, other):
        linked.wait_gone(job)
    until_refused(linked, "", *HEART)
    again = linked.submit("alice", *HEART, "--wrap=true")
    assert linked.wait_end(again)["JobState"] == "COMPLETED"


def test_a_node(linked: Cluster) -> None:
    """A submission may name no node: what is refused is the start there."""
    mine = writing(linked, "alice", *EU, "-w", "n1")
    report = revoke(linked, "--node", "n1", "--freeze")
    assert (list(report["jobs"]), report["confirmed"]) == ([str(mine)], True)
    linked.command(["scancel", str(mine)])
    linked.wait_gone(mine)
    job = linked.submit("alice", *EU, "-w", "n1", "--wrap=true")
    linked.until(lambda: "[revoked.node]" in linked.facts(job)["admin_comment"], "it to be refused", 60)
    linked.until(lambda: linked.job(job)["Priority"] == "0", "it to be held", 30)
    resume(linked, "--node", "n1")
    linked.command(["scontrol", "release", str(job)])
    assert linked.wait_end(job)["JobState"] == "COMPLETED"


def test_a_job_that_waits(linked: Cluster) -> None:
    mine, other = linked.submit("alice", *EU, *LATER), linked.submit("alice", *EU, *LATER)
    report = revoke(linked, "--job", str(mine), "--freeze")
    assert (report["jobs"], report["held"], report["confirmed"]) == ({}, [mine], True)
    linked.command(["scontrol", "update", f"job={mine}", "StartTime=now"])
    linked.command(["scontrol", "release", str(mine)])
    linked.until(lambda: "[revoked.job]" in linked.facts(mine)["admin_comment"], "it to be refused", 60)
    linked.until(lambda: linked.job(mine)["Priority"] == "0", "it to be held", 30)
    resume(linked, "--job", str(mine))
    linked.command(["scontrol", "release", str(mine)])
    assert linked.wait_end(mine)["JobState"] == "COMPLETED"
    linked.command(["scancel", str(other)])


def test_killed_while_it_waits_for_the_device(linked: Cluster) -> None:
    """A process that hangs on a suspended device cannot die; Slurm would wait for it, and drain the node."""
    job = writing(linked, "alice", *EU)
    node = linked.job(job)["NodeList"]
    # so that one hangs for certain: the freezer comes after the device here, and cannot freeze it
    linked.command(["dmsetup", "suspend", "--noflush", "--nolockfs", f"secure-{node}-{job}"])
    time.sleep(1)
    assert revoke(linked, "--job", str(job), "--freeze")["confirmed"]
    assert suspended(job, node)
    linked.command(["scancel", str(job)])
    assert linked.wait_end(job)["JobState"] == "CANCELLED"
    linked.wait_gone(job)
    assert linked.drained() == ""
