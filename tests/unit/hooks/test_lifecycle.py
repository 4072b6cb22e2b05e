"""Every race between "start" and "ended" that Slurm can make, against a Vault that a test can stop and take away."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from slurm_hooks import lifecycle
from slurm_hooks.ended import EndedJob
from slurm_hooks.lifecycle import Destroyed, Jobs, StartJob

JOB = 17
NUMBERS = itertools.count(1)


class Gate:
    """A place in a call to Vault where a test lets it wait."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(20)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 20)


class Vault:
    """Keys by (job, node): whose they are. A create writes node by node and takes back what it wrote, as the real."""

    def __init__(self) -> None:
        self.keys: dict[tuple[int, str], str] = {}
        self.away = False
        self.before_write: Gate | None = None
        self.after_writes: Gate | None = None
        self.in_destroy: Gate | None = None
        self.destroyed: list[tuple[str, ...]] = []
        self.running = 0

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nothing that happens to one job may overlap."""
        assert self.running == 0
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def create(self, job: StartJob, incarnation: str, still_wanted: Callable[[], bool]) -> None:
        with self.alone():
            if self.before_write:
                self.before_write()
            for node in job.nodes:
                if self.away or not still_wanted():
                    for written in job.nodes:
                        self.keys.pop((job.job, written), None)
                    if self.away:
                        raise BackendUnavailable("Vault is away")
                    raise Refused("keys.not_wanted", "ended meanwhile")
                self.keys[job.job, node] = incarnation
            if self.after_writes:
                self.after_writes()

    def destroy(self, job: int, nodes: tuple[str, ...], incarnation: str | None = None) -> list[Destroyed]:
        with self.alone():
            assert len(set(nodes)) == len(nodes)
            nodes = tuple(node for node in nodes if incarnation in (None, self.keys.get((job, node))))
            if self.in_destroy:
                self.in_destroy()
            if self.away:
                raise BackendUnavailable("Vault is away")
            self.destroyed.append(nodes)
            found = [(node, self.keys.pop((job, node), "")) for node in nodes]
            return [Destroyed(node, key, "now") for node, key in found if key]


class Notes:
    def __init__(self) -> None:
        self.kept: list[EndedJob] = []
        self.broken = False

    def write(self, job: int, *nodes: str) -> EndedJob:
        note = EndedJob(job, nodes, f"/notes/{next(NUMBERS)}")
        self.kept.append(note)
        return note

    def of(self, job: int) -> list[EndedJob]:
        if self.broken:
            raise BackendUnavailable("the folder is gone")
        return [note for note in self.kept if note.job == job]

    def remove(self, note: EndedJob) -> None:
        with contextlib.suppress(ValueError):
            self.kept.remove(note)


class World:
    def __init__(self) -> None:
        self.vault = Vault()
        self.notes = Notes()
        self.jobs = Jobs(self.vault, self.notes, ThreadPoolExecutor(4))

    def start(self, name: str, *nodes: str) -> asyncio.Task[list[Destroyed]]:
        return asyncio.create_task(self.jobs.start(job(*nodes), name, since=time.monotonic_ns()))

    def ended(self, *nodes: str, note: bool = True) -> asyncio.Task[list[Destroyed]]:
        if note:
            self.notes.write(JOB, *nodes)
        return asyncio.create_task(self.jobs.ended(JOB, nodes))

    async def retry_all(self) -> None:
        for note in list(self.notes.kept):
            await self.jobs.retry(note.job, note.nodes)

    def held(self) -> dict[str, str]:
        return {node: key for (_, node), key in self.vault.keys.items()}


def job(*nodes: str, number: int = JOB) -> StartJob:
    return StartJob(
        job=number,
        uid=1001,
        user="alice",
        cluster="test",
        nodes=nodes,
        restarts=0,
        klass="phi",
        residency="eu",
        scratch=2**30,
        nonce="ab" * 16,
    )


def play(act: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await act(World())

    asyncio.run(main())


async def turn_of_the_loop() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def refused(task: Awaitable[object]) -> str:
    with pytest.raises(Refused) as caught:
        await task
    return caught.value.rule


def test_a_job_from_start_to_end() -> None:
    async def act(world: World) -> None:
        assert await world.start("A", "n1", "n2") == []
        assert world.held() == {"n1": "A", "n2": "A"}
        assert world.jobs.open_jobs() == {JOB: "A"}
        assert [each.node for each in await world.ended("n1", "n2")] == ["n1", "n2"]
        assert (world.held(), world.notes.kept, world.jobs.open_jobs()) == ({}, [], {})

    play(act)


def test_the_reaper_ends_one_start_and_no_other() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1", "n2")
        assert await world.jobs.reap(JOB, "B", ("n1", "n2")) == []
        assert world.held() == {"n1": "A", "n2": "A"}
        assert world.jobs.open_jobs() == {JOB: "A"}
        assert world.jobs.knows(JOB)
        assert [each.key for each in await world.jobs.reap(JOB, "A", ("n1", "n2"))] == ["A", "A"]
        assert world.held() == {}
        assert not world.jobs.knows(JOB)

    play(act)


def test_the_reaper_waits_its_turn_and_spares_the_start_that_had_it() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1")
        gate = world.vault.before_write = Gate()
        second = world.start("B", "n1")
        await gate.wait()
        reaped = asyncio.create_task(world.jobs.reap(JOB, "A", ("n1",)))
        await turn_of_the_loop()
        gate.opened.set()
        await second
        assert await reaped == []
        assert world.held() == {"n1": "B"}
        assert world.jobs.open_jobs() == {JOB: "B"}

    play(act)


def test_what_the_reaper_could_not_end_stays_known() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1")
        world.vault.away = True
        with pytest.raises(BackendUnavailable):
            await world.jobs.reap(JOB, "A", ("n1",))
        world.vault.away = False
        assert [each.key for each in await world.jobs.reap(JOB, "A", ("n1",))] == ["A"]
        assert world.jobs.open_jobs() == {}

    play(act)


def test_ended_while_the_start_waits_for_its_turn() -> None:
    async def act(world: World) -> None:
        gate = world.vault.in_destroy = Gate()
        first = world.start("A", "n1")
        await gate.wait()
        second = world.start("B", "n2")
        await turn_of_the_loop()
        end = world.ended("n2")
        await turn_of_the_loop()
        gate.opened.set()
        assert await refused(first) == "lifecycle.ended"
        assert await refused(second) == "lifecycle.ended"
        await end
        assert (world.held(), world.notes.kept, world.jobs.open_jobs()) == ({}, [], {})

    play(act)


def test_a_start_that_speaks_after_its_own_end_is_refused() -> None:
    """PrologSlurmctld began, asked slurmctld, and meanwhile the job was cancelled: no other "ended" will come."""

    async def act(world: World) -> None:
        began = time.monotonic_ns()
        await world.ended("n1")
        for since in (began, 0):
            assert await refused(world.jobs.start(job("n1"), "A", since=since)) == "lifecycle.ended"
        assert (world.held(), world.jobs.open_jobs()) == ({}, {})
        await world.start("B", "n1")
        assert world.held() == {"n1": "B"}

    play(act)


def test_an_end_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(world: World) -> None:
        for number in range(1, 4):
            await world.jobs.ended(number, ("n1",))
        monkeypatch.setattr(lifecycle, "REMEMBERED", -1)
        await world.jobs.ended(9, ("n1",))
        for number in range(1, 4):
            await world.jobs.start(job("n1", number=number), "A", since=0)
        assert await refused(world.jobs.start(job("n1", number=9), "A", since=0)) == "lifecycle.ended"

    play(act)


def test_a_waiting_start_that_another_ended_has_overtaken_still_refuses() -> None:
    """Its "ended" may have its turn before it: what is then no longer known must not become a broken daemon."""

    async def act(world: World) -> None:
        gate = world.vault.in_destroy = Gate()
        first = world.start("A", "n1")
        await gate.wait()
        early = world.ended("n1")
        await turn_of_the_loop()
        second = world.start("B", "n2")
        await turn_of_the_loop()
        late = world.ended("n2")
        await turn_of_the_loop()
        gate.opened.set()
        assert {await refused(first), await refused(second)} == {"lifecycle.ended"}
        await early
        await late
        assert (world.held(), world.notes.kept, world.jobs.open_jobs()) == ({}, [], {})

    play(act)


@pytest.mark.parametrize("where", ["before_write", "after_writes"])
def test_ended_while_the_keys_are_made(where: str) -> None:
    async def act(world: World) -> None:
        gate = Gate()
        setattr(world.vault, where, gate)
        start = world.start("A", "n1", "n2")
        await gate.wait()
        end = world.ended("n1", "n2")
        await turn_of_the_loop()
        gate.opened.set()
        assert await refused(start) in {"keys.not_wanted", "lifecycle.ended"}
        await end
        assert (world.held(), world.notes.kept, world.jobs.open_jobs()) == ({}, [], {})

    play(act)


@pytest.mark.parametrize("where", ["before_write", "after_writes"])
def test_a_note_alone_ends_a_start_in_progress(where: str) -> None:
    """EpilogSlurmctld may be killed between its note and its message."""

    async def act(world: World) -> None:
        gate = Gate()
        setattr(world.vault, where, gate)
        start = world.start("A", "n1")
        await gate.wait()
        world.notes.write(JOB, "n1")
        gate.opened.set()
        assert await refused(start) == "lifecycle.ended"
        assert world.held() == {}
        await world.retry_all()
        assert (world.notes.kept, world.jobs.open_jobs()) == ([], {})

    play(act)


def test_a_note_alone_ends_a_start_that_waits_and_outlives_what_is_closed_for_it() -> None:
    async def act(world: World) -> None:
        gate = world.vault.in_destroy = Gate()
        first = world.start("A", "n1")
        await gate.wait()
        second = world.start("B", "n2")
        await turn_of_the_loop()
        world.notes.write(JOB, "n2")
        gate.opened.set()
        assert {await refused(first), await refused(second)} == {"lifecycle.ended"}
        assert len(world.notes.kept) == 1
        await world.retry_all()
        assert (world.held(), world.notes.kept) == ({}, [])

    play(act)


def test_a_note_alone_ends_a_running_job() -> None:
    """The message was lost: the daemon's own look at the notes must destroy, not only tidy the note away."""

    async def act(world: World) -> None:
        await world.start("A", "n1", "n2")
        world.notes.write(JOB, "n1", "n2")
        await world.retry_all()
        assert (world.held(), world.notes.kept, world.jobs.open_jobs()) == ({}, [], {})

    play(act)


