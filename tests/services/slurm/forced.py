"""The random expressions, judged by constraint.force, and the jobs that they become."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from conf.errors import Refused
from slurm_hooks import constraint
from tests.services.slurm.controller import HOME, Answer
from tests.services.slurm.expressions import SEED, expressions

EXPRESSIONS = 2200
# more than there are nodes at home: whatever starts on so many has been led abroad
TOO_MANY = len(HOME) + 1


@cache
def judged() -> tuple[dict[str, str], tuple[str, ...]]:
    """Accepted expressions with their forced form, and the refused ones."""
    accepted, refused = {}, []
    for expression in expressions(EXPRESSIONS):
        try:
            accepted[expression] = constraint.force(expression, "eu")
        except Refused:
            refused.append(expression)
    return accepted, tuple(refused)


@cache
def jobs() -> list[list[str]]:
    """A job for each accepted expression, as the filter would leave it: every other with a preference too."""
    source = random.Random(SEED)  # noqa: S311  the same ones in every run
    forced = list(judged()[0].values())
    made = [["-C", one, *([f"--prefer={source.choice(forced)}"] if source.random() < 0.5 else [])] for one in forced]
    # a preference alone: the feature is then the whole constraint
    return made + [["-C", "eu", f"--prefer={one}"] for one in source.sample(forced, 200)]


def led_abroad(asked: Sequence[Sequence[str]], answers: Sequence[Answer]) -> list[tuple[Sequence[str], list[str]]]:
    """The jobs that got a node outside the EU."""
    pairs = zip(asked, answers, strict=True)
    return [(job, sorted(answer.nodes)) for job, answer in pairs if answer.nodes - set(HOME)]
