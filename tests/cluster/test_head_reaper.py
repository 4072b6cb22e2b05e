"""The head node's reaper on a whole cluster: what is over dies though nobody says so, and what runs is never touched.

Also what an admin sees meanwhile (``secure-slurm status``), and what is proved afterwards (the certificates).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_ends import gone, running
from tests.cluster.test_revoke import kill, restart
from tests.cluster.test_traps import replaced
from tests.testbed import settings
from tests.testbed.cluster import SLURMCTLD, SLURMD, Cluster
from tests.testbed.nodes import on_node
from tests.testbed.people import ClusterError
from tests.testbed.slurmstate import SPOOL, saved

# dead within 60 s of the job's end is the promise, of a machine that does not stand still; what it took is printed
PROMISED = 60
MOST = 3 * PROMISED
LOOKS = 45
STATE = Path("/var/lib/secure-slurm/lifecycle")
NEVER = "#!/bin/sh\nexit 0\n"
KILLED = "#!/bin/sh\nkill -9 $$\n"


def status(cluster: Cluster) -> tuple[int, dict[str, Any]]:
    done = cluster.tool("status", "--json", check=False)
    return done.returncode, json.loads(done.stdout)


def reaper(cluster: Cluster) -> dict[str, Any]:
    return dict(status(cluster)[1]["lifecycle"].get("reaper", {}))


def dead(cluster: Cluster, key: str) -> bool:
    return cluster.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] == 404


def wait_dead(cluster: Cluster, keys: list[str], since: float) -> float:
    """Wait until Vault has none of the keys; how long that took from ``since``."""
    assert keys
    cluster.until(lambda: all(dead(cluster, key) for key in keys), f"{keys} to die", MOST)
    return time.monotonic() - since


def trail(cluster: Cluster, job: int, event: str) -> list[dict[str, Any]]:
    story = json.loads(cluster.tool("audit", "show", "--json", "--job", str(job), settings.LOG).stdout)
    return [line for line in story if line["event"] == event]


def looked(cluster: Cluster, seconds: float) -> None:
    """Let the reaper look for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(1)


@pytest.mark.parametrize("hook", [NEVER, KILLED], ids=["never ran", "killed"])
def test_without_its_epilog_a_jobs_keys_die_by_themselves(clean: Cluster, hook: str) -> None:
    with replaced(clean, "epilog_slurmctld", hook):
        job = running(clean, "-N2", "--wrap=sleep 600")
        keys = clean.vault_keys(job)
        assert len(keys) == 2
        assert (STATE / "running" / str(job)).exists()
        clean.command(["scancel", str(job)])
        clean.until(lambda: clean.state(job) == "CANCELLED", "the end", 30)
        took = wait_dead(clean, keys, time.monotonic())
        clean.until(lambda: trail(clean, job, "reaper.healed") != [], "the audit line", 20)
        gone(clean, job)
    (line,) = trail(clean, job, "reaper.healed")
    assert line["count"] == 2
    assert "slurmctld calls it CANCELLED, the second time after" in line["reason"]
    assert not (STATE / "running" / str(job)).exists()
    print(f"\nkeys were dead {took:.1f} s after the end of job {job}")


@contextlib.contextmanager
def without(cluster: Cluster, name: str) -> Iterator[None]:
    """Without that daemon of SlurmUser's, which is there again at the end, so that only this test fails if it fails."""
    cluster.stop_daemon(name, kill=True)
    try:
        yield
    finally:
        if name not in cluster.daemons:
            cluster.daemon(name, "slurm")


def left(cluster: Cluster) -> dict[int, str]:
    """What the reaper leaves alone, and why; empty also while the daemon does not answer."""
    kept = status(cluster)[1].get("lifecycle", {}).get("reaper", {}).get("kept", [])
    return {one["job"]: one["why"] for one in kept}