def test_the_note_is_seen_before_the_message_arrives_and_vault_is_away() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1")
        world.vault.away = True
        world.notes.write(JOB, "n1")
        for again in (world.retry_all(), world.jobs.ended(JOB, ("n1",)), world.retry_all()):
            with pytest.raises(BackendUnavailable):
                await again
        assert len(world.notes.kept) == 1
        world.vault.away = False
        await world.retry_all()
        assert (world.held(), world.notes.kept) == ({}, [])

    play(act)


def test_two_starts_for_one_job_leave_the_later_ones_keys() -> None:
    async def act(world: World) -> None:
        gate = world.vault.after_writes = Gate()
        first = world.start("A", "n1", "n2")
        await gate.wait()
        second = world.start("B", "n2", "n3")
        await turn_of_the_loop()
        gate.opened.set()
        assert await first == []
        assert {each.key for each in await second} == {"A"}
        assert world.held() == {"n2": "B", "n3": "B"}
        assert world.jobs.open_jobs() == {JOB: "B"}
        await world.ended("n2", "n3")
        assert (world.held(), world.jobs.open_jobs()) == ({}, {})

    play(act)


def test_ended_with_vault_away_is_finished_by_a_retry() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1")
        world.vault.away = True
        with pytest.raises(BackendUnavailable):
            await world.ended("n1")
        assert len(world.notes.kept) == 1
        assert world.jobs.open_jobs() == {}
        world.vault.away = False
        assert [each.key for each in await world.jobs.retry(JOB, ("n1",))] == ["A"]
        assert (world.held(), world.notes.kept) == ({}, [])

    play(act)


