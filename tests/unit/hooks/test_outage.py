"""The verbs around the breaker, as PrologSlurmctld and the requeue daemon use them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from slurm_hooks import outage as module
from slurm_hooks import wire
from slurm_hooks.blame import OUTAGE, TRIAL
from slurm_hooks.breaker import CLOSED, HALF_OPEN, OPEN
from slurm_hooks.outage import Outage, known_members
from slurm_hooks.serve import Answer, Fields, Peer

PEER = Peer(1, 2, 3)


class World:
    def __init__(self) -> None:
        self.away: SecureSlurmError | None = None
        self.fails: Exception | None = None
        self.lines: list[tuple[str, dict[str, object]]] = []
        self.started: list[int] = []
        self.outage = Outage(self._start, self._services, self._say)

    async def _start(self, fields: Fields, _peer: Peer) -> Answer:
        if self.fails:
            raise self.fails
        self.started.append(int(fields["job"]))
        return {"verdict": "allow"}

    def _services(self) -> None:
        if self.away:
            raise self.away

    def _say(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields))

    def do(self, verb: str, **fields: str) -> Mapping[str, Any]:
        handler = {"start": self.outage.start, "gave-up": self.outage.gave_up, "may-release": self.outage.may_release}
        handler["released"] = self.outage.released
        return asyncio.run(handler[verb]({name: value.encode() for name, value in fields.items()}, PEER))  # type: ignore[arg-type]

    def give_up(self, *jobs: int, rule: str = "backend.unavailable") -> list[str]:
        return [str(self.do("gave-up", job=str(job), rule=rule, reason="away")["outage"]) for job in jobs]

    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("job", ["", "0", "-1", "x", "1_2", "99999999999"])
def test_what_is_no_job(world: World, job: str) -> None:
    for verb in ("start", "gave-up"):
        with pytest.raises(wire.WireError):
            world.do(verb, job=job, rule="backend.unavailable")
    with pytest.raises(wire.WireError):
        world.do("released", jobs=f"{job},", left="0")


@pytest.mark.parametrize("left", ["", "-1", "x", "1.0"])
def test_what_is_no_number(world: World, left: str) -> None:
    with pytest.raises(wire.WireError):
        world.do("released", jobs="", left=left)


@pytest.mark.parametrize("rule", ["rbac.role", "", "x"])
def test_what_is_no_services_fault_is_not_counted(world: World, rule: str) -> None:
    with pytest.raises(wire.WireError):
        world.give_up(1, rule=rule)


def test_three_jobs_open_it_and_it_is_in_the_trail(world: World) -> None:
    world.away = BackendUnavailable("it is sealed")
    assert world.give_up(1, 1, 1, 2) == ["1"] * 4
    assert world.outage.breaker.state == CLOSED
    assert world.give_up(3) == ["1"]
    assert world.outage.breaker.state == OPEN
    assert world.lines == [
        ("breaker.opened", {"rule": "backend.unavailable", "reason": "[backend.unavailable] away", "count": 3})
    ]
    with pytest.raises(Refused) as caught:
        world.do("start", job="9")
    assert caught.value.rule == OUTAGE
    assert world.started == []
    assert world.lines[-1] == ("start.refused", {"job": 9, "rule": OUTAGE})
    assert world.outage.told()["turned_away"] == 1
    assert world.do("may-release")["may"] == "none"


def test_a_busy_daemon_is_no_service_that_is_away(world: World) -> None:
    assert world.give_up(1, 2, 3, 4, rule="lifecycle.busy") == ["1"] * 4
    assert (world.outage.breaker.state, world.lines) == (CLOSED, [])


def test_one_job_that_fails_while_all_is_well_is_its_own_trouble(world: World) -> None:
    assert world.give_up(1, 1, 1) == ["0"] * 3


def test_from_open_to_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.away = BackendUnavailable("it is sealed")
    world.give_up(1, 2, 3)
    monkeypatch.setattr(module, "TICK", 0.001)

    async def let_it_ask(until: str) -> None:
        asking = asyncio.create_task(world.outage.forever())
        async with asyncio.timeout(30):
            while world.outage.breaker.state != until:
                await asyncio.sleep(0.01)
        asking.cancel()

    # a defect in one look is not the last look
    defects = [RuntimeError("can't start new thread")]
    services = world.outage._services

    def fails_once() -> object:
        if defects:
            raise defects.pop()
        return services()

    monkeypatch.setattr(world.outage, "_services", fails_once)
    world.away = None
    asyncio.run(let_it_ask(HALF_OPEN))
    assert world.events()[-1] == "breaker.probing"
    assert world.do("may-release")["may"] == "one"
    # that one is released and starts; it fails at first, and asks again, while another has to wait
    world.fails = BackendUnavailable("not yet")
    with pytest.raises(BackendUnavailable):
        world.do("start", job="1")
    with pytest.raises(Refused) as caught:
        world.do("start", job="2")
    assert caught.value.rule == TRIAL
    assert world.do("may-release")["may"] == "none"
    world.fails = None
    world.do("start", job="1")
    assert world.outage.breaker.state == CLOSED
    assert world.events()[-1] == "breaker.closed"
    assert world.do("may-release")["may"] == "all"
    world.do("released", jobs="2,3", left="0")
    assert world.lines[-2:] == [("start.released", {"job": 2}), ("start.released", {"job": 3})]


def test_one_is_released_at_a_time(world: World) -> None:
    world.give_up(1, 2, 3)
    world.outage.breaker.probed("", 0)
    assert world.do("may-release")["may"] == "one"
    world.do("released", jobs="1", left="5")
    # it has not come to its PrologSlurmctld yet
    assert world.do("may-release")["may"] == "none"
    world.outage._one_at = 0
    assert world.do("may-release")["may"] == "one"


def test_a_trial_that_is_refused_makes_room(world: World) -> None:
    world.give_up(1, 2, 3)
    world.outage.breaker.probed("", 0)
    world.fails = Refused("rbac.role", "no")
    with pytest.raises(Refused, match="no"):
        world.do("start", job="1")
    world.fails = None
    world.do("start", job="2")
    assert world.outage.breaker.state == CLOSED


def test_nothing_is_released_while_a_service_is_away_though_it_never_opened(world: World) -> None:
    world.away = BackendUnavailable("it is sealed")
    assert world.do("may-release")["may"] == "none"
    world.away = None
    # asked again only after a while: each look costs slurmctld a list
    assert world.do("may-release")["may"] == "none"
    world.outage._look_at = 0
    assert world.do("may-release")["may"] == "all"


@pytest.mark.parametrize("problem", ["", "too old"])
def test_the_members_are_a_service_too(problem: str) -> None:
    check = known_members(lambda: problem)
    if problem:
        with pytest.raises(BackendUnavailable, match=problem):
            check()
    else:
        check()
