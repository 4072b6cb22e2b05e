"""secure-slurm status: what is pending or wrong makes it 1, and silence is wrong. The daemons are stand-ins here."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from admin.main import main
from admin.status_cmd import head_parts, start_parts
from conf.errors import BackendUnavailable, ConfigError
from slurm_hooks import ended
from slurm_hooks.lifecyclestatus import MOST_TOLD, Status, pending, reaped
from slurm_hooks.reaping import Kept, Report
from slurm_hooks.serve import Peer, serve
from tests.unit.hooks.conftest import SITE

WELL: dict[str, Any] = {
    "open": 1,
    "pending": [],
    "pending_count": 0,
    "vault": "",
    "slurm": "",
    "members": "",
    "members_age": "3 s old",
    "audit": "",
    "policy": "ab",
    "reaper": {
        **{"age": 3.0, "result": "1 grants", "error": "", "grants": 1, "foreign": 0, "damaged": 0, "healed": 0},
        **{"kept": [], "kept_count": 0},
    },
    "certificates": {"waiting": 0, "error": ""},
    "segments": {"nodes": 4, "problems": []},
    "breaker": {"state": "closed", "age": 9.0, "reason": "", "failures": 1, "turned_away": 0, "held": 0},
}
DECIDES = {"verdict": "allow", "audit": "written", "members": "3 s old"}
Daemons = Callable[..., contextlib.AbstractContextManager[None]]
Wrong = Callable[[], list[str]]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "secure-slurm.yaml"
    path.write_text(SITE.format(user="root", folder=tmp_path))
    path.chmod(0o644)
    return path


@pytest.fixture
def daemons(tmp_path: Path) -> Daemons:
    """Both daemons, or one, with these answers."""

    @contextlib.contextmanager
    def running(lifecycle: dict[str, Any] | None, decision: dict[str, str] | None) -> Iterator[None]:
        answers: dict[str, dict[str, str]] = {}
        if lifecycle is not None:
            answers["lifecycle.sock"] = {"verdict": "allow", "report": json.dumps(lifecycle)}
        if decision is not None:
            answers["decide.sock"] = decision
        ready, stop = threading.Event(), threading.Event()

        async def act() -> None:
            async with contextlib.AsyncExitStack() as stack:
                for name, answer in answers.items():

                    async def tell(_f: object, _p: Peer, answer: dict[str, str] = answer) -> dict[str, str]:
                        return answer

                    handlers = {"status": (frozenset({os.geteuid()}), tell)}
                    path = str(tmp_path / name)
                    await stack.enter_async_context(await serve(path, handlers, mode=0o600, group=None, deadline=5))
                ready.set()
                while not stop.is_set():
                    await asyncio.sleep(0.01)

        thread = threading.Thread(target=lambda: asyncio.run(act()))
        thread.start()
        assert ready.wait(20)
        try:
            yield
        finally:
            stop.set()
            thread.join()

    return running


@pytest.fixture
def wrong(site: Path, capsys: pytest.CaptureFixture[str]) -> Wrong:
    """Runs it, sees that it ends with 1, and names the parts that are not well."""

    def ask() -> list[str]:
        assert main(["--config", str(site), "status", "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["good"] is False
        return [each["name"] for each in told["parts"] if not each["good"]]

    return ask


def with_(path: str, value: object) -> dict[str, Any]:
    made = copy.deepcopy(WELL)
    *first, last = path.split(".")
    where: Any = made
    for step in first:
        where = where[step]
    where[last] = value
    return made


def test_all_is_well(site: Path, daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    with daemons(WELL, DECIDES):
        assert main(["--config", str(site), "status"]) == 0
    out = capsys.readouterr().out
    assert "BAD" not in out
    assert "ok  revocations: none is pending" in out
    assert "ok  secured starts: go on; 1 starts have failed lately" in out


@pytest.mark.parametrize(
    ("path", "value", "part"),
    [
        ("pending_count", 1, "revocations"),
        ("vault", "Vault could not list the grants: it is sealed", "Vault"),
        ("slurm", "no slurmctld is up", "Slurm"),
        ("members", "the group members were read 9000 s ago", "group members"),
        ("audit", "cannot write the audit trail", "audit trail of the lifecycle daemon"),
        ("reaper.age", None, "reaper"),
        ("reaper.error", "no slurmctld is up", "reaper"),
        ("reaper.damaged", 1, "reaper"),
        ("reaper.kept_count", 1, "reaper"),
        ("certificates.error", "permission denied", "certificates"),
        ("breaker.state", "open", "secured starts"),
        ("breaker.state", "half-open", "secured starts"),
        ("breaker.held", 2, "secured starts"),
    ],
)
def test_one_thing_is_wrong(wrong: Wrong, daemons: Daemons, path: str, value: object, part: str) -> None:
    with daemons(with_(path, value), DECIDES):
        assert wrong() == [part]


def test_a_nodes_lines_that_are_not_taken(site: Path, daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"node": "n1", "trail": "node", "why": "line 3 is sent a second time\x1b[31m"}
    for count, more in ((1, 0), (30, 1)):
        with daemons(with_("segments.problems", [problem] * count), DECIDES):
            assert main(["--config", str(site), "status"]) == 1
        out = capsys.readouterr().out
        assert "BAD audit trails of the nodes: node n1, node: line 3 is sent a second time" in out
        assert "\x1b" not in out
        assert (out.count(", and 10 more"), out.count(" more")) == (more, more)


def test_what_waits_is_named(site: Path, daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    many = [{"job": job, "age": 7.2, "reason": "Vault is \x1b[31msealed"} for job in range(1, 31)]
    report = with_("pending", many) | {"pending_count": 35}
    report["reaper"] |= {"kept": [{"job": 99, "why": "PrivateData"}], "kept_count": 1}
    with daemons(report, DECIDES):
        assert main(["--config", str(site), "status"]) == 1
    out = capsys.readouterr().out
    assert "job 1: pending for 7 s: Vault is" in out
    assert "\x1b" not in out
    assert "job 99: left alone: PrivateData" in out
    assert "and 15 more" in out


@pytest.mark.parametrize(
    ("lifecycle", "decision", "part"),
    [
        (None, DECIDES, "lifecycle daemon"),
        (WELL, None, "decision daemon"),
        (WELL, {"verdict": "refuse", "message": "no"}, "decision daemon"),
        ({}, DECIDES, "lifecycle daemon"),
        (WELL, {**DECIDES, "audit": "unwritable"}, "audit trail of the decision daemon"),
        (WELL, {"verdict": "allow"}, "audit trail of the decision daemon"),
    ],
)
def test_silence_is_wrong(
    wrong: Wrong, daemons: Daemons, lifecycle: dict[str, Any] | None, decision: dict[str, str] | None, part: str
) -> None:
    with daemons(lifecycle, decision):
        assert wrong() == [part]


class Live:
    def context(self) -> Any:
        return type("Known", (), {"members": None, "members_problem": "never read"})

    def members_age(self) -> str:
        return "never read"

    policy = type("Policy", (), {"hash": "ab"})


class Anything:
    def flush(self) -> None:
        raise BackendUnavailable("the disk is full")

    def open_jobs(self) -> dict[int, str]:
        return {17: "a"}


def test_the_daemons_answer() -> None:
    def fail() -> None:
        raise ConfigError("no login")

    thing: Any = Anything()
    live: Any = Live()
    status = Status(live, thing, vault=fail, slurm=lambda: None, notes=lambda: [], jobs=thing)
    answer = asyncio.run(status.answer({}, Peer(1, 0, 0)))
    told = json.loads(str(answer["report"]))
    assert (told["vault"], told["slurm"], told["audit"]) == ("no login", "", "the disk is full")
    assert (told["members"], told["open"], told["pending"]) == ("never read", 1, [])


def test_pending_jobs_oldest_first(tmp_path: Path) -> None:
    for job in (1, 2, 3):
        ended.write(str(tmp_path), job, ("n1",))
    notes = ended.read(str(tmp_path))
    now = time.time()
    for note, age in zip(notes, (5, 50, -500), strict=True):
        os.utime(note.path, (now - age, now - age))
    Path(notes[0].path).unlink()
    assert pending(notes, {2: "sealed"}, now) == [
        {"job": 2, "age": 50.0, "reason": "sealed"},
        {"job": 3, "age": 0.0, "reason": "it is being destroyed"},
    ]


def test_a_look_in_words() -> None:
    assert reaped(Report(), 100.0)["age"] is None
    report = Report(at=90.0, kept=[Kept(job, "x") for job in range(MOST_TOLD + 5)])
    told = reaped(report, 100.0)
    assert (told["age"], told["kept_count"]) == (10.0, MOST_TOLD + 5)
    assert isinstance(told["kept"], list)
    assert len(told["kept"]) == MOST_TOLD


def test_the_parts_of_two_head_nodes() -> None:
    assert head_parts({}) == []
    assert head_parts({"acts": True, "several": False, "problem": "", "heads": {}}) == []
    acts, *seen = head_parts({"acts": True, "several": True, "problem": "", "heads": {"head": 3.0, "head2": None}})
    assert (acts.good, acts.text) == (True, "acts")
    assert [(part.name, part.good) for part in seen] == [
        ("lifecycle daemon of head", True),
        ("lifecycle daemon of head2", False),
    ]
    assert "is lifecycle.state_dir the same folder on both?" in seen[1].text
    standby, late = head_parts({"acts": False, "several": True, "problem": "", "heads": {"head": 61.0}})
    assert (standby.good, standby.text, late.good) == (True, "stands by", False)
    for acts_or_not in (None, True):
        (unknown,) = head_parts({"acts": acts_or_not, "several": True, "problem": "nobody answers", "heads": {}})
        assert (unknown.good, "nobody answers" in unknown.text) == (False, True)


def test_the_queue_of_starts_is_told() -> None:
    assert start_parts({}) == []
    (part,) = start_parts({"active": 12, "waiting": 300, "turned_away": 4})
    assert (part.good, part.text) == (True, "12 are being made, 300 wait, 4 were told to ask again")


def test_a_standby_says_whose_work_it_is(tmp_path: Path) -> None:
    ended.write(str(tmp_path), 7, ("n1",))
    thing: Any = Anything()
    live: Any = Live()
    standby: Any = SimpleNamespace(acts=False, report=lambda: {"acts": False})
    status = Status(
        live, thing, vault=lambda: None, slurm=lambda: None, notes=lambda: ended.read(str(tmp_path)), jobs=thing
    )
    status.watch(SimpleNamespace(report=Report()), SimpleNamespace(waiting=0, error=""), standby)  # type: ignore[arg-type]
    told = json.loads(str(asyncio.run(status.answer({}, Peer(1, 0, 0)))["report"]))
    assert [one["reason"] for one in told["pending"]] == ["the head node that acts destroys it"]
    assert told["acting"] == {"acts": False}
