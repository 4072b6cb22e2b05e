"""Revocation on a real cluster: from one command on the head node to processes that stand still on a node."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.revocation import rounds
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node
from tests.testbed.people import PATIENCE, ClusterError

EU = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=64M")
US = ("--secure-class=phi", "--secure-residency=us", "--secure-scratch=64M")
DD = "dd if=/dev/zero of=$SECURE_SCRATCH/data bs=4k count=4 conv=notrunc oflag=direct status=none"
# not all the time: the guest has one processor, on which slurmctld waits for the decision daemon
WRITING = f"--wrap=touch $HOME/at-$SLURM_JOB_ID; while :; do {DD} || sleep 1; sleep 0.1; done"
RUNS = 3
"""As many as show that it is measured; make bench has more."""


def writing(cluster: Cluster, user: str, *words: str) -> int:
    """A job that writes to its scratch all the time."""
    job = cluster.submit(user, *words, WRITING)
    cluster.until(Path(f"/home/{user}/at-{job}").exists, f"job {job} to run", 120)
    goes_on(cluster, job)
    return job


def written(job: int) -> int:
    """Sectors that were written to a job's scratch, on all nodes together (Documentation/block/stat.rst)."""
    total = 0
    for entry in Path("/sys/block").glob("dm-*"):
        try:
            if (entry / "dm/name").read_text().strip().endswith(f"-{job}"):
                total += int((entry / "stat").read_text().split()[6])
        except OSError:
            continue
    return total


def goes_on(cluster: Cluster, job: int) -> None:
    before = written(job)
    cluster.until(lambda: written(job) > before, f"job {job} to go on writing", 20)


def stands_still(job: int) -> bool:
    before = written(job)
    time.sleep(1.0)
    return written(job) == before


def table(job: int, node: str) -> str:
    done = subprocess.run(["dmsetup", "table", f"secure-{node}-{job}"], capture_output=True, text=True, check=False)
    return done.stdout.split()[2] if done.returncode == 0 else ""


def until_refused(cluster: Cluster, rule: str, *words: str) -> None:
    """Until the decision daemon refuses alice's submissions by ``rule``; "": until it lets them in."""

    def asked() -> bool:
        done = cluster.as_user("alice", ["secure-sbatch", *words, "--hold", "--wrap=true"])
        return rule in done.stderr if rule else done.returncode == 0

    cluster.until(asked, f"{rule or 'nothing'} to refuse alice's jobs")


def node_of(cluster: Cluster, job: int) -> str:
    return cluster.job(job)["NodeList"]