def test_a_retry_leaves_a_newer_start_alone() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1", "n2")
        world.vault.away = True
        with pytest.raises(BackendUnavailable):
            await world.ended("n1", "n2")
        stale = list(world.notes.kept)
        world.vault.away = False
        assert {each.node for each in await world.start("B", "n2", "n3")} == {"n1", "n2"}
        assert world.notes.kept == []
        for note in stale:
            await world.jobs.retry(note.job, note.nodes)
        assert world.held() == {"n2": "B", "n3": "B"}
        assert world.jobs.open_jobs() == {JOB: "B"}

    play(act)


def test_a_retry_does_not_trust_a_start_that_still_waits_to_close_what_is_there() -> None:
    """The waiting start may never get that far: then nobody would know of the old key any more."""

    async def act(world: World) -> None:
        await world.start("A", "n1")
        world.vault.away = True
        with pytest.raises(BackendUnavailable):
            await world.ended("n1")
        gate = world.vault.in_destroy = Gate()
        first = asyncio.create_task(world.jobs.retry(JOB, ("n1",)))
        await gate.wait()
        second = asyncio.create_task(world.jobs.retry(JOB, ("n1",)))
        await turn_of_the_loop()
        newer = world.start("B", "n1")
        await turn_of_the_loop()
        gate.opened.set()
        for task in (first, second, newer):
            with pytest.raises(BackendUnavailable):
                await task
        assert len(world.notes.kept) == 1
        world.vault.away = False
        await world.retry_all()
        assert (world.held(), world.notes.kept) == ({}, [])

    play(act)


