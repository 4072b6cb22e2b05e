"""A role that is lost while its job runs, on a real cluster with a real directory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import REFRESH
from tests.cluster.test_freeze import linked, resume, suspended
from tests.cluster.test_revoke import EU, US, all_connected, goes_on, node_of, revoke, trail, writing
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.slapd import person

__all__ = ["linked"]
pytestmark = pytest.mark.usefixtures("often_read")


@pytest.fixture
def freezing(linked: Cluster) -> Iterator[Cluster]:
    """``revocation.role_loss: freeze``, and alice's group as it was afterwards."""
    site = Path(settings.ETC) / "secure-slurm.yaml"
    before = site.read_text()
    for text in (before.replace("offline_grace: 15m", "offline_grace: 15m, role_loss: freeze"), before):
        linked.write(site, text)
        linked.tool("conf", "render")
        linked.stop_daemon("lifecycled")
        linked.daemon("lifecycled", "secure-life")
        all_connected(linked)
        if text is not before:
            yield linked
            linked.slapd.set_members("heart-study", [person("alice")])
            may(linked, True)


def may(cluster: Cluster, yes: bool) -> None:
    words = ["secure-sbatch", *EU, "--test-only", "--wrap=true"]
    cluster.until(lambda: (cluster.as_user("alice", words).returncode == 0) is yes, "the members to count", 60)


def test_lost_and_given_back(freezing: Cluster) -> None:
    cluster = freezing
    mine, other = writing(cluster, "alice", *EU), writing(cluster, "carol", *US)
    node = node_of(cluster, mine)

    # an outage of the directory, longer than two readings: nobody loses anything
    cluster.slapd.stop()
    time.sleep(4 * REFRESH)
    goes_on(cluster, mine)
    cluster.slapd.start()
    time.sleep(3 * REFRESH)
    goes_on(cluster, mine)

    cluster.slapd.set_members("heart-study", [person("oper")])
    cluster.until(lambda: suspended(mine, node), "the job to be frozen", 60)
    cluster.until(
        lambda: [one["confirmed"] for one in revoke(cluster, "--list")["revocations"]] == [True], "it all", 30
    )
    goes_on(cluster, other)
    (lost,) = [event for event in trail(cluster, mine) if event["event"] == "role.lost"]
    assert (lost["result"], "phi-eu" in lost["reason"]) == ("freeze", True)

    # given back: only an admin lets it go on
    cluster.slapd.set_members("heart-study", [person("alice")])
    time.sleep(3 * REFRESH)
    assert suspended(mine, node)
    resume(cluster, "--job", str(mine))
    goes_on(cluster, mine)

    # lost once more: an admin has said that it goes on, and that holds, over a restart too
    cluster.slapd.set_members("heart-study", [person("oper")])
    cluster.stop_daemon("lifecycled", kill=True)
    cluster.daemon("lifecycled", "secure-life")
    all_connected(cluster)
    time.sleep(4 * REFRESH)
    goes_on(cluster, mine)


def test_by_default_it_is_only_in_the_trail(linked: Cluster) -> None:
    mine = writing(linked, "alice", *EU)
    linked.slapd.set_members("heart-study", [person("oper")])
    try:
        linked.until(lambda: any(e["event"] == "role.lost" for e in trail(linked, mine)), "the line", 60)
        goes_on(linked, mine)
        assert revoke(linked, "--list")["revocations"] == []
    finally:
        linked.slapd.set_members("heart-study", [person("alice")])
        may(linked, True)
