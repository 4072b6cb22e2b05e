"""Marks behind a decision record: what is one, what it counts for, and what becomes of a job by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_hooks import tries
from slurm_hooks.tries import Mark, judge, of_comment, read, so_far, write

RECORD = "secure-slurm/1 cluster=test mac=ab"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[rbac.role] no role",
        "[rbac.role] waits try=1 restart=0: [x] y",
        "waits try=1 restart=0: no rule",
        "waits try=1 restart=0 [x]",
        "waits try=x restart=0: [x]",
        "waits try=-1 restart=0: [x]",
        "waits try=1 restart=\u0661: [x]",
        "waits try=12345 restart=0: [x]",
        "Waits try=1 restart=0: [x]",
        " waits try=1 restart=0: [x]",
        "released try=1 restart=0: [x]",
        "x | waits try=1 restart=0: [x]",
    ],
)
def test_what_is_no_mark(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize("comment", [None, 7, "", RECORD, "waits try=1 restart=0: [x] y", f"{RECORD} | [a] b"])
def test_a_comment_without_one(comment: object) -> None:
    assert of_comment(comment) is None


@given(
    st.sampled_from([tries.WAITING, tries.REQUEUED, tries.WAITS, tries.TWICE]),
    st.integers(0, 9999),
    st.integers(0, 10**9 - 1),
    st.text(max_size=100),
)
def test_what_is_written_is_read(word: str, count: int, restarts: int, text: str) -> None:
    mark = Mark(word, count, restarts, f"[{text}")
    assert read(write(mark)) == mark
    assert of_comment(f"{RECORD} | {write(mark)}") == mark


@pytest.mark.parametrize(
    ("mark", "restarts", "count"),
    [
        (None, 3, 0),
        (Mark(tries.REQUEUED, 1, 2, "[x]"), 3, 1),
        (Mark(tries.WAITING, 1, 3, "[x]"), 3, 1),
        # an earlier start: it has run since, or was requeued for another reason
        (Mark(tries.REQUEUED, 1, 1, "[x]"), 3, 0),
        # a restored state: a start that has not been
        (Mark(tries.REQUEUED, 1, 4, "[x]"), 3, 0),
    ],
)
def test_only_starts_in_a_row_count(mark: Mark | None, restarts: int, count: int) -> None:
    assert so_far(mark, restarts) == count


@pytest.mark.parametrize(
    ("count", "tried", "outage", "word"),
    [
        (1, True, False, tries.REQUEUED),
        (1, True, True, tries.REQUEUED),
        (2, True, False, tries.TWICE),
        (2, True, True, tries.WAITS),
        (3, True, False, tries.TWICE),
        (0, False, True, tries.WAITS),
        (1, False, True, tries.WAITS),
        (2, False, False, tries.WAITS),
        (tries.MOST, True, True, tries.TWICE),
        (tries.MOST, False, True, tries.TWICE),
    ],
)
def test_what_becomes_of_it(count: int, tried: bool, outage: bool, word: str) -> None:
    assert judge(count, tried=tried, outage=outage) == word


def test_no_job_is_sent_back_for_ever() -> None:
    for outage in (True, False):
        assert [judge(n, tried=True, outage=outage) for n in range(1, 20)].count(tries.REQUEUED) == 1
    assert all(judge(n, tried=tried, outage=True) == tries.TWICE for n in range(tries.MOST, 20) for tried in (0, 1))
