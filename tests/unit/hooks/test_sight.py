"""What SlurmUser sees for the lifecycle daemon: what is not certainly the whole truth of now is nothing."""

from __future__ import annotations

import asyncio
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable
from slurm_hooks import sight
from slurm_hooks.lostnodes import read_places
from slurm_hooks.serve import Answer, Fields, Peer
from slurm_hooks.sight import Questions, Sighted, read_unknown, see, unpacked
from slurm_hooks.slurmview import Controller, Seen, SlurmView
from tests.unit.hooks.test_slurmview import CONFIG, JOBS, UP, write

SLURM_USER = 64030
HIDING = CONFIG.replace("PrivateData             = none", "PrivateData             = jobs,usage") + (
    f"SlurmUser               = slurm({SLURM_USER})\n"
)
INVALID = "slurm_load_jobs error: Invalid job id specified"


def programs(folder: Path, config: str, jobs: str = "", known: str = "") -> SlurmView:
    """A Slurm: ``known`` are the numbers that ``scontrol show job`` knows, between spaces."""
    folder.mkdir(exist_ok=True)
    write(folder, "squeue", jobs)
    write(folder, "scontrol", config, ping=UP)
    script = (folder / "scontrol").read_text().removeprefix("#!/bin/sh\n")
    asked = f'case "$*" in *"show job"*)\n  case " {known} " in *" $5 "*) exit 0;; esac\n'
    (folder / "scontrol").write_text(f"#!/bin/sh\n{asked}  echo '{INVALID}' >&2; exit 1;; esac\n{script}")
    return SlurmView(str(folder), "test")


class World:
    """The daemon's Slurm, which shows nothing, and SlurmUser's, which does; and a requeue daemon at its work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.questions = Questions()
        programs(folder / "daemon", HIDING)
        self.view = Sighted(str(folder / "daemon"), "test", self.questions)
        self.operator = programs(folder / "operator", HIDING, JOBS, "5 6")
        self.uid = SLURM_USER
        self.spoil: Callable[[dict[str, Any]], object] = lambda _answer: None
        self.asked: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def poll(self) -> Fields:
        async def nothing(_fields: Fields, _peer: Peer) -> Answer:
            return {"verdict": "allow", "may": "none"}

        answer = asyncio.run(self.questions.beside(nothing)({}, Peer(1, self.uid, 1)))
        return {name: value.encode() if isinstance(value, str) else value for name, value in answer.items()}

    def answer(self, fields: dict[str, Any]) -> Answer:
        sent = {name: value.encode() if isinstance(value, str) else value for name, value in fields.items()}
        return asyncio.run(self.questions.seen(sent, Peer(1, self.uid, 1)))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(0.01):
            asked = self.poll()
            if "see" not in asked:
                continue
            self.asked.append(asked["what"].decode())
            fields: dict[str, Any] = {"see": asked["see"]}
            try:
                fields |= see(self.operator, asked["what"].decode(), lambda: None)
            except BackendUnavailable as error:
                fields["problem"] = str(error)
            self.spoil(fields)
            self.answer(fields)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # those that expect an answer must get it, on a busy machine as well
    monkeypatch.setattr(sight, "ANSWERED_WITHIN", 20.0)
    made = World(tmp_path)
    yield made
    made.close()


def sees_nothing(world: World) -> None:
    view = world.view.look()
    assert (view.controller.hides, view.jobs) == (True, {})
    # and then "no such job" is said of nobody
    assert world.view.unknown([5, 17], view.controller) == frozenset()


SPOILT: dict[str, Callable[[dict[str, Any]], object]] = {
    "cut": lambda answer: answer.update(told=answer["told"][:-1]),
    "half": lambda answer: answer.update(told=answer["told"][: len(answer["told"]) // 2]),
    "nothing": lambda answer: answer.update(told=b""),
    "left out": lambda answer: answer.pop("told"),
    "not compressed": lambda answer: answer.update(told=b"5 RUNNING 0 0\n"),
    "more behind it": lambda answer: answer.update(told=answer["told"] + b"x"),
    "a list that is cut": lambda answer: answer.update(told=zlib.compress(JOBS[:-40].encode())),
    "a complaint among the lines": lambda answer: answer.update(told=zlib.compress(f"{JOBS}squeue: error\n".encode())),
    "another cluster's": lambda answer: answer.update(cluster="other"),
    "another slurmctld's": lambda answer: answer.update(boot="1795303607"),
    "one with an older state": lambda answer: answer.update(next_job="6"),
    "one with a newer state": lambda answer: answer.update(next_job="8"),
    "SlurmUser was given none": lambda answer: answer.update(problem="Unable to contact slurm controller"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_an_answer_that_is_none(world: World, how: str) -> None:
    world.spoil = SPOILT[how]
    sees_nothing(world)
    assert world.asked == ["jobs"]


@pytest.mark.parametrize("uid", [0, 1, SLURM_USER + 1])
def test_an_answer_of_somebody_who_is_not_slurmuser(world: World, uid: int) -> None:
    """As which the site file's slurm_user may be, and to whom slurmctld shows no more than to the daemon."""
    world.uid = uid
    sees_nothing(world)


