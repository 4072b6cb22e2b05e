"""One cluster for the whole suite, on real Slurm, OpenBao, slapd and dm-crypt; it starts once and is asserted clean."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster

IN_GUEST = Path("/src/tests/testbed/guest/stage2.sh").exists() and Path("/sys/class/misc/device-mapper").is_dir()


@pytest.fixture(scope="session")
def guest() -> None:
    """A machine with device mapper, which is ours. Elsewhere: a skip, a failure in CI."""
    if not IN_GUEST:
        reason = "no device mapper here: run 'make test-cluster', which boots a guest that has one"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(guest: None) -> Iterator[Cluster]:
    """The running cluster."""
    with Cluster() as running:
        yield running


REFRESH = 2.0
"""Seconds between two readings of the directory for those who wait for them (often_read)."""


@pytest.fixture(scope="module")
def often_read(cluster: Cluster) -> Iterator[None]:
    """The directory is read every REFRESH seconds: a reading costs a third of a second of a guest's only processor."""
    site = Path(f"{settings.ETC}/secure-slurm.yaml")
    before = site.read_text()
    assert before.count("  refresh: 15s\n") == 1
    for text in (before.replace("  refresh: 15s\n", f"  refresh: {REFRESH:.0f}s\n"), before):
        cluster.write(site, text)
        cluster.tool("conf", "render")
        # what it does now is another reading, by the new file
        cluster.daemons["ldapd"].send_signal(signal.SIGHUP)
        if text is not before:
            yield


@pytest.fixture
def clean(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, and afterwards: no mapping left, no node drained."""
    yield cluster
    cluster.cancel_all()
    cluster.until(
        lambda: not cluster.command(["squeue", "-h", "-t", "R,CF,CG", "-o", "%i"]).stdout.strip(), "all jobs to end"
    )
    cluster.until(lambda: not cluster.mappings(), "all mappings to be closed")
    assert cluster.drained() == ""


# What takes minutes comes first: what is left to the end is short, and all guests end at about the same time.
LONG = (
    *("test_reaper", "test_blame", "test_head_reaper", "test_revoke", "test_mounts", "test_selectors", "test_traps"),
    *("test_faults", "test_identity", "test_cloud_nodes", "test_from_nothing", "test_two_heads", "test_clear"),
    *("test_ends", "test_place", "test_vault_failover", "test_many", "test_soak", "test_hookd"),
)
# and last what leaves something behind that is told for good: a chain that forks, as no machine's does
LAST = ("test_segments",)
SHARED = Path("/out/shared")
NOW = Path("/out/now")
_mine: dict[Path, bool] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order of modules, long ones first; inside of a module nothing moves."""
    places = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places) + (item.path.stem in LAST)))


def _mine_alone(item: pytest.Item) -> bool:
    """Whether this guest runs the module: of several that share a folder the first, for making a folder is atomic."""
    if item.path not in _mine:
        try:
            (SHARED / item.nodeid.partition("::")[0].replace("/", "-")).mkdir()
            _mine[item.path] = True
        except FileExistsError:
            _mine[item.path] = False
    return _mine[item.path]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """pytest's own loop, over the modules that this guest comes to first; the next one is chosen before one ends."""
    if not SHARED.is_dir() or session.testsfailed or session.config.option.collectonly:
        return None
    mine = (item for item in session.items if _mine_alone(item))
    for item, following in itertools.pairwise(itertools.chain(mine, [None])):
        assert item is not None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
    return True


def pytest_runtest_logstart(nodeid: str) -> None:
    """A guest that runs out of its time says nothing at the end: the test it was at is in a file."""
    if SHARED.is_dir():
        with NOW.open("w") as file:
            file.write(f"{nodeid}\n")
            file.flush()
            # the guest is killed with what it has not written out
            os.fsync(file.fileno())


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """What fails is said at once: a guest that runs out of its time says nothing at the end."""
    if report.failed:
        print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext[:3000]}", file=sys.__stderr__)
