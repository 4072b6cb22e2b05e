"""Revocation on the head node, with real files and real jobs of the lifecycle daemon; Vault and the nodes are fakes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from audit.chain import AuditError
from conf.errors import BackendUnavailable, Refused, UsageError
from conf.site import Site
from conf.tag import Tag
from keys.vault_head import VaultHead
from slurm_hooks import revoked, running, wire
from slurm_hooks.lifecycle import StartJob
from slurm_hooks.links import Connected
from slurm_hooks.presence import Present
from slurm_hooks.revoker import Revoker
from slurm_hooks.serve import Peer
from tests.unit.hooks.test_lifecycled import START, Head, World

EU, US = Tag("phi", "eu", 2**30, ()), Tag("phi", "us", 2**30, ("ukb",))
INCARNATION = "ab" * 16
ROOT = Peer(1, 0, 0)


class Nodes:
    """What the nodes do when they are ordered to stop a job."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.results: dict[str, str] = {}
        self.orders: list[tuple[str, int]] = []
        self.nodes: dict[str, Any] = {}

    async def stop(self, node: str, job: int, _reason: str, _within: float) -> str:
        self.orders.append((node, job))
        await asyncio.sleep(0)
        if node in self.away:
            raise BackendUnavailable(f"node {node} is not connected")
        return self.results.get(node, "stopped")


class Cluster:
    def __init__(self, world: World) -> None:
        self.world = world
        self.nodes = Nodes()
        self.folder = Path(world.daemon.site.lifecycle.revoked_dir)
        self.folder.mkdir(mode=0o750)

    @property
    def revoker(self) -> Revoker:
        found = self.world.daemon.revoker
        found.links = self.nodes  # type: ignore[assignment]
        return found

    def run(self, job: int, uid: int, tag: Tag, *nodes: str) -> None:
        running.write(str(self.world.running), job, uid, tag, nodes)

    def revoke(self, kind: str, value: str, within: float = 20.0, mode: str = "stop") -> dict[str, Any]:
        return play(lambda: self.revoker.revoke(kind, value, "why", within, mode))

    def again(self) -> None:
        """The daemon is restarted."""
        self.world.daemon = type(self.world.daemon)(
            self.world.daemon.site, self.world.daemon._live, self.world.daemon._chain
        )

    def events(self) -> list[str]:
        return [line["event"] for line in self.world.trail() if line["event"].startswith("revocation.")]


