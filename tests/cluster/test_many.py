"""Many nodes, many tasks, and starts that others interrupt: scratch on all nodes or none, no key outlives its start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_ends import TAG, gone, running
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.people import TRIES

TASKS = 10_000


def dead(cluster: Cluster, key: str) -> bool:
    return cluster.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] == 404


def test_where_one_node_cannot_no_node_keeps_anything(clean: Cluster) -> None:
    place = Path("/etc/secure-slurm/places/n2")
    place.write_text("us-east-1\n")
    try:
        job = clean.submit("alice", *TAG, "-N2", "-o", "both.out", "--wrap=srun hostname")
        clean.until(lambda: "n2" in clean.drained(), "the node at fault to drain", 90)
        clean.until(lambda: clean.state(job) == "PENDING", "the job to be sent back", 60)
        clean.wait_gone(job, 60)
        assert clean.drained().split()[0] == "n2"
        assert not Path("/home/alice/both.out").exists()
    finally:
        place.write_text("eu-central-1\n")
        clean.command(["scancel", str(job)], check=False)
        clean.command(["scontrol", "update", "NodeName=n2", "State=RESUME"], check=False)
        clean.wait_idle("n2")


def all_keys(cluster: Cluster) -> list[str]:
    """Those of jobs; the one that signs certificates is in the same place."""
    status, answer = cluster.bao.status("LIST", "secure-slurm-transit/keys")
    assert status == 200
    return [key for key in answer["data"]["keys"] if "_test-" in key]


def lines(cluster: Cluster, event: str) -> list[dict[str, Any]]:
    story = json.loads(cluster.tool("audit", "show", "--json", settings.LOG).stdout)
    return [line for line in story if line["event"] == event]


def submissions(cluster: Cluster) -> list[str]:
    """The nonces of what was judged when it was submitted."""
    return [line.get("nonce", "") for line in lines(cluster, "decision") if line["verb"] == "submit"]


def preempting(conf: str) -> str:
    """Arrays as large as the issue's, and a partition whose jobs send others back."""
    urgent = "PartitionName=urgent Nodes=n[1-2] OverSubscribe=NO MaxTime=60 PriorityTier=10\n"
    return (
        conf.replace("PartitionName=main", "PreemptType=preempt/partition_prio\nPartitionName=main", 1)
        + urgent
        + f"PreemptMode=REQUEUE\nMaxArraySize={TASKS + 1}\n"
    )


@pytest.fixture(scope="module")
def crowded(cluster: Cluster) -> Iterator[Cluster]:
    with cluster.other_slurm(preempting):
        yield cluster


def test_a_preempted_job_has_new_keys_when_it_starts_again(crowded: Cluster) -> None:
    first = running(crowded, "-w", "n1", "--partition=main", "--wrap=sleep 600")
    (before,) = crowded.vault_keys(first)
    urgent = running(crowded, "-w", "n1", "--partition=urgent", "--wrap=sleep 600")
    assert crowded.state(first) == "PENDING"
    crowded.until(lambda: dead(crowded, before), "the key of the preempted start to die", 60)
    assert crowded.vault_keys(first) == []
    crowded.command(["scancel", str(urgent)])
    crowded.until(lambda: crowded.state(first) == "RUNNING", "the second start", 180)
    crowded.until(lambda: crowded.leftovers(first)["task"], "its scratch", 60)
    (after,) = crowded.vault_keys(first)
    assert after != before
    crowded.command(["scancel", str(first)])
    for job in (urgent, first):
        crowded.wait_end(job)
        gone(crowded, job)


def test_an_array_of_ten_thousand_tasks(crowded: Cluster) -> None:
    """Judged once, as Slurm does; a task has keys while it runs, and what never ran never had any."""
    judged = submissions(crowded)
    since = len(lines(crowded, "start.judged"))
    job = crowded.submit("alice", *TAG, f"--array=0-{TASKS - 1}%2", "-o", "many-%a.out", "--wrap=sleep 5")
    listed = ["squeue", "-h", "-r", "-j", str(job), "-o", "%i"]
    assert len(crowded.command(listed).stdout.split()) == TASKS
    done = [Path(f"/home/alice/many-{task}.out") for task in range(4)]
    crowded.until(lambda: all(path.exists() for path in done), "four tasks to have run", 240)
    assert len(all_keys(crowded)) <= 4  # two that run, and two that end
    crowded.command(["scancel", str(job)])
    crowded.until(lambda: not crowded.command(listed, check=False).stdout.strip(), "the array to end", 120)
    crowded.until(lambda: not all_keys(crowded), "every key to die", 120)
    gone(crowded, job)
    # by their nonce: a verdict that came too late is judged as well, and what it was for is submitted once more
    nonces = {line["nonce"] for line in lines(crowded, "start.judged")[since:]}
    assert len(nonces) == 1
    new = submissions(crowded)[len(judged) :]
    assert len(new) <= TRIES
    assert new.count(nonces.pop()) == 1
    assert crowded.tool("audit", "verify", settings.LOG).returncode == 0


def test_a_suspended_job_keeps_its_scratch_and_goes_on(clean: Cluster) -> None:
    script = "for n in $(seq 600); do echo $n > $SECURE_SCRATCH/count; sleep 1; done"
    job = running(clean, "-w", "n1", f"--wrap={script}")
    keys, restarts = clean.vault_keys(job), clean.facts(job)["restart_cnt"]
    clean.command(["scontrol", "suspend", str(job)])
    clean.wait_state(job, "SUSPENDED")
    clean.command(["sleep", "25"])
    assert (clean.vault_keys(job), len(clean.leftovers(job)["mappings"])) == (keys, 1)
    clean.command(["scontrol", "resume", str(job)])
    clean.wait_state(job, "RUNNING")
    assert (clean.vault_keys(job), clean.facts(job)["restart_cnt"]) == (keys, restarts)
    clean.command(["scontrol", "suspend", str(job)])
    clean.wait_state(job, "SUSPENDED")
    clean.as_user("alice", ["scancel", str(job)])
    assert clean.wait_end(job)["JobState"] == "CANCELLED"
    gone(clean, job)
