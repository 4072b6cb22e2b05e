"""The node's end of the link with a head node over real TLS, and a hand that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from conf.errors import BackendUnavailable, Refused
from conf.site import Cluster, Ldap, Link, Node, Site, Vault, VaultNode
from keys.secret import Secret
from keys.vault_errors import VaultError
from slurm_hooks import link
from slurm_hooks.links import Connected, Links
from slurm_hooks.nodelink import NodeLink
from slurm_hooks.presence import Present
from slurm_hooks.serve import Answer, Fields, Peer, refusal, serve
from tests.testbed.pki import CA

INCARNATION = "ab" * 16


class World:
    """A head node, a hand, and one node between them."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.ca = CA(folder / "ca")
        head = self.ca.server("head", ["127.0.0.1"], folder)
        node = self.ca.client("n1", folder)
        self.link = Link(
            listen="127.0.0.1:0",
            certificate=str(head.certificate),
            private_key=str(head.private_key),
            ca_file=str(self.ca.certificate),
        )
        self.site = Site(
            version=1,
            cluster=Cluster(name="test", head_nodes=("127.0.0.1",)),
            vault=Vault(
                address="https://vault.example:8200",
                ca_file="/ca",
                node=VaultNode(certificate=str(node.certificate), private_key=str(node.private_key)),
            ),
            ldap=Ldap(
                flavour="openldap",
                uris=("ldaps://x",),
                ca_file="/ca",
                bind_dn="cn=x",
                bind_password_file="/p",
                base="dc=x",
            ),
            node=Node(run_dir=str(folder)),
            link=self.link,
        )
        self.hand = str(folder / "hand.sock")
        self.renewed: list[float] = []
        self.stopped: list[tuple[bytes, bytes]] = []
        self.unwrapped: list[tuple[str, str, str, str]] = []
        self.locked = False
        self.state = "running"
        self.given: list[bytes] = []
        self.broken = False
        self.connected: Connected | None = None

    async def verb(self, fields: Fields, _peer: Peer) -> Answer:
        if self.broken:
            return refusal("engine.error", "the hand is broken")
        if fields["verb"] == b"renew":
            self.renewed.append(float(fields["age"]))
            return {"verdict": "allow"}
        if fields["verb"] == b"stop":
            self.stopped.append((fields["job"], fields["incarnation"]))
            return {"verdict": "allow", "result": "stopped"}
        return self.frozen(fields) or {"verdict": "allow", "jobs": f"17:{INCARNATION}:running"}

    def frozen(self, fields: Fields) -> Answer | None:
        """What the hand says to the three requests about a job that may go on."""
        if fields["verb"] == b"freeze":
            self.state = "frozen"
            return {"verdict": "allow", "result": "frozen"}
        if fields["verb"] == b"wrapped":
            if self.state != "frozen":
                return refusal("freeze.not-frozen", "it is not frozen")
            names = {"key": "n1_test-17-x", "wrapped": "vault:v1:x", "incarnation": INCARNATION}
            return {"verdict": "allow", "result": "frozen", **names}
        if fields["verb"] == b"thaw":
            self.given.append(fields.get("plaintext", b""))
            if self.state == "stopped":
                return refusal("freeze.stopped", "it was stopped for good")
            self.state = "running"
            return {"verdict": "allow", "result": "running"}
        return None

    def heard(self, connected: Connected) -> None:
        self.connected = connected

    def play(self, act: Callable[[Links], Awaitable[Any]], node: str = "n1") -> Any:
        async def main() -> Any:
            anyone = frozenset(range(2**16)) | {0}
            named = ("jobs", "renew", "stop", "freeze", "wrapped", "thaw", "trail")
            verbs = {name: (anyone, self.verb) for name in named}
            async with (
                asyncio.timeout(30),
                await serve(self.hand, verbs, mode=0o600, group=None, deadline=10),
                Links(self.link, self.heard) as links,
            ):
                site = attrs.evolve(self.site, link=attrs.evolve(self.link, head=(f"127.0.0.1:{links.port}",)))
                keep = asyncio.create_task(NodeLink(site, node, self.place, self.unwrap).keep())
                try:
                    return await act(links)
                finally:
                    keep.cancel()

        return asyncio.run(main())

    def place(self) -> str:
        return "eu"

    def unwrap(self, job: str, incarnation: str, key: str, wrapped: str) -> Secret:
        self.unwrapped.append((job, incarnation, key, wrapped))
        if self.locked:
            raise VaultError("the key is locked")
        return Secret(b"k" * 64)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(link, "PING_EVERY", 0.05)
    return World(tmp_path)


