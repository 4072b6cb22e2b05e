"""The reaper's looks and acts, with Slurm's word, the kernel and the clock in the test's hands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keys.journal import Record, journal_of
from keys.scratch import crypt, loop, mounts, present
from slurm_hooks import reaper, steps
from slurm_hooks.reap_memory import Memory
from slurm_hooks.reap_rule import Seen
from slurm_hooks.reaper import Reaper
from slurm_hooks.slurmword import Slurm, Start, Word

NODE = "n1"
JOB = 17
INCARNATION = "0123456789abcdef" * 2


class FakeSlurm(Slurm):
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.words: dict[int, Word] = {}
        self.asked: list[tuple[int, Start]] = []

    def refresh(self) -> None:
        pass

    def word(self, job: int, start: Start) -> Word:
        self.asked.append((job, start))
        return self.words.get(job, Word("unknown", "no such job"))


class Node:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config: dict[str, Any] = {
            "cluster": {"slurm_bin": "/none"},
            "node": {"run_dir": f"{folder}/run", "state_dir": f"{folder}/state", "prolog_deadline": 45.0},
            "scratch": {"backing": "file", "directory": f"{folder}/store", "mount_root": f"{folder}/mnt"},
            "audit": {"directory": f"{folder}/log"},
        }
        folder.chmod(0o755)
        for name, mode in (("run", 0o755), ("store", 0o700), ("mnt", 0o755), ("log/node-n1", 0o755), ("sys", 0o755)):
            (folder / name).mkdir(parents=True)
            (folder / name).chmod(mode)
        self.slurm = FakeSlurm()
        self.now = 1000.0
        self.steps: dict[int, int | None] = {}
        self.cgroups: set[int] = set()
        monkeypatch.setattr(present, "SYSFS", f"{folder}/sys")
        monkeypatch.setattr(crypt, "find", lambda _: None)
        monkeypatch.setattr(loop, "find", lambda _: [])
        monkeypatch.setattr(mounts, "mounts", list)
        monkeypatch.setattr(reaper, "boot_time", lambda: self.now)
        monkeypatch.setattr(reaper, "running_steps", lambda: self.steps)
        monkeypatch.setattr(reaper, "jobs_in_cgroups", lambda: self.cgroups)
        monkeypatch.setattr("keys.journal.boot_time", lambda: self.now)

    @property
    def file(self) -> Path:
        return self.folder / "store" / f"n1-{JOB}.img"

    def start(self, **changes: object) -> Record:
        record = Record(
            JOB, NODE, 1001, incarnation=INCARNATION, restarts=1, key_name="n1_test-17-00", mapper=f"secure-n1-{JOB}",
            backing="file", backing_path=str(self.file), mount_root=f"{self.folder}/mnt",
            mount_point=f"{self.folder}/mnt/{JOB}",
        )._replace(**changes)  # type: ignore[arg-type]  # fmt: skip
        self.file.touch()
        return journal_of(self.config, NODE).write(record)

    def look(self, seconds: float = 0.0) -> list[tuple[int, str]]:
        self.now += seconds
        outcomes = Reaper(self.config, NODE, self.slurm).run(once=True)
        return [(each.job, each.kind) for each in outcomes]

    def events(self) -> list[dict[str, Any]]:
        files = sorted((self.folder / "log/node-n1").glob("*.jsonl")) or [
            path for path in (self.folder / "log/node-n1").iterdir() if not path.name.endswith(".head")
        ]
        return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_an_orphan_goes_at_the_second_word(node: Node) -> None:
    node.start()
    (node.folder / "run/task").mkdir()
    (node.folder / f"run/task/{JOB}").touch()
    assert node.look(50) == [(JOB, "suspect")]
    assert node.look(19) == [(JOB, "suspect")]
    assert node.file.exists()
    assert node.look(2) == [(JOB, "healed")]
    assert not node.file.exists()
    assert not (node.folder / f"run/task/{JOB}").exists()
    record = journal_of(node.config, NODE).read(JOB)
    assert record is not None
    assert record.state == "destroyed"
    assert [event["event"] for event in node.events()] == ["scratch.close", "scratch.gone", "reaper.healed"]
    last = node.events()[-1]
    assert (last["incarnation"], last["key"], last["result"]) == (INCARNATION, "n1_test-17-00", "gone")
    assert last["evidence"] == f"task file; file: {node.file}"
    assert node.look(100) == []
    assert {start for _, start in node.slurm.asked} == {Start(1001, 1)}


def test_while_its_prolog_may_run_it_is_young(node: Node) -> None:
    node.start()
    assert node.look(1) == [(JOB, "young")]
    assert node.look(43) == [(JOB, "young")]
    assert node.look(2) == [(JOB, "healed")]


def test_a_file_that_nothing_tells_of_goes_as_well(node: Node) -> None:
    node.file.touch()
    assert node.look() == [(JOB, "suspect")]
    assert node.look(21) == [(JOB, "healed")]
    assert not node.file.exists()
    assert node.slurm.asked[-1] == (JOB, Start())


def test_facts_without_scratch_go_as_well(node: Node) -> None:
    (node.folder / "run/task").mkdir()
    (node.folder / f"run/task/{JOB}").touch()
    (node.folder / "run/task/.18").touch()
    assert node.look() == [(JOB, "suspect")]
    assert node.look(21) == [(JOB, "healed")]


@pytest.mark.parametrize("life", ["step", "step of nobody knows whom", "cgroup"])
def test_what_lives_is_not_even_asked_about(node: Node, life: str) -> None:
    node.start()
    node.look(100)
    node.slurm.asked.clear()
    node.steps = {99: JOB} if life == "step" else {99: None} if "nobody" in life else {}
    node.cgroups = {JOB} if life == "cgroup" else set()
    for _ in range(3):
        assert node.look(100) == [(JOB, "alive")]
    assert node.slurm.asked == []
    assert node.file.exists()


@pytest.mark.parametrize("kind", ["alive", "silent"])
def test_slurms_word_protects(node: Node, kind: str) -> None:
    node.start()
    node.slurm.words[JOB] = Word(kind, "x")
    for _ in range(3):
        assert node.look(100) == [(JOB, kind)]
    assert node.file.exists()
    assert node.events() == []


def test_what_somebody_works_on(node: Node) -> None:
    node.start()
    node.look(100)
    with journal_of(node.config, NODE).lock(JOB, 0.0):
        assert node.look(100) == [(JOB, "busy")]
    assert node.file.exists()
    assert node.look(1) == [(JOB, "healed")]


def test_what_is_not_ours(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start()
    node.look(100)
    monkeypatch.setattr(reaper, "foreign", lambda *_: "its UUID is another")
    assert node.look(100) == [(JOB, "foreign")]
    assert node.file.exists()


def test_slurm_changes_its_mind_under_the_lock(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start()
    node.look(100)
    words = [Word("over", "FAILED"), Word("alive", "RUNNING")]
    monkeypatch.setattr(node.slurm, "word", lambda *_: words.pop(0))
    assert node.look(100) == [(JOB, "alive")]
    assert node.file.exists()


def test_a_start_that_was_let_in_meanwhile(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start()
    node.look(100)

    def start_again(*_: object) -> Word:
        node.start(incarnation="f" * 32, restarts=2)
        return Word("over", "FAILED")

    monkeypatch.setattr(node.slurm, "word", start_again)
    assert node.look(100) == [(JOB, "young")]
    assert node.file.exists()


def test_a_claim_of_a_later_start_stays(node: Node) -> None:
    node.start()
    journal = journal_of(node.config, NODE)
    journal.claim_incarnation(JOB, "f" * 32)
    node.look(100)
    assert node.look(100) == [(JOB, "healed")]
    journal.check_claim(JOB, "f" * 32)


def test_what_cannot_be_removed_is_a_problem_told_once(node: Node) -> None:
    node.start()
    point = node.folder / "mnt" / str(JOB)
    point.mkdir()
    (point / "file").touch()
    node.look(100)
    for _ in range(3):
        assert node.look(100) == [(JOB, "problem")]
    errors = [event for event in node.events() if event["event"] == "hook.error"]
    assert len(errors) == 1
    assert len(node.events()) == 2
    assert (errors[0]["hook"], errors[0]["rule"]) == ("reaper", "scratch.not-gone")
    (point / "file").unlink()
    assert node.look(1) == [(JOB, "healed")]


def test_a_machine_that_cannot_be_looked_at(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start()

    def broken() -> set[int]:
        raise PermissionError(13, "cgroups")

    monkeypatch.setattr(reaper, "jobs_in_cgroups", broken)
    for _ in range(3):
        assert node.look(100) == [(JOB, "problem")]
    assert node.file.exists()
    monkeypatch.setattr(present, "SYSFS", "/nonexistent")
    assert node.look(100) == [(0, "problem")]


@pytest.mark.parametrize("damage", ["journal", "record", "both"])
def test_a_damaged_journal_makes_it_young_and_not_immortal(node: Node, damage: str) -> None:
    node.start()
    if damage != "record":
        (node.folder / f"run/journal/{JOB}.json").write_text("{")
    if damage != "journal":
        (node.folder / f"state/{JOB}.json").write_text("{")
    assert node.look(1) == [(JOB, "young")]
    assert node.look(43)[0][1] == "young"
    assert node.look(2) == [(JOB, "healed")]


def test_what_an_earlier_boot_left_goes_at_once(node: Node) -> None:
    node.start()
    (node.folder / f"run/journal/{JOB}.json").unlink()
    path = node.folder / f"state/{JOB}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "0" * 32}))
    assert node.look() == [(JOB, "healed")]
    assert not node.file.exists()
    assert node.slurm.asked == []
    gone, healed = node.events()
    assert (healed["event"], healed["reason"]) == ("reaper.healed", "left by an earlier boot of this node")
    # for who looks whether every scratch that was ready has been told to be gone (audit/gaps.py)
    assert (gone["event"], gone["job"], gone["node"], gone["wiped"]) == ("scratch.gone", JOB, NODE, False)
    assert gone["incarnation"] == healed["incarnation"]
    assert gone["evidence"] == healed["evidence"] != ""


def test_it_waits_for_the_second_word_in_one_run(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.start()
    node.now += 100

    def sleep(seconds: float) -> None:
        node.now += seconds

    monkeypatch.setattr(reaper.time, "sleep", sleep)
    outcomes = Reaper(node.config, NODE, node.slurm).run(once=False)
    assert [each.kind for each in outcomes] == ["healed"]


def test_a_full_audit_disk_stops_no_destruction(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.config["audit"]["directory"] = "/nonexistent"
    node.start()
    node.look(100)
    assert node.look(100) == [(JOB, "healed")]
    assert "lacks reaper.healed" in capsys.readouterr().err


class TestMemory:
    def test_is_kept_for_one_boot(self, tmp_path: Path) -> None:
        seen, told = {JOB: Seen(INCARNATION, 1.0, 2.0)}, {JOB: "x"}
        Memory(str(tmp_path), "a").save(seen, told)
        again = Memory(str(tmp_path), "a")
        assert (again.seen, again.told) == (seen, told)
        assert Memory(str(tmp_path), "b").seen == {}

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"v": 1}', '{"v": 1, "boot": "a", "seen": {"17": 1}, "told": {}}', "[" * 9999]
    )
    def test_damaged_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "reaper.json").write_text(text)
        assert Memory(str(tmp_path), "a").seen == {}

    def test_others_may_not_write_it(self, tmp_path: Path) -> None:
        Memory(str(tmp_path), "a").save({JOB: Seen("", 1.0, 2.0)}, {})
        (tmp_path / "reaper.json").chmod(0o666)
        assert Memory(str(tmp_path), "a").seen == {}
        (tmp_path / "reaper.json").rename(tmp_path / "else")
        (tmp_path / "else").chmod(0o600)
        (tmp_path / "reaper.json").symlink_to(tmp_path / "else")
        assert Memory(str(tmp_path), "a").seen == {}


class TestCgroups:
    def test_only_those_with_processes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps, "CGROUPS", str(tmp_path))
        for path, text in (
            ("system.slice/n1_slurmstepd.scope/job_5/step_0/user/task_0", "77\n"),
            ("system.slice/n1_slurmstepd.scope/job_6/step_0", ""),
            ("memory/slurm/uid_1001/job_7", "78\n"),
            ("user.slice/job_x", "79\n"),
            ("user.slice/myjob_8", "79\n"),
        ):
            (tmp_path / path).mkdir(parents=True)
            (tmp_path / path / "cgroup.procs").write_text(text)
        assert steps.jobs_in_cgroups() == {5, 7}

    def test_none_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps, "CGROUPS", str(tmp_path / "none"))
        assert steps.jobs_in_cgroups() == set()
