"""The same jobs where features are a plugin's: then slurmctld reads ``&`` before ``|``, and brackets otherwise."""

from __future__ import annotations

import random

import pytest

from tests.services.slurm.controller import ABROAD, Controller
from tests.services.slurm.expressions import SEED
from tests.services.slurm.forced import jobs, led_abroad


@pytest.mark.parametrize("expression", ["a|b&eu", "a|(b&c)&eu", "a|k=v&eu", "us|a&eu"])
def test_a_feature_at_the_end_does_not_bind_alternatives(changeable: Controller, expression: str) -> None:
    changeable.only(ABROAD)

    assert led_abroad([["-C", expression]], changeable.ask([["-C", expression]]))


def test_nothing_starts_while_no_node_at_home_is_up(changeable: Controller) -> None:
    changeable.only(ABROAD)

    answers = changeable.ask(jobs())

    assert led_abroad(jobs(), answers) == []
    print(f"Slurm {changeable.version()}: {len(answers)} jobs, none starts abroad")


def test_every_node_of_an_allocation_is_at_home(changeable: Controller) -> None:
    source = random.Random(SEED)  # noqa: S311  the same ones in every run
    asked = [[*job, f"-N{source.choice((1, 2, 3))}"] for job in jobs()]
    changeable.only({"e3", *ABROAD})

    answers = changeable.ask(asked)

    assert led_abroad(asked, answers) == []
    started = sum(bool(answer.nodes) for answer in answers)
    print(f"Slurm {changeable.version()}: {len(answers)} jobs for 1 to 3 nodes, {started} start, all at home")
    assert started > len(answers) / 20
