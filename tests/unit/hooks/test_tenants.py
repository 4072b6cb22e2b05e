"""Which instance a start belongs to on a node, and that another one under the same name gets nothing of it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable
from conf.tag import Tag
from slurm_hooks import running, tenants
from slurm_hooks.lifecycle import Destroyed
from slurm_hooks.tenants import Tenants

OLD, NEW = "i-0aaaaaaaaaaaaaaa1", "i-0bbbbbbbbbbbbbbb2"
PHI = Tag("phi", "eu", 1024)


class Keys:
    """What Vault has: by job and node."""

    def __init__(self, *kept: tuple[int, str]) -> None:
        self.kept = set(kept)
        self.away = 0
        self.before: Callable[[], None] = lambda: None

    async def take(self, job: int, node: str, still: Callable[[], bool]) -> list[Destroyed]:
        self.before()
        if self.away:
            self.away -= 1
            raise BackendUnavailable("Vault is sealed")
        if not still() or (job, node) not in self.kept:
            return []
        self.kept.discard((job, node))
        return [Destroyed(node, "key", "now")]


class World:
    def __init__(self, folder: Path, keys: Keys) -> None:
        self.folder, self.keys = str(folder), keys
        self.said: list[dict[str, Any]] = []
        self.remembered: dict[str, str] = {}
        self.tenants = self.daemon()

    def daemon(self) -> Tenants:
        """As it is after a start of the daemon."""
        return Tenants(
            self.folder,
            self.keys.take,
            lambda event, **fields: self.said.append({"event": event, **fields}),
            lambda node: self.remembered.get(node, ""),
        )

    def start(self, job: int, *nodes: str, **connected: str) -> None:
        running.write(self.folder, job, 1001, PHI, nodes)
        self.tenants.started(job, connected)

    def arrive(self, node: str, instance: str) -> None:
        self.tenants.arrived(node, instance)
        asyncio.run(self.tenants.once())


@pytest.fixture
def world(tmp_path: Path) -> World:
    tmp_path.chmod(0o750)
    return World(tmp_path, Keys((17, "n1"), (17, "n2"), (18, "n1")))


def test_a_replacement_gets_nothing_of_a_job_that_began_beside_the_boot(world: World) -> None:
    """PrologSlurmctld first, then the instance, then another one."""
    world.start(17, "n1", "n2")
    world.arrive("n1", OLD)
    assert world.keys.kept >= {(17, "n1"), (17, "n2")}

    world.arrive("n1", NEW)

    assert world.keys.kept == {(17, "n2"), (18, "n1")}
    (line,) = world.said
    assert (line["event"], line["job"], line["node"], line["count"]) == ("revocation.done", 17, "n1", 1)
    assert OLD in line["evidence"]
    assert NEW in line["evidence"]


def test_nor_of_one_that_began_on_a_node_that_was_there(world: World) -> None:
    world.start(17, "n1", "n2", n1=OLD, n2="")
    world.arrive("n1", NEW)

    assert world.keys.kept == {(17, "n2"), (18, "n1")}


def test_the_first_contact_is_remembered_over_a_restart(world: World) -> None:
    world.start(17, "n1")
    world.arrive("n1", OLD)
    world.tenants = world.daemon()
    world.arrive("n1", NEW)

    assert (17, "n1") not in world.keys.kept


def test_nor_after_a_restart_while_it_was_to_be_destroyed(world: World) -> None:
    world.start(17, "n1")
    world.arrive("n1", OLD)
    world.keys.away = 1
    world.arrive("n1", NEW)
    assert (17, "n1") in world.keys.kept
    world.tenants = world.daemon()
    world.arrive("n1", NEW)

    assert (17, "n1") not in world.keys.kept


def test_an_instance_that_was_replaced_and_comes_first_after_a_restart(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The link has forgotten which of the two is the later one. What the node's enrolment left in Vault has not."""
    world.remembered["n1"] = NEW
    world.start(17, "n1", n1=NEW)
    world.tenants = world.daemon()
    world.arrive("n1", OLD)

    assert (17, "n1") in world.keys.kept
    assert world.tenants.waiting == 0
    assert f"node n1 is {NEW}" in caplog.text
    world.remembered["n1"] = OLD
    world.arrive("n1", OLD)
    assert (17, "n1") not in world.keys.kept


