"""Nobody changes what a submitted job was accepted for. Every field: tests/services/slurm/test_modify_table.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.testbed.cluster import Cluster

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
RECORD = "secure-slurm/1 cluster=test uid=0 user=root class=phi residency=eu policy=0 nonce=0 time=0 mac=0"


@pytest.fixture(scope="module")
def pending(cluster: Cluster) -> Iterator[int]:
    job = cluster.submit("alice", *TAG, "--hold", "--wrap=true")
    yield job
    cluster.command(["scancel", str(job)])


REFUSED = [
    ("Extra=nothing", "modify.tag"),
    ("Extra=secure-slurm:class=internal", "modify.tag"),
    ("Extra=", "modify.tag"),
    ("AdminComment=none", "modify."),
    (f"AdminComment={RECORD}", "modify."),
    ("Features=us", "residency.constraint"),
    ("Partition=us", "residency.partition"),
    ("OverSubscribe=YES", "modify.field"),
    ("Clusters=other", "modify.field"),
    ("MailUser=eve@example.com", "route.mail"),
    ("Dependency=expand:1", "route.dependency-expand"),
    ("Requeue=0", "modify."),
    ("Deadline=now+1day", "modify.unseen"),
]


@pytest.mark.parametrize("user", ["alice", "root"])
@pytest.mark.parametrize(
    ("change", "rule"), REFUSED, ids=[change.split("=")[0] + str(i) for i, (change, _) in enumerate(REFUSED)]
)
def test_refused(cluster: Cluster, pending: int, user: str, change: str, rule: str) -> None:
    before = cluster.facts(pending)
    words = ["scontrol", "update", f"JobId={pending}", change]
    done = cluster.as_user(user, words) if user != "root" else cluster.command(words, check=False)
    assert done.returncode != 0
    after = cluster.facts(pending)
    for field in ("extra", "admin_comment", "features", "partition", "required_nodes", "current_working_directory"):
        assert after.get(field) == before.get(field), field
    if not (user == "alice" and change.startswith("AdminComment")):
        # Slurm itself refuses a user's AdminComment, before any filter
        assert rule in done.stderr


@pytest.mark.parametrize("change", ["Name=other", "Nice=10", "TimeLimit=5", "Comment=hello"])
def test_allowed(cluster: Cluster, pending: int, change: str) -> None:
    assert cluster.as_user("alice", ["scontrol", "update", f"JobId={pending}", change]).returncode == 0


def test_a_change_that_is_refused_in_part_changes_nothing(cluster: Cluster, pending: int) -> None:
    # Slurm itself applies a change field by field and keeps what came before the one that failed
    before = cluster.facts(pending)["comment"]
    done = cluster.as_user("alice", ["scontrol", "update", f"JobId={pending}", "Comment=half", "Extra=nothing"])
    assert done.returncode != 0
    assert cluster.facts(pending)["comment"] == before


def test_a_constraint_is_forced_again(cluster: Cluster, pending: int) -> None:
    done = cluster.as_user("alice", ["scontrol", "update", f"JobId={pending}", "Features=eu|us2"])
    features = cluster.facts(pending)["features"]
    assert features == "eu" or features.endswith("&eu"), (done.stderr, features)


def test_hold_and_release_go_on_working(cluster: Cluster, pending: int) -> None:
    assert cluster.as_user("alice", ["scontrol", "hold", str(pending)]).returncode == 0


def test_the_running_job(clean: Cluster) -> None:
    job = clean.submit("alice", *TAG, "--wrap=sleep 600")
    clean.wait_state(job, "RUNNING")
    for change in ("Extra=x", "Extra=secure-slurm:class=phi;residency=us"):
        done = clean.as_user("alice", ["scontrol", "update", f"JobId={job}", change])
        assert done.returncode != 0
        assert "modify.tag" in done.stderr
    assert clean.facts(job)["extra"].startswith("secure-slurm:class=phi;residency=eu")
    clean.command(["scancel", str(job)])
    clean.wait_end(job)


def test_an_untagged_job_cannot_gain_a_tag(clean: Cluster) -> None:
    done = clean.as_user("alice", ["sbatch", "--hold", "--wrap=true"])
    job = int(done.stdout.split()[-1])
    for words, rule in (
        (["Extra=secure-slurm:class=phi;residency=eu"], "modify.tag"),
        (["Partition=phi"], "tag.missing"),
    ):
        changed = clean.as_user("alice", ["scontrol", "update", f"JobId={job}", *words])
        assert changed.returncode != 0
        assert rule in changed.stderr
    assert clean.command(["scontrol", "update", f"JobId={job}", f"AdminComment={RECORD}"], check=False).returncode != 0
    clean.command(["scancel", str(job)])


def test_a_pending_array_task(clean: Cluster) -> None:
    job = clean.submit("alice", *TAG, "--hold", "--array=1-2", "--wrap=true")
    done = clean.as_user("alice", ["scontrol", "update", f"JobId={job}_2", "Extra=x"])
    assert done.returncode != 0
    clean.command(["scancel", str(job)])