async def until(ready: Callable[[], object]) -> None:
    while not ready():
        await asyncio.sleep(0.01)


def test_it_reports_and_renews(world: World) -> None:
    async def act(_: Links) -> None:
        await until(lambda: len(world.renewed) > 2)

    world.play(act)
    assert world.connected is not None
    assert (world.connected.node, world.connected.jurisdiction) == ("n1", "eu")
    assert world.connected.jobs == {17: Present(17, INCARNATION, "running")}
    assert all(0 <= age < 5 for age in world.renewed)


def test_an_order_is_done_and_answered(world: World) -> None:
    async def act(links: Links) -> str:
        await until(lambda: world.connected)
        return await links.stop("n1", 17, "why", 10)

    assert world.play(act) == "stopped"
    assert world.stopped == [(b"17", INCARNATION.encode())]


def test_a_node_whose_key_vault_does_not_give_stays_frozen(world: World) -> None:
    world.state, world.locked = "frozen", True

    async def act(links: Links) -> str:
        await until(lambda: world.connected)
        return await links.thaw("n1", 17, "why", 10)

    assert world.play(act) == "failed"
    assert (world.given, world.state) == ([], "frozen")


def test_what_was_stopped_for_good_gets_no_key(world: World) -> None:
    world.state = "stopped"

    async def act(links: Links) -> str:
        await until(lambda: world.connected)
        return await links.thaw("n1", 17, "why", 10)

    assert world.play(act) == "stopped"
    assert (world.given, world.unwrapped) == ([b""], [])


def test_frozen_and_let_go_with_the_key_that_vault_gives(world: World) -> None:
    async def act(links: Links) -> list[str]:
        await until(lambda: world.connected)
        return [
            await links.freeze("n1", 17, "why", 10),
            await links.thaw("n1", 17, "why", 10),
            await links.thaw("n1", 17, "why", 10),
        ]

    assert world.play(act) == ["frozen", "running", "running"]
    assert world.unwrapped == [("17", INCARNATION, "n1_test-17-x", "vault:v1:x")]
    assert world.given == [b"k" * 64, b""]


def test_a_hand_that_refuses_is_a_failed_order_and_no_renewal(world: World) -> None:
    async def act(links: Links) -> str:
        await until(lambda: world.connected)
        world.broken = True
        count = len(world.renewed)
        try:
            return await links.stop("n1", 17, "why", 5)
        except BackendUnavailable:
            return "broke off"
        finally:
            assert len(world.renewed) <= count + 1

    assert world.play(act) in ("failed", "broke off")


def test_it_comes_back(world: World) -> None:
    async def act(links: Links) -> None:
        await until(lambda: world.connected)
        first = world.connected
        links.nodes["n1"].channel.close()
        await until(lambda: world.connected is not first)
        assert links.nodes["n1"] is world.connected

    world.play(act)


def test_without_a_place_it_connects_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise Refused("node.place", "no place")

    monkeypatch.setattr(world, "place", nowhere)

    async def act(_: Links) -> None:
        await until(lambda: world.connected)

    world.play(act)
    assert world.connected is not None
    assert world.connected.jurisdiction == ""


def test_the_certificate_of_another_node_is_of_no_use(world: World) -> None:
    async def act(links: Links) -> None:
        await asyncio.sleep(0.5)
        assert links.nodes == {}

    world.play(act, node="n2")
    assert world.connected is None