def revoke(cluster: Cluster, *words: str, code: int = 0) -> dict[str, Any]:
    """``secure-slurm revoke``, once more where 0 is wanted and it says 4: not everything is confirmed or held yet."""
    done = cluster.tool("revoke", "--json", *words, check=False)
    held, killed, end = set[int](), set[int](), time.monotonic() + PATIENCE
    while done.returncode == 4 and not code and time.monotonic() < end:
        report = json.loads(done.stdout)
        held, killed = held | set(report["held"]), killed | set(report["killed"])
        time.sleep(2)
        done = cluster.tool("revoke", "--json", *words, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    report = dict(json.loads(done.stdout)) if done.stdout else {"stderr": done.stderr}
    if held or killed:
        report |= {"held": sorted(held | set(report["held"])), "killed": sorted(killed | set(report["killed"]))}
    return report


def listed(cluster: Cluster, job: int) -> dict[str, Any]:
    (one,) = [one for one in revoke(cluster, "--list")["revocations"] if str(job) in one["jobs"]]
    return dict(one)


def until_listed(cluster: Cluster, job: int, state: dict[str, Any]) -> None:
    """Until ``revoke --list`` says this of a job: the command itself waits ``confirm_within`` and no longer."""
    cluster.until(lambda: listed(cluster, job)["jobs"].get(str(job)) == state, f"job {job} to be {state}")


def connected(cluster: Cluster) -> list[str]:
    done = cluster.tool("revoke", "--json", "--list", check=False)
    # a daemon that has just been started does not listen yet
    return sorted(json.loads(done.stdout)["nodes"]) if done.returncode == 0 else []


def trail(cluster: Cluster, job: int) -> list[dict[str, Any]]:
    return list(json.loads(cluster.tool("audit", "show", "--json", "--job", str(job), settings.LOG).stdout))


def restart(cluster: Cluster, node: str, which: str) -> None:
    """Kill a node's daemon or hand, and start it again."""
    kill(cluster, node, which)
    on_node(node, ["sh", "/opt/tests/tests/testbed/guest/node_daemon.sh", node, which])


def kill(cluster: Cluster, node: str, which: str) -> None:
    pattern = f"secure-slurm-{'handd' if which == 'hand' else 'noded'} --node {node}$"
    cluster.command(["pkill", "-KILL", "-f", pattern], check=False)
    cluster.until(lambda: cluster.command(["pgrep", "-f", pattern], check=False).returncode, f"the end of {pattern}")
    if which == "daemon":
        Path(f"{settings.RUN}/node-{node}/daemon/node.sock").unlink(missing_ok=True)


def all_connected(cluster: Cluster) -> None:
    cluster.until(lambda: connected(cluster) == sorted(settings.NODES), "every node to be connected", 30)


@pytest.fixture
def linked(clean: Cluster) -> Iterator[Cluster]:
    all_connected(clean)
    yield clean
    for one in revoke(clean, "--list")["revocations"]:
        revoke(clean, "--lift", one["id"])


GRACE = 20


@contextlib.contextmanager
def short_grace(cluster: Cluster, node: str) -> Iterator[None]:
    """An ``offline_grace`` of 20 s on this node alone: a busy machine may keep any other node waiting as long."""
    site = Path(settings.ETC) / "secure-slurm.yaml"
    before = site.read_text()

    def reconfigured(text: str) -> None:
        cluster.write(site, text)
        cluster.tool("conf", "render")
        restart(cluster, node, "hand")

    reconfigured(before.replace("offline_grace: 15m", f"offline_grace: {GRACE}s"))
    try:
        yield
    finally:
        reconfigured(before)


def hand_knows(node: str) -> dict[str, Any]:
    """What the node's hand has written down: when each job was last renewed, and when stopped (CLOCK_BOOTTIME)."""
    return dict(json.loads(Path(f"{settings.RUN}/node-{node}/hand.json").read_text()))


def test_one_job_of_many(linked: Cluster) -> None:
    mine, other = writing(linked, "alice", *EU), writing(linked, "carol", *US)
    node = node_of(linked, mine)
    (key,) = linked.vault_keys(mine)
    assert table(mine, node) == "crypt"

    report = revoke(linked, "--job", str(mine), "--reason", "a test")
    assert report["confirmed"]
    assert report["jobs"] == {str(mine): {"keys": "deleted", "nodes": {node: "stopped"}}}
    assert table(mine, node) == "error"
    assert stands_still(mine)
    status, answer = linked.bao.status("POST", f"secure-slurm-transit/datakey/plaintext/{key}", {"bits": 512})
    assert (status, "encryption key not found" in str(answer)) == (400, True)
    assert linked.state(mine) == "RUNNING"
    goes_on(linked, other)

    events = trail(linked, mine)
    names = [event["event"] for event in events]
    assert names.count("job.stopped") == names.count("revocation.node") == 1
    (stopped,) = [event for event in events if event["event"] == "job.stopped"]
    assert (stopped["node"], stopped["result"], stopped["wiped"]) == (node, "stopped", True)
    assert "cgroups frozen" in stopped["evidence"]

    # once more: nothing happens, nothing is written
    again = revoke(linked, "--job", str(mine))
    assert (again["id"], again["confirmed"], again["jobs"]) == (report["id"], True, report["jobs"])
    assert [event["event"] for event in trail(linked, mine)] == names

    # it cannot come back, and what is left of it can be ended like any job
    linked.command(["scontrol", "requeue", str(mine)])
    linked.until(lambda: "[revoked.job]" in linked.facts(mine)["admin_comment"], "it to be refused", 150)
    linked.until(lambda: linked.job(mine)["Priority"] == "0", "it to be held", 30)
    linked.command(["scancel", str(mine)])
    linked.wait_end(mine)
    linked.wait_gone(mine)
    goes_on(linked, other)


def test_a_user_with_everything(linked: Cluster) -> None:
    running, other = writing(linked, "alice", *EU, "-N2"), writing(linked, "carol", *US)
    waiting = linked.submit("alice", *EU, "--wrap=true")
    report = revoke(linked, "--user", "alice", "--reason", "the account is compromised")
    assert report["confirmed"]
    assert report["jobs"] == {str(running): {"keys": "deleted", "nodes": {"n1": "stopped", "n2": "stopped"}}}
    assert report["held"] == [waiting]
    assert linked.job(waiting)["Reason"] == "JobHeldAdmin"
    # whatever slips in before the decision daemon looks, once a second, is refused when it starts
    until_refused(linked, r"revoked.user", *EU)
    with pytest.raises(ClusterError, match=r"revoked\.user"):
        linked.submit("alice", *EU, "--wrap=true")
    assert linked.as_user("alice", ["srun", "-N1", "-w", "n4", "true"]).returncode in (0, 1)
    goes_on(linked, other)
    linked.command(["scancel", str(running)])
    linked.wait_gone(running)

    # lifted: what was held may go, and what was refused may come again
    revoke(linked, "--lift", report["id"])
    until_refused(linked, "", *EU)
    linked.command(["scontrol", "release", str(waiting)])
    assert linked.wait_end(waiting)["JobState"] == "COMPLETED"
    job = linked.submit("alice", *EU, "--wrap=true")
    assert linked.wait_end(job)["JobState"] == "COMPLETED"


@pytest.mark.parametrize(("kind", "value"), [("role", "phi-eu"), ("jurisdiction", "eu"), ("node", "n1")])
def test_by_what_it_stands_on(linked: Cluster, kind: str, value: str) -> None:
    mine, other = writing(linked, "alice", *EU, "-w", "n1"), writing(linked, "carol", *US)
    report = revoke(linked, f"--{kind}", value, "--kill")
    assert report["confirmed"]
    assert list(report["jobs"]) == [str(mine)]
    assert report["killed"] == [mine]
    assert linked.wait_end(mine)["JobState"] == "CANCELLED"
    linked.wait_gone(mine)
    goes_on(linked, other)


def test_what_is_not_known_is_not_done(linked: Cluster) -> None:
    for words in (["--role", "phi-ue"], ["--dataset", "d"], ["--user", "nobody-at-all"], ["--lift", "0" * 16]):
        assert revoke(linked, *words, code=1)["stderr"]
    assert revoke(linked, "--job", "x", code=2)
    assert revoke(linked, "--list")["revocations"] == []
    done = linked.as_user("alice", [f"{settings.PREFIX}/bin/secure-slurm", "revoke", "--list"])
    assert (done.returncode, "only root" in done.stderr) == (2, True)


def test_a_job_without_scratch(linked: Cluster) -> None:
    tick = Path("/home/alice/tick")
    tick.unlink(missing_ok=True)
    job = linked.submit(
        "alice",
        "--secure-class=internal",
        "--secure-residency=eu",
        "--wrap=while :; do date +%N > tick; sleep 0.1; done",
    )
    linked.until(tick.exists, "it to run", 60)
    report = revoke(linked, "--job", str(job))
    assert report["confirmed"]
    assert "stopped" in report["jobs"][str(job)]["nodes"].values()
    before = tick.read_text()
    time.sleep(1.5)
    assert tick.read_text() == before
    linked.command(["scancel", str(job)])
    assert linked.wait_end(job)["JobState"] == "CANCELLED"


def test_a_node_that_is_away_is_listed_and_asked_again(linked: Cluster) -> None:
    job = writing(linked, "alice", *EU)
    node = node_of(linked, job)
    kill(linked, node, "daemon")
    linked.until(lambda: node not in connected(linked), "the node to be missed", 30)
    revoke(linked, "--job", str(job), code=4)
    until_listed(linked, job, {"keys": "deleted", "nodes": {node: "waiting"}})
    goes_on(linked, job)
    # it is there again: nobody has to repeat anything, and the daemon may have been restarted meanwhile
    linked.stop_daemon("lifecycled", kill=True)
    linked.daemon("lifecycled", "secure-life")
    restart(linked, node, "daemon")
    linked.until(lambda: Path(f"{settings.RUN}/lifecycle/lifecycle.sock").exists(), "the lifecycle daemon")
    linked.until(lambda: table(job, node) == "error", "the node to be told", 40)
    linked.until(lambda: listed(linked, job)["confirmed"], "it to be confirmed", 20)
    assert stands_still(job)
    events = [event["event"] for event in trail(linked, job)]
    assert events.count("job.stopped") == 1
    all_connected(linked)


def test_vault_is_away(linked: Cluster) -> None:
    job = writing(linked, "alice", *EU)
    node = node_of(linked, job)
    (key,) = linked.vault_keys(job)
    linked.bao.seal()
    try:
        revoke(linked, "--job", str(job), code=4)
        until_listed(linked, job, {"keys": "waiting", "nodes": {node: "stopped"}})
        assert stands_still(job)
    finally:
        linked.bao.unseal()
    linked.until(lambda: linked.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] == 404, "the key to die", 60)
    linked.until(lambda: listed(linked, job)["confirmed"], "it to be confirmed", 20)


