"""The notes that a head node finds when it takes over, and when it works them off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable
from slurm_hooks import ended
from slurm_hooks import pending as module
from slurm_hooks.ended import EndedJob
from slurm_hooks.pending import Pending, SpoolNotes
from slurm_hooks.slurmview import Controller, Seen, View

SLURM = Controller("test", "1789990000", 3600, 1000, 300, hides=False)


class World:
    def __init__(self, folder: Path, states: dict[int, str] | None, revoked: frozenset[int] = frozenset()) -> None:
        self.folder = str(folder)
        self.states = states
        self.looks = 0
        self.done: list[int] = []
        self.failures: dict[int, str] = {}
        self.notes = SpoolNotes(self.folder)
        self.pending = Pending(
            self.notes, self.finish, look=self.look, revoked=revoked.__contains__, failures=self.failures
        )

    def note(self, *jobs: int) -> None:
        for job in jobs:
            ended.write(self.folder, job, ("n1",))

    async def finish(self, note: EndedJob) -> None:
        self.done.append(note.job)
        self.notes.remove(note)

    def look(self) -> View:
        self.looks += 1
        if self.states is None:
            raise BackendUnavailable("nobody answers")
        return View(SLURM, {job: Seen(state, 0, 0) for job, state in self.states.items()})

    def once(self) -> bool:
        return asyncio.run(self.pending.once())


def test_without_a_take_over_slurm_is_not_asked(tmp_path: Path) -> None:
    world = World(tmp_path, {7: "RUNNING"})
    world.note(7)
    assert world.once() is True
    assert (world.done, world.looks) == ([7], 0)


@pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED", "CONFIGURING", "STOPPED", "SOMETHING_NEW"])
def test_a_job_that_is_alive_outlives_a_note_that_was_found(tmp_path: Path, state: str) -> None:
    world = World(tmp_path, {7: state, 8: "CANCELLED"})
    world.note(7, 8)
    world.pending.take_over()
    assert world.once() is False
    assert world.done == [8]
    assert world.failures == {7: f"its note was found at a take-over, and slurmctld calls it {state}"}
    assert world.once() is False
    # a note that comes later is of an end that was seen here
    world.note(7)
    world.once()
    assert world.done == [8, 7]
    world.states = {7: "COMPLETED"}
    assert world.once() is True
    assert world.once() is True
    assert (world.done, world.failures) == ([8, 7, 7], {})


@pytest.mark.parametrize(
    "state", ["COMPLETED", "COMPLETING", "CANCELLED", "NODE_FAIL", "PENDING", "REQUEUE_HOLD", None]
)
def test_what_is_over_or_forgotten_or_has_not_started_again_is_ended(tmp_path: Path, state: str | None) -> None:
    world = World(tmp_path, {7: state} if state else {})
    world.note(7)
    world.pending.take_over()
    assert world.once() is True
    assert world.done == [7]


def test_a_number_that_was_not_given_yet_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.note(SLURM.next_job)
    world.pending.take_over()
    assert world.once() is False
    assert world.done == []


def test_a_job_that_is_revoked_ends_though_it_runs_and_nobody_answers(tmp_path: Path) -> None:
    world = World(tmp_path, None, frozenset({7}))
    world.note(7, 8)
    world.pending.take_over()
    assert world.once() is False
    assert world.done == [7]
    assert "slurmctld does not say what became of it: nobody answers" in world.failures[8]
    world.states = {}
    assert world.once() is True
    assert world.done == [7, 8]


def test_what_failed_for_others_is_forgotten(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.failures.update({1: "x", 2: "y"})
    world.note(2)
    world.once()
    assert 1 not in world.failures


def test_a_folder_that_cannot_be_read_is_no_end(tmp_path: Path) -> None:
    world = World(tmp_path / "none", {})
    assert world.once() is False


def test_a_standby_does_nothing_and_wakes_up_at_its_take_over(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.note(7)
    acts = False

    async def main() -> None:
        nonlocal acts
        task = asyncio.create_task(world.pending.forever(lambda: acts))
        await asyncio.sleep(0.05)
        assert world.done == []
        acts = True
        world.pending.take_over()
        async with asyncio.timeout(60):
            while not world.done:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert world.done == [7]


def test_a_defect_ends_one_round_and_not_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, {})
    world.note(7)
    all_notes, failures = world.notes.all, [RuntimeError("can't start new thread")]

    def fails_once() -> list[EndedJob]:
        if failures:
            raise failures.pop()
        return all_notes()

    monkeypatch.setattr(world.notes, "all", fails_once)
    monkeypatch.setattr(module, "RETRY_FIRST", 0.01)

    async def main() -> None:
        task = asyncio.create_task(world.pending.forever(lambda: True))
        async with asyncio.timeout(60):
            while not world.done:
                assert not task.done()
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert world.done == [7]
