"""The suite's own options, read from the front of the command line and nowhere else.

No parser ever sees the scheduler's options: argparse takes ``--export`` for an abbreviation of one of ours, and any
parser that looks further than the front takes a job that is *named* ``--secure-class``, or an argument of the user's
own script, for an option. sbatch itself stops at the first word that is no option (getopt_long with ``+``,
src/common/slurm_opt.c); so the front is all that is ours, and the rest is passed on byte for byte.
"""

from __future__ import annotations

from typing import NamedTuple

from conf.errors import UsageError
from conf.quote import did_you_mean, quote
from conf.tag import OPTIONS

PREFIX = "--secure-"
VALUED = tuple(OPTIONS)
FLAGS = ("help", "version", "dry-run", "explain", "json")


class Own(NamedTuple):
    """What the front of the command line says: ``values`` by tag key, as written, and the flags."""

    values: dict[str, str]
    flags: frozenset[str]


def split_argv(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words that are ours and the words that are the scheduler's: together always ``argv``, unchanged.

    A valued option takes ``=value`` or the next word, whatever that is. Nothing is judged here: see :func:`parse_own`.
    """
    index = 0
    while index < len(argv) and argv[index].startswith(PREFIX):
        takes_next = argv[index].removeprefix(PREFIX) in VALUED
        index += 2 if takes_next and index + 1 < len(argv) else 1
    return argv[:index], argv[index:]


def parse_own(own: list[str]) -> Own:
    """Read the words that :func:`split_argv` found. UsageError: unknown, without a value, or twice and different."""
    values: dict[str, str] = {}
    flags: set[str] = set()
    words = iter(own)
    for word in words:
        name, equals, value = word.removeprefix(PREFIX).partition("=")
        if name in FLAGS:
            if equals:
                raise UsageError(f"{PREFIX}{name} takes no value", advice=f"write {PREFIX}{name} alone")
            flags.add(name)
            continue
        if name not in VALUED:
            known = [PREFIX + each for each in (*VALUED, *FLAGS)]
            hint = did_you_mean(PREFIX + name, known)
            raise UsageError(f"unknown option {quote(PREFIX + name)}{hint}", advice=f"see {PREFIX}help")
        if not equals:
            value = next(words, "")
        _add(values, name, value)
    return Own(values, frozenset(flags))


def _add(values: dict[str, str], name: str, value: str) -> None:
    if not value:
        raise UsageError(f"{PREFIX}{name} has no value", advice=f"write {PREFIX}{name}=VALUE")
    key = OPTIONS[name]
    if key == "datasets" and key in values:
        # one more of them is one more, as --mount and --env of other tools
        values[key] = f"{values[key]},{value}"
    elif values.setdefault(key, value) != value:
        raise UsageError(
            f"{PREFIX}{name} is given twice: {quote(values[key])} and {quote(value)}", advice="give it once"
        )
