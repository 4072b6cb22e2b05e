"""A note is judged once, and again as soon as anything that a decision rests on is another."""

from __future__ import annotations

import pytest
from pytest_mock import MockerFixture

from conf.tag import Tag
from slurm_hooks import engine, notes
from slurm_hooks.filters.verdict import Context
from slurm_hooks.notes import Judged
from slurm_hooks.running import Inside
from tests.unit.decision.conftest import make_policy, make_snapshot

Fields = dict[str, bytes]


@pytest.fixture
def judged(signer: engine.Signer) -> Judged:
    return Judged(signer)


def test_it_is_the_engines_verdict(judged: Judged, context: Context, plain: Fields, signer: engine.Signer) -> None:
    for more in (
        {},
        {"partition": b"phi"},
        {"submit_uid": b"x"},
        {"dependency": b"expand:1"},
        {"extra": b"secure-slurm"},
    ):
        note = {**plain, **more, "nonce": b"1"}
        assert judged.decide(note, context) == engine.decide_submit(note, context, signer)
        assert judged.decide({**note, "nonce": b"2"}, context) == engine.decide_submit(note, context, signer)


def test_each_field_but_the_nonce_makes_another_note(
    judged: Judged, context: Context, plain: Fields, mocker: MockerFixture
) -> None:
    asked = mocker.spy(notes, "decide_submit")
    for number in range(3):
        judged.decide({**plain, "nonce": b"%d" % number}, context)
    assert asked.call_count == 1
    for name in plain:
        judged.decide({**plain, name: b"7"}, context)
        judged.decide({each: value for each, value in plain.items() if each != name}, context)
    assert asked.call_count == 1 + 2 * len(plain)


def test_everything_that_changes_is_judged_by(
    judged: Judged, context: Context, plain: Fields, mocker: MockerFixture
) -> None:
    context = context._replace(now=60.0)
    assert judged.decide(plain, context).allowed
    asked = mocker.spy(notes, "decide_submit")
    judged.decide(plain, context._replace(now=119.9))
    assert asked.call_count == 0
    inside = {"login1": (Inside(7, 1002, Tag("phi", "eu")),)}
    changed = {
        "policy": make_policy(),
        "members": make_snapshot(),
        "members_problem": "other",
        "members_advice": "other",
        "now": 120.0,
        "exemptions": (object(),),
        "running": inside,
        "revoked": (object(),),
        "hosts": {"ip-10-0-0-5": ["n1"]},
    }
    assert set(changed) == set(Context._fields)
    for count, (name, value) in enumerate(changed.items(), start=1):
        context = context._replace(**{name: value})
        judged.decide(plain, context)
        judged.decide(plain, context)
        assert asked.call_count == count, name
    assert judged.decide(plain, context).rule == "tag.inherit"


def test_what_is_remembered_has_an_end(
    judged: Judged, context: Context, plain: Fields, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "MAX_KNOWN", 3)
    for uid in range(10):
        judged.decide({**plain, "user_id": b"%d" % uid}, context)
        assert len(judged._known) <= 3