@pytest.mark.parametrize(
    "change",
    [
        ("MCSParameters           = (null)", "MCSParameters           = enforced,select,privatedata:a|b"),
        (f"slurm({SLURM_USER})", "slurm"),
        (f"SlurmUser               = slurm({SLURM_USER})\n", ""),
    ],
)
def test_nobody_is_known_to_see_all(world: World, change: tuple[str, str]) -> None:
    assert change[0] in HIDING
    programs(world.folder / "daemon", HIDING.replace(*change))
    sees_nothing(world)
    assert world.asked == []


def test_slurmctld_is_another_by_the_time_of_the_answer(world: World) -> None:
    def restart(_answer: dict[str, Any]) -> None:
        programs(world.folder / "daemon", HIDING.replace("= 1795303606", "= 1795303660"))

    world.spoil = restart
    view = world.view.look()
    assert view.controller.hides


def test_the_requeue_daemon_is_not_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.close()
    monkeypatch.setattr(sight, "FETCHED_WITHIN", 0.05)
    sees_nothing(world)


def test_the_requeue_daemon_dies_over_its_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.close()
    monkeypatch.setattr(sight, "FETCHED_WITHIN", 20.0)
    monkeypatch.setattr(sight, "ANSWERED_WITHIN", 0.05)
    asking = threading.Thread(target=world.view.look)
    asking.start()
    while "see" not in (asked := world.poll()):
        pass
    asking.join()
    monkeypatch.setattr(sight, "FETCHED_WITHIN", 0.05)
    # what comes late is dropped, and is no answer to the next question
    late = {"see": asked["see"], **see(world.operator, "jobs", lambda: None)}
    assert world.answer(late)["taken"] == "0"
    with pytest.raises(BackendUnavailable):
        world.questions.ask("jobs")


def test_an_answer_to_another_question(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "ANSWERED_WITHIN", 0.5)
    world.spoil = lambda answer: answer.update(see="0" * 32)
    sees_nothing(world)


def test_the_first_answer_to_a_question_stays(world: World) -> None:
    question = world.questions._open = sight._Question("jobs")
    answer = {"see": question.name, "cluster": "test", "boot": "1", "next_job": "7"}
    assert world.answer({**answer, "told": b"first"})["taken"] == "1"
    assert world.answer({**answer, "told": b"second"})["taken"] == "0"
    assert question.told is not None
    assert question.told.packed == b"first"


def test_a_daemon_that_stops_waits_for_nobody(world: World) -> None:
    world.close()
    failed: list[str] = []

    def ask() -> None:
        with pytest.raises(BackendUnavailable, match="stops"):
            world.questions.ask("jobs")
        failed.append("")

    asking = threading.Thread(target=ask)
    asking.start()
    while not failed:
        world.questions.close()
    asking.join()
    ask()