def test_one_retry_is_about_all_the_notes_that_it_removes() -> None:
    async def act(world: World) -> None:
        world.vault.keys = {(JOB, "n1"): "A", (JOB, "n2"): "B"}
        world.notes.write(JOB, "n1")
        world.notes.write(JOB, "n2")
        await world.jobs.retry(JOB, ("n1",))
        assert (world.held(), world.notes.kept) == ({}, [])

    play(act)


def test_notes_of_an_earlier_process_are_closed_by_the_next_start() -> None:
    async def act(world: World) -> None:
        world.vault.keys = {(JOB, "n1"): "A", (JOB, "n2"): "A"}
        world.notes.write(JOB, "n1", "n2")
        assert {each.key for each in await world.start("B", "n2")} == {"A"}
        assert world.held() == {"n2": "B"}
        assert world.notes.kept == []

    play(act)


def test_a_start_does_not_begin_while_what_is_left_cannot_be_closed() -> None:
    async def act(world: World) -> None:
        world.vault.keys = {(JOB, "n1"): "A"}
        world.vault.away = True
        world.notes.write(JOB, "n1")
        with pytest.raises(BackendUnavailable):
            await world.start("B", "n2")
        assert len(world.notes.kept) == 1
        assert world.jobs.open_jobs() == {}
        world.vault.away = False
        await world.retry_all()
        assert world.held() == {}

    play(act)


def test_a_start_without_its_notes_does_not_begin_and_leaves_no_trace() -> None:
    async def act(world: World) -> None:
        world.notes.broken = True
        with pytest.raises(BackendUnavailable):
            await world.start("A", "n1")
        assert (world.held(), world.jobs.open_jobs()) == ({}, {})

    play(act)


