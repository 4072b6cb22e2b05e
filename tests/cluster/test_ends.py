"""However a job ends, nothing of it is left: no mapping, no file, no loop device, no key, no grant, no drained node."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")


def running(cluster: Cluster, *words: str) -> int:
    job = cluster.submit("alice", *TAG, *words)
    cluster.wait_state(job, "RUNNING")
    cluster.until(lambda: cluster.leftovers(job)["task"], f"job {job} to have its scratch", 60)
    return job


def gone(cluster: Cluster, job: int) -> None:
    cluster.wait_gone(job, 45)
    assert cluster.drained() == ""


@pytest.mark.parametrize("how", ["exit 0", "exit 3", "kill -SEGV $$"])
def test_the_script_ends(clean: Cluster, how: str) -> None:
    job = clean.submit("alice", *TAG, f"--wrap={how}")
    clean.wait_end(job)
    gone(clean, job)


def test_cancelled_while_it_runs(clean: Cluster) -> None:
    job = running(clean, "-N2", "--wrap=sleep 600")
    clean.as_user("alice", ["scancel", str(job)])
    assert clean.wait_end(job)["JobState"] == "CANCELLED"
    gone(clean, job)


def test_cancelled_before_it_has_begun(clean: Cluster) -> None:
    # the keys may be gone when the Prolog asks for them: it must not bring the job back by holding it
    for pause in (0.3, 0.8, 1.3):
        job = clean.submit("alice", *TAG, "--wrap=sleep 600")
        clean.wait_state(job, "RUNNING", "CONFIGURING")
        time.sleep(pause)
        clean.as_user("alice", ["scancel", str(job)])
        assert clean.wait_end(job)["JobState"] == "CANCELLED"
        gone(clean, job)


def test_cancelled_with_a_process_that_hides(clean: Cluster) -> None:
    job = running(clean, "--wrap=setsid sh -c 'cd $SECURE_SCRATCH; exec sleep 600' & wait")
    clean.as_user("alice", ["scancel", str(job)])
    clean.wait_end(job)
    gone(clean, job)


def test_time_limit(clean: Cluster) -> None:
    job = running(clean, "--time=1", "--wrap=sleep 600")
    clean.command(["scontrol", "update", f"JobId={job}", "EndTime=now+2"], check=False)
    clean.until(lambda: clean.state(job) in ("TIMEOUT", "CANCELLED"), "the time limit", 240)
    clean.wait_end(job)
    gone(clean, job)


def test_an_array_has_keys_for_each_task(clean: Cluster) -> None:
    first = clean.submit("alice", *TAG, "--array=1-3", "-o", "array-%a.out", "--wrap=echo $SECURE_SCRATCH; sleep 1")
    clean.until(
        lambda: not clean.command(["squeue", "-h", "-r", "-j", str(first)], check=False).stdout.strip(),
        "the array",
        180,
    )
    scratch = {Path(f"/home/alice/array-{n}.out").read_text().strip() for n in (1, 2, 3)}
    assert len(scratch) == 3
    for path in scratch:
        gone(clean, int(path.rsplit("/", 1)[-1]))


def test_a_requeue_gets_new_keys_and_the_old_ones_are_dead(clean: Cluster) -> None:
    job = running(clean, "--wrap=sleep 600")
    before = clean.vault_keys(job)
    assert len(before) == 1
    clean.command(["scontrol", "requeue", str(job)])
    clean.until(
        lambda: clean.bao.status("GET", f"secure-slurm-transit/keys/{before[0]}")[0] == 404, "the old key to die", 60
    )
    clean.until(lambda: clean.state(job) == "RUNNING" and clean.facts(job)["restart_cnt"] >= 1, "the second start", 300)
    clean.until(lambda: clean.leftovers(job)["task"], "scratch of the second start", 60)
    after = clean.vault_keys(job)
    assert len(after) == 1
    assert after != before
    clean.command(["scancel", str(job)])
    clean.wait_end(job)
    gone(clean, job)


def test_no_requeue_jobs_are_made_requeueable_and_interactive_ones_end(clean: Cluster) -> None:
    # the filter forces requeue on tagged batch jobs, so that a start that must not be can be held instead of lost
    job = clean.submit("alice", *TAG, "--no-requeue", "--wrap=sleep 1")
    assert clean.job(job)["Requeue"] == "1"
    clean.wait_end(job)
    gone(clean, job)


def test_epilog_twice_changes_nothing(clean: Cluster) -> None:
    job = clean.submit("alice", *TAG, "--wrap=true")
    clean.wait_end(job)
    gone(clean, job)
    environment = {
        "SLURM_JOB_ID": str(job),
        "SLURMD_NODENAME": "n1",
        "SLURM_JOB_UID": "0",
        "SLURM_JOB_EXTRA": "secure-slurm:class=phi",
    }
    for _ in range(2):
        assert clean.command([f"{settings.PREFIX}/hooks/epilog"], env=environment).returncode == 0
    gone(clean, job)


def test_end_while_vault_is_sealed_is_finished_later(clean: Cluster) -> None:
    job = running(clean, "--wrap=sleep 600")
    key = clean.vault_keys(job)[0]
    clean.bao.seal()
    try:
        clean.command(["scancel", str(job)])
        clean.wait_end(job, timeout=120)
        clean.until(lambda: not clean.mappings(), "the node to be clean without Vault", 45)
        notes = Path("/var/lib/secure-slurm/lifecycle/ended")
        assert [note for note in notes.iterdir() if note.name.startswith(f"{job}.")]
    finally:
        clean.bao.unseal()
    clean.until(lambda: clean.bao.status("GET", f"secure-slurm-transit/keys/{key}")[0] == 404, "the key to die", 90)
    gone(clean, job)
    clean.until(lambda: not list(notes.iterdir()), "the note to be removed", 30)


def test_lifecycle_daemon_killed_and_restarted(clean: Cluster) -> None:
    job = running(clean, "--wrap=sleep 600")
    clean.stop_daemon("lifecycled", kill=True)
    clean.command(["scancel", str(job)])
    clean.wait_end(job, timeout=120)
    assert clean.vault_keys(job)
    clean.daemon("lifecycled", "secure-life")
    gone(clean, job)
    time.sleep(0.5)
