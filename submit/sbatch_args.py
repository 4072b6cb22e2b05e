"""What a command line of sbatch says, read as sbatch reads it: getopt_long, ``#SBATCH`` lines, the environment.

For explaining only. A submission never depends on it: what is understood here is shown to a person, and the filter
judges what sbatch really sent. Whatever is not understood is named, and never dropped in silence.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import UsageError
from conf.quote import did_you_mean, one_of, quote
from submit.sbatch_options import BY_NAME, BY_SHORT, BY_VARIABLE, FLAG, VALUE, Option

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

COMMAND_LINE = "the command line"
DIRECTIVE = b"#SBATCH"
OTHERS = (b"#PBS", b"#BSUB")


class Given(NamedTuple):
    """One option as it was said. ``value`` None: none was given. ``start`` and ``end``: its words on the command line.

    ``option`` None: no version of sbatch has it, so a plugin of the site may; ``name`` is then as it was written.
    """

    name: str
    value: str | None
    source: str
    option: Option | None
    start: int = 0
    end: int = 0


class Arguments(NamedTuple):
    """``given``: in the order in which sbatch lets the later one count: script, environment, command line.

    ``end``: where the options end in the words of the command line; what follows is the script and its arguments.
    ``unread``: other things that say something to sbatch, in words.
    """

    given: tuple[Given, ...]
    end: int
    unread: tuple[str, ...] = ()

    def last(self, name: str) -> Given | None:
        """What counts of one option; None when nobody said it."""
        return next((each for each in reversed(self.given) if each.name == name), None)


def read(words: list[str], script: bytes = b"", environ: Mapping[str, str] | None = None) -> Arguments:
    """All that is said to sbatch. UsageError for what it would refuse: ambiguous, a value missing or too many."""
    line, end = read_words(words, COMMAND_LINE)
    directives, others = _directives(script)
    said = (*directives, *_environment(environ or {}), *line)
    return Arguments(said, end, (others,) if others else ())


def read_words(words: list[str], source: str) -> tuple[list[Given], int]:
    """The options at the front of ``words``, and where they end: at ``--`` or at the first word that is none."""
    found: list[Given] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return found, index + 1
        if not word.startswith("-") or word == "-":
            break
        rest = words[index + 1 :]
        parts, taken = _long(word, rest, source) if word.startswith("--") else _short(word, rest, source)
        found += [each._replace(start=index, end=index + 1 + taken) for each in parts]
        index += 1 + taken
    return found, index


def _long(word: str, rest: list[str], source: str) -> tuple[list[Given], int]:
    written, equals, value = word[2:].partition("=")
    option = _named(written, source)
    if option is None:
        return [Given(f"--{written}", value if equals else None, source, None)], 0
    if equals:
        if option.takes == FLAG:
            raise UsageError(f"{source}: sbatch's --{option.name} takes no value", advice="leave the value out")
        return [Given(option.name, value, source, option)], 0
    if option.takes != VALUE:
        return [Given(option.name, None, source, option)], 0
    if not rest:
        raise _no_value(option, source)
    return [Given(option.name, rest[0], source, option)], 1


def _named(written: str, source: str) -> Option | None:
    """The option, which getopt_long lets a person shorten as long as it stays the only one."""
    exact = BY_NAME.get(written)
    if exact is not None or not written:
        return exact
    fitting = [name for name in BY_NAME if name.startswith(written)]
    if len(fitting) > 1:
        shown = one_of([f"--{name}" for name in sorted(fitting)])
        raise UsageError(f"{source}: {quote('--' + written)} may be {shown}", advice="write it out")
    return BY_NAME[fitting[0]] if fitting else None


def _short(word: str, rest: list[str], source: str) -> tuple[list[Given], int]:
    """``-N2``, ``-N 2``, and several flags in one word, of which the last may take a value: ``-HN2``."""
    found: list[Given] = []
    for index, letter in enumerate(word[1:], 1):
        option = BY_SHORT.get(letter)
        if option is None:
            raise UsageError(f"{source}: sbatch has no option {quote('-' + letter)}", advice="see sbatch --help")
        attached = word[index + 1 :]
        if option.takes == FLAG:
            found.append(Given(option.name, None, source, option))
            continue
        if attached or option.takes != VALUE:
            return [*found, Given(option.name, attached or None, source, option)], 0
        if not rest:
            raise _no_value(option, source)
        return [*found, Given(option.name, rest[0], source, option)], 1
    return found, 0


def _no_value(option: Option, source: str) -> UsageError:
    return UsageError(f"{source}: sbatch's --{option.name} has no value", advice=f"write --{option.name}=VALUE")


def _directives(script: bytes) -> tuple[list[Given], str]:
    """The options of the ``#SBATCH`` lines before the first command, and other schedulers' lines, in words."""
    found: list[Given] = []
    others = ""
    for number, line in enumerate(_head(script), 1):
        if line.startswith(OTHERS):
            others = others or f"line {number} of the script is another scheduler's, which sbatch reads as well"
        if not line.startswith(DIRECTIVE):
            continue
        source = f"line {number} of the script"
        try:
            words = shlex.split(line[len(DIRECTIVE) :].decode("utf-8", "surrogateescape"), comments=True)
        except ValueError:
            raise UsageError(f"{source} has a quote that is not closed", advice="close it") from None
        found += [each._replace(start=0, end=0) for each in read_words(words, source)[0]]
    return found, others


def _head(script: bytes) -> Iterator[bytes]:
    """The lines before the first that is neither empty nor a comment (src/sbatch/opt.c)."""
    for line in script.split(b"\n"):
        if line.strip() and not line.lstrip().startswith(b"#"):
            return
        yield line


def _environment(environ: Mapping[str, str]) -> Iterator[Given]:
    for variable, option in BY_VARIABLE.items():
        value = environ.get(variable)
        # "no" takes a flag back, as sbatch reads it
        if value is None or (option.takes == FLAG and value.lower() in {"no", "0"}):
            continue
        yield Given(option.name, None if option.takes == FLAG else value, variable, option)


def suggestion(given: Given) -> str:
    """What an unknown option may have been meant to be."""
    return did_you_mean(given.name, [f"--{name}" for name in BY_NAME])
