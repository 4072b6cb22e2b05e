"""Nodes that a running job has lost: when their keys go, and every reason to leave them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conf.errors import BackendUnavailable, Refused
from keys.grant import Grant
from slurm_hooks.headreaper import LOOK_EVERY
from slurm_hooks.lifecycle import Destroyed
from slurm_hooks.lostnodes import LostNodes, read_places
from slurm_hooks.slurmview import Controller, Seen, View
from tests.unit.hooks.test_reaping import SLURM, grant

ON_TWO = [("n1", 17), ("n2", 17)]


class World:
    """A job that began on n1 and n2; slurmctld has it on ``places``."""

    def __init__(self) -> None:
        self.places_text = "17|n1\n"
        self.state = "RUNNING"
        self.restarts = 0
        self.boot = SLURM.boot
        self.changed = False
        self.away = False
        self.damaged = False
        self.taken: list[tuple[int, str, str]] = []
        self.said: list[dict[str, Any]] = []
        self.lost = LostNodes(
            self, self.held, self.take, lambda event, **more: self.said.append({"event": event, **more})
        )

    def places(self) -> str:
        return self.places_text

    def check_same(self, _before: Controller) -> None:
        if self.changed:
            raise BackendUnavailable("slurmctld was started anew")

    def held(self, node: str, job: int) -> Grant | None:
        if self.damaged:
            raise Refused("grant.field", "this is not a sound grant")
        return grant(node, job)

    async def take(self, job: int, node: str, incarnation: str) -> list[Destroyed]:
        if self.away:
            raise BackendUnavailable("Vault is sealed")
        self.taken.append((job, node, incarnation))
        return [Destroyed(node, "key", "now")]

    def look(self, now: float) -> None:
        view = View(SLURM._replace(boot=self.boot), {17: Seen(self.state, self.restarts, 0)})
        asyncio.run(self.lost.end(self.lost.find(ON_TWO, view, now)))


@pytest.fixture
def world() -> World:
    return World()


def test_at_the_second_look(world: World) -> None:
    world.look(1000)
    world.look(1010)
    assert world.taken == []
    world.look(1021)

    assert world.taken == [(17, "n2", grant("n2", 17).incarnation)]
    (line,) = world.said
    assert (line["event"], line["job"], line["node"], line["count"]) == ("reaper.healed", 17, "n2", 1)
    assert "without n2" in line["reason"]


@pytest.mark.parametrize(
    "change",
    [
        {"places_text": "17|n[1-2]\n"},
        {"places_text": "17|n1,n2\n"},
        {"places_text": "17|\n"},
        {"places_text": "18|n1\n"},
        {"places_text": ""},
        {"places_text": "17|n[1-\n"},
        {"state": "PENDING"},
        {"state": "COMPLETING"},
        {"state": "SOMETHING_NEW"},
        {"restarts": 1},
        {"damaged": True},
        {"away": True},
    ],
)
def test_left_alone(world: World, change: dict[str, Any]) -> None:
    for name, value in change.items():
        setattr(world, name, value)
    world.look(1000)
    world.look(1021)

    assert world.taken == []


@pytest.mark.parametrize("between", [{"boot": "1"}, {"places_text": "17|n[1-2]\n"}])
def test_it_begins_anew(world: World, between: dict[str, Any]) -> None:
    world.look(1000)
    before = {name: getattr(world, name) for name in between}
    for name, value in between.items():
        setattr(world, name, value)
    world.look(1021)
    for name, value in before.items():
        setattr(world, name, value)
    world.look(1030)

    assert world.taken == []


def test_a_standby_has_seen_nothing(world: World) -> None:
    world.look(1000)
    world.lost.forget()
    world.look(1021)

    assert world.taken == []


def test_what_vault_did_not_confirm_is_found_again(world: World) -> None:
    world.away = True
    world.look(1000)
    world.look(1021)
    world.away = False
    world.look(1036)

    assert len(world.taken) == 1


def test_a_slurmctld_that_was_started_meanwhile(world: World) -> None:
    world.changed = True
    with pytest.raises(BackendUnavailable):
        world.look(1000)


@pytest.mark.parametrize("text", ["x", "17", "17|n1 n2\n", "0|n1\n", "17|n1\n17|n2\n", "squeue: error\n"])
def test_an_answer_that_is_none(text: str) -> None:
    with pytest.raises(BackendUnavailable):
        read_places(text)


def test_what_squeue_writes() -> None:
    assert read_places("17|n[1-2,7]\n18|\n18|\n 19|phi-dy-small-1\n") == {17: "n[1-2,7]", 19: "phi-dy-small-1"}


def test_the_next_look_is_when_the_second_is_due(world: World) -> None:
    assert world.lost.wait(1000) == LOOK_EVERY
    world.look(1000)
    assert world.lost.wait(1008) == 12
