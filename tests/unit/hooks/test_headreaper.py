"""Every reason to leave a start alone, each by itself; and the one way in which it is over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import BackendUnavailable
from slurm_hooks.headreaper import (
    AFTER_END,
    ALIVE,
    APART,
    FINISHED,
    LOOK_EVERY,
    SETTLED,
    WAITING,
    Held,
    Sightings,
    Verdict,
    judge,
    may_be_over,
)
from slurm_hooks.slurmview import Controller, Seen, View

HELD = Held(17, "ab" * 16, ("n1", "n2"), 1, 1_790_000_000)
SLURM = Controller("test", "1789990000", 3600, 1000, 300, hides=False)
OVER = Verdict(True, "said so")


def view(*seen: tuple[int, Seen], **changes: Any) -> View:
    return View(SLURM._replace(**changes), dict(seen))


def unlisted(**changes: Any) -> Verdict:
    return judge(HELD, view(**changes), frozenset({17}))


def listed(state: str, restarts: int = 1, ended: int = 1_790_000_100, held: Held = HELD) -> Verdict:
    return judge(held, view((17, Seen(state, restarts, ended))), frozenset({17}))


def test_slurmctld_says_that_there_is_no_such_job() -> None:
    assert unlisted() == Verdict(True, "slurmctld knows no such job")


def test_a_job_that_is_not_in_the_list_is_not_gone() -> None:
    assert not judge(HELD, view(), frozenset()).over
    assert not judge(HELD, view(), frozenset({16, 18})).over


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hides": True}, "PrivateData"),
        ({"next_job": 17}, "has not given that number yet"),
        ({"next_job": 5}, "has not given that number yet"),
        ({"up_for": SETTLED - 1}, "after its start"),
        ({"up_for": -5000}, "0 s after its start"),
    ],
)
def test_that_it_knows_no_such_job_may_mean_nothing(changes: dict[str, Any], why: str) -> None:
    verdict = unlisted(**changes)
    assert not verdict.over
    assert why in verdict.why


def test_the_last_number_that_was_given_counts() -> None:
    assert unlisted(next_job=18).over


@pytest.mark.parametrize("state", sorted(FINISHED))
def test_a_finished_job_is_over(state: str) -> None:
    assert listed(state).over
    assert listed(state, restarts=2).over


@pytest.mark.parametrize("state", [*sorted(ALIVE), "REVOKED", "POWER_UP_NODE", "LAUNCH_FAILED", "SOMETHING_NEW"])
def test_whatever_else_slurm_calls_it_it_is_alive(state: str) -> None:
    for restarts in (0, 1, 2):
        assert not listed(state, restarts).over


def test_the_three_sets_have_nothing_in_common() -> None:
    assert not FINISHED & WAITING
    assert not FINISHED & ALIVE
    assert not WAITING & ALIVE


@pytest.mark.parametrize("state", sorted(FINISHED | WAITING))
def test_a_restored_state_that_is_older_than_the_start(state: str) -> None:
    assert not listed(state, restarts=0).over


@pytest.mark.parametrize("state", sorted(WAITING))
def test_a_waiting_job_is_over_only_if_it_was_requeued_since(state: str) -> None:
    assert not listed(state, restarts=1).over
    assert listed(state, restarts=2).over
    assert not listed(state, restarts=2, held=HELD._replace(restarts=None)).over


def test_what_was_made_after_the_end_is_of_another_job_with_the_number() -> None:
    assert listed("COMPLETED", ended=HELD.made - AFTER_END).over
    assert not listed("COMPLETED", ended=HELD.made - AFTER_END - 1).over
    assert listed("COMPLETED", ended=0).over


@given(made=st.integers(0, 2**40), ended=st.integers(0, 2**40), state=st.sampled_from(sorted(ALIVE)))
def test_no_clock_makes_an_alive_job_over(made: int, ended: int, state: str) -> None:
    assert not listed(state, ended=ended, held=HELD._replace(made=made)).over


def test_which_jobs_are_looked_at_more_closely() -> None:
    seen = view((1, Seen("RUNNING", 0, 0)), (2, Seen("COMPLETED", 0, 0)), (3, Seen("PENDING", 0, 0)))
    assert [job for job in (1, 2, 3, 4) if may_be_over(job, seen)] == [2, 3, 4]


def due(sightings: Sightings, now: float, *judged: tuple[Held, Verdict], boot: str = "1") -> list[int]:
    return [held.job for held, _ in sightings.due(now, boot, judged)]


def test_once_is_not_enough_and_soon_is_not_twice() -> None:
    sightings = Sightings()
    assert due(sightings, 100.0, (HELD, OVER)) == []
    assert due(sightings, 100.0 + APART - 0.1, (HELD, OVER)) == []
    assert due(sightings, 100.0 + APART, (HELD, OVER)) == [17]
    # until it is done: Vault may have been away
    assert due(sightings, 100.0 + APART + 1, (HELD, OVER)) == [17]


def test_the_evidence_says_both_times() -> None:
    sightings = Sightings()
    due(sightings, 100.0, (HELD, OVER))
    assert sightings.due(125.0, "1", [(HELD, OVER)]) == [(HELD, "said so, the second time after 25 s")]


@pytest.mark.parametrize("between", [[(HELD, Verdict(False, "alive"))], []], ids=["alive", "not there"])
def test_whatever_contradicts_begins_anew(between: list[tuple[Held, Verdict]]) -> None:
    sightings = Sightings()
    due(sightings, 100.0, (HELD, OVER))
    due(sightings, 110.0, *between)
    assert due(sightings, 130.0, (HELD, OVER)) == []
    assert due(sightings, 130.0 + APART, (HELD, OVER)) == [17]


def test_another_start_of_the_job_is_another() -> None:
    sightings = Sightings()
    due(sightings, 100.0, (HELD, OVER))
    assert due(sightings, 130.0, (HELD._replace(start="cd" * 16), OVER)) == []


def test_another_slurmctld_begins_anew() -> None:
    sightings = Sightings()
    due(sightings, 100.0, (HELD, OVER), boot="1")
    assert due(sightings, 130.0, (HELD, OVER), boot="2") == []
    assert due(sightings, 150.0, (HELD, OVER), boot="1") == []
    assert due(sightings, 150.0 + APART, (HELD, OVER), boot="1") == [17]


def test_a_look_that_came_to_nothing_counts_for_nothing() -> None:
    sightings = Sightings()
    due(sightings, 100.0, (HELD, OVER))
    sightings.forget()
    assert due(sightings, 130.0, (HELD, OVER)) == []


RUNS = (17, Seen("RUNNING", 0, 0))


def plausible(sightings: Sightings, now: float, *seen: tuple[int, Seen], **changes: Any) -> None:
    sightings.check_plausible(now, view(*seen, **changes))


def test_what_is_hidden_is_not_missing() -> None:
    sightings = Sightings()
    plausible(sightings, 100.0, RUNS)
    plausible(sightings, 115.0, hides=True)
    # nor is what was seen before that compared with what is seen after it
    plausible(sightings, 130.0)


@pytest.mark.parametrize("keeps", [300, 0])
def test_a_list_without_what_ran_a_moment_ago_is_not_believed(keeps: int) -> None:
    sightings = Sightings()
    plausible(sightings, 100.0, RUNS, keeps=keeps)
    due(sightings, 100.0, (HELD._replace(job=5), OVER))
    with pytest.raises(BackendUnavailable, match="job 17"):
        plausible(sightings, 115.0, keeps=keeps)
    # and what was seen before must be seen twice again
    plausible(sightings, 125.0, RUNS, keeps=keeps)
    assert due(sightings, 125.0, (HELD._replace(job=5), OVER)) == []


@pytest.mark.parametrize(
    ("later", "changes"),
    [
        ([(17, Seen("COMPLETED", 0, 0))], {}),
        ([(17, Seen("PENDING", 1, 0))], {}),
        ([], {"keeps": 10}),
        ([], {"boot": "another"}),
    ],
    ids=["ended", "requeued", "forgotten as it should be", "another slurmctld"],
)
def test_a_list_that_explains_itself(later: list[tuple[int, Seen]], changes: dict[str, Any]) -> None:
    sightings = Sightings()
    plausible(sightings, 100.0, RUNS)
    plausible(sightings, 115.0, *later, **changes)


def test_the_next_look() -> None:
    sightings = Sightings()
    assert sightings.wait(100.0) == LOOK_EVERY
    due(sightings, 100.0, (HELD, OVER))
    assert sightings.wait(100.5) == LOOK_EVERY
    assert sightings.wait(115.5) == pytest.approx(4.5)
    # with Vault away it is not asked without a pause
    assert sightings.wait(190.0) == 1.0
