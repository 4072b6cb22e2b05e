"""constraint.force against the real slurmctld, for random expressions: no job leaves, none loses a node at home."""

from __future__ import annotations

import random

import pytest

from tests.services.slurm.controller import ABROAD, HOME, NODES, Controller
from tests.services.slurm.expressions import SEED
from tests.services.slurm.forced import EXPRESSIONS, TOO_MANY, jobs, judged, led_abroad


def test_there_are_enough_of_both() -> None:
    accepted, refused = judged()
    print(f"{len(accepted) + len(refused)} expressions: {len(accepted)} accepted, {len(refused)} refused")

    assert len(accepted) + len(refused) == EXPRESSIONS
    assert len(accepted) > EXPRESSIONS / 2
    assert len(refused) > EXPRESSIONS / 5


@pytest.mark.parametrize(
    "job",
    [
        *(["-C", "a"], ["-C", "us|a"], ["-C", "[a|b]"], ["-C", "a*2"], ["-C", "eu", "--prefer=us"]),
        *(["-C", "eu&us|a"], ["-C", "[a*1&b*1]&eu"], ["-C", "eu-x"]),
    ],
)
def test_what_is_known_to_lead_abroad_is_seen(slurm: Controller, job: list[str]) -> None:
    slurm.only(ABROAD)

    assert led_abroad([job], slurm.ask([job]))


def test_nothing_starts_while_no_node_at_home_is_up(slurm: Controller) -> None:
    slurm.only(ABROAD)

    answers = slurm.ask(jobs())

    assert led_abroad(jobs(), answers) == []
    print(f"Slurm {slurm.version()}: {len(answers)} jobs, none starts abroad")


@pytest.mark.parametrize("home", [{"e3"}, set(HOME)], ids=["one-node-at-home", "all-nodes"])
def test_every_node_of_an_allocation_is_at_home(slurm: Controller, home: set[str]) -> None:
    """Nodes abroad are the scheduler's first choice, and some of these jobs need more nodes than there are at home."""
    source = random.Random(SEED)  # noqa: S311  the same ones in every run
    numbers = (1, 2, 3, TOO_MANY) if home == set(HOME) else (1, 2, 3)
    asked = [[*job, f"-N{source.choice(numbers)}"] for job in jobs()]
    slurm.only({*home, *ABROAD})

    answers = slurm.ask(asked)

    assert led_abroad(asked, answers) == []
    started = sum(bool(answer.nodes) for answer in answers)
    print(f"Slurm {slurm.version()}: {len(answers)} jobs for 1 to {numbers[-1]} nodes, {started} start, all at home")
    assert started > len(answers) / 20


def test_no_node_at_home_is_lost(slurm: Controller) -> None:
    """Node by node: a job may have it with the feature forced exactly if it may have it without."""
    # every other expression: this is the long part
    accepted = dict(list(judged()[0].items())[::2])
    users, forced = [["-C", one] for one in accepted], [["-C", one] for one in accepted.values()]
    possible = 0
    for node in HOME:
        slurm.only({node})
        wanted = [answer.nodes for answer in slurm.ask(users)]
        left = [answer.nodes for answer in slurm.ask(forced)]
        differ = [(one, node) for one, before, after in zip(accepted, wanted, left, strict=True) if before != after]
        assert differ == []
        possible += sum(map(bool, wanted))
    # what they may have abroad is nothing: test_nothing_starts_while_no_node_at_home_is_up
    print(f"Slurm {slurm.version()}: {len(accepted)} expressions, {possible} pairs with a node at home, all kept")
    assert len(accepted) / 2 < possible < len(accepted) * len(HOME)


def test_what_is_refused_would_lead_abroad(slurm: Controller) -> None:
    """Some of it: the feature behind a count binds nothing. Most of the rest is no constraint to Slurm either."""
    _, refused = judged()
    asked = [["-C", f"{one}&eu", "-N2"] for one in refused]
    slurm.only(NODES)

    answers = slurm.ask(asked)

    invalid = sum("Invalid feature" in answer.words for answer in answers)
    abroad = led_abroad(asked, answers)
    print(f"Slurm {slurm.version()}: {len(refused)} refused, {invalid} invalid to Slurm too, {len(abroad)} led abroad")
    assert abroad
