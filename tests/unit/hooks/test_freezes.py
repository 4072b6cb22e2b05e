"""Frozen jobs on the head node: real files, the lifecycle daemon's own jobs; Vault and the nodes are played."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from audit.chain import AuditError
from conf.errors import BackendUnavailable, Refused, UsageError
from conf.site import Site
from keys.vault_head import VaultHead
from slurm_hooks import revoked
from slurm_hooks.presence import Present
from tests.unit.hooks.test_lifecycled import START, Head, World
from tests.unit.hooks.test_revoker import EU, INCARNATION, ROOT, Cluster, Nodes, connected, play


class Freezing(Nodes):
    """Nodes that can freeze as well; what they were told, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str, int]] = []

    async def stop(self, node: str, job: int, reason: str, within: float) -> str:
        self.told.append(("stop", node, job))
        return await super().stop(node, job, reason, within)

    async def freeze(self, node: str, job: int, _reason: str, _within: float) -> str:
        return await self._answer("freeze", node, job, "frozen")

    async def thaw(self, node: str, job: int, _reason: str, _within: float) -> str:
        return await self._answer("thaw", node, job, "running")

    async def _answer(self, verb: str, node: str, job: int, result: str) -> str:
        self.told.append((verb, node, job))
        await asyncio.sleep(0)
        if node in self.away:
            raise BackendUnavailable(f"node {node} is not connected")
        return self.results.get(node, result)


class Frozen(Cluster):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.nodes: Freezing = Freezing()

    def freeze(self, kind: str, value: str, within: float = 20.0) -> dict[str, Any]:
        return dict(play(lambda: self.revoker.revoke(kind, value, "why", within, "freeze")))

    def resume(self, kind: str, value: str, within: float = 20.0) -> dict[str, Any]:
        return dict(play(lambda: self.revoker.resume(kind, value, "why", within)))

    def start(self) -> None:
        asyncio.run(self.world.daemon.start({**START, "since": b"1"}, ROOT))

    def modes(self) -> list[str]:
        return [one.mode for one in revoked.read(str(self.folder), self.folder.stat().st_uid)]

    def hears(self, node: str, state: str = "") -> dict[str, Any]:
        async def reports() -> dict[str, Any]:
            self.revoker.heard(connected(node, *([Present(17, INCARNATION, state)] if state else [])))
            await settled(self)
            return self.revoker.reports()[0] if self.revoker.reports() else {}

        return dict(play(reports))


async def settled(cluster: Frozen) -> None:
    """Until every order has been carried out, or has failed."""
    await asyncio.sleep(0)
    while cluster.revoker._orders._tasks:
        await asyncio.sleep(0.01)


