"""Who somebody is now decides: every way to lose a role reaches new jobs and those that wait, on a real cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.slapd import SUFFIX, Slapd, group_dn, person, user

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
PROMISED = 60  # seconds until a loss counts; see slurm_hooks.ldapd.PROMISED
SITE = Path(f"{settings.ETC}/secure-slurm.yaml")
Change = Callable[[Slapd], None]
pytestmark = pytest.mark.usefixtures("often_read")


def asked(cluster: Cluster) -> str:
    """What alice is told who asks for a tagged job; empty when she would get it."""
    done = cluster.as_user("alice", ["secure-sbatch", *TAG, "--test-only", "--wrap=true"])
    return "" if done.returncode == 0 else done.stderr


def refused_at_start(cluster: Cluster, job: int, rule: str) -> None:
    """Held with this rule as the reason, without having run; then it is cancelled."""
    cluster.until(lambda: rule in cluster.facts(job)["admin_comment"], f"job {job} to be refused by {rule}", 90)
    cluster.until(lambda: cluster.state(job) == "PENDING" and cluster.job(job)["Priority"] == "0", "the hold", 180)
    assert not Path(f"/home/alice/slurm-{job}.out").exists()
    assert rule in cluster.tool("why", str(job)).stdout
    assert not cluster.vault_keys(job)
    cluster.command(["scancel", str(job)])
    cluster.wait_gone(job, 30)


def runs(cluster: Cluster) -> None:
    """Alice has her role again, and a job of hers runs."""
    cluster.until(lambda: not asked(cluster), "alice's role to be back", PROMISED)
    # the lifecycle daemon looks at the members as often as the decision daemon, but not at the same moment
    job = cluster.submit("alice", *TAG, "--begin=now+3", "--wrap=true")
    assert cluster.wait_end(job)["JobState"] == "COMPLETED"


def renamed(slapd: Slapd) -> None:
    slapd.rename(person("alice"), "uid=alicia")


def renamed_back(slapd: Slapd) -> None:
    slapd.rename(f"uid=alicia,ou=people,{SUFFIX}", "uid=alice")


LOSSES: dict[str, tuple[Change, Change]] = {
    "out of the group": (
        lambda slapd: slapd.set_members("heart-study", [person("oper")]),
        lambda slapd: slapd.set_members("heart-study", [person("alice")]),
    ),
    "the inner group out of the outer": (
        lambda slapd: slapd.set_members("phi-eu", [person("oper")]),
        lambda slapd: slapd.set_members("phi-eu", [group_dn("heart-study")]),
    ),
    "another login name": (renamed, renamed_back),
    "another name for the group": (
        lambda slapd: slapd.rename(group_dn("phi-eu"), "cn=phi-eu-2"),
        lambda slapd: slapd.rename(group_dn("phi-eu-2"), "cn=phi-eu"),
    ),
    "an account that has ended": (
        lambda slapd: slapd.replace(person("alice"), "shadowExpire", "1"),
        lambda slapd: slapd.replace(person("alice"), "shadowExpire", "-1"),
    ),
    "an account that is gone": (
        lambda slapd: slapd.delete(person("alice")),
        lambda slapd: slapd.add(user("alice")),
    ),
}


@pytest.mark.parametrize("how", LOSSES)
def test_a_lost_role_counts_for_new_jobs_and_for_those_that_wait(clean: Cluster, how: str) -> None:
    lose, regain = LOSSES[how]
    held = clean.submit("alice", *TAG, "--hold", "--wrap=true")
    later = clean.submit("alice", *TAG, "--begin=now+1hour", "--wrap=true")
    lose(clean.slapd)
    try:
        clean.until(lambda: "rbac.role" in asked(clean), "the loss to count for new jobs", PROMISED)
        assert "phi-eu" in asked(clean)
        clean.command(["scontrol", "update", f"JobId={later}", "StartTime=now+4"])
        clean.command(["sleep", "2"])  # the lifecycle daemon looks every second too
        clean.command(["scontrol", "release", str(held)])
        refused_at_start(clean, held, "rbac.role")
        refused_at_start(clean, later, "rbac.role")
        # who has no role still computes without a tag
        clean.wait_end(clean.submit("alice", "--wrap=true", command="sbatch"))
    finally:
        regain(clean.slapd)
    runs(clean)


@contextlib.contextmanager
def short_lived_members(cluster: Cluster, max_age: str) -> Iterator[None]:
    """All daemons restarted with another ``ldap.max_age``, and back again."""
    before = SITE.read_text()

    def restart(text: str) -> None:
        cluster.write(SITE, text)
        cluster.stop_daemons()
        for name in ("decision/decide", "lifecycle/lifecycle"):
            Path(f"{settings.RUN}/{name}.sock").unlink(missing_ok=True)
        cluster.start_daemons()
        # after three timeouts the filter refuses for five seconds without asking
        cluster.until(lambda: not asked(cluster), "tagged jobs to be accepted", 30)

    assert "max_age: 10m" in before
    restart(before.replace("max_age: 10m", f"max_age: {max_age}"))
    try:
        yield
    finally:
        if not cluster.slapd.runs:
            cluster.slapd.start()
        restart(before)


def test_with_the_directory_away_members_count_until_they_are_too_old_and_then_nobody_does(clean: Cluster) -> None:
    with short_lived_members(clean, "90s"):
        waiting = clean.submit("alice", *TAG, "--hold", "--wrap=true")
        clean.slapd.stop()
        assert not asked(clean), "the last members are young enough"
        clean.until(lambda: "rbac.snapshot" in asked(clean), "the members to become too old", 300)
        assert "more than the 90 s" in asked(clean)
        clean.command(["scontrol", "release", str(waiting)])
        refused_at_start(clean, waiting, "rbac.snapshot")
        clean.wait_end(clean.submit("alice", "--wrap=true", command="sbatch"))
        clean.slapd.start()
        runs(clean)
