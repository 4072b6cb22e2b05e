"""Root's hand: what it answers, to whom, and when it acts by itself. The kernel's part is faked, all files are real."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.chain import Chain
from conf.errors import Refused
from keys import freezer, stopping
from keys.freezer import Frozen
from keys.journal import Journal, Record
from keys.stopping import Stopped
from slurm_hooks import handd, presence, wire
from slurm_hooks.handd import Hand
from slurm_hooks.presence import Present

START, OTHER = "ab" * 16, "cd" * 16
ME = frozenset({os.geteuid()})


class Kernel:
    """The jobs' processes and mappings: which have a key, and what was done in which order."""

    def __init__(self) -> None:
        self.keys: set[int] = set()
        self.fails = False
        self.running: set[int] = set()
        self.done: list[tuple[str, int]] = []
        self.now = 1000.0

    def stop(self, _journal: Journal, _run_dir: str, job: int) -> Stopped:
        self.done.append(("stop", job))
        wiped = job in self.keys and not self.fails
        if wiped:
            self.keys.discard(job)
        return Stopped(Frozen("cgroup", 1, True), job not in self.keys, wiped, "")

    def freeze(self, _node: str, job: int) -> Frozen:
        self.done.append(("freeze", job))
        return Frozen("cgroup", 1, True)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(stopping, "stop_job", made.stop)
    monkeypatch.setattr(stopping, "is_keyless", lambda _, job: job not in made.keys)
    monkeypatch.setattr(freezer, "freeze", made.freeze)
    monkeypatch.setattr(freezer, "is_there", lambda _, job: job in made.running)
    monkeypatch.setattr(handd, "now", lambda: made.now)
    return made


