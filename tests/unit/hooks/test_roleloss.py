"""Roles that are lost while a job runs: what counts as a loss, above all what does not. Files and policy are real."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest

from conf.errors import BackendUnavailable
from conf.policy import Policy, load_policy
from conf.site import Site
from conf.tag import Tag
from slurm_hooks import running
from slurm_hooks.filters.verdict import Context
from slurm_hooks.membership import Group
from slurm_hooks.roleloss import RoleLoss, roles_of
from slurm_hooks.snapshot import Snapshot

EU = Tag("phi", "eu", 2**30, ())


class World:
    """A directory that a test writes, and what was done about it."""

    def __init__(self, folder: Path, site: Site, policy: Policy) -> None:
        self.policy = policy
        self.folder = folder
        (self.role, self.groups) = next(
            (name, [group for each in policy.holdings(name) for group in each.groups])
            for name, role in policy.roles_for("phi")
            if "eu" in role.jurisdictions
        )
        self.members: Snapshot | None = None
        self.time = 1000.0
        self.revoked: list[tuple[str, str, str]] = []
        self.said: list[dict[str, Any]] = []
        self.fails = False
        self.acts = True
        site = attrs.evolve(site, lifecycle=attrs.evolve(site.lifecycle, state_dir=str(folder)))
        Path(site.lifecycle.running_dir).mkdir(parents=True, exist_ok=True)
        self.site = site

    def loss(self, then: str = "freeze") -> RoleLoss:
        site = attrs.evolve(self.site, revocation=attrs.evolve(self.site.revocation, role_loss=then))
        say = lambda event, **fields: self.said.append({"event": event, **fields})  # noqa: E731
        return RoleLoss(site, self.context, self.revoke, say, lambda: self.acts)

    def context(self) -> Context:
        return Context(self.policy, self.members, now=self.time)

    async def revoke(self, kind: str, value: str, _reason: str, _within: float, mode: str) -> object:
        if self.fails:
            raise BackendUnavailable("no disk")
        self.revoked.append((kind, value, mode))
        return {}

    def directory(self, *users: str, missing: bool = False, others: str = "carol") -> None:
        """A new reading: who is in the role's groups; ``others`` are in a group of their own."""
        self.time += 30
        groups = {group: Group(group, frozenset(users), missing) for group in self.groups}
        groups["cn=others"] = Group("others", frozenset(filter(None, [others])))
        self.members = Snapshot(self.time, "test", groups)

    def start(self, job: int = 17, user: str = "alice") -> None:
        by = (user, roles_of(self.context(), user, EU))
        running.write(self.site.lifecycle.running_dir, job, 1001, EU, ("n1",), by)

    def file(self, job: int = 17) -> Path:
        return Path(self.site.lifecycle.running_dir, str(job))


def look(loss: RoleLoss) -> None:
    asyncio.run(loss.look())


@pytest.fixture
def world(folder: Path, site: Site) -> World:
    return World(folder, site, load_policy(str(folder / "policy.yaml")))


def test_an_outage_is_no_loss(world: World) -> None:
    world.directory("alice")
    world.start()
    loss = world.loss()
    look(loss)
    for _ in range(3):
        world.members = None
        look(loss)
    # nothing in the whole tree, as a server answers that has lost its data
    for _ in range(3):
        world.directory(others="")
        look(loss)
    # and a group that is not known any more
    for _ in range(3):
        world.directory(missing=True)
        look(loss)
    assert (world.revoked, world.said) == ([], [])


def test_said_once_is_no_loss(world: World) -> None:
    world.directory("alice")
    world.start()
    loss = world.loss()
    for _ in range(3):
        world.directory("bob")
        # the same word again and again is one word
        for _ in range(3):
            look(loss)
        world.directory("alice", "bob")
        look(loss)
        world.directory("bob")
        look(loss)
        world.members = None
        look(loss)
    assert world.revoked == []


@pytest.mark.parametrize(("then", "mode"), [("freeze", "freeze"), ("revoke", "stop")])
def test_said_twice_it_is_one(world: World, then: str, mode: str) -> None:
    world.directory("alice", "bob")
    world.start()
    world.start(18, "bob")
    loss = world.loss(then)
    look(loss)
    for _ in range(2):
        world.directory("bob")
        look(loss)
    assert world.revoked == [("job", "17", mode)]
    assert [(line["event"], line["job"], line["result"]) for line in world.said] == [("role.lost", 17, then)]
    # and not again: not in the next reading, not after a restart (an admin may have had it go on)
    for again in (loss, world.loss(then)):
        for _ in range(3):
            world.directory("bob")
            look(again)
    assert len(world.revoked) == 1


def test_by_default_it_is_only_written_down(world: World) -> None:
    assert world.site.revocation.role_loss == "none"
    world.directory("alice")
    world.start()
    loss = world.loss("none")
    for _ in range(4):
        world.directory("bob")
        look(loss)
    assert world.revoked == []
    assert [(line["event"], line["result"]) for line in world.said] == [("role.lost", "none")]


def test_what_no_role_let_in_cannot_lose_one(world: World) -> None:
    world.directory("bob")
    world.start()  # by break-glass, say
    running.write(world.site.lifecycle.running_dir, 18, 1001, EU, ("n1",))  # as an older version wrote it
    loss = world.loss()
    for _ in range(3):
        world.directory("bob")
        look(loss)
    assert world.revoked == []


def test_what_fails_is_tried_again(world: World) -> None:
    world.directory("alice")
    world.start()
    loss = world.loss()
    world.fails = True
    for _ in range(3):
        world.directory("bob")
        look(loss)
    assert (world.revoked, world.said) == ([], [])
    world.fails = False
    world.directory("bob")
    look(loss)
    assert world.revoked == [("job", "17", "freeze")]


def test_the_policy_takes_away_nothing(world: World) -> None:
    world.directory("alice")
    world.start()
    world.policy = attrs.evolve(world.policy, roles={})
    loss = world.loss()
    for _ in range(3):
        world.directory("bob")
        look(loss)
    assert world.revoked == []


def test_what_is_written_down_keeps_its_time(world: World) -> None:
    world.directory("alice")
    world.start()
    before = world.file().stat()
    running.settle(world.site.lifecycle.running_dir, 17)
    after = world.file().stat()
    assert (after.st_mtime_ns, after.st_mode) == (before.st_mtime_ns, before.st_mode)
    assert running.by_roles(world.site.lifecycle.running_dir) == {}
    assert [inside.job for inside, _ in running.all_jobs(world.site.lifecycle.running_dir)] == [17]
    running.settle(world.site.lifecycle.running_dir, 99)
    assert [path.name for path in world.file().parent.iterdir()] == ["17"]


def test_a_folder_that_cannot_be_read_is_no_loss(world: World) -> None:
    world.directory("alice")
    world.start()
    loss = world.loss()
    world.file().unlink()
    world.file().parent.rmdir()
    for _ in range(3):
        world.directory("bob")
        look(loss)
    assert world.revoked == []


def test_a_head_node_that_stands_by_takes_nothing_and_begins_anew_when_it_acts(world: World) -> None:
    world.directory("alice")
    world.start()
    loss = world.loss()
    world.directory("bob")
    look(loss)
    world.acts = False
    for _ in range(2):
        world.directory("bob")
        look(loss)
    world.acts = True
    world.directory("bob")
    look(loss)
    assert world.revoked == []
    world.directory("bob")
    look(loss)
    assert world.revoked == [("job", "17", "freeze")]
