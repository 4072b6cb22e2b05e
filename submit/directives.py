"""``#SECURE`` lines in a batch script: ``#SECURE --class=phi --residency=eu --scratch=200M``.

They stand before the first command, as ``#SBATCH`` lines do (src/sbatch/opt.c: the first line that is neither empty
nor a comment ends them). The filter in slurmctld looks at every such line wherever it stands, so one that stands too
low is an error here: what a script says about its data must not depend on who reads it.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from conf.errors import UsageError
from conf.quote import did_you_mean, quote
from conf.tag import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

WORD = "#SECURE"
_ADVICE = f"write it as in: {WORD} --class=phi --residency=eu --scratch=200M"


def read_directives(script: bytes) -> dict[str, str]:
    """What the script says, by tag key, as written.

    Raises UsageError with the line number: an unknown or repeated and different option, a line below a command.
    """
    found: dict[str, tuple[str, int]] = {}
    for number, words in _lines(script):
        for key, value in _pairs(words, number):
            if key == "datasets" and key in found:
                found[key] = (f"{found[key][0]},{value}", number)
                continue
            before = found.setdefault(key, (value, number))
            if before[0] != value:
                raise UsageError(
                    f"the script says --{key}={quote(before[0])} in line {before[1]} and "
                    f"--{key}={quote(value)} in line {number}",
                    advice="remove one of them",
                )
    return {key: value for key, (value, _) in found.items()}


def _lines(script: bytes) -> Iterator[tuple[int, list[str]]]:
    in_head = True
    for number, line in enumerate(script.decode("utf-8", "surrogateescape").split("\n"), 1):
        if _is_ours(line):
            if not in_head:
                raise UsageError(
                    f"line {number} of the script is a {WORD} line below the first command",
                    advice="move it up, beside the #SBATCH lines",
                )
            yield number, _words(line.removeprefix(WORD).rstrip("\r"), number)
        elif line.strip() and not line.lstrip().startswith("#"):
            in_head = False


def _is_ours(line: str) -> bool:
    """``#SECURELY`` is a comment; ``#SECURE--class=phi`` is somebody's attempt at a tag, and must not pass for one."""
    return line.startswith(WORD) and not line[len(WORD) : len(WORD) + 1].isalpha()


def _words(rest: str, number: int) -> list[str]:
    try:
        words = shlex.split(rest, comments=True) if rest[:1] in {" ", "\t"} else []
    except ValueError:
        words = []
    if not words:
        raise UsageError(f"line {number} of the script is not understood", advice=_ADVICE)
    return words


def _pairs(words: list[str], number: int) -> Iterator[tuple[str, str]]:
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        key = OPTIONS.get(name.removeprefix("--").removeprefix("secure-"))
        if not name.startswith("--") or key is None:
            hint = did_you_mean(name, ["--" + each for each in OPTIONS])
            raise UsageError(f"line {number} of the script: unknown option {quote(name)}{hint}", advice=_ADVICE)
        if not equals:
            value = next(left, "")
        if not value:
            raise UsageError(f"line {number} of the script: {name} has no value", advice=_ADVICE)
        yield key, value