def test_a_job_that_slurm_has_forgotten_where_it_hides_jobs(clean: Cluster) -> None:
    """Its number alone is left, and to the lifecycle daemon slurmctld says of it what it says of a job that runs:
    "Invalid job id specified". Only who is SlurmUser can tell the two apart.
    """

    def forgetful(conf: str) -> str:
        changed = conf.replace("MinJobAge=600", "MinJobAge=2").replace(
            f"EpilogSlurmctld={settings.PREFIX}/hooks/epilog_slurmctld\n", "PrivateData=jobs\n"
        )
        assert changed.count("PrivateData") == 1
        return changed

    with clean.other_slurm(forgetful), without(clean, "requeued"):
        # the lifecycle daemon is away until slurmctld has forgotten the job
        over, runs = running(clean, "--wrap=sleep 600"), running(clean, "--wrap=sleep 600")
        keys, others = clean.vault_keys(over), clean.vault_keys(runs)
        assert keys
        assert others
        clean.stop_daemon("lifecycled", kill=True)
        clean.command(["scancel", str(over)])
        clean.until(lambda: clean.state(over) == "", "slurmctld to forget it", 180)
        clean.daemon("lifecycled", "secure-life")
        clean.until(lambda: left(clean).keys() == {over, runs}, "both to be left alone", 120)
        assert all("slurmctld hides jobs" in why for why in left(clean).values())
        assert (clean.vault_keys(over), clean.vault_keys(runs)) == (keys, others)
        clean.daemon("requeued", "slurm")
        clean.until(lambda: all(dead(clean, key) for key in keys), "the keys to die", 180)
        clean.until(lambda: trail(clean, over, "reaper.healed") != [], "the audit line", 60)
        # by the same two looks
        assert (clean.state(runs), clean.vault_keys(runs)) == ("RUNNING", others)
        assert trail(clean, runs, "reaper.healed") == []
    assert "slurmctld knows no such job" in trail(clean, over, "reaper.healed")[0]["reason"]
    gone(clean, over)


def slurmctld(cluster: Cluster, *, kill: bool) -> None:
    """Start it, or kill it as a crash does."""
    if kill:
        subprocess.run(["pkill", "-KILL", "-f", SLURMCTLD], check=True)
        gone_by_now = ["pgrep", "-f", "-r", "D,R,S", SLURMCTLD]
        cluster.until(lambda: cluster.command(gone_by_now, check=False).returncode != 0, "slurmctld to end")
    else:
        cluster.command(["slurmctld"])
        cluster.until(lambda: "UP" in cluster.command(["scontrol", "ping"], check=False).stdout, "slurmctld")


def test_a_running_job_is_left_alone_while_slurmctld_is_away_and_restarts(clean: Cluster) -> None:
    job = running(clean, "--wrap=sleep 600")
    keys, grants, restarts = clean.vault_keys(job), clean.vault_grants(job), clean.facts(job)["restart_cnt"]

    def untouched() -> None:
        assert (clean.vault_keys(job), clean.vault_grants(job)) == (keys, grants)
        assert (STATE / "running" / str(job)).exists()

    # killed before it has saved that the job runs, it would start it once more
    saved(clean)
    slurmctld(clean, kill=True)
    looked(clean, LOOKS)
    untouched()
    clean.until(lambda: reaper(clean).get("error"), "the reaper to have asked in vain")
    code, told = status(clean)
    assert code == 1
    assert told["lifecycle"]["slurm"]
    slurmctld(clean, kill=False)
    looked(clean, LOOKS)
    assert (clean.state(job), clean.facts(job)["restart_cnt"]) == ("RUNNING", restarts)
    untouched()
    clean.until(lambda: reaper(clean).get("error") == "", "the reaper to have an answer")
    clean.command(["scancel", str(job)])
    clean.wait_end(job)
    gone(clean, job)


def test_a_state_that_was_restored_and_is_older_than_the_job(clean: Cluster) -> None:
    """Nothing that it does not know is destroyed, until it gives the number again: then that start closes it."""
    saved(clean)
    slurmctld(clean, kill=True)
    clean.command(["cp", "-a", SPOOL, "/tmp/older"])
    slurmctld(clean, kill=False)
    clean.wait_idle()
    job = running(clean, "--wrap=sleep 600")
    (key,) = clean.vault_keys(job)
    slurmctld(clean, kill=True)
    clean.command(["sh", "-c", f"rm -rf {SPOOL}/* && cp -a /tmp/older/. {SPOOL}/"])
    slurmctld(clean, kill=False)
    assert clean.state(job) == ""
    looked(clean, 60 + LOOKS)
    assert clean.vault_keys(job) == [key]
    clean.until(lambda: job in left(clean), "the reaper to tell of it")
    assert "has not given that number yet" in left(clean)[job]
    assert status(clean)[0] == 1
    clean.wait_idle()
    assert running(clean, "--wrap=sleep 600") == job
    assert dead(clean, key)
    assert len(clean.vault_keys(job)) == 1
    clean.command(["scancel", str(job)])
    clean.wait_end(job)
    gone(clean, job)


