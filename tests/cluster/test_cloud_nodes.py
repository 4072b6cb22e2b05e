"""Nodes that come and go, on a cluster laid out like ParallelCluster: what a secured job has there, and until when.

Real slurmctld and slurmds, the node's real power states, instances that end without a word. The enrolment itself has
tests of its own (tests/services/vault/test_enrol.py); here the certificates are made by the test CA.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_ends import TAG
from tests.cluster.test_head_reaper import LOOKS, dead, trail, wait_dead
from tests.testbed.cloud import CLOUD, SICK, Cloud, cloud, vendors
from tests.testbed.cluster import Cluster

RESUME_TIMEOUT = 900
RUNNING = Path("/var/lib/secure-slurm/lifecycle/running")
N1 = (*TAG, "-w", "n1", "--output=/dev/null")


@pytest.fixture(scope="module")
def sky(cluster: Cluster) -> Iterator[Cloud]:
    with cloud(cluster, resume_timeout=RESUME_TIMEOUT) as made:
        yield made


@pytest.fixture
def clear(sky: Cloud) -> Iterator[Cloud]:
    """Every test begins without an instance, and leaves nothing of its jobs."""
    cluster = sky.cluster
    ground(sky)
    yield sky
    sky.broken.clear()
    cluster.cancel_all()
    # before the wait: a job whose node is gone completes when slurmctld knows that it is down
    ground(sky)
    sky.held.clear()
    cluster.until(lambda: not cluster.command(["squeue", "-h"]).stdout.strip(), "all jobs to end", 120)
    assert cluster.mappings() == []
    cluster.until(lambda: not all_keys(cluster), "no key to be left", 90)


def all_keys(cluster: Cluster) -> list[str]:
    """The keys of all jobs."""
    status, answer = cluster.bao.status("LIST", "secure-slurm-transit/keys")
    return [key for key in answer.get("data", {}).get("keys", []) if "_test-" in key] if status == 200 else []


def ground(sky: Cloud, *nodes: str) -> None:
    """As ParallelCluster's clustermgtd does with what is broken: down, and then powered down. All nodes by default."""
    cluster, nodes = sky.cluster, nodes or CLOUD
    for node in nodes:
        if node in sky.instances or node not in cluster.sinfo("powered_down"):
            sky.terminate(node)
            cluster.command(["scontrol", "update", f"nodename={node}", "state=down", "reason=ground"], check=False)
            cluster.command(["scontrol", "update", f"nodename={node}", "state=power_down_force"], check=False)
    # idle_on_node_suspend: they are idle then, whatever they were
    cluster.until(lambda: set(nodes) <= set(cluster.sinfo("powered_down")), f"{nodes} to be gone", 120)


def bound(job: int) -> dict[str, str]:
    path = RUNNING / str(job)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return dict(found.get("instances", {}))


def runs(sky: Cloud, *words: str) -> int:
    """A secured job on an instance that was booted for it.

    Its script has begun: slurmctld puts a job back whose slurmd is away when it is to launch the script.
    """
    cluster = sky.cluster
    job = cluster.submit("alice", *N1, *words, "--wrap=touch $HOME/began-$SLURM_JOB_ID; sleep 600")
    cluster.wait_state(job, "RUNNING", timeout=300)
    cluster.until(Path(f"/home/alice/began-{job}").exists, f"the script of job {job} to begin", 120)
    return job


@contextlib.contextmanager
def waiting(sky: Cloud) -> Iterator[None]:
    """A job whose node is not there for as long as this lasts. Then it boots, and the job runs to its end."""
    cluster = sky.cluster
    sky.held.add("n2")
    script = "df --output=source $SECURE_SCRATCH > $HOME/where"
    job = cluster.submit("alice", *TAG, "-w", "n2", "--output=/dev/null", f"--wrap={script}")
    cluster.until(lambda: cluster.vault_keys(job), "the key of a node that does not exist", 60)
    grants, keys, since = cluster.vault_grants(job), cluster.vault_keys(job), time.monotonic()
    assert (len(grants), len(keys), bound(job)) == (1, 1, {})
    yield
    cluster.until(lambda: time.monotonic() > since + LOOKS, "two looks of the reaper", LOOKS + 10)
    assert (cluster.vault_grants(job), cluster.vault_keys(job)) == (grants, keys)
    assert ("n2" in sky.instances, bound(job), cluster.state(job)) == (False, {}, "CONFIGURING")
    sky.held.clear()
    cluster.wait_state(job, "COMPLETED", timeout=600)
    cluster.wait_gone(job, 60)
    assert "secure-n2-" in Path("/home/alice/where").read_text()
    assert sky.boots[-1][0] == "n2"


