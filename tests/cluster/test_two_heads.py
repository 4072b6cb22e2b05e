"""Two head nodes: the second takes over in the middle of revocations, none is lost, and what runs is not touched."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.test_ends import gone
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.people import Result
from tests.testbed.second_head import NAME, SecondHead, kill_slurmctld, status, two_heads
from tests.testbed.slurmstate import saved

ENDED = Path("/var/lib/secure-slurm/lifecycle/ended")
# SlurmctldTimeout, the first look after it, and two looks of the reaper 20 s apart, with room for a slow machine
TAKE_OVER = 300


def acts(where: Cluster | SecondHead) -> Any:
    return status(where).get("acting", {}).get("acts")


def pending(where: Cluster | SecondHead) -> set[int]:
    return {one["job"] for one in status(where).get("pending", [])}


def reason(where: Cluster | SecondHead, job: int) -> str:
    return "".join(one["reason"] for one in status(where).get("pending", []) if one["job"] == job)


def revoke(where: Cluster | SecondHead, *words: str) -> Result[str]:
    return where.tool("revoke", *words, check=False)


def dead(cluster: Cluster, keys: list[str]) -> bool:
    assert keys
    return all(cluster.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] == 404 for key in keys)


def revocation(where: SecondHead, job: int) -> dict[str, Any]:
    told = json.loads(where.tool("revoke", "--list", "--json").stdout)["revocations"]
    (one,) = [each for each in told if each["value"] == str(job)]
    return dict(one)


def started(cluster: Cluster, user: str, residency: str, node: str) -> int:
    tag = ["--secure-class=phi", f"--secure-residency={residency}", "--secure-scratch=64M"]
    job = cluster.submit(user, *tag, "-w", node, "--wrap=sleep 3000")
    cluster.wait_state(job, "RUNNING", timeout=120)
    cluster.until(lambda: cluster.leftovers(job)["task"], f"job {job} to have its scratch", 60)
    return job


class Jobs(NamedTuple):
    """One on each node: one that ends, one that is revoked, one that runs on, and one whose note is lost."""

    ended: int
    stopped: int
    alive: int
    unnoted: int


def test_the_backup_takes_over_with_revocations_pending(clean: Cluster) -> None:
    with two_heads(clean) as second:
        clean.until(lambda: (acts(clean), acts(second)) == (True, False), "each to know its part", 60)
        told = revoke(second, "--job", "1")
        assert (told.returncode, "this head node stands by" in told.stderr) == (1, True), told.stderr
        jobs = Jobs(
            *(started(clean, "alice", "eu", node) for node in ("n1", "n2")),
            *(started(clean, "carol", "us", node) for node in ("n3", "n4")),
        )
        keys = {job: clean.vault_keys(job) for job in jobs}
        restarts = clean.facts(jobs.alive)["restart_cnt"]
        assert all(len(found) == 1 for found in keys.values())
        clean.bao.seal()
        try:
            end_without_vault(clean, second, jobs)
            the_first_dies(clean, second, jobs)
        finally:
            clean.bao.unseal()
        unsealed = time.monotonic()
        clean.until(lambda: dead(clean, keys[jobs.ended] + keys[jobs.stopped]), "what was pending to die", TAKE_OVER)
        noted = time.monotonic() - unsealed
        clean.until(lambda: dead(clean, keys[jobs.unnoted]), "what only Vault knew of to die", TAKE_OVER)
        print(f"\ndead after Vault was back: with a note {noted:.0f} s, without {time.monotonic() - unsealed:.0f} s")
        assert clean.vault_keys(jobs.alive) == keys[jobs.alive]
        # the revocation is the second head node's now: its node has confirmed, and it says so
        clean.until(lambda: revocation(second, jobs.stopped)["confirmed"], "its confirmation on the second head node")

        # decisions and starts go on there, and what is refused is refused
        refused = clean.as_user("bob", ["secure-sbatch", "--secure-class=phi", "--secure-residency=eu", "--wrap=true"])
        assert refused.returncode != 0
        later = started(clean, "alice", "eu", "n1")
        assert len(clean.vault_keys(later)) == 1
        clean.command(["scancel", str(later)])
        clean.wait_end(later)
        gone(clean, later)

        the_first_comes_back_with_an_old_note(clean, second, jobs)
        assert (clean.state(jobs.alive), clean.facts(jobs.alive)["restart_cnt"]) == ("RUNNING", restarts)
        assert clean.vault_keys(jobs.alive) == keys[jobs.alive]
        all_end(clean, second, jobs)


def end_without_vault(clean: Cluster, second: SecondHead, jobs: Jobs) -> None:
    """Two jobs end and one that runs is revoked: no key can be deleted, and both head nodes say so."""
    clean.command(["scancel", str(jobs.ended), str(jobs.unnoted)])
    for job in (jobs.ended, jobs.unnoted):
        clean.wait_end(job, timeout=120)
    assert revoke(clean, "--job", str(jobs.stopped)).returncode == 4
    wanted = {jobs.ended, jobs.unnoted, jobs.stopped}
    clean.until(lambda: pending(clean) == pending(second) == wanted, "both head nodes to tell what is pending", 60)


def the_first_dies(clean: Cluster, second: SecondHead, jobs: Jobs) -> None:
    """And with it whatever it alone knew; of one job not even its note is left."""
    # a take-over reads what was saved, and what was not is started once more
    saved(clean)
    kill_slurmctld(clean, "head")
    clean.stop_daemons(kill=True)
    for note in ENDED.glob(f"{jobs.unnoted}.*"):
        note.unlink()
    clean.until(lambda: acts(second) is True, "the second head node to act", TAKE_OVER)
    assert pending(second) == {jobs.ended, jobs.stopped}


def the_first_comes_back_with_an_old_note(clean: Cluster, second: SecondHead, jobs: Jobs) -> None:
    """A note of a job that runs, as a folder that is not shared would have kept it; then Slurm changes once more."""
    saved(clean)
    kill_slurmctld(clean, NAME)
    second.stop_daemon("lifecycled", kill=True)
    clean.write(ENDED / f"{jobs.alive}.{'0' * 16}", "n3\n", owner="slurm")
    clean.start_daemons()
    clean.command(["slurmctld"])
    clean.until(lambda: acts(clean) is True, "the first head node to act again", TAKE_OVER)
    clean.until(lambda: "slurmctld calls it RUNNING" in reason(clean, jobs.alive), "the note to be left alone")
    second.daemon("lifecycled")
    second.command(["slurmctld"])
    clean.until(lambda: acts(second) is False, "the second head node to stand by again", TAKE_OVER)
    # by an order of Slurm's, which ends the first slurmctld; the daemons beside it run on
    clean.until(lambda: clean.command(["scontrol", "ping"], check=False).stdout.count("UP") == 2, "both slurmctlds")
    clean.command(["scontrol", "takeover"])
    clean.until(lambda: (acts(clean), acts(second)) == (False, True), "the take-over", TAKE_OVER)
    clean.until(lambda: pending(clean) == pending(second) == {jobs.alive}, "the note to be told by both")


def all_end(clean: Cluster, second: SecondHead, jobs: Jobs) -> None:
    """Nobody was frozen by any of this, and nothing is left."""
    events = json.loads(clean.tool("audit", "show", "--json", settings.LOG).stdout)
    mine = set(jobs)
    assert {line["job"] for line in events if line["event"] == "job.stopped" and line["job"] in mine} == {jobs.stopped}
    assert not [line for line in events if line["event"] == "lease.expired" and line["job"] in mine]
    clean.command(["scancel", str(jobs.alive), str(jobs.stopped)])
    for job in (jobs.alive, jobs.stopped):
        clean.wait_end(job)
    for job in mine:
        gone(clean, job)
    clean.until(lambda: pending(clean) == pending(second) == set(), "nothing to be pending")
    assert revoke(second, "--lift", revocation(second, jobs.stopped)["id"]).returncode == 0
    assert clean.tool("audit", "verify", settings.LOG).returncode == 0