def set_down(cluster: Cluster, node: str) -> None:
    """Until it stays so: an answer of its last moment that slurmctld reads later returns a node to service."""
    seen = 0
    end = time.monotonic() + MOST
    while seen < 5:
        assert time.monotonic() < end, f"{node} does not stay down"
        seen = seen + 1 if node in cluster.sinfo("down") else 0
        if not seen:
            cluster.command(["scontrol", "update", f"nodename={node}", "state=down", "reason=terminated"])
        time.sleep(1)


@contextlib.contextmanager
def back_again(cluster: Cluster, node: str) -> Iterator[None]:
    """Afterwards the node is there, so that only this test fails if it fails."""
    try:
        yield
    finally:
        cluster.start_node(node)
        cluster.command(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
        cluster.wait_idle(node)


def test_a_node_that_dies_under_a_job(clean: Cluster) -> None:
    """As a terminated instance: no slurmd, no Epilog; and EpilogSlurmctld does not run either."""
    with back_again(clean, "n1"), replaced(clean, "epilog_slurmctld", KILLED):
        job = running(clean, "-w", "n1", "--wrap=sleep 600")
        keys = clean.vault_keys(job)
        for pattern in (f"{SLURMD}.*-N n1", "secure-slurm-(noded|handd|hookd).*n1", f"slurmstepd: .{job}\\."):
            clean.command(["pkill", "-KILL", "-f", pattern], check=False)
        clean.command(["pkill", "-KILL", "-u", "alice"], check=False)
        Path(f"{settings.RUN}/node-n1/daemon/node.sock").unlink(missing_ok=True)
        set_down(clean, "n1")
        clean.until(lambda: clean.state(job) in ("NODE_FAIL", "PENDING"), "the end of this start", 60)
        ended = time.monotonic()
        clean.command(["scontrol", "hold", str(job)], check=False)
        took = wait_dead(clean, keys, ended)
        clean.until(lambda: trail(clean, job, "reaper.healed") != [], "the audit line", 20)
        print(f"\nkeys were dead {took:.1f} s after node n1 was lost")
        code, told = certificate(clean, job)
        assert (code, told.get("error")) == (0, None)
        assert [key["mapping"]["state"] for key in told["certificate"]["keys"]] == ["node lost, not confirmed"]
        clean.command(["scancel", str(job)], check=False)
    # a machine that comes back with the same kernel, as only a test bed has it
    on_node("n1", [f"{settings.PREFIX}/bin/secure-slurm", "node", "clean", str(job), "--node", "n1"])
    gone(clean, job)


def test_vault_is_away_at_the_end_and_the_daemon_restarts(clean: Cluster) -> None:
    clean.until(lambda: status(clean)[0] == 0, "all to be well", 60)
    job = running(clean, "--wrap=sleep 600")
    (key,) = clean.vault_keys(job)
    clean.bao.seal()
    try:
        clean.command(["scancel", str(job)])
        clean.wait_end(job, timeout=120)
        code, told = status(clean)
        assert code == 1
        (pending,) = told["lifecycle"]["pending"]
        assert (pending["job"], pending["age"] >= 0) == (job, True)
        assert "sealed" in told["lifecycle"]["vault"]
        text = clean.tool("status", check=False).stdout
        assert f"job {job}: pending for" in text
        for kill in (True, False):
            clean.stop_daemon("lifecycled", kill=kill)
            assert status(clean)[0] == 1
            assert "no answer" in clean.tool("status", check=False).stdout
            clean.daemon("lifecycled", "secure-life")
            clean.until(lambda: status(clean)[1]["lifecycle"].get("pending_count") == 1, "the note to be told", 30)
    finally:
        clean.bao.unseal()
    clean.until(lambda: dead(clean, key), "the key to die", 60)
    gone(clean, job)
    clean.until(lambda: status(clean)[0] == 0, f"all to be well: {clean.tool('status', check=False).stdout}", 60)
    assert trail(clean, job, "revocation.done")


def certificate(cluster: Cluster, job: int) -> tuple[int, dict[str, Any]]:
    done = cluster.tool("audit", "certificate", str(job), check=False)
    return done.returncode, json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr}


