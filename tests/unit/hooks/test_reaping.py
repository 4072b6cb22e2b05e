"""The head node's reaper with real files and a real queue of jobs; Vault and Slurm say what a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from conf.errors import BackendUnavailable, Refused
from conf.tag import Tag
from keys.grant import Grant
from slurm_hooks import reaping, running
from slurm_hooks.headreaper import Held
from slurm_hooks.lifecycle import Destroyed, Jobs
from slurm_hooks.reaping import HeadReaper
from slurm_hooks.slurmview import Controller, Seen, View

SLURM = Controller("test", "1789990000", 3600, 1000, 300, hides=False)
ONE, TWO = "1" * 32, "2" * 32


def grant(node: str, job: int, incarnation: str = ONE, cluster: str = "test", restarts: int = 0) -> Grant:
    return Grant(
        v="1",
        incarnation=incarnation,
        key=f"{node}_{cluster}-{job}-{'ab' * 8}",
        cluster=cluster,
        job=str(job),
        uid="1001",
        user="alice",
        nodes="n1,n2",
        restarts=str(restarts),
        scratch="0",
        klass="phi",
        residency="eu",
        datasets="",
        created="1790000000",
    )


class Vault:
    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], Grant | None] = {}
        self.away = False

    def put(self, *grants: Grant) -> None:
        self.kept |= {(each.node, int(each.job)): each for each in grants}

    def grants(self) -> list[tuple[str, int]]:
        if self.away:
            raise BackendUnavailable("Vault is sealed")
        return sorted(self.kept)

    def held(self, node: str, job: int) -> Grant | None:
        found = self.kept.get((node, job))
        if found is None and (node, job) in self.kept:
            raise Refused("grant.field", "this is not a sound grant")
        return found

    def destroy(self, job: int, nodes: tuple[str, ...], incarnation: str | None = None) -> list[Destroyed]:
        if self.away:
            raise BackendUnavailable("Vault is sealed")
        found = [each for node in nodes if (each := self.kept.get((node, job))) and each.incarnation == incarnation]
        for each in found:
            del self.kept[each.node, job]
        return [Destroyed(each.node, each.key, "now") for each in found]

    def create(self, *_: object) -> None: ...

    def holders(self, _job: int) -> tuple[str, ...]:
        return ()


class NoNotes:
    def of(self, _job: int) -> list[Any]:
        return []

    def remove(self, _note: object) -> None: ...


class Slurm:
    def __init__(self) -> None:
        self.controller = SLURM
        self.jobs: dict[int, Seen] = {}
        self.failure: Exception | None = None
        self.changed = False
        self.asked: list[int] = []
        self.looks = 0

    def look(self) -> View:
        self.looks += 1
        if self.failure:
            raise self.failure
        return View(self.controller, dict(self.jobs))

    def check_same(self, _before: Controller) -> None:
        if self.changed:
            raise BackendUnavailable("slurmctld was started anew")

    def unknown(self, jobs: Iterable[int], before: Controller) -> frozenset[int]:
        found = frozenset(job for job in jobs if self.is_unknown(job))
        self.check_same(before)
        return found

    def is_unknown(self, job: int) -> bool:
        self.asked.append(job)
        return job not in self.jobs


@attrs.define
class World:
    vault: Vault
    slurm: Slurm
    jobs: Jobs
    reaper: HeadReaper
    folder: Path
    told: list[tuple[str, int]]
    now: float = 1000.0

    def look(self, after: float = 0.0) -> None:
        self.now += after
        asyncio.run(self.reaper.look())

    def twice(self) -> None:
        self.look()
        self.look(21)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    vault, slurm, pool = Vault(), Slurm(), ThreadPoolExecutor(2)
    folder = tmp_path / "running"
    folder.mkdir()
    jobs = Jobs(vault, NoNotes(), pool)
    told: list[tuple[str, int]] = []

    def announce(held: Held, _evidence: str) -> None:
        assert any(job == held.job for _, job in vault.kept)
        told.append(("before", held.job))

    def healed(held: Held, _evidence: str, destroyed: list[Destroyed]) -> None:
        told.append((f"healed {len(destroyed)}", held.job))

    reaper = HeadReaper(
        vault,
        slurm,
        jobs,
        pool,
        cluster="test",
        running_dir=str(folder),
        announce=announce,
        healed=healed,
    )
    made = World(vault, slurm, jobs, reaper, folder, told)
    monkeypatch.setattr(reaping, "time", SimpleNamespace(monotonic=lambda: made.now, time=time.time))
    return made


def file(world: World, job: int) -> Path:
    running.write(str(world.folder), job, 1001, Tag("phi", "eu", 1, ()), ("n1",))
    return world.folder / str(job)


def test_nothing_there_asks_nobody(world: World) -> None:
    assert world.reaper.report.result == "it has not looked yet"
    world.look()
    assert world.slurm.looks == 0
    assert (world.reaper.report.error, world.reaper.report.grants) == ("", 0)
    assert world.reaper.report.at


@pytest.mark.parametrize("jobs", [{}, {17: Seen("COMPLETED", 0, 1790000100)}, {17: Seen("PENDING", 1, 0)}])
def test_an_orphan_is_destroyed_at_the_second_look(world: World, jobs: dict[int, Seen]) -> None:
    world.vault.put(grant("n1", 17), grant("n2", 17))
    path = file(world, 17)
    world.slurm.jobs = jobs
    world.look()
    assert len(world.vault.kept) == 2
    assert [kept.job for kept in world.reaper.report.kept] == [17]
    world.look(21)
    assert world.vault.kept == {}
    assert world.told == [("before", 17), ("healed 2", 17)]
    assert (world.reaper.report.kept, world.reaper.report.healed) == ([], 1)
    assert not path.exists()


def test_a_standby_ends_nothing_and_counts_anew_when_it_acts(world: World) -> None:
    acts = False
    world.reaper._may_end = lambda boot: acts and boot == SLURM.boot
    world.vault.put(grant("n1", 17), grant("n2", 17))
    path = file(world, 17)
    world.slurm.jobs = {17: Seen("COMPLETED", 0, 1790000100)}
    world.twice()
    world.twice()
    assert len(world.vault.kept) == 2
    assert (world.reaper.report.standby, world.reaper.report.error, path.exists()) == (True, "", True)
    assert world.reaper.report.result == "2 grants; it leaves them to the head node that acts"
    acts = True
    world.look(21)
    assert len(world.vault.kept) == 2
    world.look(21)
    assert world.vault.kept == {}
    assert not world.reaper.report.standby


def test_what_a_slurmctld_does_not_know_that_took_over_just_now_is_left_alone(world: World) -> None:
    acted_for = 5.0
    world.reaper._acted_for = lambda: acted_for
    world.vault.put(grant("n1", 17))
    world.twice()
    world.twice()
    assert world.vault.kept
    acted_for = 61.0
    world.twice()
    assert world.vault.kept == {}


@pytest.mark.parametrize("state", ["RUNNING", "CONFIGURING", "SUSPENDED", "SOMETHING_NEW"])
def test_what_runs_is_not_even_read(world: World, state: str) -> None:
    world.vault.kept = {("n1", 17): None}
    path = file(world, 17)
    world.slurm.jobs = {17: Seen(state, 5, 0)}
    for _ in range(5):
        world.look(60)
    assert world.vault.kept
    assert path.exists()
    assert (world.reaper.report.damaged, world.slurm.asked) == (0, [])


def test_without_an_answer_nothing_happens(world: World) -> None:
    world.vault.put(grant("n1", 17))
    world.look()
    world.slurm.failure = BackendUnavailable("scontrol gave no answer")
    for _ in range(5):
        world.look(60)
    assert world.vault.kept
    assert "scontrol gave no answer" in world.reaper.report.result


def test_an_answer_that_another_slurmctld_finished_is_none(world: World) -> None:
    world.vault.put(grant("n1", 17))
    world.slurm.changed = True
    for _ in range(5):
        world.look(60)
    assert world.vault.kept
    assert "started anew" in world.reaper.report.error


def test_a_list_that_has_lost_running_jobs(world: World) -> None:
    world.vault.put(grant("n1", 17), grant("n1", 18))
    world.slurm.jobs = {18: Seen("RUNNING", 0, 0)}
    world.look()
    world.slurm.jobs = {}
    world.look(21)
    assert len(world.vault.kept) == 2
    assert "not in slurmctld's list" in world.reaper.report.error


def test_a_number_that_is_listed_no_more_and_known_all_the_same(world: World) -> None:
    world.vault.put(grant("n1", 17))
    world.slurm.is_unknown = lambda _job: False  # type: ignore[method-assign]
    for _ in range(3):
        world.look(60)
    assert world.vault.kept


def test_another_clusters_grant_and_a_damaged_one_are_left_alone(world: World) -> None:
    world.vault.put(grant("n1", 17, cluster="other"))
    world.vault.kept["n2", 17] = None
    # a grant in another's place
    world.vault.kept["n3", 17] = grant("n1", 17)
    for _ in range(3):
        world.look(60)
    assert len(world.vault.kept) == 3
    assert (world.reaper.report.foreign, world.reaper.report.damaged) == (1, 2)
    assert "1 of another cluster, 2 damaged" in world.reaper.report.result


def test_only_the_start_that_was_seen_twice(world: World) -> None:
    world.vault.put(grant("n1", 17))
    world.look()
    world.vault.put(grant("n1", 17, TWO))
    world.look(21)
    assert world.vault.kept
    world.look(21)
    assert world.vault.kept == {}


def test_a_requeued_jobs_newer_start_is_spared(world: World) -> None:
    world.vault.put(grant("n1", 17, ONE, restarts=0), grant("n2", 17, TWO, restarts=1))
    world.slurm.jobs = {17: Seen("PENDING", 1, 0)}
    world.twice()
    assert [each.incarnation for each in world.vault.kept.values() if each] == [TWO]


def test_vault_goes_away_between_look_and_act(world: World) -> None:
    world.vault.put(grant("n1", 17))
    world.look()
    destroy = world.vault.destroy

    def away(*_: object) -> list[Destroyed]:
        raise BackendUnavailable("Vault is sealed")

    world.vault.destroy = away  # type: ignore[method-assign]
    world.look(21)
    assert [(kept.job, kept.why) for kept in world.reaper.report.kept] == [(17, "Vault is sealed")]
    world.vault.destroy = destroy  # type: ignore[method-assign]
    world.look(1)
    assert world.vault.kept == {}


def test_vault_is_away(world: World) -> None:
    world.vault.put(grant("n1", 17))
    world.vault.away = True
    world.twice()
    assert world.reaper.report.error == "Vault is sealed"
    assert world.slurm.looks == 0


def test_a_file_of_a_dead_job_goes_too(world: World) -> None:
    path, alive = file(world, 17), file(world, 18)
    world.slurm.jobs = {18: Seen("RUNNING", 0, 0)}
    world.look()
    assert path.exists()
    world.look(21)
    assert not path.exists()
    assert alive.exists()


def test_a_file_that_was_written_anew_is_another_starts(world: World) -> None:
    path = file(world, 17)
    world.look()
    time.sleep(0.01)
    file(world, 17)
    world.look(21)
    assert path.exists()


def test_a_file_of_a_start_that_is_known_here_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(world, 17)
    monkeypatch.setattr(world.jobs, "knows", lambda job: job == 17)
    world.twice()
    assert path.exists()


def test_no_more_than_so_many_questions_a_look(world: World) -> None:
    world.vault.put(*(grant("n1", job) for job in range(1, reaping.MOST_ASKED + 21)))
    world.twice()
    assert len(world.vault.kept) == 20
    world.twice()
    assert world.vault.kept == {}


def test_a_defect_does_not_end_the_looking(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.vault.put(grant("n1", 17))
    world.slurm.failure = RuntimeError("a defect")

    async def act() -> None:
        task = asyncio.create_task(world.reaper.forever())
        while not world.reaper.report.error:
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(act())
    assert "a defect" in world.reaper.report.error


def test_what_is_in_the_folder_and_no_jobs_file_is_no_job(world: World) -> None:
    for name in (".17", "017", "17x", "0", "99999999999"):
        (world.folder / name).touch()
    assert running.known(str(world.folder)) == {}
    with pytest.raises(BackendUnavailable):
        running.known(str(world.folder / "absent"))
