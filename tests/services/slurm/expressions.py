"""Random constraint expressions as users write them, and as nobody should: always the same ones."""

from __future__ import annotations

import random

SEED = 16
COMMON = ("a", "b", "c")
RARE = ("us", "eu", "p-q", "k=v", "t3.micro", "m+n", "g:2", "neu", "eu-x", "eu.1")
# what slurmctld, or the check in front of it, may trip over
JUNK = "aabbc eu us ()[]&&||,*12!;'\"\\%~ä\t"


def expressions(number: int) -> list[str]:
    """``number`` different ones; every form of Slurm's grammar, and what is just outside it."""
    source = random.Random(SEED)  # noqa: S311  the same ones in every run
    found: dict[str, None] = {}
    while len(found) < number:
        found[_one(source)] = None
    return list(found)


def _one(source: random.Random) -> str:
    forms = (_chain, _chain, _chain, _chain, _grouped, _grouped, _grouped, _grouped, _either, _near, _counted, _junk)
    return source.choice(forms)(source)


def _name(source: random.Random) -> str:
    if source.random() < 0.01:
        return "nowhere"
    return source.choice(COMMON if source.random() < 0.75 else RARE)


def _join(source: random.Random, parts: list[str], operators: str = "&|,") -> str:
    return parts[0] + "".join(source.choice(operators) + part for part in parts[1:])


def _chain(source: random.Random) -> str:
    return _join(source, [_name(source) for _ in range(source.randint(1, 4))])


def _grouped(source: random.Random) -> str:
    parts = [f"({_chain(source)})" if source.random() < 0.5 else _name(source) for _ in range(source.randint(1, 4))]
    return _join(source, parts)


def _either(source: random.Random) -> str:
    inside = "|".join(_name(source) for _ in range(source.randint(1, 4)))
    return f"[{inside}]" + source.choice(("", "", "&eu"))


def _near(source: random.Random) -> str:
    """Nested, mixed or unbalanced brackets, and doubled operators."""
    one, two = _chain(source), _chain(source)
    forms = (f"(({one}))", f"(({one})|{two})", f"[{one}]", f"[({one})|{two}]", f"[a|b]&{one}", f"{one}&[a|b]")
    more = (f"({one}", f"{one})", f"[{one}", "[a|b]&[b|c]", f"{one}&&{two}", f"{one}|", f"&{one}", f"({one}){two}")
    return source.choice((*forms, *more, f"([a|b])|{one}", f"[a|b]|{one}", f"[a|b],{one}", f"{one},,{two}"))


def _counted(source: random.Random) -> str:
    terms = [f"{_name(source)}*{source.randint(0, 3)}" for _ in range(source.randint(1, 3))]
    forms = (_join(source, terms), f"[{'&'.join(terms)}]", f"[{'|'.join(terms)}]", f"({_chain(source)})*2")
    return source.choice((*forms, f"[({_chain(source)})*1&{terms[0]}]", f"{_chain(source)}&{terms[0]}"))


def _junk(source: random.Random) -> str:
    return "".join(source.choice(JUNK) for _ in range(source.randint(1, 9)))