def test_a_certificate_outlives_the_daemon_that_owed_it(clean: Cluster) -> None:
    folder = Path(settings.LOG) / "lifecycle/certificates"
    job = running(clean, "-w", "n1", "--wrap=sleep 600")
    keys = clean.vault_keys(job)

    def due() -> list[Path]:
        return list(folder.glob(f".due-*-{job}-*.json"))

    # it waits for the node's own lines, and those do not come
    kill(clean, "n1", "daemon")
    try:
        clean.command(["scancel", str(job)])
        clean.until(due, "the note of what is to be certified")
        clean.stop_daemon("lifecycled", kill=True)
        assert due()
        assert not list(folder.glob(f"{job}-*.json"))
        clean.daemon("lifecycled", "secure-life")
    finally:
        restart(clean, "n1", "daemon")
    clean.until(lambda: list(folder.glob(f"{job}-*.json")) and not due(), "the certificate")
    (stored,) = folder.glob(f"{job}-*.json")
    made = json.loads(stored.read_text())["certificate"]["keys"]
    assert [(key["key"], key["vault"]["answer"]) for key in made] == [(key, 404) for key in keys]
    assert len(trail(clean, job, "destruction.certificate")) == 1
    clean.wait_end(job)
    gone(clean, job)


def test_the_certificate_of_a_job(clean: Cluster, tmp_path: Path) -> None:
    job = running(clean, "-N2", "--wrap=sleep 600")
    code, told = certificate(clean, job)
    assert (code, "Vault still has the key" in told["error"]) == (1, True)
    keys = clean.vault_keys(job)
    clean.command(["scancel", str(job)])
    clean.wait_end(job)
    gone(clean, job)
    # by itself: what Vault said, and the nodes' lines, which have come
    folder = Path(settings.LOG) / "lifecycle/certificates"
    clean.until(lambda: list(folder.glob(f"{job}-*.json")), "the certificate that nobody asked for", 60)
    (stored,) = folder.glob(f"{job}-*.json")
    by_itself = json.loads(stored.read_text())["certificate"]["keys"]
    assert {(key["mapping"]["state"], key["trail"]["arrived"]) for key in by_itself} == {("absent", True)}
    # on demand: and what the nodes said
    code, told = certificate(clean, job)
    assert code == 0
    made = told["certificate"]
    assert sorted(key["key"] for key in made["keys"]) == sorted(keys)
    for key in made["keys"]:
        assert key["vault"]["answer"] == 404
        assert key["mapping"]["state"] == "absent"
        assert (key["mapping"]["cipher"], key["mapping"]["key_bits"]) == ("aes-xts-plain64", 512)
        assert key["made"] < key["deleted"]
        assert "alice" not in json.dumps(told)
    assert json.loads(stored.read_text()) == told
    # offline, by who has the file and the public key alone
    public, good, bad = tmp_path / "key.pub", tmp_path / "good.json", tmp_path / "bad.json"
    public.write_text(clean.tool("audit", "public-key").stdout)
    good.write_text(json.dumps(told))
    made["keys"][0]["vault"]["at"] = "2026-01-01T00:00:00.000Z"
    bad.write_text(json.dumps(told))
    verify = ["audit", "certificate", str(job), "--public-key", str(public), "--verify"]
    clean.bao.seal()
    try:
        done = clean.tool(*verify, str(good))
        assert "signed, and not changed since" in done.stdout
        refused = clean.tool(*verify, str(bad), check=False)
        assert refused.returncode == 1
        assert "was changed, or was signed with another key" in refused.stderr
        other = clean.tool("audit", "certificate", str(job + 1), *verify[3:], str(good), check=False)
        assert (other.returncode, "not of job" in other.stderr) == (1, True)
    finally:
        clean.bao.unseal()
    assert len(trail(clean, job, "destruction.certificate")) == 2
    assert clean.tool("audit", "verify", settings.LOG).returncode == 0
    with pytest.raises(ClusterError, match="has no key of job"):
        clean.tool("audit", "certificate", "4000000")
