"""``#SECURE`` lines in a batch script: ``#SECURE --class=phi --residency=eu --scratch=200M``.

They stand before the first command, as ``#SBATCH`` lines do (src/sbatch/opt.c: the first line that is neither empty
nor a comment ends them). The filter in slurmctld looks at every such line wherever it stands, so one that stands too
low is an error here: what a script says about its data must not depend on who reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conf.errors import UsageError
from conf.quote import did_you_mean, quote
from conf.tag import KEYS

if TYPE_CHECKING:
    from collections.abc import Iterator

WORD = "#SECURE"


def read_directives(script: bytes) -> dict[str, str]:
    """What the script says, by tag key, as written.

    Raises UsageError with the line number: an unknown or repeated and different option, a line below a command.
    """
    found: dict[str, tuple[str, int]] = {}
    for number, options in _lines(script):
        for option in options:
            key, value = _option(option, number)
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
        words = line.split()
        if line.startswith(WORD) and words[0] == WORD:
            if not in_head:
                raise UsageError(
                    f"line {number} of the script is a {WORD} line below the first command",
                    advice="move it up, beside the #SBATCH lines",
                )
            yield number, _before_comment(words[1:])
        elif words and not words[0].startswith("#"):
            in_head = False


def _before_comment(words: list[str]) -> list[str]:
    comment = next((index for index, word in enumerate(words) if word.startswith("#")), len(words))
    return words[:comment]


def _option(option: str, number: int) -> tuple[str, str]:
    name, equals, value = option.partition("=")
    key = name.removeprefix("--").removeprefix("secure-")
    if not name.startswith("--") or key not in KEYS:
        raise UsageError(
            f"line {number} of the script: unknown option {quote(name)}"
            f"{did_you_mean(name, ['--' + each for each in KEYS])}",
            advice=f"write {WORD} --class=NAME --residency=NAME --scratch=SIZE",
        )
    if not equals or not value:
        raise UsageError(f"line {number} of the script: --{key} has no value", advice=f"write --{key}=VALUE")
    return key, value
