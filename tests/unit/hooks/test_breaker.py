"""The circuit breaker: what opens it and what does not, what closes it, and that one job alone can do neither."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_hooks.breaker import CLOSED, FAILURES, HALF_OPEN, IDLE, OPEN, PROBE_FIRST, PROBE_MOST, TRIAL, WINDOW, Breaker

RULE = "backend.unavailable"


def fail(breaker: Breaker, *jobs: int, now: float = 0.0) -> None:
    for job in jobs:
        breaker.failed(job, RULE, "Vault is away", now)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    fail(breaker, *range(1, FAILURES + 1), now=now)
    assert breaker.state == OPEN
    return breaker


def half_open() -> Breaker:
    breaker = opened()
    breaker.probed("", PROBE_FIRST)
    assert breaker.state == HALF_OPEN
    return breaker


def test_one_job_does_not_open_it_however_often_it_fails() -> None:
    breaker = Breaker()
    fail(breaker, *[7] * 100)
    assert (breaker.state, breaker.admit(8, 1)) == (CLOSED, "try")


def test_failures_that_are_long_ago_do_not_count() -> None:
    breaker = Breaker()
    for n in range(20):
        fail(breaker, n, now=n * WINDOW / (FAILURES - 1))
        assert breaker.state == CLOSED


def test_a_start_that_succeeds_takes_its_failure_back() -> None:
    breaker = Breaker()
    fail(breaker, 1, 2)
    breaker.succeeded(1, 5)
    fail(breaker, 3, now=6)
    assert breaker.state == CLOSED
    fail(breaker, 4, now=7)
    assert breaker.state == OPEN


def test_while_it_is_open_nothing_is_tried() -> None:
    breaker = opened()
    assert [breaker.admit(job, 1) for job in (1, 2, 50)] == ["no"] * 3
    assert breaker.held == 3
    # what was on its way when it opened closes nothing: the services are asked
    breaker.succeeded(50, 1)
    assert breaker.state == OPEN


def test_the_services_are_asked_less_and_less_often() -> None:
    breaker, now, asked = opened(), 0.0, []
    while now < 200:
        now += 0.5
        if breaker.probe_is_due(now):
            asked.append(now)
            breaker.probed("still away", now)
    pauses = [later - sooner for sooner, later in itertools.pairwise(asked)]
    assert asked[0] == PROBE_FIRST
    assert pauses[0] == 2 * PROBE_FIRST
    assert max(pauses) == PROBE_MOST
    assert (breaker.state, breaker.reason) == (OPEN, "still away")


def test_half_open_one_start_is_tried_and_the_others_wait() -> None:
    breaker = half_open()
    assert not breaker.has_trial(3)
    assert breaker.admit(10, 3) == "try"
    assert breaker.has_trial(3)
    assert [breaker.admit(job, 4) for job in (11, 12)] == ["wait"] * 2
    # the trial asks again, as PrologSlurmctld does
    assert breaker.admit(10, 5) == "try"


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = half_open()
    breaker.admit(10, 3)
    breaker.succeeded(10, 4)
    assert (breaker.state, breaker.failures, breaker.admit(11, 5)) == (CLOSED, 0, "try")


def test_a_trial_that_fails_opens_it_for_longer() -> None:
    breaker = half_open()
    breaker.admit(10, 3)
    fail(breaker, 10, now=50)
    assert (breaker.state, breaker.admit(11, 51)) == (OPEN, "no")
    assert not breaker.probe_is_due(50 + PROBE_FIRST)
    assert breaker.probe_is_due(50 + 2 * PROBE_FIRST)


def test_a_trial_that_says_nothing_makes_room_for_the_next() -> None:
    breaker = half_open()
    breaker.admit(10, 3)
    breaker.without_verdict(99)
    assert breaker.admit(11, 4) == "wait"
    breaker.without_verdict(10)
    assert breaker.admit(11, 5) == "try"


def test_a_trial_that_nobody_heard_of_again_is_given_up() -> None:
    breaker = half_open()
    breaker.admit(10, 3)
    assert breaker.admit(11, 3 + TRIAL) == "wait"
    assert breaker.admit(11, 4 + TRIAL) == "try"


def test_half_open_with_nobody_to_try_it_closes_after_a_while() -> None:
    breaker = half_open()
    breaker.nobody_waits(PROBE_FIRST + IDLE)
    assert breaker.state == HALF_OPEN
    breaker.admit(10, 70)
    breaker.nobody_waits(80)
    assert breaker.state == HALF_OPEN
    breaker.without_verdict(10)
    breaker.nobody_waits(80)
    assert (breaker.state, breaker.failures) == (CLOSED, 0)
    still = opened()
    still.nobody_waits(1000)
    assert still.state == OPEN


@pytest.mark.parametrize("state", [CLOSED, HALF_OPEN])
def test_an_answer_to_a_question_that_is_over_changes_nothing(state: str) -> None:
    breaker = Breaker() if state == CLOSED else half_open()
    for problem in ("", "away"):
        breaker.probed(problem, 9)
        assert breaker.state == state


@given(
    st.lists(
        st.tuples(st.sampled_from(["failed", "succeeded", "nothing", "good", "bad", "admit"]), st.integers(1, 6)),
        max_size=60,
    )
)
def test_it_is_never_stuck(acts: list[tuple[str, int]]) -> None:
    """Whatever happened: when the services answer, one job that gets through closes it."""
    breaker, now = Breaker(), 0.0
    for act, job in acts:
        now += 1
        if act == "failed":
            fail(breaker, job, now=now)
        elif act == "succeeded":
            breaker.succeeded(job, now)
        elif act == "nothing":
            breaker.without_verdict(job)
        elif act == "admit":
            may = {CLOSED: {"try"}, OPEN: {"no"}, HALF_OPEN: {"try", "wait"}}[breaker.state]
            assert breaker.admit(job, now) in may
        elif breaker.probe_is_due(now):
            breaker.probed("" if act == "good" else "away", now)
    now += PROBE_MOST + TRIAL + 1
    if breaker.state == OPEN:
        assert breaker.probe_is_due(now)
        breaker.probed("", now)
    assert breaker.admit(1000, now) == "try"
    breaker.succeeded(1000, now)
    assert breaker.state == CLOSED