def play(act: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with asyncio.timeout(30):
            return await act()

    return asyncio.run(main())


@pytest.fixture
def cluster(folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    head = Head()
    monkeypatch.setattr(VaultHead, "from_site", lambda _: head)
    return Cluster(World(folder, site, head))


def test_what_is_no_name_is_refused_and_nothing_is_written(cluster: Cluster) -> None:
    for kind, value in (("", "x"), ("group", "x"), ("user", ""), ("user", "a b"), ("job", "x"), ("job", "017")):
        with pytest.raises(UsageError):
            cluster.revoke(kind, value)
    for kind, value in (("role", "phi-ue"), ("dataset", "x"), ("jurisdiction", "xx"), ("user", "nobody-at-all")):
        with pytest.raises(Refused) as caught:
            cluster.revoke(kind, value)
        assert caught.value.rule == "revocation.unknown"
    assert (list(cluster.folder.iterdir()), cluster.events()) == ([], [])


def test_what_cannot_be_audited_or_written_does_not_happen(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.run(17, 1001, EU, "n1")

    def full(*_: object, **__: object) -> None:
        raise AuditError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.revoker, "_before", full)
        with pytest.raises(AuditError):
            cluster.revoke("job", "17")
    cluster.folder.rmdir()
    with pytest.raises(BackendUnavailable):
        cluster.revoke("job", "17")
    assert cluster.nodes.orders == []


@pytest.mark.parametrize(
    ("kind", "value", "jobs"),
    [
        ("job", "17", {17}),
        ("user", "1001", {17, 18}),
        ("jurisdiction", "eu", {17, 19}),
        ("node", "n2", {17, 19}),
        ("role", "phi-eu", {17, 19}),
    ],
)
def test_who_is_meant(cluster: Cluster, kind: str, value: str, jobs: set[int]) -> None:
    cluster.run(17, 1001, EU, "n1", "n2")
    cluster.run(18, 1001, US, "n3")
    cluster.run(19, 1002, EU, "n2")
    report = cluster.revoke(kind, value)
    assert set(map(int, report["jobs"])) == jobs
    assert report["confirmed"]
    assert {job for _, job in cluster.nodes.orders} == jobs


def test_keys_nodes_and_trail(cluster: Cluster) -> None:
    world = cluster.world
    asyncio.run(world.daemon.start({**START, "since": b"1"}, ROOT))
    assert len(world.head.keys) == 2
    report = cluster.revoke("job", "17")
    assert report["jobs"] == {"17": {"keys": "deleted", "nodes": {"n1": "stopped", "n2": "stopped"}}}
    assert (world.head.keys, world.head.grants, list(world.notes.iterdir())) == (set(), {}, [])
    # the job runs on, frozen: where it is stays known
    assert [path.name for path in world.running.iterdir()] == ["17"]
    # one "done" is of the keys of the job, the other of the revocation
    assert sorted(cluster.events()) == sorted(
        ["revocation.pending", *["revocation.node"] * 2, *["revocation.done"] * 2]
    )
    before = cluster.events()
    orders = len(cluster.nodes.orders)
    assert cluster.revoke("job", "17") == report
    assert (cluster.events(), len(cluster.nodes.orders)) == (before, orders)


def test_what_does_not_confirm_is_listed_and_asked_again_when_it_reports(cluster: Cluster) -> None:
    cluster.run(17, 1001, EU, "n1", "n2")
    cluster.nodes.away = {"n2"}
    cluster.nodes.results = {"n1": "failed"}
    report = cluster.revoke("job", "17", within=1.0)
    assert not report["confirmed"]
    assert report["jobs"]["17"]["nodes"] == {"n1": "failed", "n2": "waiting"}
    cluster.nodes.away, cluster.nodes.results = set(), {}

    async def reports() -> dict[str, Any]:
        for node in ("n1", "n2", "n9"):
            cluster.revoker.heard(connected(node, Present(17, INCARNATION, "running")))
        await asyncio.sleep(0.1)
        return cluster.revoker.reports()[0]

    assert play(reports)["confirmed"]
    assert cluster.nodes.orders.count(("n1", 17)) == 2
    assert ("n9", 17) not in cluster.nodes.orders


def test_a_node_on_which_the_job_is_not_any_more_has_confirmed(cluster: Cluster) -> None:
    cluster.run(17, 1001, EU, "n1", "n2")
    cluster.nodes.away = {"n1", "n2"}
    cluster.revoke("job", "17", within=1.0)

    async def reports() -> dict[str, Any]:
        cluster.revoker.heard(connected("n1"))
        cluster.revoker.heard(connected("n2", Present(17, INCARNATION, "stopped")))
        return cluster.revoker.reports()[0]

    found = play(reports)
    assert found["jobs"]["17"]["nodes"] == {"n1": "gone", "n2": "stopped"}
    assert found["confirmed"]


def test_vault_is_away(cluster: Cluster) -> None:
    world = cluster.world
    asyncio.run(world.daemon.start({**START, "since": b"1"}, ROOT))
    world.head.away = {"*"}
    report = cluster.revoke("job", "17", within=1.0)
    assert report["jobs"]["17"] == {"keys": "waiting", "nodes": {"n1": "stopped", "n2": "stopped"}}
    assert len(list(world.notes.iterdir())) == 1
    world.head.away = set()
    assert asyncio.run(world.daemon.pending.once())
    assert world.head.keys == set()
    assert cluster.revoker.reports()[0]["confirmed"]


def test_a_restart_goes_on(cluster: Cluster) -> None:
    cluster.run(17, 1001, EU, "n1")
    cluster.nodes.away = {"n1"}
    cluster.world.head.away = {"*"}
    assert not cluster.revoke("job", "17", within=1.0)["confirmed"]
    cluster.nodes.away, cluster.world.head.away = set(), set()
    cluster.again()

    async def go_on() -> bool:
        cluster.revoker.go_on()
        async with asyncio.timeout(30):
            while not cluster.revoker.reports()[0]["confirmed"]:
                await asyncio.sleep(0.01)
        return True

    assert play(go_on)
    orders = len(cluster.nodes.orders)
    events = cluster.events()
    cluster.again()
    play(go_on)
    assert (len(cluster.nodes.orders), cluster.events()) == (orders, events)


def test_what_another_head_node_revoked_or_lifted_is_known_after_a_take_over(cluster: Cluster) -> None:
    cluster.run(17, 1001, EU, "n1")
    first = cluster.revoker
    cluster.world.daemon.revoker.reload()
    # the other head node, with the same folder
    cluster.again()
    cluster.nodes.away, cluster.world.head.away = {"n1"}, {"*"}
    report = cluster.revoke("job", "17", within=0.1)
    assert first.reports() == []
    assert not first.ends(17)
    first.reload()
    assert [(one["id"], one["jobs"]["17"]["keys"]) for one in first.reports()] == [(report["id"], "waiting")]
    assert first.ends(17)
    cluster.revoker.lift(report["id"])
    first.reload()
    assert (first.reports(), first.ends(17), first.in_force()) == ([], False, ())


def test_a_start_is_refused_until_it_is_lifted(cluster: Cluster) -> None:
    job = StartJob(
        job=18, uid=1001, user="alice", cluster="test", nodes=("n1",), restarts=0, klass="phi", residency="eu",
        scratch=1, nonce="cd" * 16,
    )  # fmt: skip
    report = cluster.revoke("node", "n1")
    with pytest.raises(Refused) as caught:
        cluster.revoker.check_start(job)
    assert caught.value.rule == "revoked.node"
    with pytest.raises(Refused, match="node n1"):
        asyncio.run(cluster.world.daemon.start({**START, "since": b"1"}, ROOT))
    assert (cluster.world.head.keys, list(cluster.world.running.iterdir())) == (set(), [])
    with pytest.raises(Refused):
        cluster.revoker.lift("0" * 16)
    cluster.revoker.lift(report["id"])
    cluster.revoker.check_start(job)
    assert list(cluster.folder.iterdir()) == []
    assert cluster.events()[-1] == "revocation.lifted"


@pytest.mark.parametrize("restarted", [False, True])
def test_a_start_that_is_let_in_is_not_stopped_for_an_earlier_one_of_its_number(
    cluster: Cluster, *, restarted: bool
) -> None:
    """Slurm's numbers began again: somebody else's job has the number of one that was revoked long ago."""
    cluster.run(17, 4242, EU, "n1", "n3")
    assert cluster.revoke("user", "4242")["confirmed"]
    cluster.nodes.orders.clear()
    asyncio.run(cluster.world.daemon.start({**START, "since": str(time.monotonic_ns()).encode()}, ROOT))
    if restarted:
        cluster.again()

    async def reports() -> dict[str, Any]:
        for node in ("n1", "n2", "n3"):
            cluster.revoker.heard(connected(node, Present(17, INCARNATION, "running")))
        await asyncio.sleep(0.1)
        return cluster.revoker.reports()[0]

    found = play(reports)
    # n3 is none of the new start's nodes: what runs there is what was revoked
    assert cluster.nodes.orders == [("n3", 17)]
    assert list(found["jobs"]["17"]["nodes"]) == ["n3"]
    assert len(cluster.world.head.keys) == 2
    with pytest.raises(Refused):
        cluster.revoke("user", "4242", mode="freeze")


def test_a_start_that_cannot_be_told_from_a_revoked_one_does_not_happen(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.run(17, 4242, EU, "n1")
    cluster.revoke("user", "4242")

    def full(*_: object) -> None:
        raise BackendUnavailable("no space")

    monkeypatch.setattr(revoked, "write", full)
    with pytest.raises(BackendUnavailable):
        asyncio.run(cluster.world.daemon.start({**START, "since": str(time.monotonic_ns()).encode()}, ROOT))
    assert (cluster.world.head.keys, list(cluster.world.running.iterdir())) == (set(), [])


def test_a_file_that_cannot_be_read_refuses_every_start(cluster: Cluster) -> None:
    (cluster.folder / "0123456789abcdef.json").write_text("{")
    cluster.again()
    with pytest.raises(Refused) as caught:
        asyncio.run(cluster.world.daemon.start({**START, "since": b"1"}, ROOT))
    assert caught.value.rule == "revoked.unreadable"
    assert cluster.revoker.reports()[0]["jobs"] == {}


def test_which_waiting_jobs_are_meant(cluster: Cluster) -> None:
    cluster.revoke("user", "1001")
    cluster.revoke("job", "30")
    jobs = [
        {"job": 20, "uid": 1001, "user": "alice", "extra": EU.to_extra()},
        {"job": 21, "uid": 1002, "user": "bob", "extra": EU.to_extra()},
        {"job": 30, "uid": 1002, "user": "bob", "extra": EU.to_extra()},
        {"job": 31, "uid": 1001, "user": "alice", "extra": "something else"},
    ]
    answer = asyncio.run(cluster.world.daemon.admin.matching({"jobs": json.dumps(jobs).encode()}, ROOT))
    assert json.loads(answer["jobs"]) == [20, 30]
    for bad in (b"{", b"[" * 100_000):
        with pytest.raises(wire.WireError):
            asyncio.run(cluster.world.daemon.admin.matching({"jobs": bad}, ROOT))
    for bad in (b"[{}]", b'[{"job": "x", "uid": 1, "user": "", "extra": "secure-slurm:class=phi"}]'):
        with pytest.raises(UsageError):
            asyncio.run(cluster.world.daemon.admin.matching({"jobs": bad}, ROOT))


def test_the_verbs_answer(cluster: Cluster) -> None:
    daemon = cluster.world.daemon
    cluster.revoker  # noqa: B018  the nodes are replaced
    answer = asyncio.run(daemon.admin.revoke({"kind": b"node", "value": b"n1", "reason": b"r" * 500}, ROOT))
    report = json.loads(answer["report"])
    assert (report["confirmed"], len(report["reason"])) == (True, 200)
    listed = asyncio.run(daemon.admin.revocations({}, ROOT))
    assert (json.loads(listed["report"]), json.loads(listed["nodes"])) == ([report], {})
    assert asyncio.run(daemon.admin.lift({"id": report["id"].encode()}, ROOT))["words"] == "node n1"
    assert revoked.read(str(cluster.folder), 0) == ()


def connected(node: str, *jobs: Present) -> Connected:
    return Connected(node, None, "1", "eu", 0.0, {one.job: one for one in jobs})  # type: ignore[arg-type]
