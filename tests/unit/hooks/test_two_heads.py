"""The lifecycle daemon of one of two head nodes: what it does and refuses as the one that acts, and as the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import attrs
import pytest

from conf.errors import Refused
from conf.site import Site
from keys.vault_head import VaultHead
from slurm_hooks import ended
from slurm_hooks.revoked import Revocation, write
from slurm_hooks.serve import Peer
from tests.unit.hooks.test_lifecycled import START, Head, World

ROOT = Peer(1, 0, 0)
REVOKE = {"kind": b"job", "value": b"17"}
VERBS = ("revoke", "resume", "lift", "revocations")


@pytest.fixture
def world(folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> World:
    head = Head()
    monkeypatch.setattr(VaultHead, "from_site", lambda _: head)
    two = attrs.evolve(site, cluster=attrs.evolve(site.cluster, head_nodes=("head", "head2")))
    made = World(folder, two, head)
    Path(two.lifecycle.revoked_dir).mkdir(mode=0o750)
    return made


def look(world: World, boot: str, *, here: bool) -> None:
    world.daemon.acting._look = lambda: (boot, here)

    async def once() -> None:
        await world.daemon.acting.look()
        await asyncio.sleep(0.05)

    asyncio.run(once())


@pytest.mark.parametrize("verb", VERBS)
def test_a_standby_takes_no_orders(world: World, verb: str) -> None:
    look(world, "1", here=False)
    with pytest.raises(Refused) as refused:
        asyncio.run(getattr(world.daemon.admin, verb)(REVOKE, ROOT))
    assert refused.value.rule == "lifecycle.standby"
    assert list(Path(world.daemon.site.lifecycle.revoked_dir).iterdir()) == []
    assert [line["result"] for line in world.trail("head.part")] == ["standby"]


def test_while_nobody_answers_orders_are_taken(world: World) -> None:
    assert world.daemon.acting.acts is None
    answer = asyncio.run(world.daemon.admin.revoke({**REVOKE, "reason": b""}, ROOT))
    assert answer["verdict"] == "allow"


def test_the_other_ones_revocation_refuses_a_start_before_the_take_over_is_noticed(world: World) -> None:
    look(world, "1", here=False)
    written = Revocation(id="ab" * 8, kind="job", value="17", at=4e9)
    write(world.daemon.site.lifecycle.revoked_dir, written)
    with pytest.raises(Refused) as refused:
        asyncio.run(world.daemon.start({**START, "since": b"1"}, ROOT))
    assert refused.value.rule == "revoked.job"
    assert world.head.keys == set()


def test_what_the_other_left_is_this_ones_after_a_take_over(world: World) -> None:
    look(world, "1", here=False)
    write(world.daemon.site.lifecycle.revoked_dir, Revocation(id="ab" * 8, kind="job", value="17", jobs={17: ("n1",)}))
    world.note(18, "n1")
    assert not world.daemon.revoker.ends(17)
    look(world, "2", here=True)
    assert world.daemon.revoker.ends(17)
    # the revoked job's own note is there by now, and of the others it is known that they were found
    jobs = {note.job for note in ended.read(str(world.notes))}
    assert 18 in jobs
    assert world.daemon.pending._found is None
    assert [line["result"] for line in world.trail("head.part")] == ["standby", "acts"]
