"""Frozen jobs on a real cluster: they stand still without a key anywhere but in Vault, and go on as if nothing was."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.site import load_site
from keys.vault_errors import VaultError
from keys.vault_node import VaultNode
from slurm_hooks import wire
from tests.cluster.test_revoke import (
    EU,
    GRACE,
    US,
    all_connected,
    connected,
    goes_on,
    kill,
    node_of,
    restart,
    revoke,
    short_grace,
    stands_still,
    table,
    trail,
    until_listed,
    until_refused,
    writing,
)
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.people import ClusterError


def resume(cluster: Cluster, *words: str, code: int = 0) -> dict[str, Any]:
    """``secure-slurm resume``; where 0 is wanted and it says 4, until everything is confirmed after all."""
    done = cluster.tool("resume", "--json", *words, check=False)
    report = dict(json.loads(done.stdout)) if done.stdout else {"stderr": done.stderr}
    if done.returncode == 4 and not code:
        cluster.until(
            lambda: report["id"] not in [one["id"] for one in revoke(cluster, "--list")["revocations"]], "the rest"
        )
    else:
        assert done.returncode == code, done.stdout + done.stderr
    return report


def suspended(job: int, node: str) -> bool:
    done = subprocess.run(["dmsetup", "info", f"secure-{node}-{job}"], capture_output=True, text=True, check=False)
    return "SUSPENDED" in done.stdout


@pytest.fixture
def linked(clean: Cluster) -> Iterator[Cluster]:
    all_connected(clean)
    yield clean
    for one in revoke(clean, "--list")["revocations"]:
        if one["mode"] == "freeze":
            revoke(clean, f"--{one['kind']}", one["value"])
        revoke(clean, "--lift", one["id"])


def done_to(cluster: Cluster, job: int) -> list[str]:
    """The trail's events; a hand that was asked to thaw is unsure for a moment, and its node may confirm it anew."""
    return [event["event"] for event in trail(cluster, job) if event["event"] != "revocation.node"]


def test_a_job_freezes_and_goes_on(linked: Cluster) -> None:
    sums = Path("/home/alice/sums")
    sums.unlink(missing_ok=True)
    # what was written before, through the page cache and not synced, must be there afterwards, bit by bit
    body = (
        "cd $SECURE_SCRATCH; head -c 20M /dev/urandom > a; sha256sum a; touch $HOME/at-$SLURM_JOB_ID; "
        "while [ ! -e $HOME/go-$SLURM_JOB_ID ]; do dd if=/dev/zero of=d bs=4k count=4 conv=notrunc oflag=direct "
        "status=none || exit 1; sleep 0.1; done; sync a; sha256sum a; head -c 1M /dev/urandom > b && sha256sum b"
    )
    job, other = linked.submit("alice", *EU, "-o", str(sums), f"--wrap={body}"), writing(linked, "carol", *US)
    linked.until(Path(f"/home/alice/at-{job}").exists, "it to run", 120)
    goes_on(linked, job)
    node = node_of(linked, job)
    (key,) = linked.vault_keys(job)

    report = revoke(linked, "--job", str(job), "--freeze", "--reason", "a test")
    assert report["jobs"] == {str(job): {"keys": "locked", "nodes": {node: "frozen"}}}
    assert report["confirmed"]
    assert (table(job, node), suspended(job, node)) == ("crypt", True)
    assert stands_still(job)
    assert linked.state(job) == "RUNNING"
    goes_on(linked, other)
    # it is only Vault that has the key, and nobody gets it there: not with the wrapped key that the node has kept
    record = json.loads(Path(f"{settings.RUN}/node-{node}/journal/{job}.json").read_text())
    asked = {"ciphertext": record["wrapped_key"]}
    status, answer = linked.bao.status("POST", f"secure-slurm-transit/decrypt/{key}", asked)
    assert (status, "too old" in str(answer)) == (400, True), answer
    with (
        VaultNode.from_site(load_site().vault, node) as itself,
        pytest.raises(VaultError, match="its job is frozen"),
    ):
        itself.unwrap(key, record["wrapped_key"])
    # nor does its hand let it go for anybody who comes without the key
    hand = f"{settings.RUN}/node-{node}/hand.sock"
    request: dict[str, bytes | str] = {"verb": "thaw", "job": str(job), "incarnation": ""}
    assert wire.exchange(hand, request, timeout=20)["result"] == b"failed"
    # and the kernel does not go on without it
    subprocess.run(["dmsetup", "resume", f"secure-{node}-{job}"], capture_output=True, check=False)
    assert suspended(job, node)

    # once more: nothing happens
    events = done_to(linked, job)
    assert events.count("job.frozen") == 1
    assert revoke(linked, "--job", str(job), "--freeze")["id"] == report["id"]
    assert done_to(linked, job) == events

    report = resume(linked, "--job", str(job))
    # on a node that needed longer than the command waits it is running by now
    assert report["jobs"][str(job)]["keys"] == "unlocked"
    assert list(report["jobs"][str(job)]["nodes"]) == [node]
    assert not suspended(job, node)
    goes_on(linked, job)
    assert revoke(linked, "--list")["revocations"] == []
    Path(f"/home/alice/go-{job}").touch()
    assert linked.wait_end(job)["JobState"] == "COMPLETED"
    linked.wait_gone(job)
    lines = [line.split()[0] for line in sums.read_text().splitlines()]
    assert (len(lines), lines[0] == lines[1]) == (3, True)
    told = [(event["event"], event.get("result", "")) for event in trail(linked, job)]
    assert told.index(("key.unlock", "")) < told.index(("node.unwrap", "")) < told.index(("job.thawed", "running"))
    assert ("job.thawed", "failed") in told