def test_a_job_has_its_grant_long_before_its_node_and_other_instances_end_meanwhile(clear: Cloud) -> None:
    """PrologSlurmctld runs beside ResumeProgram: the grant is there, unbound, however long the boot takes."""
    with waiting(clear):
        keys_of_a_terminated_instance(clear)
        clear.cluster.command(["scancel", "-n", "lost"])
        ground(clear, "n1")
        first_contact_binds_and_a_replacement_gets_nothing(clear)


def keys_of_a_terminated_instance(clear: Cloud) -> None:
    """They die by the head node alone: ParallelCluster's daemon sets the node down, and no Epilog runs anywhere."""
    cluster = clear.cluster
    job = runs(clear, "-J", "lost")
    (key,) = cluster.vault_keys(job)
    restarts = cluster.facts(job)["restart_cnt"]
    clear.terminate("n1")
    since = time.monotonic()
    cluster.command(["scontrol", "update", "nodename=n1", "state=down", "reason=terminated"])
    took = wait_dead(cluster, [key], since)
    # secured jobs are put back (slurm_hooks/filters/mutate.py): another start, with a grant of its own
    cluster.until(lambda: cluster.facts(job)["restart_cnt"] > restarts, "the job to be requeued", 60)
    cluster.until(lambda: not cluster.vault_grants(job), "the grant to go")
    print(f"\nthe key of a terminated instance was dead {took:.1f} s after slurmctld knew")


def first_contact_binds_and_a_replacement_gets_nothing(clear: Cloud) -> None:
    """slurmctld still has the job running, and says nothing: the head node acts on the new instance's certificate."""
    cluster = clear.cluster
    job = runs(clear)
    (key,) = cluster.vault_keys(job)
    first = clear.boots[-1][1]
    cluster.until(lambda: bound(job) == {"n1": first}, "the binding")
    clear.terminate("n1")
    assert not dead(cluster, key)
    # one that is not green: its slurmd does not start, so slurmctld learns nothing
    clear.broken.add("n1")
    second = clear.boot("n1")
    assert second != first
    took = wait_dead(cluster, [key], time.monotonic())
    cluster.until(lambda: any(second in str(line) for line in trail(cluster, job, "revocation.done")), "the trail", 30)
    assert cluster.vault_grants(job) == []
    assert cluster.state(job) == "RUNNING"
    print(f"\nthe first instance's key was dead {took:.1f} s after the second began to boot")


def test_a_job_that_goes_on_without_a_node_keeps_no_key_there(clear: Cloud) -> None:
    """And at its end a vendor's Epilog that fails keeps nothing either: ours has the higher number and ran first."""
    cluster = clear.cluster
    job = cluster.submit("alice", *TAG, "-N2", "-w", "n[1-2]", "--no-kill", "--output=/dev/null", "--wrap=sleep 600")
    cluster.wait_state(job, "RUNNING", timeout=300)
    cluster.until(lambda: len(cluster.leftovers(job)["task"]) == 2, "scratch on both nodes", 150)
    keys = {key.partition("_")[0]: key for key in cluster.vault_keys(job)}
    clear.terminate("n2")
    since = time.monotonic()
    cluster.command(["scontrol", "update", "nodename=n2", "state=down", "reason=terminated"])
    took = wait_dead(cluster, [keys["n2"]], since)
    assert cluster.state(job) == "RUNNING"
    assert not dead(cluster, keys["n1"])
    print(f"\nthe key of the lost node was dead {took:.1f} s after slurmctld knew, the job goes on")
    with vendors(cluster, "epilog", SICK):
        cluster.command(["scancel", str(job)])
        cluster.until(lambda: "n1" in cluster.sinfo("drain"), "the Epilog to fail", 60)
        cluster.wait_gone(job, 60)


def test_an_instance_that_is_not_green_takes_no_secured_job(clear: Cloud) -> None:
    cluster = clear.cluster
    clear.broken.add("n1")
    job = cluster.submit("alice", *N1, "--wrap=echo it ran > $HOME/it-ran")
    cluster.until(lambda: "n1" in clear.instances, "a boot", 60)
    # ResumeProgram and PrologSlurmctld run side by side
    cluster.until(lambda: cluster.vault_keys(job), "the key of a node that boots", 60)
    keys = cluster.vault_keys(job)
    cluster.until(lambda: clear.instances["n1"].process.poll() is not None, "the instance to give up", 150)
    assert "not green" in Path("/var/log/cloud-n1.log").read_text()
    # ParallelCluster's daemon finds the bootstrap failure, or slurmctld does after ResumeTimeout
    clear.held.add("n1")
    restarts = cluster.facts(job)["restart_cnt"]
    cluster.command(["scontrol", "update", "nodename=n1", "state=down", "reason=bootstrap"])
    cluster.until(lambda: cluster.facts(job)["restart_cnt"] > restarts, "the job to be requeued")
    wait_dead(cluster, keys, time.monotonic())
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job, 60)
    assert not Path("/home/alice/it-ran").exists()