@pytest.fixture
def cluster(folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Frozen:
    head = Head()
    monkeypatch.setattr(VaultHead, "from_site", lambda _: head)
    return Frozen(World(folder, site, head))


def test_what_is_not_frozen_cannot_be_resumed(cluster: Frozen) -> None:
    for kind, value in (("job", "17"), ("user", "1001"), ("id", "0" * 16), ("node", "n1")):
        with pytest.raises(Refused) as caught:
            cluster.resume(kind, value)
        assert caught.value.rule == "revocation.unknown"
    with pytest.raises(UsageError):
        cluster.resume("job", "x")
    with pytest.raises(UsageError):
        play(lambda: cluster.revoker.revoke("job", "17", "", 0.1, "resume"))
    assert (cluster.nodes.told, cluster.modes(), cluster.events()) == ([], [], [])


def test_what_was_revoked_for_good_can_neither_be_frozen_nor_resumed(cluster: Frozen) -> None:
    cluster.start()
    report = cluster.revoke("job", "17")
    for act in (cluster.resume, cluster.freeze):
        with pytest.raises(Refused) as caught:
            act("job", "17")
        assert caught.value.rule == "resume.revoked"
    with pytest.raises(Refused):
        cluster.resume("id", report["id"])
    # nor by another name: of two that are about a job the one for good counts
    assert cluster.freeze("user", "1001")["jobs"]["17"] == {
        "keys": "deleted",
        "nodes": {"n1": "stopped", "n2": "stopped"},
    }
    assert cluster.resume("user", "1001")["jobs"]["17"]["nodes"] == {"n1": "stopped", "n2": "stopped"}
    assert {verb for verb, _, _ in cluster.nodes.told} == {"stop"}


def test_what_cannot_be_audited_is_not_resumed(cluster: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start()
    cluster.freeze("job", "17")

    def full(*_: object, **__: object) -> None:
        raise AuditError("the disk is full")

    monkeypatch.setattr(cluster.revoker, "_before", full)
    with pytest.raises(AuditError):
        cluster.resume("job", "17")
    assert (cluster.modes(), len(cluster.world.head.locked)) == (["freeze"], 2)
    assert {verb for verb, _, _ in cluster.nodes.told} == {"freeze"}


def test_what_cannot_be_written_changes_nothing_of_what_is_in_force(
    cluster: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start()
    cluster.freeze("job", "17")

    def full(*_: object, **__: object) -> None:
        raise AuditError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(cluster.revoker, "_before", full)
        with pytest.raises(AuditError):
            cluster.freeze("user", "1001")
    assert cluster.hears("n1", "frozen")["confirmed"]
    assert cluster.resume("job", "17")["confirmed"]


def test_frozen_and_resumed(cluster: Frozen) -> None:
    cluster.start()
    head = cluster.world.head
    report = cluster.freeze("job", "17")
    assert report["confirmed"]
    assert report["jobs"] == {"17": {"keys": "locked", "nodes": {"n1": "frozen", "n2": "frozen"}}}
    assert (len(head.keys), head.locked) == (2, head.keys)
    # nothing like it starts meanwhile, and it cannot be lifted past the jobs that wait
    with pytest.raises(Refused, match="job 17"):
        cluster.start()
    with pytest.raises(Refused) as caught:
        cluster.revoker.lift(report["id"])
    assert caught.value.rule == "resume.frozen"
    again = cluster.freeze("job", "17")
    assert (again, len(cluster.nodes.told)) == (report, 2)

    report = cluster.resume("job", "17")
    assert report["confirmed"]
    assert report["jobs"] == {"17": {"keys": "unlocked", "nodes": {"n1": "running", "n2": "running"}}}
    assert (len(head.keys), head.locked, cluster.modes(), cluster.revoker.reports()) == (2, set(), [], [])
    assert "revocation.resumed" in cluster.events()
    assert len(cluster.world.trail("key.unlock")) == 2


def test_no_node_is_told_to_go_on_before_vault_gives_its_key(cluster: Frozen) -> None:
    cluster.start()
    cluster.freeze("job", "17")
    cluster.nodes.told.clear()
    cluster.world.head.away = {"*"}
    report = cluster.resume("job", "17", within=1.0)
    assert (report["confirmed"], report["jobs"]["17"]["keys"]) == (False, "locked")
    assert not cluster.hears("n1", "frozen")["confirmed"]
    assert (cluster.nodes.told, cluster.modes()) == ([], ["resume"])
    cluster.world.head.away = set()

    async def retry() -> None:
        cluster.revoker._orders.retry_keys()
        await settled(cluster)

    play(retry)
    assert sorted(cluster.nodes.told) == [("thaw", "n1", 17), ("thaw", "n2", 17)]
    assert cluster.modes() == []


def test_vault_is_away_while_it_freezes(cluster: Frozen) -> None:
    cluster.start()
    cluster.world.head.away = {"*"}
    report = cluster.freeze("job", "17", within=1.0)
    assert report["jobs"]["17"] == {"keys": "waiting", "nodes": {"n1": "frozen", "n2": "frozen"}}
    cluster.world.head.away = set()

    async def retry() -> bool:
        cluster.revoker._orders.retry_keys()
        await settled(cluster)
        return bool(cluster.revoker.reports()[0]["confirmed"])

    assert play(retry)
    assert len(cluster.world.head.locked) == 2


def test_a_node_that_is_away_is_told_when_it_reports(cluster: Frozen) -> None:
    cluster.start()
    cluster.nodes.away = {"n2"}
    assert cluster.freeze("job", "17", within=1.0)["jobs"]["17"]["nodes"] == {"n1": "frozen", "n2": "waiting"}
    cluster.nodes.away = set()
    assert cluster.hears("n2", "running")["confirmed"]
    cluster.nodes.away = {"n2"}
    assert cluster.resume("job", "17", within=1.0)["jobs"]["17"]["nodes"] == {"n1": "running", "n2": "frozen"}
    # a restart goes on with it, and with nobody else
    cluster.again()
    cluster.nodes.away = set()
    assert cluster.hears("n1", "running")["jobs"]["17"]["nodes"]["n1"] == "running"
    play(lambda: _go_on(cluster))
    assert cluster.modes() == []
    assert cluster.nodes.told[-1] == ("thaw", "n2", 17)


async def _go_on(cluster: Frozen) -> None:
    cluster.revoker.go_on()
    await settled(cluster)


def test_a_restart_of_the_daemon_freezes_nobody_and_lets_nobody_go(cluster: Frozen) -> None:
    cluster.start()
    cluster.freeze("job", "17")
    cluster.again()
    told = len(cluster.nodes.told)
    play(lambda: _go_on(cluster))
    assert cluster.hears("n1", "frozen")["confirmed"]
    assert (len(cluster.nodes.told), len(cluster.world.head.locked)) == (told, 2)
    # one that runs although it is to be frozen is told again
    cluster.hears("n1", "running")
    assert cluster.nodes.told[told:] == [("freeze", "n1", 17)]


def test_a_job_that_two_have_frozen_goes_on_with_the_second(cluster: Frozen) -> None:
    cluster.start()
    cluster.freeze("job", "17")
    cluster.freeze("node", "n1")
    cluster.nodes.told.clear()
    report = cluster.resume("job", "17", within=1.0)
    assert report["jobs"]["17"]["nodes"] == {"n1": "frozen", "n2": "frozen"}
    assert (cluster.nodes.told, cluster.modes()) == ([], ["freeze"])
    assert cluster.resume("node", "n1")["jobs"]["17"]["nodes"] == {"n1": "running", "n2": "running"}
    assert (cluster.modes(), cluster.world.head.locked) == ([], set())


def test_frozen_first_and_then_for_good(cluster: Frozen) -> None:
    cluster.start()
    report = cluster.freeze("user", "1001")
    for_good = cluster.revoke("user", "1001")
    assert (for_good["id"], for_good["mode"], for_good["confirmed"]) == (report["id"], "stop", True)
    assert for_good["jobs"]["17"] == {"keys": "deleted", "nodes": {"n1": "stopped", "n2": "stopped"}}
    assert (cluster.modes(), cluster.world.head.keys) == (["stop"], set())


def test_a_frozen_job_that_ends_is_taken_down(cluster: Frozen) -> None:
    cluster.start()
    cluster.freeze("job", "17")

    async def ends() -> None:
        await cluster.world.daemon.ended({"job": b"17", "nodes": b"n1,n2"}, ROOT)
        await settled(cluster)

    cluster.revoker  # noqa: B018  the nodes are replaced
    play(ends)
    # whoever waits for a suspended device cannot die: only an order that makes it fail ends that
    assert sorted(cluster.nodes.told[2:]) == [("stop", "n1", 17), ("stop", "n2", 17)]
    assert (cluster.world.head.keys, list(cluster.world.notes.iterdir())) == (set(), [])
    assert cluster.resume("job", "17")["jobs"]["17"]["nodes"] == {"n1": "stopped", "n2": "stopped"}
    assert cluster.modes() == []


def test_a_job_that_is_frozen_by_no_file_can_be_named(cluster: Frozen) -> None:
    cluster.start()
    cluster.nodes.nodes = {"n1": connected("n1", Present(17, INCARNATION, "frozen"))}
    # it is not told to go on by itself: whoever froze it may have had a file that was lost
    assert cluster.hears("n1", "frozen") == {}
    report = cluster.resume("job", "17")
    assert report["jobs"] == {"17": {"keys": "unlocked", "nodes": {"n1": "running"}}}
    assert cluster.modes() == []


def test_a_file_with_another_mode_is_none(cluster: Frozen) -> None:
    cluster.run(17, 1001, EU, "n1")
    report = cluster.freeze("job", "17")
    path = cluster.folder / f"{report['id']}.json"
    path.write_text(path.read_text().replace('"freeze"', '"thaw"'))
    assert [one.kind for one in revoked.read(str(cluster.folder), path.stat().st_uid)] == [""]