def test_who_may_not_and_what_cannot(linked: Cluster) -> None:
    done = linked.as_user("alice", [f"{settings.PREFIX}/bin/secure-slurm", "resume", "--user", "alice"])
    assert (done.returncode, "only root" in done.stderr) == (2, True)
    assert "nothing of that name is frozen" in resume(linked, "--job", "999999", code=1)["stderr"]
    job = writing(linked, "alice", *EU)
    node = node_of(linked, job)
    revoke(linked, "--job", str(job), "--kill")
    assert "revoked for good" in resume(linked, "--job", str(job), code=1)["stderr"]
    assert "revoked for good" in revoke(linked, "--job", str(job), "--freeze", code=1)["stderr"]
    assert linked.wait_end(job)["JobState"] == "CANCELLED"
    linked.wait_gone(job)
    assert table(job, node) == ""


def test_what_waits_is_held_and_what_comes_is_refused(linked: Cluster) -> None:
    job = writing(linked, "alice", *EU, "-N2")
    waiting = linked.submit("alice", *EU, "--wrap=true")
    report = revoke(linked, "--user", "alice", "--freeze")
    assert (report["held"], report["jobs"][str(job)]["nodes"]) == ([waiting], {"n1": "frozen", "n2": "frozen"})
    until_refused(linked, "revoked.user", *EU)
    with pytest.raises(ClusterError, match=r"revoked\.user"):
        linked.submit("alice", *EU, "--wrap=true")
    resume(linked, "--user", "alice")
    goes_on(linked, job)
    linked.command(["scontrol", "release", str(waiting)])
    linked.command(["scancel", str(job)])
    assert linked.wait_end(waiting)["JobState"] == "COMPLETED"


def test_a_frozen_job_that_is_cancelled(linked: Cluster) -> None:
    """Processes that wait for the device cannot die, and Slurm would drain the node."""
    flushing = (
        "--wrap=touch $HOME/at-$SLURM_JOB_ID; cd $SECURE_SCRATCH; while :; do head -c 8M /dev/zero > f; sync f; done"
    )
    job = linked.submit("alice", *EU, flushing)
    linked.until(Path(f"/home/alice/at-{job}").exists, "it to run", 120)
    goes_on(linked, job)
    node = node_of(linked, job)
    assert revoke(linked, "--job", str(job), "--freeze")["confirmed"]
    keys = linked.vault_keys(job)
    linked.command(["scancel", str(job)])
    assert linked.wait_end(job)["JobState"] == "CANCELLED"
    linked.wait_gone(job)
    assert table(job, node) == ""
    for key in keys:
        linked.until(lambda k=key: linked.bao.status("GET", f"secure-slurm-transit/keys/{k}")[0] == 404, "its key", 60)
    assert "DRAIN" not in linked.command(["sinfo", "-h", "-o", "%T", "-n", node]).stdout.upper()


def test_restarts_and_a_node_that_is_away(linked: Cluster) -> None:
    job = writing(linked, "alice", *EU)
    node = node_of(linked, job)
    revoke(linked, "--job", str(job), "--freeze")
    restart(linked, node, "hand")
    linked.stop_daemon("lifecycled", kill=True)
    linked.daemon("lifecycled", "secure-life")
    all_connected(linked)
    # the new hand has made sure of it, and the new daemon has heard so
    until_listed(linked, job, {"keys": "locked", "nodes": {node: "frozen"}})
    assert suspended(job, node)
    kill(linked, node, "daemon")
    linked.until(lambda: node not in connected(linked), "the node to be missed", 30)
    resume(linked, "--job", str(job), code=4)
    until_listed(linked, job, {"keys": "unlocked", "nodes": {node: "frozen"}})
    assert suspended(job, node)
    restart(linked, node, "daemon")
    goes_on_within(linked, job, node)
    linked.until(lambda: revoke(linked, "--list")["revocations"] == [], "it to be confirmed", 30)
    linked.command(["scancel", str(job)])
    linked.wait_gone(job)


def goes_on_within(cluster: Cluster, job: int, node: str) -> None:
    cluster.until(lambda: not suspended(job, node), "it to go on", 60)
    goes_on(cluster, job)


def test_a_frozen_job_outlives_the_grace_of_a_node_that_is_cut_off(linked: Cluster) -> None:
    cluster = linked
    job = writing(cluster, "alice", *EU)
    node = node_of(cluster, job)
    revoke(cluster, "--job", str(job), "--freeze")
    with short_grace(cluster, node):
        until_listed(cluster, job, {"keys": "locked", "nodes": {node: "frozen"}})
        kill(cluster, node, "daemon")
        time.sleep(GRACE + 5)
        assert (table(job, node), suspended(job, node)) == ("crypt", True)
    restart(cluster, node, "daemon")
    all_connected(cluster)
    until_listed(cluster, job, {"keys": "locked", "nodes": {node: "frozen"}})
    resume(cluster, "--job", str(job))
    goes_on(cluster, job)
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job)