def test_a_node_that_is_cut_off_stops_its_jobs_by_itself(linked: Cluster) -> None:
    cluster = linked
    mine, other = writing(cluster, "alice", *EU), writing(cluster, "carol", *US)
    node = node_of(cluster, mine)
    with short_grace(cluster, node):
        kill(cluster, node, "daemon")
        time.sleep(GRACE / 2)
        # a hand that is restarted does not begin to count anew
        begun = time.clock_gettime(time.CLOCK_BOOTTIME)
        restart(cluster, node, "hand")
        cluster.until(lambda: table(mine, node) == "error", "the node to stop its job", 40)
        known = hand_knows(node)
        heard, stopped = known["leases"][str(mine)][1], known["stopped"][str(mine)][1]
        assert heard < begun
        assert stopped - heard > GRACE
        assert stands_still(mine)
        goes_on(cluster, other)
        expired = [event for event in trail(cluster, mine) if event["event"] == "lease.expired"]
        assert [event["node"] for event in expired] == [node]
        restart(cluster, node, "daemon")
        all_connected(cluster)


def test_a_restart_of_the_head_nodes_daemon_stops_nobody(linked: Cluster) -> None:
    cluster = linked
    job = writing(cluster, "alice", *EU)
    node = node_of(cluster, job)
    for kill_it in (True, False):
        cluster.stop_daemon("lifecycled", kill=kill_it)
        since = time.clock_gettime(time.CLOCK_BOOTTIME)
        cluster.daemon("lifecycled", "secure-life")
        all_connected(cluster)
        # the new one keeps the job alive, without a word from anybody
        cluster.until(lambda t=since: hand_knows(node)["leases"][str(job)][1] > t, "the lease to be renewed")
    goes_on(cluster, job)
    assert "job.stopped" not in [event["event"] for event in trail(cluster, job)]


