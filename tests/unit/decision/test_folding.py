"""One user's refusals: bounded in the trail, and none of them lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.chain import Chain
from audit.verify import verify
from slurm_hooks import decider as module
from slurm_hooks import folding
from slurm_hooks.decider import Decider
from slurm_hooks.engine import Decision, Signer
from slurm_hooks.folding import Folding, Sum


def test_the_first_have_lines() -> None:
    one = Folding()
    assert [one.has_line(1001, 0.0) for _ in range(101)] == [True] * 100 + [False]
    # another user is not held to it, and time gives it back
    assert one.has_line(1002, 0.0)
    assert not one.has_line(1001, 5.0)
    assert one.has_line(1001, 7.0)
    assert not one.has_line(1001, 7.0)


def test_who_goes_on_gets_a_line_now_and_then_and_no_more() -> None:
    one = Folding()
    written = sum(one.has_line(1001, second / 10) for second in range(36000))
    assert 690 <= written <= 700


def test_sums_are_told_once_and_whole() -> None:
    one = Folding()
    assert one.count(1001, "rbac.role", "submit", 10.0)
    assert not one.count(1001, "rbac.role", "submit", 11.0)
    assert one.count(1001, "tag.missing", "submit", 30.0)
    assert one.due(60.0) == []
    assert one.due(70.0) == [Sum(1001, "rbac.role", "submit", 2, 60.0)]
    assert one.due(70.0) == []
    assert one.due(70.0, everything=True) == [Sum(1001, "tag.missing", "submit", 1, 40.0)]


def test_many_users_are_bounded_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST", 3)
    one = Folding()
    for uid in range(10):
        if not one.has_line(uid, 0.0):
            one.count(uid, "rbac.role", "submit", 0.0)
    told = one.due(100.0)
    assert sum(each.number for each in told) == 7
    assert [each.uid for each in told] == [3, 4, 5, None]
    # who has not asked for long is forgotten
    assert one.has_line(99, 100000.0)


class Live:
    path = "/nowhere/policy.yaml"


def refused(rule: str = "rbac.role", uid: int = 1001) -> Decision:
    return Decision(allowed=False, rule=rule, verb="submit", uid=uid, actor=uid)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path, "decision", "head")


@pytest.fixture
def one(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Decider:
    monkeypatch.setattr(module, "Explainer", lambda *_: None)
    return Decider(Live(), Signer("test", None, frozenset()), chain)  # type: ignore[arg-type]


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "head-decision.jsonl").read_text().splitlines()]


def test_a_flood_of_refusals(one: Decider, tmp_path: Path) -> None:
    for _ in range(1000):
        decision = one._written(refused())
        assert (decision.allowed, decision.rule) == (False, "rbac.role")
    one._written(refused(uid=1002))
    # what is allowed always has its line
    one._written(Decision(allowed=True, rule="allow.tagged", verb="submit", uid=1001, actor=1001))
    one.fold(everything=True)
    one.flush()
    found = lines(tmp_path)
    own = [line for line in found if line["event"] == "decision" and line["uid"] == 1001]
    begun, told = (line for line in found if line["event"] == "decision.folded")
    assert (begun["state"], begun["count"], told["state"], told["uid"]) == ("begun", 0, "counted", 1001)
    assert len([line for line in own if line["verdict"] == "refuse"]) + int(str(told["count"])) == 1000
    assert len(found) < 110
    assert len([line for line in own if line["verdict"] == "allow"]) == 1
    assert [line["uid"] for line in found if line["event"] == "decision"].count(1002) == 1
    assert verify([tmp_path]).findings == []
