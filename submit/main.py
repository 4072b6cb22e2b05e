"""secure-sbatch, secure-srun and secure-salloc: write the tag, then become the real command.

This is a convenience, not the control: a user may call sbatch directly, and then the filter in slurmctld judges what
is there. It runs as the user and is trusted by nobody.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import EXIT_OK, ConfigError, SecureSlurmError, UsageError
from conf.hookconf import HOOKS_JSON, read_hook_config
from conf.tag import ENVIRONMENT, EXPLAIN, Tag
from conf.version import __version__
from submit import directives, merge, options, script
from submit.manual import page

if TYPE_CHECKING:
    from collections.abc import Mapping

USUAL_PLACES = ("/usr/bin", "/opt/slurm/bin")
TESTS = frozenset({"sbatch", "srun"})
"""The commands that have ``--test-only`` (sbatch(1), srun(1)); salloc(1) has not."""


class Command(NamedTuple):
    """What is going to be executed."""

    argv: list[str]
    environ: dict[str, str]
    tag: Tag


def sbatch() -> int:
    """Entry point of secure-sbatch."""
    return run("sbatch", sys.argv[1:])


def srun() -> int:
    """Entry point of secure-srun."""
    return run("srun", sys.argv[1:])


def salloc() -> int:
    """Entry point of secure-salloc."""
    return run("salloc", sys.argv[1:])


def run(tool: str, argv: list[str]) -> int:
    """Become ``tool``, or return an exit code: 0 for help, version and dry run, else that of the error."""
    try:
        own, rest = options.split_argv(argv)
        asked = options.parse_own(own)
        page_asked = _page(tool, asked.flags)
        if page_asked is not None:
            sys.stdout.write(page_asked)
            return EXIT_OK
        explains = "explain" in asked.flags
        _refuse_flags_that_do_not_fit(tool, asked.flags)
        command = prepare(tool, asked.values, rest, os.environ)
        if "dry-run" in asked.flags:
            _show(for_explanation(command) if explains else command)
            return EXIT_OK
        if explains:
            from submit.explaining import Question, ask  # noqa: PLC0415 - who submits does not pay for it

            question = Question(tool, own, rest, for_explanation(command), for_test(command))
            return ask(find_tool(tool), question, os.environ, as_json="json" in asked.flags)
        become(tool, command)
    except SecureSlurmError as error:
        sys.stderr.write(f"secure-{tool}: error: {error}\n")
        if error.advice:
            sys.stderr.write(f"secure-{tool}: {error.advice}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return EXIT_OK


def _page(tool: str, flags: frozenset[str]) -> str | None:
    if "help" in flags:
        return page(tool)
    return f"secure-{tool} {__version__}\n" if "version" in flags else None


def prepare(tool: str, asked: Mapping[str, str], rest: list[str], environ: Mapping[str, str]) -> Command:
    """The command and its environment. Raises UsageError for whatever cannot become a tagged job."""
    guess = script.guess(rest) if tool == "sbatch" else script.Guess(None, script.options_end(rest))
    _refuse_what_cannot_be_tagged(tool, rest, guess)
    sources = [merge.Source(merge.COMMAND_LINE, asked)]
    if tool == "sbatch":
        sources.append(merge.Source("the script", directives.read_directives(_script_text(rest, guess))))
    sources.append(merge.from_environment(environ))
    tag = merge.merge(sources)
    if tag is None:
        raise _no_tag(tool, rest)
    return Command([tool, f"--extra={tag.to_extra()}", *rest], _environment(environ, tag), tag)


def for_test(command: Command) -> Command:
    """The same command as a question: slurmctld and its filter judge it, and nothing is submitted.

    ``--test-only`` stands in front of everything of the user's: no option of theirs takes it back, and none before it
    can take it for its value.
    """
    tag, rest = command.argv[:2], command.argv[2:]
    return command._replace(argv=[*tag, "--test-only", *rest])


def for_explanation(command: Command) -> Command:
    """The question to the filter alone, which refuses whoever asks it, and says everything in the refusal."""
    test = for_test(command)
    tool, tag, *rest = test.argv
    return test._replace(argv=[tool, tag + EXPLAIN, *rest])


def _refuse_flags_that_do_not_fit(tool: str, flags: frozenset[str]) -> None:
    if "json" in flags and "explain" not in flags:
        raise UsageError(
            f"{options.PREFIX}json is how an explanation is printed", advice=f"add {options.PREFIX}explain"
        )
    if "explain" in flags and tool not in TESTS:
        raise UsageError(
            f"{tool} has no --test-only, so there is nothing that only asks",
            advice=f"ask with the same options: secure-sbatch {options.PREFIX}explain ... --wrap=true",
        )


def _refuse_what_cannot_be_tagged(tool: str, rest: list[str], guess: script.Guess) -> None:
    front = rest[: guess.options_end]
    if script.sets_extra(front):
        raise UsageError(
            "--extra is where the tag travels; yours would replace it",
            advice=f"remove --extra, or use {tool} for a job without a tag",
        )
    # srun separates whole commands by it, so there it may stand anywhere
    if ":" in (rest if tool == "srun" else rest[: guess.options_end + 1]):
        raise UsageError(
            "a heterogeneous job (':' between components) cannot carry a tag",
            advice="submit its components as separate jobs",
        )


def _script_text(rest: list[str], guess: script.Guess) -> bytes:
    if guess.script is not None:
        return script.read_script(rest[guess.script])
    if guess.end < len(rest) or script.wraps(rest):
        return b""
    return script.read_stdin()


def _no_tag(tool: str, rest: list[str]) -> UsageError:
    late = next((word for word in rest if word.startswith(options.PREFIX)), None)
    if late is not None:
        return UsageError(
            f"the job has no tag: {late.partition('=')[0]!r} stands too late",
            advice=f"put the {options.PREFIX}* options first, before every option of {tool}",
        )
    places = (
        "the command line, the script or the environment" if tool == "sbatch" else "the command line or environment"
    )
    return UsageError(
        f"the job has no tag: neither a class nor a residency is in {places}",
        advice=f"add --secure-class=NAME (see --secure-help), or use {tool} for a job without a tag",
    )


def _environment(environ: Mapping[str, str], tag: Tag) -> dict[str, str]:
    """The environment with the tag added where the user had said nothing.

    What the user's environment asks for stays as it is: only the policy knows which class is stronger, so the filter
    compares it with ``extra``. In the job, TaskProlog sets all of them to what was granted.
    """
    # SECURE_SCRATCH is the path in the job that we are called from; it would be a lie in the new one
    kept = {name: value for name, value in environ.items() if name != "SECURE_SCRATCH"}
    final = {
        "class": tag.klass,
        "residency": tag.residency or "",
        "scratch": str(tag.scratch or ""),
        "datasets": ",".join(tag.datasets),
    }
    return {name: final[key] for name, key in ENVIRONMENT.items() if final[key]} | kept


def _show(command: Command) -> None:
    words = [f"{name}={shlex.quote(command.environ[name])}" for name in ENVIRONMENT if name in command.environ]
    # as bytes: an argument may be any bytes, and must be shown as it would be passed on
    sys.stdout.buffer.write(os.fsencode("\n".join([*words, shlex.join(command.argv), ""])))
    sys.stdout.flush()


def find_tool(tool: str, hooks_json: str = HOOKS_JSON, usual: tuple[str, ...] = USUAL_PLACES) -> str:
    """The absolute path of the real command: where hooks.json says, else in the usual places; never by ``PATH``."""
    places: tuple[str, ...] = usual
    if os.path.lexists(hooks_json):
        # sources may be for admins only, and are the hooks' business
        config = read_hook_config(hooks_json, check_sources=False)
        places = (str(config["cluster"]["slurm_bin"]),)
    for place in places:
        path = f"{place}/{tool}"
        if path.startswith("/") and os.access(path, os.X_OK):
            return path
    raise ConfigError(
        f"{tool} is not in {' or '.join(places)}", advice="an admin sets cluster.slurm_bin in secure-slurm.yaml"
    )


def become(tool: str, command: Command) -> None:
    """Replace this process; returns only by an exception."""
    path = find_tool(tool)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(path, command.argv, command.environ)  # noqa: S606 - this is the point: no shell, no child
    except OSError as error:
        raise ConfigError(f"cannot execute {path}: {error.strerror}", advice="check the Slurm installation") from None
