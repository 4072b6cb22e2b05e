"""Root's hand with jobs that may go on: who gets a key and who does not. The kernel is played, all files are real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.errors import Refused
from keys import freezer, freezing, stopping
from keys.freezer import Frozen
from keys.freezing import Froze
from keys.journal import Journal, Record
from keys.secret import Secret
from slurm_hooks import handd, wire
from slurm_hooks.handd import Hand
from tests.unit.link.test_hand import OTHER, START, Kernel, claim, hand_of, kernel, room, trail

__all__ = ["kernel", "room"]
KEY = b"k" * 64


class Board:
    """What the kernel was told of frozen jobs."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.problem = ""
        self.killed = False
        self.given: list[bytes | None] = []

    def freeze(self, _journal: Journal, job: int) -> Froze:
        self.done.append(f"freeze {job}")
        return Froze(Frozen("cgroup", 1, True), not self.problem, self.problem)

    def thaw(self, _journal: Journal, job: int, key: Secret | None) -> str:
        self.done.append(f"thaw {job}")
        self.given.append(None if key is None else bytes(key.reveal()))
        return self.problem


@pytest.fixture
def board(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    monkeypatch.setattr(freezing, "freeze_job", made.freeze)
    monkeypatch.setattr(freezing, "thaw_job", made.thaw)
    monkeypatch.setattr(freezer, "is_being_killed", lambda *_: made.killed)
    return made


def ready(room: Path, job: int = 17, start: str = START) -> None:
    journal = Journal(str(room), "n1")
    journal.claim_incarnation(job, start)
    facts = {"state": "ready", "incarnation": start, "key_name": "n1_test-17-x", "wrapped_key": "vault:v1:x"}
    journal.write(Record(job, "n1", 1001, **facts))  # type: ignore[arg-type]


def ask(hand: Hand, verb: str, job: int = 17, **more: bytes) -> dict[str, str]:
    fields = {"verb": verb.encode(), "job": str(job).encode(), "incarnation": b"", "reason": b"why"}
    return handd.answer(hand, {**fields, **more})


def test_no_key_is_handed_out_for_a_job_that_is_not_frozen(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    assert ask(hand, "wrapped") == ask(hand, "freeze") == ask(hand, "thaw") == {"result": "gone"}
    ready(room)
    with pytest.raises(Refused) as caught:
        ask(hand, "wrapped")
    assert caught.value.rule == "freeze.not-frozen"
    # of a job that was stopped neither, and it cannot go on, nor be frozen
    hand.stop(17, "", "")
    with pytest.raises(Refused) as caught:
        ask(hand, "wrapped")
    assert caught.value.rule == "freeze.not-frozen"
    with pytest.raises(Refused) as caught:
        ask(hand, "thaw", plaintext=KEY)
    assert caught.value.rule == "freeze.stopped"
    assert ask(hand, "freeze") == {"result": "stopped"}
    assert (board.done, board.given) == ([], [])


def test_another_start_of_the_job_is_not_meant(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    assert ask(hand, "freeze", incarnation=OTHER.encode()) == {"result": "gone"}
    ask(hand, "freeze")
    assert ask(hand, "thaw", incarnation=OTHER.encode(), plaintext=KEY) == {"result": "gone"}
    ready(room, start=OTHER)
    assert hand.jobs()[17].state == "running"
    with pytest.raises(Refused):
        ask(hand, "wrapped")


def test_a_job_whose_set_up_is_under_way_is_asked_again(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    claim(room, 17, state="mapping")
    assert ask(hand, "freeze") == {"result": "failed"}
    assert (hand.jobs()[17].state, board.done) == ("running", [])


def test_frozen_and_let_go(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    assert ask(hand, "freeze") == ask(hand, "freeze") == {"result": "frozen"}
    assert ask(hand, "jobs")["jobs"] == f"17:{START}:frozen"
    # told once, and once in the trail
    assert (board.done, trail(room)) == (["freeze 17"], [("job.frozen", "frozen")])
    found = ask(hand, "wrapped")
    assert (found["key"], found["wrapped"], found["incarnation"]) == ("n1_test-17-x", "vault:v1:x", START)
    assert ask(hand, "thaw", plaintext=KEY) == ask(hand, "thaw") == {"result": "running"}
    assert (board.given, hand.jobs()[17].state) == ([KEY], "running")
    assert [event for event, _ in trail(room)] == ["job.frozen", "node.unwrap", "job.thawed"]


def test_without_a_trail_no_key_is_handed_out(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    ask(hand, "freeze")
    (room / "log").chmod(0o777)
    with pytest.raises(Exception, match="log"):
        ask(hand, "wrapped")


def test_what_fails_is_tried_each_second_and_stays_frozen(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    board.problem = "dmsetup failed"
    assert ask(hand, "freeze") == {"result": "failed"}
    hand.tick()
    board.problem = ""
    hand.tick()
    assert board.done == ["freeze 17"] * 3
    board.problem = "no such key"
    assert ask(hand, "thaw", plaintext=KEY) == {"result": "failed"}
    assert hand.jobs()[17].state == "frozen"
    # the key may have been given before the rest failed: it is taken again
    board.problem, board.done = "", []
    hand.tick()
    assert board.done == ["freeze 17"]


def test_what_fails_confirms_nothing_and_its_lease_ends(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room, 60.0)
    ready(room)
    hand.tick()
    board.problem = "dmsetup failed"
    assert ask(hand, "freeze") == {"result": "failed"}
    # the head node takes "frozen" for a confirmation
    assert ask(hand, "jobs")["jobs"] == f"17:{START}:unsure"
    hand.tick()
    assert ask(hand, "jobs")["jobs"] == f"17:{START}:unsure"
    kernel.now += 61.0
    hand.tick()
    assert (hand.jobs()[17].state, ("stop", 17) in kernel.done) == ("stopped", True)
    assert "lease.expired" in [event for event, _ in trail(room)]


def test_a_freeze_that_comes_through_later_is_confirmed_then(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    board.problem = "dmsetup failed"
    ask(hand, "freeze")
    board.problem = ""
    hand.tick()
    assert ask(hand, "jobs")["jobs"] == f"17:{START}:frozen"
    # a hand that died in the middle has left its word, not the deed
    hand = hand_of(room)
    assert ask(hand, "jobs")["jobs"] == f"17:{START}:unsure"
    hand.tick()
    assert ask(hand, "jobs")["jobs"] == f"17:{START}:frozen"


def test_it_stays_frozen_after_a_restart_and_without_a_lease(room: Path, kernel: Kernel, board: Board) -> None:
    ready(room)
    ask(hand_of(room), "freeze")
    hand = hand_of(room)
    kernel.now += 10**6
    hand.tick()
    # made sure of once more, for the hand before this one may have died in the middle; and no lease has ended
    assert (board.done, hand.jobs()[17].state, hand.left()) == (["freeze 17"] * 2, "frozen", -1.0)
    assert "lease.expired" not in [event for event, _ in trail(room)]
    assert ("stop", 17) not in kernel.done
    said = json.loads((room / "hand.json").read_text())
    del said["frozen"]  # as an older version writes it
    (room / "hand.json").write_text(json.dumps(said))
    assert hand_of(room).jobs()[17].state == "running"


def test_its_lease_begins_anew_when_it_goes_on(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    hand.tick()
    ask(hand, "freeze")
    kernel.now += 10**6
    hand.tick()
    ask(hand, "thaw", plaintext=KEY)
    hand.tick()
    assert (hand.jobs()[17].state, ("stop", 17) in kernel.done) == ("running", False)


def test_a_frozen_job_that_is_killed_is_stopped_for_good(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    ask(hand, "freeze")
    board.killed = True
    hand.tick()
    assert (hand.jobs()[17].state, ("stop", 17) in kernel.done) == ("stopped", True)


def test_an_order_to_stop_takes_a_frozen_job(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    ask(hand, "freeze")
    assert hand.stop(17, "", "for good") == "stopped"
    assert hand.jobs()[17].state == "stopped"


def test_it_is_forgotten_when_it_is_over(room: Path, kernel: Kernel, board: Board) -> None:
    hand = hand_of(room)
    ready(room)
    ask(hand, "freeze")
    journal = Journal(str(room), "n1")
    journal.revoke(17)
    journal.write(Record(17, "n1", 1001, state="destroyed", incarnation=START))
    assert hand.jobs() == {}
    assert hand.freezes.jobs == {}


def test_a_job_without_scratch_needs_no_key(room: Path, kernel: Kernel, board: Board) -> None:
    claim(room, 17, state="")
    (room / "task").mkdir()
    (room / "task/17").touch()
    hand = hand_of(room)
    assert ask(hand, "freeze") == {"result": "frozen"}
    assert ask(hand, "wrapped")["key"] == ""
    assert ask(hand, "thaw") == {"result": "running"}
    assert board.given == [None]


def test_a_journal_without_the_wrapped_key_gives_none(room: Path, kernel: Kernel, board: Board) -> None:
    claim(room, 17)
    hand = hand_of(room)
    ask(hand, "freeze")
    with pytest.raises(Exception, match="wrapped key"):
        ask(hand, "wrapped")


def test_stopping_is_not_starting(room: Path) -> None:
    claim(room, 17, state="planned")
    assert stopping.is_starting(Journal(str(room), "n1"), str(room), 17)


def test_a_malformed_request(room: Path, kernel: Kernel, board: Board) -> None:
    with pytest.raises(wire.WireError):
        handd.answer(hand_of(room), {"verb": b"thaw", "job": b"17"})
