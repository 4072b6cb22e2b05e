"""What trails should say and do not: each gap once, and a whole story without any."""

from __future__ import annotations

from typing import Any

import pytest

from audit.facts import gather, seconds
from audit.gaps import find, open_keys

A = "a" * 32
KEY = f"n1_test-17-{1:016x}"
NONCE = "c" * 32

Line = dict[str, Any]


def line(second: int, event: str, writer: str = "lifecycle", host: str = "head", **fields: Any) -> Line:
    time = f"2026-11-21T20:{second // 60:02}:{second % 60:02}.000000Z"
    return {
        "event": event,
        "time": time,
        "writer": writer,
        "host": host,
        "seq": second,
        "hash": f"{second:064x}",
        **fields,
    }


DECISION = line(1, "decision", "decision", nonce=NONCE, verdict="allow")
START = line(10, "start.judged", job=17, verdict="allow", incarnation=A, nonce=NONCE, nodes="n1", scratch=2**20)
CREATE = line(11, "key.create", job=17, incarnation=A, node="n1", key=KEY)
DATAKEY = line(12, "node.datakey", "node", "n1", job=17, node="n1", incarnation=A, key=KEY)
READY = line(13, "scratch.ready", "node", "n1", job=17, node="n1", incarnation=A)
PENDING = line(20, "revocation.pending", job=17, reason="the job ended on n1")
GONE = line(21, "scratch.gone", "node", "n1", job=17, node="n1", incarnation=A)
DELETE = line(22, "key.delete", job=17, node="n1", key=KEY)
DONE = line(23, "revocation.done", job=17, count=1)
CERTIFICATE = line(24, "destruction.certificate", job=17)
LATER = line(600, "decision", "decision", verdict="refuse")
STORY = [DECISION, START, CREATE, DATAKEY, READY, PENDING, GONE, DELETE, DONE, CERTIFICATE, LATER]


def gaps(lines: list[Line]) -> list[tuple[str, int]]:
    return [(gap.kind, gap.job) for gap in find(gather(lines))]


def without(*lines: Line) -> list[Line]:
    return [one for one in STORY if one not in lines]


def test_a_whole_story() -> None:
    assert gaps(STORY) == []
    assert open_keys(gather(STORY)) == []
    # the order of the files is not that of time
    assert gaps([*STORY[3:], *STORY[:3]]) == []


def test_nothing_is_no_gap() -> None:
    assert gaps([]) == []


def test_on_a_node_there_are_only_its_own_trails() -> None:
    assert gaps([DATAKEY, READY, GONE, line(900, "hook.error", "node", "n1")]) == []


@pytest.mark.parametrize(
    ("left_out", "kind"),
    [
        ([CREATE, DATAKEY, READY, GONE, DELETE], "start-without-key"),
        ([DELETE], "key-without-revocation"),
        ([GONE], "mapping-unconfirmed"),
        ([DATAKEY, READY, GONE], "segment-missing"),
        ([CERTIFICATE], "certificate-missing"),
    ],
)
def test_what_is_missing_is_named(left_out: list[Line], kind: str) -> None:
    assert gaps(without(*left_out)) == [(kind, 17)]


REFUSED = line(14, "start.refused", job=17, rule="keys.not_wanted")
BACK = line(13, "key.delete", job=17, node="n1", key=KEY, result="taken-back")
UNMADE = line(13, "key.unmade", job=17, node="n1", key=KEY)


@pytest.mark.parametrize("end", [BACK, UNMADE], ids=["taken back", "never asked for"])
def test_a_start_whose_keys_were_taken_back(end: Line) -> None:
    """No node was told of it, and nothing of it needs a certificate."""
    story = [DECISION, START, CREATE, end, REFUSED, PENDING, LATER]
    assert gaps(story) == []
    assert open_keys(gather(story)) == []
    # a node that has scratch by it all the same
    told = [DECISION, START, CREATE, DATAKEY, READY, end, REFUSED, PENDING, LATER]
    assert gaps(told) == [("mapping-unconfirmed", 17)]


def test_a_start_without_its_decision() -> None:
    other = {**DECISION, "nonce": "d" * 32}
    assert gaps([other, *STORY[1:]]) == [("job-without-decision", 17)]
    # the decision trail is not here at all: nothing can be said of that
    assert gaps([*without(DECISION, LATER), line(600, "vault.login")]) == []


def test_a_key_whose_making_is_not_told() -> None:
    assert ("key-without-creation", 17) in gaps(without(CREATE))


def test_a_job_that_runs_is_no_gap() -> None:
    lines = without(PENDING, GONE, DELETE, DONE, CERTIFICATE)
    assert gaps(lines) == []
    assert [key.name for key in open_keys(gather(lines))] == [KEY]


def test_what_an_admin_revokes_is_not_over() -> None:
    revoked = line(15, "revocation.pending", job=17, reason="job 17: a test")
    assert gaps([*without(PENDING, GONE, DELETE, DONE, CERTIFICATE), revoked]) == []


def test_a_start_that_failed_after_all() -> None:
    refused = line(12, "start.refused", job=17, rule="backend.unavailable")
    assert gaps([DECISION, START, refused, LATER]) == []


def test_what_happened_just_now_may_be_on_its_way() -> None:
    assert gaps(without(LATER, CERTIFICATE, GONE)) == []


def test_clocks() -> None:
    back = [line(30, "vault.login"), {**line(10, "vault.login"), "seq": 31}]
    (gap,) = find(gather(back))
    assert (gap.kind, gap.job) == ("clock", 0)
    assert "head-lifecycle went back by 20.0 s before its line 31" in gap.what
    # another chain of that name, a step within the tolerance
    assert gaps([line(30, "vault.login"), {**line(10, "vault.login"), "seq": 1}]) == []
    assert gaps([line(30, "vault.login"), {**line(29, "vault.login"), "seq": 31}]) == []
    early = {**READY, "time": "2026-11-21T20:00:02.000000Z"}
    # by its own trail, and by the head node's
    assert gaps([early if one is READY else one for one in STORY]) == [("clock", 0), ("clock", 17)]


def test_folded_refusals_are_counted() -> None:
    folded = [line(5, "decision.folded", "decision", count=count) for count in (0, 7, 8)]
    assert gather(folded).folded == 15


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T02:08:06.092790784Z", 1795313286.09279),
        ("2026-11-22T02:08:06Z", 1795313286.0),
        ("", 0.0),
        ("yesterday", 0.0),
        ("9999-99-99T00:00:00Z", 0.0),
    ],
)
def test_times(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected, abs=1e-5)
