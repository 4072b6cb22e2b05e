"""Whose fault it was decides what becomes of job and node: no outage and no user's mistake drains a node."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_hooks import tries
from tests.cluster.test_ends import gone
from tests.cluster.test_head_reaper import status
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
# PrologSlurmctld's patience, a requeue's delay (cred_expire), and a slow machine
PATIENCE = 180
DISK = "/var/lib/secure-slurm/scratch"


def mark(cluster: Cluster, job: int) -> tries.Mark | None:
    return tries.of_comment(cluster.facts(job)["admin_comment"])


def word(cluster: Cluster, job: int) -> str:
    found = mark(cluster, job)
    return found.word if found else ""


def wait_mark(cluster: Cluster, job: int, wanted: str) -> tries.Mark:
    """The first mark with this word; the next start writes another."""
    seen: list[tries.Mark | None] = []

    def look() -> bool:
        seen.append(mark(cluster, job))
        return getattr(seen[-1], "word", "") == wanted

    cluster.until(look, f"job {job} to be marked as {wanted}", PATIENCE)
    assert seen[-1] is not None
    return seen[-1]


@contextlib.contextmanager
def drained(cluster: Cluster, *nodes: str) -> Iterator[None]:
    """What runs there goes on, and nothing begins."""
    for node in nodes:
        cluster.command(["scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=a test"])
    try:
        yield
    finally:
        for node in nodes:
            cluster.command(["scontrol", "update", f"NodeName={node}", "State=RESUME"])


def trail(cluster: Cluster, *words: str) -> list[dict[str, Any]]:
    return list(json.loads(cluster.tool("audit", "show", "--json", *words, settings.LOG).stdout))


def events(cluster: Cluster, job: int) -> list[str]:
    return [line["event"] for line in trail(cluster, "--job", str(job))]


def why(cluster: Cluster, job: int) -> str:
    return cluster.tool("why", str(job)).stdout


def breaker(cluster: Cluster) -> dict[str, Any]:
    return dict(status(cluster)[1]["lifecycle"]["breaker"])


def completed(cluster: Cluster, job: int) -> None:
    cluster.until(lambda: cluster.state(job) == "COMPLETED", f"job {job} to run to its end", PATIENCE)
    gone(cluster, job)


def test_an_outage_of_vault_from_the_first_wait_to_the_release(clean: Cluster) -> None:
    clean.bao.seal()
    try:
        job = clean.submit("alice", *TAG, "--wrap=echo ran")
        clean.until(lambda: word(clean, job) == tries.WAITING, "it to wait in PrologSlurmctld", 60)
        assert "waits for a service" in why(clean, job)
        found = wait_mark(clean, job, tries.REQUEUED)
        assert (found.tries, found.restarts) == (1, 0)
        assert "backend.unavailable" in found.text
        found = wait_mark(clean, job, tries.WAITS)
        clean.until(lambda: clean.job(job)["Priority"] == "0", "the hold", 30)
        assert (found.tries, found.restarts) == (2, 1)
        assert "it is released when the service is back" in why(clean, job)
        assert not Path(f"/home/alice/slurm-{job}.out").exists()
        assert clean.drained() == ""
    finally:
        clean.bao.unseal()
    completed(clean, job)
    assert "start.released" in events(clean, job)
    assert clean.drained() == ""


@pytest.fixture
def hurried(clean: Cluster) -> Iterator[Cluster]:
    """A cluster whose PrologSlurmctld has less patience: everything else is as it was."""
    site = Path(settings.ETC) / "secure-slurm.yaml"
    before = site.read_text()
    changed = before.replace("start_deadline: 40s", "start_deadline: 20s").replace("within: 15s", "within: 10s")
    assert changed.count("20s") == before.count("20s") + 1
    try:
        again(clean, changed)
        yield clean
    finally:
        again(clean, before)


def again(cluster: Cluster, text: str) -> None:
    """The lifecycle daemon, and what the hooks read, by another site file."""
    cluster.write(Path(settings.ETC) / "secure-slurm.yaml", text)
    cluster.tool("conf", "render")
    cluster.stop_daemon("lifecycled")
    cluster.daemon("lifecycled", "secure-life")
    cluster.until(lambda: "lifecycle" in status(cluster)[1] and status(cluster)[1]["lifecycle"], "the daemon", 60)


def held_by_outage(cluster: Cluster, job: int) -> bool:
    return word(cluster, job) == tries.WAITS and cluster.job(job)["Priority"] == "0"


def test_the_breaker_opens_holds_back_and_closes_by_itself(hurried: Cluster) -> None:
    clean = hurried
    clean.bao.seal()
    try:
        first = [clean.submit("alice", *TAG, "--wrap=echo ran") for _ in range(3)]
        for job in first:
            clean.until(lambda j=job: word(clean, j) in (tries.REQUEUED, tries.WAITS), f"job {job} to fail", PATIENCE)
        clean.until(lambda: breaker(clean)["state"] == "open", "the breaker to open", 60)
        later = [clean.submit("alice", *TAG, "--wrap=echo ran") for _ in range(3)]
        for job in (*first, *later):
            clean.until(lambda j=job: held_by_outage(clean, j), f"job {job} to be held", PATIENCE)
        # the later ones took no node for longer than a moment: they were not tried
        for job in later:
            found = mark(clean, job)
            assert found is not None
            assert (found.tries, found.text[:16]) == (0, "[service.outage]")
            assert "it was not tried" in why(clean, job)
        code, told = status(clean)
        assert code == 1
        assert told["lifecycle"]["breaker"]["turned_away"] >= 3
        assert "the breaker is open" in clean.tool("status", check=False).stdout
        assert clean.drained() == ""
        # one of them an admin holds as well, and one its user never released
        kept = later.pop()
        clean.command(["scontrol", "hold", str(kept)])
        own = clean.submit("alice", *TAG, "--hold", "--wrap=echo ran")
    finally:
        clean.bao.unseal()
    for job in (*first, *later):
        completed(clean, job)
    clean.until(lambda: breaker(clean)["state"] == "closed", "the breaker to close", 60)
    for job in (kept, own):
        assert (clean.state(job), clean.job(job)["Priority"]) == ("PENDING", "0")
        assert "start.released" not in events(clean, job)
    seen = [line["event"] for line in trail(clean) if line["event"].startswith("breaker.")]
    assert seen[:2] == ["breaker.opened", "breaker.probing"]
    assert seen[-1] == "breaker.closed"
    assert clean.drained() == ""
    clean.command(["scontrol", "release", str(kept)])
    completed(clean, kept)
    clean.command(["scancel", str(own)])


def test_vault_says_no_to_the_head_node(hurried: Cluster) -> None:
    """403: a policy that somebody broke is no job's fault and no node's."""
    clean = hurried
    name = "secure-slurm-test-head"
    before = clean.bao.request("GET", f"sys/policies/acl/{name}")["data"]["policy"]
    clean.bao.request("PUT", f"sys/policies/acl/{name}", {"policy": 'path "x" { capabilities = ["deny"] }'})
    try:
        job = clean.submit("alice", *TAG, "--wrap=echo ran")
        clean.until(lambda: word(clean, job) == tries.WAITING, "it to wait in PrologSlurmctld")
        # with nowhere to start again, this stays its word
        with drained(clean, "n1", "n2"):
            found = wait_mark(clean, job, tries.REQUEUED)
            assert (found.tries, "permission denied" in found.text) == (1, True)
            assert "back in the queue" in why(clean, job)
    finally:
        clean.bao.request("PUT", f"sys/policies/acl/{name}", {"policy": before})
    completed(clean, job)
    assert clean.drained() == ""


def test_a_node_that_does_not_reach_its_service_is_not_drained_and_the_job_is_held_after_two_tries(
    clean: Cluster,
) -> None:
    clean.command(["pkill", "-f", "secure-slurm-noded.*--node n1"])
    job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=echo ran")
    wait_mark(clean, job, tries.REQUEUED)
    found = wait_mark(clean, job, tries.TWICE)
    assert (found.tries, "(node n1)" in found.text) == (2, True)
    assert "held after it failed 2 times" in why(clean, job)
    assert clean.drained() == ""
    assert not Path(f"/home/alice/slurm-{job}.out").exists()
    # it is somebody else's to release, though every service answers
    time.sleep(8)
    assert clean.job(job)["Priority"] == "0"
    on_node("n1", ["sh", "/opt/tests/tests/testbed/guest/node_daemon.sh", "n1", "daemon"])
    clean.wait_idle("n1")
    clean.command(["scontrol", "release", str(job)])
    completed(clean, job)


@pytest.mark.parametrize("fault", ["place", "folder", "space"])
def test_a_broken_node_is_drained_with_its_reason_and_the_job_runs_elsewhere(clean: Cluster, fault: str) -> None:
    place = Path(f"{settings.ETC}/places/n1")
    scratch = Path("/var/lib/secure-slurm/scratch-n1")
    try:
        if fault == "place":
            place.write_text("us-east-1\n")
        elif fault == "folder":
            scratch.chmod(0o777)
        else:
            # a disk of its own, full of what is no scratch
            on_node("n1", ["mount", "-t", "tmpfs", "-o", "size=100M,mode=700", "tmpfs", DISK])
            on_node("n1", ["fallocate", "-l", "80M", f"{DISK}/core"])
        rule = {"place": "residency.node", "folder": "node.broken", "space": "node.no-space"}[fault]
        # the broken one is the only one, until it has been found out
        clean.command(["scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=later"])
        job = clean.submit("alice", *TAG, "--wrap=hostname")
        clean.until(lambda: rule in clean.drained(), "the node to be drained with the reason", PATIENCE)
        assert f"n1 secure-slurm: [{rule}] " in clean.drained()
        clean.command(["scontrol", "update", "NodeName=n2", "State=RESUME"])
        clean.until(lambda: clean.state(job) == "COMPLETED", "it to run on the other node", PATIENCE)
        clean.wait_gone(job)
        assert Path(f"/home/alice/slurm-{job}.out").read_text().strip() == "n2"
        found = mark(clean, job)
        assert found is not None
        assert (found.word, found.tries, "(node n1)" in found.text) == (tries.REQUEUED, 1, True)
    finally:
        place.write_text("eu-central-1\n")
        scratch.chmod(0o700)
        if fault == "space":
            on_node("n1", ["umount", "-l", DISK])
        for node in ("n1", "n2"):
            clean.command(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False)
        clean.wait_idle("n1", "n2")
