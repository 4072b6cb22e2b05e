"""The daemon's answer to who asks for an explanation: the engine's verdict, told in a refusal, whatever it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.policy import load_policy
from conf.tag import EXPLAIN, without_explain
from keys.secret import Secret
from slurm_hooks import engine, explained
from slurm_hooks.explained import Explainer, shortened
from slurm_hooks.filters.verdict import Context

from .conftest import EXTRA, make_policy, make_snapshot

POLICY = Path(__file__).parents[3] / "conf" / "policy.yaml"
SIGNER = engine.Signer("test", Secret(b"k" * 32), frozenset({0}))
CONTEXT = Context(make_policy(), make_snapshot())
EXPLAINER = Explainer("/nowhere/policy.yaml", SIGNER)
Fields = dict[str, bytes]


@pytest.fixture
def asking(fields: Fields) -> Fields:
    return {**fields, "extra": (EXTRA + EXPLAIN).encode()}


def told(decision: engine.Decision | None) -> dict[str, Any]:
    assert decision is not None
    found: dict[str, Any] = json.loads(decision.message)
    return found


@pytest.mark.parametrize(
    "extra",
    ["secure-slurm:class=phi", "", "secure-slurm:class=phi;explain=2", ";explain=1", "x;explain=1", "explain=1"],
)
def test_who_does_not_ask_gets_no_explanation(fields: Fields, extra: str) -> None:
    assert without_explain(extra) is None
    assert EXPLAINER.decide({**fields, "extra": extra.encode()}, CONTEXT) is None
    assert EXPLAINER.decide({}, CONTEXT) is None


def test_what_would_be_allowed_is_told_and_refused(asking: Fields) -> None:
    decision = EXPLAINER.decide(asking, CONTEXT)
    assert decision is not None
    assert (decision.allowed, decision.rule, decision.verb) == (False, "explain.answer", "explain")
    assert decision.changes == {}
    assert decision.nonce == ""
    assert decision.reason == "allow allow.tagged"
    answer = decision.answer()
    assert (answer["verdict"], answer["rule"], answer["advice"]) == ("refuse", "explain.answer", "")
    found = told(decision)
    assert found["allowed"] is True
    assert found["explanation"] == 1
    assert found["set"] == {"features": "eu", "shared": "0", "requeue": "1"}
    assert found["tag"] == {"class": "phi", "residency": "eu", "scratch": 2**30, "datasets": []}
    assert len(found["steps"]) > 20


def test_what_would_be_refused_is_told_with_what_would_not(asking: Fields) -> None:
    decision = EXPLAINER.decide({**asking, "features": b"us"}, CONTEXT)
    found = told(decision)
    assert (found["allowed"], found["rule"]) == (False, "residency.constraint")
    assert found["nearest"] == {"changes": [{"option": "--constraint", "value": None}]}
    assert decision is not None
    assert decision.reason == "refuse residency.constraint"


def test_the_message_is_one_line_of_plain_ascii(asking: Fields) -> None:
    hostile = {**asking, "features": "\x1b[2J\n\u202eä".encode(), "user_name": b"\xff\n"}
    decision = EXPLAINER.decide(hostile, CONTEXT)
    assert decision is not None
    assert decision.message.isascii()
    assert decision.message.isprintable()


def test_the_engine_itself_never_takes_a_job_that_asks(asking: Fields) -> None:
    decision = engine.decide_submit(asking, CONTEXT, SIGNER)
    assert (decision.allowed, decision.rule) == (False, "tag.syntax")


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(["partition", "features", "user_name", "min_nodes", "extra.cut", "admin_comment", "user_id"]),
        st.sampled_from([b"phi", b"us", b"alice", b"9", b"\xff", b"x" * 9000, b"secure-slurm/1 x"]),
    ),
    st.sampled_from([EXTRA, "secure-slurm:class=none", "secure-slurm:", "secure-slurm:datasets=a", "secure-slurm:x"]),
)
def test_whoever_asks_is_refused_with_the_engines_own_verdict(more: Fields, extra: str) -> None:
    plain = {"submit_uid": b"1001", "user_id": b"1001", "user_name": b"alice", "partition": b"phi", **more}
    plain["extra"] = extra.encode()
    decision = EXPLAINER.decide({**plain, "extra": (extra + EXPLAIN).encode()}, CONTEXT)
    real = engine.decide_submit(plain, CONTEXT, SIGNER)
    found = told(decision)
    assert decision is not None
    assert not decision.allowed
    assert (found["allowed"], found["rule"], found["message"]) == (real.allowed, real.rule, real.message)


def test_a_defect_in_the_explanation_is_no_yes(asking: Fields, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explained, "explain", lambda *_: 1 / 0)
    found = told(EXPLAINER.decide({**asking, "features": b"us"}, CONTEXT))
    assert (found["allowed"], found["rule"], found["steps"]) == (False, "residency.constraint", [])
    real = engine.decide_submit
    monkeypatch.undo()
    monkeypatch.setattr(
        explained, "decide_submit", lambda *each: attrs.evolve(real(*each), rule="other", allowed=False)
    )
    found = told(EXPLAINER.decide(asking, CONTEXT))
    assert (found["allowed"], found["rule"]) == (False, "other")


def test_the_lines_are_those_of_the_policy_in_use(tmp_path: Path, asking: Fields) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(POLICY.read_bytes())
    policy = load_policy(str(path))
    explainer = Explainer(str(path), SIGNER)
    asked = {**asking, "extra": f"secure-slurm:class={policy.classes[0].name}{EXPLAIN}".encode()}

    def line() -> int | None:
        steps = told(explainer.decide(asked, Context(policy, make_snapshot())))["steps"]
        found: int | None = next(step for step in steps if step["step"] == "read_tag")["policy"][0]["line"]
        return found

    assert line() is None
    explainer.look(policy)
    first = line()
    assert first is not None
    assert policy.classes[0].name in path.read_text().splitlines()[first - 1]
    # the file is already another, and the policy in use is still the old one
    path.write_text("# one more line\n" + path.read_text())
    explainer.look(policy)
    assert line() == first
    newer = attrs.evolve(policy, hash=hashlib.sha256(path.read_bytes()).hexdigest())
    explainer.look(newer)
    assert line() is None
    policy = newer
    assert line() == first + 1
    path.unlink()
    explainer.look(attrs.evolve(policy, hash="00"))
    assert line() == first + 1


def test_what_is_too_long_loses_its_steps_and_never_its_verdict() -> None:
    step = {"step": "x" * 40000}
    base = {"explanation": 1, "allowed": False, "rule": "a.b", "message": "m", "advice": "", "nearest": None}
    one = json.loads(shortened({**base, "steps": [step]}))
    assert one["steps"] == [step]
    assert not one["cut"]
    two = json.loads(shortened({**base, "steps": [step, {"step": "last"}, step, {"step": "end"}]}))
    assert (two["cut"], two["steps"]) == (True, [{"step": "end"}])
    none = json.loads(shortened({**base, "steps": [{"step": "x" * 70000}]}))
    assert (none["cut"], none["steps"], none["rule"]) == (True, [], "a.b")
    least = json.loads(shortened({**base, "message": "x" * 70000, "steps": []}))
    assert (least["allowed"], least["rule"], least["message"]) == (False, "a.b", "")
