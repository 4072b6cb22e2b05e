"""``--secure-explain``: ask the cluster's own engine about a job, and print what it says. Nothing is submitted.

Two questions. The first asks the filter for an explanation, which it gives in a refusal; when the policy has nothing
against the job, the second asks slurmctld as a whole, which may have reasons of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import EXIT_OK, EXIT_REFUSED, UsageError
from submit import asking, explained, merge, script
from submit.directives import read_directives
from submit.nearest_line import own_words, rewritten
from submit.options import parse_own, split_argv
from submit.sbatch_args import COMMAND_LINE, read

if TYPE_CHECKING:
    from collections.abc import Mapping

    from submit.main import Command


class Question(NamedTuple):
    """``own`` and ``rest``: the words as they were given; ``explanation`` and ``test``: the commands that ask."""

    tool: str
    own: list[str]
    rest: list[str]
    explanation: Command
    test: Command


def ask(path: str, question: Question, environ: Mapping[str, str], *, as_json: bool) -> int:
    """Print the explanation; 0 when the cluster takes the job, 1 when not. BackendUnavailable: nobody explains."""
    stdin = _Stdin()
    said = asking.run(path, question.explanation.argv, question.explanation.environ)
    told = asking.explanation(said.stderr)
    if told is None:
        sys.stderr.write("".join(f"{explained.printable(line)}\n" for line in said.stderr.splitlines()))
        error = asking.no_explanation(question.tool, said)
        if error is not None:
            raise error
        return EXIT_REFUSED
    stdin.rewind()
    told["command"] = shown_command(question.tool, [*question.own, *question.rest])
    if told["allowed"]:
        told["slurm"] = _slurm(asking.run(path, question.test.argv, question.test.environ))
    elif told.get("nearest"):
        add_command(told, question.tool, question.own, question.rest, environ)
    if as_json:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in explained.lines(told)))
    accepted = told["allowed"] and told["slurm"]["accepted"]
    return EXIT_OK if accepted else EXIT_REFUSED


def _slurm(said: asking.Said) -> dict[str, object]:
    lines = [line for line in said.stderr.splitlines() if line.strip()]
    return {"accepted": said.code == 0, "message": lines[-1].strip() if lines else f"exit code {said.code}"}


class _Stdin:
    """Where the script on stdin begins: whoever asks twice hands it over twice."""

    def __init__(self) -> None:
        try:
            self._start: int | None = os.lseek(script.STDIN, 0, os.SEEK_CUR)
        except OSError:
            self._start = None

    def rewind(self) -> None:
        if self._start is not None:
            os.lseek(script.STDIN, self._start, os.SEEK_SET)


def shown_command(tool: str, words: list[str]) -> str:
    """The command as it was given, for a shell."""
    own, rest = split_argv(words)
    return shlex.join([f"secure-{tool}", *own_words(own, {}), *rest])


def add_command(told: dict[str, Any], tool: str, own: list[str], rest: list[str], environ: Mapping[str, str]) -> None:
    """Put the nearest accepted request into words that can be pasted: the user's own, as far as they are understood."""
    other = told["nearest"]
    changes = [(each["option"], each["value"]) for each in other["changes"]]
    if tool != "sbatch":
        # another command has other options by the same letters
        return
    try:
        args = read(rest, script_text(rest), environ)
    except UsageError:
        return
    if any(given.option is None for given in args.given):
        return
    line = rewritten(tool, own, rest, args, changes)
    other["command"] = line.command
    other["notes"] = [*line.notes, *_contradictions(own, changes, script_text(rest), environ)]


def _contradictions(
    own: list[str], changes: list[tuple[str, str | None]], text: bytes, environ: Mapping[str, str]
) -> list[str]:
    """What the script and the environment say against it: a tag comes from all of them together."""
    words = list(own_words(own, {name.removeprefix("--"): value for name, value in changes}))
    sources = [merge.from_environment(environ), merge.Source("the script", read_directives(text))]
    try:
        merge.merge([merge.Source(COMMAND_LINE, parse_own(words).values), *sources])
    except UsageError as error:
        return [f"and where the tag is said elsewhere: {error}"]
    gone = {name.removeprefix("--secure-").replace("dataset", "datasets") for name, value in changes if value is None}
    return [f"and remove the {key} from {each.name}" for each in sources for key in gone & each.values.keys()]


def script_text(rest: list[str]) -> bytes:
    """The script's text, as far as it can still be read: one that came by a pipe is where sbatch found it."""
    guess = script.guess(rest)
    try:
        if guess.script is not None:
            return script.read_script(rest[guess.script])
    except UsageError:
        return b""
    return b"" if guess.end < len(rest) or script.wraps(rest) else script.read_stdin()
