"""The user's own command line with some options changed, as a whole that can be pasted.

Everything that is not changed stands where it stood. What was said in the script or in the environment cannot be
unsaid from the command line; where that is needed, it is told beside it.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from submit.options import FLAGS, PREFIX, VALUED
from submit.sbatch_args import COMMAND_LINE, Arguments, Given
from submit.sbatch_options import FLAG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ALSO = {
    "bb": ("bbf",),
    "clusters": ("cluster",),
    "gpus-per-node": ("gres",),
    "gpus-per-task": ("tres-per-task",),
    "licenses": ("resources",),
}
"""Options that say the same in other words, so that changing one is changing both."""


class Line(NamedTuple):
    """``command``: to be pasted into a shell; ``notes``: what has to be changed besides."""

    command: str
    notes: tuple[str, ...]


def rewritten(
    tool: str, own: list[str], rest: list[str], args: Arguments, changes: Iterable[tuple[str, str | None]]
) -> Line:
    """``own`` and ``rest`` are the words as they were given, ``args`` what ``rest`` says; changes by option's name."""
    wanted = {name.removeprefix("--"): value for name, value in changes}
    words = [*own_words(own, wanted), *_rest(rest, args, {k: v for k, v in wanted.items() if not _is_own(k)})]
    notes: list[str] = []
    unset: list[str] = []
    for name, value in wanted.items():
        for given in _elsewhere(args, name):
            if value is not None and given.name == name:
                # the command line counts
                continue
            if given.source.isupper():
                unset += ["-u", given.source]
            else:
                notes.append(f"and remove --{given.name} from {given.source}")
    front = ["env", *unset] if unset else []
    return Line(shlex.join([*front, f"secure-{tool}", *words]), tuple(dict.fromkeys(notes)))


def _is_own(name: str) -> bool:
    return name.startswith(PREFIX.removeprefix("--"))


def own_words(own: list[str], wanted: Mapping[str, str | None]) -> Iterator[str]:
    """Our own options, changed where ``wanted`` names them (without ``--``), and without the flags that only ask."""
    changed = {name for name in wanted if _is_own(name)}
    index = 0
    while index < len(own):
        name, equals, _ = own[index].removeprefix("--").partition("=")
        plain = name.removeprefix(PREFIX.removeprefix("--"))
        length = 2 if plain in VALUED and not equals else 1
        if name not in changed and plain not in FLAGS:
            yield from own[index : index + length]
        index += length
    yield from (f"--{name}={wanted[name]}" for name in wanted if name in changed and wanted[name] is not None)


def _rest(rest: list[str], args: Arguments, wanted: dict[str, str | None]) -> list[str]:
    """The scheduler's words: changed options go where the first of their name stood, new ones to the front."""
    gone = {other for name in wanted for other in (name, *ALSO.get(name, ()))}
    on_line = [given for given in args.given if given.source == COMMAND_LINE]
    touched = {given.start for given in on_line if given.name in gone}
    left = dict(wanted)
    words: list[str] = []
    index = 0
    while index < len(rest):
        here = [given for given in on_line if given.start == index]
        if not here or index not in touched:
            words.append(rest[index])
            index += 1
            continue
        # -HN2 is several options in one word
        for given in here:
            if given.name not in gone:
                words.append(_written(given))
            elif left.get(given.name) is not None:
                words.append(f"--{given.name}={left.pop(given.name)}")
        index = here[0].end
    new = [f"--{name}={value}" for name, value in left.items() if value is not None and not _said(on_line, name)]
    return [*new, *words]


def _said(given: list[Given], name: str) -> bool:
    return any(each.name == name for each in given)


def _written(given: Given) -> str:
    takes = given.option.takes if given.option else FLAG
    return f"--{given.name}" if given.value is None or takes == FLAG else f"--{given.name}={given.value}"


def _elsewhere(args: Arguments, name: str) -> Iterator[Given]:
    names = {name, *ALSO.get(name, ())}
    yield from (given for given in args.given if given.name in names and given.source != COMMAND_LINE)