@pytest.fixture
def room(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    (tmp_path / "log").mkdir(mode=0o755)
    return tmp_path


def hand_of(room: Path, grace: float = 60.0) -> Hand:
    return Hand("n1", str(room), grace, Chain(room / "log", "hand", "n1"))


def claim(room: Path, job: int, start: str = START, *, state: str = "ready") -> None:
    journal = Journal(str(room), "n1")
    journal.claim_incarnation(job, start)
    if state:
        journal.write(Record(job, "n1", 1001, state=state, incarnation=start))


def trail(room: Path) -> list[tuple[str, str]]:
    path = room / "log/n1-hand.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["event"], line.get("result", "")) for line in lines]


def test_nothing_is_there(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    assert hand.jobs() == {}
    assert hand.stop(17, "", "") == "gone"
    hand.tick()
    assert kernel.done == []


def test_what_is_here(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    claim(room, 18, OTHER, state="")
    claim(room, 19, "ef" * 16, state="destroyed")
    Journal(str(room), "n1").revoke(19)
    assert hand.jobs() == {17: Present(17, START, "running"), 18: Present(18, OTHER, "running")}


def test_a_damaged_journal_is_a_job_all_the_same(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    Journal(str(room), "n1").revoke(17)
    (room / "journal/17.json").write_text("{")
    assert hand.jobs() == {17: Present(17, "", "running")}
    assert hand.stop(17, "", "") == "stopped"


def test_stop_once_and_again(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    kernel.keys = {17}
    assert hand.stop(17, START, "why") == "stopped"
    assert hand.jobs()[17].state == "stopped"
    assert hand.stop(17, START, "why") == "stopped"
    assert kernel.done == [("stop", 17), ("freeze", 17)]
    assert trail(room) == [("job.stopped", "stopped")]


def test_another_start_of_the_job_is_not_meant(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    assert hand.stop(17, OTHER, "") == "gone"
    assert kernel.done == []


def test_what_fails_is_tried_each_second(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    kernel.keys, kernel.fails = {17}, True
    assert hand.stop(17, "", "") == "failed"
    hand.tick()
    kernel.fails = False
    hand.tick()
    assert kernel.keys == set()
    assert [result for _, result in trail(room)] == ["failed", "failed", "stopped"]


def test_what_was_stopped_stays_so_after_a_restart(room: Path, kernel: Kernel) -> None:
    claim(room, 17)
    hand_of(room).stop(17, START, "")
    # a process that came since, and a mapping that a set-up in progress has made
    kernel.keys, kernel.done = {17}, []
    hand = hand_of(room)
    assert hand.jobs()[17].state == "stopped"
    hand.tick()
    assert kernel.done == [("freeze", 17), ("stop", 17)]
    assert kernel.keys == set()


def test_a_stopped_job_without_journal_is_remembered_while_it_may_run(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17, state="")
    assert hand.stop(17, "", "") == "stopped"
    Journal(str(room), "n1").revoke(17)
    assert hand.jobs()[17].state == "stopped"
    kernel.now += handd.LINGER + 1
    kernel.running = {17}
    assert hand.jobs()[17].state == "stopped"
    kernel.running = set()
    assert hand.jobs() == {}


def test_a_new_start_of_a_stopped_job_is_another(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    hand.stop(17, START, "")
    claim(room, 17, OTHER)
    assert hand.jobs() == {17: Present(17, OTHER, "running")}


class TestLease:
    def test_it_ends(self, room: Path, kernel: Kernel) -> None:
        hand = hand_of(room)
        claim(room, 17)
        hand.tick()
        kernel.now += 60
        hand.tick()
        assert kernel.done == []
        kernel.now += 1
        hand.tick()
        assert kernel.done == [("stop", 17)]
        assert trail(room) == [("lease.expired", ""), ("job.stopped", "stopped")]

    def test_it_is_renewed_as_of_the_report(self, room: Path, kernel: Kernel) -> None:
        hand = hand_of(room)
        claim(room, 17)
        hand.tick()
        kernel.now += 50
        hand.renew(20.0)
        assert hand.left() == 40.0
        hand.renew(30.0)  # an older answer takes nothing back
        assert hand.left() == 40.0
        kernel.now += 41
        hand.tick()
        assert kernel.done == [("stop", 17)]

    def test_nobody_can_renew_into_the_future(self, room: Path, kernel: Kernel) -> None:
        hand = hand_of(room)
        claim(room, 17)
        hand.tick()
        hand.renew(-1000.0)
        assert hand.left() == 60.0

    def test_a_job_that_begins_while_nothing_is_heard_has_the_whole_grace(self, room: Path, kernel: Kernel) -> None:
        hand = hand_of(room)
        hand.tick()
        kernel.now += 10_000
        claim(room, 17)
        hand.tick()
        assert kernel.done == []
        assert hand.left() == 60.0

    def test_a_restart_does_not_begin_anew(self, room: Path, kernel: Kernel) -> None:
        claim(room, 17)
        hand_of(room).tick()
        kernel.now += 61
        hand_of(room).tick()
        assert kernel.done == [("stop", 17)]

    def test_another_boot_begins_anew(self, room: Path, kernel: Kernel) -> None:
        claim(room, 17)
        hand_of(room).tick()
        said = json.loads((room / "hand.json").read_text())
        (room / "hand.json").write_text(json.dumps({**said, "boot": "another"}))
        kernel.now = 5.0
        hand = hand_of(room)
        hand.tick()
        assert (hand.left(), kernel.done) == (60.0, [])

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1}', '{"leases": {"x": []}}'])
    def test_what_cannot_be_read_begins_anew(self, room: Path, kernel: Kernel, text: str) -> None:
        claim(room, 17)
        (room / "hand.json").write_text(text)
        hand = hand_of(room)
        hand.tick()
        assert (hand.left(), kernel.done) == (60.0, [])

    def test_without_a_link_there_is_none(self, room: Path, kernel: Kernel) -> None:
        hand = hand_of(room, grace=0.0)
        claim(room, 17)
        hand.tick()
        kernel.now += 10**9
        hand.tick()
        assert (hand.left(), kernel.done) == (-1.0, [])

    def test_a_full_log_stops_no_destruction(self, room: Path, kernel: Kernel) -> None:
        hand = hand_of(room)
        claim(room, 17)
        (room / "log").chmod(0o777)
        assert hand.stop(17, "", "") == "stopped"
        assert kernel.done == [("stop", 17)]


class TestSocket:
    @pytest.fixture
    def path(self, room: Path, kernel: Kernel) -> Iterator[str]:
        claim(room, 17)
        path = str(room / handd.SOCKET)
        inside, outside = socket.socketpair()
        hand = hand_of(room)
        server = threading.Thread(target=handd.run, args=(hand, path, ME, os.getegid(), inside))
        server.start()
        while not Path(path).exists() or Path(path).stat().st_mode & 0o777 != 0o660:
            pass
        yield path
        outside.send(b"x")
        server.join(10)
        assert not server.is_alive()

    def test_its_three_requests(self, path: str) -> None:
        answer = wire.exchange(path, {"verb": "jobs"}, timeout=10)
        assert presence.read(wire.text(answer, "jobs")) == {17: Present(17, START, "running")}
        assert wire.exchange(path, {"verb": "renew", "age": "0.5"}, timeout=10)["verdict"] == b"allow"
        stop = {"verb": "stop", "job": "17", "incarnation": START, "reason": "r"}
        assert wire.exchange(path, stop, timeout=10)["result"] == b"stopped"

    @pytest.mark.parametrize(
        ("request_", "rule"),
        [
            ({"verb": "wipe"}, "wire.verb"),
            ({"verb": "stop", "job": "0", "incarnation": "", "reason": ""}, "engine.error"),
            ({"verb": "stop", "job": "17:x", "incarnation": "", "reason": ""}, "engine.error"),
            ({"verb": "stop", "job": "17::running,18", "incarnation": "", "reason": ""}, "engine.error"),
            ({"verb": "stop", "job": "17", "incarnation": "../x", "reason": ""}, "engine.error"),
            ({"verb": "stop", "job": "17"}, "engine.error"),
            ({"verb": "freeze", "job": "0", "incarnation": "", "reason": ""}, "engine.error"),
            ({"verb": "thaw", "job": "17:x", "incarnation": ""}, "engine.error"),
            ({"verb": "wrapped", "job": "17", "incarnation": START}, "freeze.not-frozen"),
            ({"verb": "stop", "job": "", "incarnation": "", "reason": ""}, "engine.error"),
            ({"verb": "renew", "age": "-1"}, "engine.error"),
            ({"verb": "renew", "age": "nan"}, "engine.error"),
            ({"verb": "renew", "age": "1e9"}, "engine.error"),
            ({"verb": "renew", "age": "."}, "engine.error"),
            ({}, "engine.error"),
        ],
    )
    def test_another_is_refused(self, path: str, request_: dict[str, bytes | str], rule: str) -> None:
        answer = wire.exchange(path, request_, timeout=10)
        assert (answer["verdict"], answer["rule"]) == (b"refuse", rule.encode())

    @pytest.mark.parametrize("data", [b"", b"x", b"SS1 9999999\n", b"SS1 5\nabc", b"GET /\n"])
    def test_garbage_does_no_harm(self, path: str, data: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(10)
            assert b"refuse" in client.recv(65536)
        assert wire.exchange(path, {"verb": "jobs"}, timeout=10)["verdict"] == b"allow"

    def test_somebody_else_is_refused(self, room: Path, kernel: Kernel) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(wire.encode({"verb": "jobs", "nonce": "n"}))
            handd.serve_one(hand_of(room), theirs, frozenset({os.geteuid() + 1}))
            assert b"peer.refused" in ours.recv(65536)


def test_the_command_line() -> None:
    for words in ([], ["--node"], ["--node", "../n1"], ["--node", "n_1"], ["n1"], ["--node", "n1", "x"]):
        assert handd.main(words) == 3


def test_an_unknown_request_is_refused(room: Path) -> None:
    with pytest.raises(Refused):
        handd.answer(hand_of(room), {"verb": b"key"})


def test_a_key_that_is_still_there_confirms_nothing(room: Path, kernel: Kernel) -> None:
    hand = hand_of(room)
    claim(room, 17)
    kernel.keys, kernel.fails = {17}, True
    assert hand.stop(17, "", "why") == "failed"
    asked = {"verb": b"jobs"}
    # the head node takes "stopped" for a confirmation
    assert handd.answer(hand, asked)["jobs"] == f"17:{START}:unsure"
    assert handd.answer(hand_of(room), asked)["jobs"] == f"17:{START}:unsure"
    hand.tick()
    assert handd.answer(hand, asked)["jobs"] == f"17:{START}:unsure"
    kernel.fails = False
    hand.tick()
    assert handd.answer(hand, asked)["jobs"] == f"17:{START}:stopped"