def test_a_failed_creation_stays_known_until_the_job_ends() -> None:
    """What it could not take back is on nodes that a next start may not have."""

    async def act(world: World) -> None:
        def half(_job: StartJob, _incarnation: str, _wanted: Callable[[], bool]) -> None:
            world.vault.keys[JOB, "n1"] = "A"
            raise BackendUnavailable("Vault went away in the middle")

        whole, world.vault.create = world.vault.create, half  # type: ignore[method-assign]
        with pytest.raises(BackendUnavailable):
            await world.start("A", "n1")
        world.vault.create = whole  # type: ignore[method-assign]
        assert world.jobs.open_jobs() == {}
        assert {each.key for each in await world.start("B", "n2")} == {"A"}
        assert world.held() == {"n2": "B"}

    play(act)


@pytest.mark.parametrize("where", ["before_write", "after_writes"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_start_leaves_nothing(where: str, times: int) -> None:
    async def act(world: World) -> None:
        gate = Gate()
        setattr(world.vault, where, gate)
        start = world.start("A", "n1", "n2")
        await gate.wait()
        for _ in range(times):
            start.cancel()
            await turn_of_the_loop()
        assert not start.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert (world.held(), world.jobs.open_jobs()) == ({}, {})
        world.vault.before_write = world.vault.after_writes = None
        await world.start("B", "n1")
        assert world.held() == {"n1": "B"}

    play(act)


def test_a_start_that_is_cancelled_while_vault_goes_away_stays_known() -> None:
    async def act(world: World) -> None:
        gate = world.vault.after_writes = Gate()
        start = world.start("A", "n1")
        await gate.wait()
        world.vault.away = True
        start.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert world.held() == {"n1": "A"}
        world.vault.away = False
        await world.jobs.ended(JOB, ("n9",))
        assert world.held() == {}

    play(act)


def test_a_cancelled_wait_for_a_turn_gives_the_turn_on() -> None:
    async def act(world: World) -> None:
        gate = world.vault.after_writes = Gate()
        first = world.start("A", "n1")
        await gate.wait()
        second, third = world.start("B", "n2"), world.ended("n1")
        await turn_of_the_loop()
        second.cancel()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert await refused(first) == "lifecycle.ended"
        await third
        assert (world.held(), world.jobs.open_jobs(), world.notes.kept) == ({}, {}, [])

    play(act)


def test_a_cancelled_ended_runs_to_its_end_and_can_be_repeated() -> None:
    async def act(world: World) -> None:
        await world.start("A", "n1")
        gate = world.vault.in_destroy = Gate()
        end = world.ended("n1")
        await gate.wait()
        end.cancel()
        await turn_of_the_loop()
        assert not end.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await end
        assert world.held() == {}
        assert len(world.notes.kept) == 1
        await world.retry_all()
        assert (world.notes.kept, world.jobs.open_jobs()) == ([], {})

    play(act)


def test_jobs_do_not_wait_for_each_other() -> None:
    async def act(world: World) -> None:
        gates = {1: Gate(), 2: Gate()}

        def create(job: StartJob, incarnation: str, _wanted: Callable[[], bool]) -> None:
            gates[job.job]()
            world.vault.keys[job.job, "n1"] = incarnation

        world.vault.create = create  # type: ignore[method-assign]
        slow = asyncio.create_task(world.jobs.start(job("n1", number=1), "A", since=1))
        await gates[1].wait()
        gates[2].opened.set()
        await world.jobs.start(job("n1", number=2), "B", since=1)
        gates[1].opened.set()
        await slow
        assert world.jobs.open_jobs() == {1: "A", 2: "B"}

    play(act)


# Random interleavings: Vault's calls happen on the loop, each in two steps, and the test chooses what comes next.


class Stepwise(ThreadPoolExecutor):
    """An executor without threads: a call begins when the test lets it, and is answered when the test lets it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waiting: deque[Callable[[], None]] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  handed to whoever waits
                future.set_exception(error)
            else:
                future.set_result(result)

        self.waiting.append(run)
        return future

    def step(self) -> bool:
        if not self.waiting:
            return False
        self.waiting.popleft()()
        return True


class Model:
    """What Slurm did, and what must be true of Vault at any quiet moment."""

    def __init__(self) -> None:
        self.pool = Stepwise()
        self.vault = Vault()
        self.notes = Notes()
        self.jobs = Jobs(self.vault, self.notes, self.pool)
        self.starts: list[tuple[str, tuple[str, ...], asyncio.Task[list[Destroyed]]]] = []
        self.others: list[asyncio.Task[list[Destroyed]]] = []
        self.alive: set[str] = set()

    def do(self, what: tuple[str, Any]) -> None:
        act, nodes = what
        if act == "start":
            name = f"S{len(self.starts)}"
            self.starts.append(
                (name, nodes, asyncio.ensure_future(self.jobs.start(job(*nodes), name, since=time.monotonic_ns())))
            )
            self.alive.add(name)
        elif act in ("ended", "note"):
            # Slurm names the nodes of the start that is over
            ended = self.starts[-1][1] if self.starts else nodes
            self.notes.write(JOB, *ended)
            self.alive.clear()
            if act == "ended":
                self.others.append(asyncio.ensure_future(self.jobs.ended(JOB, ended)))
        elif act == "retry":
            self.others += [asyncio.ensure_future(self.jobs.retry(JOB, note.nodes)) for note in self.notes.kept[:1]]
        elif act == "cancel" and self.starts:
            self.starts[-1][2].cancel()
        elif act == "away":
            self.vault.away = not self.vault.away

    async def settle(self) -> None:
        await turn_of_the_loop()
        while self.pool.step():
            for _ in range(5):
                await asyncio.sleep(0)

    async def finish(self) -> None:
        while not all(task.done() for task in (*self.others, *(task for *_, task in self.starts))):
            await self.settle()

    def answered(self, name: str) -> bool:
        task = next(task for each, _, task in self.starts if each == name)
        return task.done() and not task.cancelled() and task.exception() is None


NODES = st.lists(st.sampled_from(["n1", "n2", "n3"]), min_size=1, max_size=3, unique=True).map(tuple)
ACTS = st.tuples(st.sampled_from(["start", "start", "ended", "note", "retry", "cancel", "away"]), NODES)
PACE = st.integers(0, 4)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(ACTS, PACE), max_size=14), st.booleans())
def test_at_the_end_of_any_interleaving(acts: list[tuple[tuple[str, Any], int]], end_it: bool) -> None:
    async def main() -> None:
        model = Model()
        for what, pace in acts:
            model.do(what)
            for _ in range(pace):
                await turn_of_the_loop()
                model.pool.step()
        if end_it:
            model.do(("ended", ("n1",)))
        await turn_of_the_loop()
        await model.finish()
        model.vault.away = False
        if end_it:
            for note in list(model.notes.kept):
                model.others.append(asyncio.ensure_future(model.jobs.retry(JOB, note.nodes)))
                await model.finish()
            assert model.vault.keys == {}
            assert model.notes.kept == []
            assert model.jobs.open_jobs() == {}
        else:
            await check_open(model)
        for task in (*model.others, *(task for *_, task in model.starts)):
            if not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), SecureSlurmError)

    asyncio.run(main())


async def check_open(model: Model) -> None:
    """The last start that answered "allow", if Slurm has not called it ended, has exactly its keys."""
    if not model.starts:
        return
    name, nodes, _ = model.starts[-1]
    if name in model.alive and model.answered(name):
        assert model.vault.keys == {(JOB, node): name for node in nodes}
        assert model.jobs.open_jobs() == {JOB: name}


def test_what_is_done_in_turn_waits_for_a_start() -> None:
    async def act() -> None:
        world = World()
        gate = world.vault.after_writes = Gate()
        task = world.start("a", "n1")
        await gate.wait()
        done: list[str] = []
        turn = asyncio.create_task(world.jobs.in_turn(JOB, lambda: done.append("done")))
        await asyncio.sleep(0.05)
        assert done == []
        gate.opened.set()
        await task
        await turn
        assert done == ["done"]
        assert world.vault.keys == {(JOB, "n1"): "a"}

    asyncio.run(act())