def test_all_jobs_are_seen(world: World) -> None:
    view = world.view.look()
    assert view.controller == Controller("test", "1795303606", 60, 7, 300, hides=False, sees_all=SLURM_USER)
    assert view.jobs == {2: Seen("COMPLETED", 0, 1795303669), 5: Seen("PENDING", 1, 0), 6: Seen("RUNNING", 0, 0)}
    assert world.view.unknown([2, 5, 6, 17], view.controller) == {2, 17}
    assert world.view.unknown([], view.controller) == frozenset()
    assert world.asked == ["jobs", "2,5,6,17"]


def test_where_they_run(world: World) -> None:
    programs(world.folder / "operator", HIDING, "5|\n6|n[1-2]\n")
    assert read_places(world.view.places()) == {6: "n[1-2]"}
    assert world.asked == ["places"]


def test_no_jobs_at_all_is_an_answer(world: World) -> None:
    programs(world.folder / "operator", HIDING)
    view = world.view.look()
    assert (view.controller.hides, view.jobs) == (False, {})


def test_nobody_else_is_asked_where_nothing_is_hidden(world: World) -> None:
    programs(world.folder / "daemon", CONFIG, JOBS, "5")
    view = world.view.look()
    assert (view.controller.hides, set(view.jobs)) == (False, {2, 5, 6})
    assert world.view.unknown([5, 17], view.controller) == {17}
    assert world.view.places() == JOBS
    assert world.asked == []


@pytest.mark.parametrize("how", [*SPOILT, "not slurmuser"])
def test_what_this_account_is_told_of_a_number_does_not_take_the_place_of_an_answer(world: World, how: str) -> None:
    """slurmctld calls a running job unknown to this account; job 6 runs."""
    view = world.view.look()
    world.spoil = SPOILT.get(how, lambda _answer: None)
    world.uid = SLURM_USER if how in SPOILT else 1000
    assert world.view.is_unknown(6)
    with pytest.raises(BackendUnavailable):
        world.view.unknown([6], view.controller)
    with pytest.raises(BackendUnavailable):
        read_places(world.view.places())


def test_a_slurmctld_that_began_to_hide_meanwhile(world: World) -> None:
    programs(world.folder / "daemon", CONFIG, JOBS, "6")
    view = world.view.look()
    programs(world.folder / "daemon", HIDING.replace("= 1795303606", "= 1795303660"))
    with pytest.raises(BackendUnavailable, match="anew"):
        world.view.unknown([6], view.controller)
    assert world.asked == []


@pytest.mark.parametrize(
    "text",
    ["", "6 unknown", "6 unknown\n", "6 unknown\n7 perhaps\n", "7 unknown\n6 unknown\n", "6 known\n\n7 unknown\n"],
)
def test_a_word_about_each_or_about_none(text: str) -> None:
    with pytest.raises(BackendUnavailable):
        read_unknown(text, [6, 7])


def test_words() -> None:
    assert read_unknown("6 known\n7 unknown\n", [6, 7]) == {7}


def test_a_list_that_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "LIST_LIMIT", 1000)
    assert unpacked(zlib.compress(b" " * 1000)) == " " * 1000
    with pytest.raises(BackendUnavailable):
        unpacked(zlib.compress(b" " * 1001))


@pytest.mark.parametrize("what", ["", "all", "6,", "06", "6 7", ",".join(["6"] * 101)])
def test_a_question_that_is_none(world: World, what: str) -> None:
    with pytest.raises(BackendUnavailable, match="not understood"):
        see(world.operator, what, lambda: None)


def test_a_list_that_is_too_long_for_a_message(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "LARGEST", 10)
    sees_nothing(world)


def test_slurmctld_starts_anew_while_slurmuser_asks(world: World) -> None:
    turns = iter(range(9))

    def alive() -> None:
        if next(turns) == 1:
            programs(world.folder / "operator", HIDING.replace("= 1795303606", "= 1795303660"), JOBS)

    with pytest.raises(BackendUnavailable, match="anew"):
        see(world.operator, "jobs", alive)