def test_without_cgroups(linked: Cluster) -> None:
    """ProctrackType=proctrack/linuxproc, where a process can leave its job's tree."""
    cluster = linked
    with cluster.other_slurm(lambda text: text.replace("proctrack/cgroup", "proctrack/linuxproc")):
        for node in settings.NODES:
            restart(cluster, node, "hand")
        all_connected(cluster)
        stray = f"setsid -f sh -c 'while :; do {DD.replace('data', 'stray')} || sleep 1; sleep 0.1; done'"
        job = cluster.submit(
            "alice", *EU, f"--wrap={stray}; touch at-$SLURM_JOB_ID; while :; do {DD} || sleep 1; sleep 0.1; done"
        )
        cluster.until(Path(f"/home/alice/at-{job}").exists, "it to run", 120)
        goes_on(cluster, job)
        node = node_of(cluster, job)
        report = revoke(cluster, "--job", str(job))
        assert report["confirmed"]
        assert table(job, node) == "error"
        (stopped,) = [event for event in trail(cluster, job) if event["event"] == "job.stopped"]
        assert "processes frozen" in stopped["evidence"]
        states = [state_of(pid) for pid in of_job(job)]
        assert states
        assert set(states) == {"T"}
        cluster.command(["scancel", str(job)])
        assert cluster.wait_end(job)["JobState"] == "CANCELLED"
        cluster.wait_gone(job)


def of_job(job: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURM_JOB_ID={job}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_how_long_it_takes(linked: Cluster) -> None:
    figures = rounds(linked, lambda: writing(linked, "alice", *EU), RUNS)
    assert all(found["runs"] == RUNS for found in figures.values())
    print(json.dumps({"revocation_seconds": figures}))