def test_while_vault_cannot_say_which_instance_the_node_is(world: World) -> None:
    world.start(17, "n1", n1=OLD)

    def away(_node: str) -> str:
        raise BackendUnavailable("Vault is sealed")

    world.tenants._instance = away
    world.arrive("n1", NEW)

    assert (17, "n1") in world.keys.kept
    assert world.tenants.waiting == 1


def test_the_same_instance_comes_back_as_often_as_it_likes(world: World) -> None:
    world.start(17, "n1")
    for _ in range(5):
        world.arrive("n1", OLD)

    assert (17, "n1") in world.keys.kept
    assert world.tenants.waiting == 0


def test_a_start_that_came_after_the_replacement_is_its_own(world: World) -> None:
    """The job was requeued and starts again on the same name."""
    world.start(17, "n1")
    world.arrive("n1", OLD)
    world.start(17, "n1")
    world.arrive("n1", NEW)

    assert (17, "n1") in world.keys.kept
    assert running.bound(world.folder, 17) == {"n1": NEW}


def test_a_start_that_comes_while_the_old_ones_keys_are_to_be_destroyed(world: World) -> None:
    world.start(17, "n1")
    world.arrive("n1", OLD)
    world.keys.before = lambda: running.write(world.folder, 17, 1001, PHI, ("n1",))
    world.arrive("n1", NEW)

    assert (17, "n1") in world.keys.kept
    assert world.said == []


def test_a_job_that_is_over_by_then(world: World) -> None:
    world.start(17, "n1")
    world.arrive("n1", OLD)
    world.tenants.arrived("n1", NEW)
    running.remove(world.folder, 17)
    asyncio.run(world.tenants.once())

    assert world.tenants.waiting == 0


def test_a_certificate_that_names_no_instance_binds_nothing(world: World) -> None:
    world.start(17, "n1", n1="")
    world.arrive("n1", "")
    assert running.bound(world.folder, 17) == {}
    world.arrive("n1", NEW)
    world.arrive("n1", "")

    assert (17, "n1") in world.keys.kept


def test_it_is_tried_until_vault_confirms(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "RETRY_EVERY", 0.01)
    world.keys.away = 3

    async def act() -> None:
        mine = world.daemon()
        task = asyncio.create_task(mine.forever())
        world.start(17, "n1")
        mine.arrived("n1", OLD)
        mine.arrived("n1", NEW)
        async with asyncio.timeout(20):
            while mine.waiting or world.keys.away:
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(act())
    assert (17, "n1") not in world.keys.kept
    assert len(world.said) == 1


def test_a_file_that_cannot_be_read_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.start(17, "n1")
    path = Path(world.folder, "17")
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "instances": [OLD]}))
    world.arrive("n1", NEW)

    assert "is not known" in caplog.text


def test_a_binding_keeps_the_start_and_whose_it_is(world: World) -> None:
    running.write(world.folder, 17, 1001, PHI, ("n1",), ("alice", ("phi-eu",)))
    before = running.known(world.folder)
    running.bind(world.folder, 17, {"n1": OLD})
    running.settle(world.folder, 17)

    assert running.known(world.folder) == before
    assert running.bound(world.folder, 17) == {"n1": OLD}
    assert running.all_jobs(world.folder)[0][0].uid == 1001


@pytest.mark.parametrize("act", ["bind", "remove"])
def test_two_who_change_one_file(world: World, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    """A loss of roles is written down on a thread of its own, while the node's instance connects or the job ends."""
    running.write(world.folder, 17, 1001, PHI, ("n1",), ("alice", ("phi-eu",)))
    utime = os.utime
    acts = {
        "bind": lambda: running.bind(world.folder, 17, {"n1": OLD}),
        "remove": lambda: running.remove(world.folder, 17),
    }
    other = threading.Thread(target=acts[act])

    def slowly(*args: Any, **options: Any) -> None:
        monkeypatch.setattr(os, "utime", utime)
        other.start()
        other.join(0.5)
        utime(*args, **options)

    monkeypatch.setattr(os, "utime", slowly)
    running.settle(world.folder, 17)
    other.join()

    if act == "remove":
        assert running.all_jobs(world.folder) == []
    else:
        said = json.loads(Path(world.folder, "17").read_text())
        assert (said["instances"], said["roles"]) == ({"n1": OLD}, [])


def test_a_start_that_cannot_be_bound_may_not_be(world: World) -> None:
    with pytest.raises(BackendUnavailable):
        world.tenants.started(99, {"n1": OLD})
