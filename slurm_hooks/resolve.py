"""Where a job's working directory and its standard input, output and error really are, asked as the job's own user.

The filter judged their texts; a text says nothing of the links on the way. What is asked hangs when a file system is
away, and must not be asked as root, who may look where the user may not: so a child process becomes the user, has a
deadline, and answers by a pipe. The class's directories themselves are resolved by root, before that.
Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import Refused
from conf.quote import quote
from slurm_hooks.mounts import within
from slurm_hooks.walk import Unresolved, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slurm_hooks.hookenv import HookJob

DEADLINE = 10.0
"""Seconds for all paths of a job; the Prolog has 45 for everything."""
MAX_ANSWER = 256 * 1024
NOWHERE = "/dev/null"

_DEFAULTS = ("slurm-%j.out", "slurm-%A_%a.out")  # sbatch(1), --output; what is one task of an array is not known here
_STREAMS = (("SLURM_JOB_STDIN", "--input"), ("SLURM_JOB_STDOUT", "--output"), ("SLURM_JOB_STDERR", "--error"))


class Asked(NamedTuple):
    """A path to resolve: the rule and the words for a refusal, the path, and the class's directories for it."""

    rule: str
    what: str
    path: str
    directories: tuple[str, ...]


class Answer(NamedTuple):
    """``paths``: where each path asked for leads, by its text, several with a pattern; ``directories``: the same of the
    class's, None for one that is not there; ``problems``: why a path leads nowhere that can be told.
    """

    paths: dict[str, list[str]]
    directories: dict[str, str | None]
    problems: dict[str, str]


def refusals(limits: Mapping[str, Any], job: HookJob, environ: Mapping[str, str]) -> Iterator[Refused]:
    """Every reason for which the job may not start here. ``limits``: ``work`` and ``output``, the class's directories.

    Nothing is asked of a class without directories.
    """
    asked = list(questions(limits, environ))
    if not asked:
        return
    answer = ask(asked, job)
    for each in asked:
        problem = verdict(each, answer)
        if problem:
            yield Refused(
                each.rule,
                f"{each.what} {quote(each.path)} {problem} on node {job.node}",
                advice=f"it must lie in {' or '.join(each.directories)} there, links followed",
            )


def questions(limits: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Asked]:
    """What is to be asked, from slurmd's variables, which come from slurmctld's signed credential."""
    work = environ.get("SLURM_JOB_WORK_DIR", "")
    work_dirs, output_dirs = limits.get("work"), limits.get("output")
    if work_dirs is not None:
        yield Asked("path.work-dir", "the working directory", work, tuple(work_dirs))
    if output_dirs is None:
        return
    for name, option in _STREAMS:
        path = environ.get(name, "")
        if not path:
            # Only a batch job has a standard input here (measured); where the working directory is not judged,
            # what has none is taken for one too
            if name == "SLURM_JOB_STDOUT" and (work_dirs is None or environ.get("SLURM_JOB_STDIN")):
                for default in _DEFAULTS:
                    yield Asked("path.output", option, f"{work}/{default}", tuple(output_dirs))
        elif path != NOWHERE:
            whole = path if path.startswith("/") else f"{work}/{path}"
            yield Asked("path.output", option, whole, tuple(output_dirs))


def verdict(asked: Asked, answer: Answer) -> str:
    """What is wrong with one path, in words; empty: nothing. Whatever the answer does not hold is wrong."""
    if asked.path in answer.problems:
        return answer.problems[asked.path]
    found = answer.paths.get(asked.path)
    if not found:
        return "cannot be resolved"
    allowed = [real for each in asked.directories if (real := answer.directories.get(each))]
    if not allowed:
        return f"has no place to be: {' and '.join(asked.directories)} cannot be found by root"
    for each in found:
        if not any(within(each, directory) for directory in allowed):
            return f"leads to {quote(each)}"
    return ""


def ask(asked: list[Asked], job: HookJob, *, deadline: float = DEADLINE) -> Answer:
    """What a child that has become the job's user finds. A child that is late, killed or odd has found nothing."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _in_child(asked, job, writing, deadline)
    os.close(writing)
    try:
        text = _read(reading, deadline)
    finally:
        os.close(reading)
        _end(child)
    problem = f"could not be resolved within {deadline:.0f} s" if text is None else "cannot be resolved"
    try:
        found = json.loads(text or b"")
        return Answer(dict(found["paths"]), dict(found["directories"]), dict(found["problems"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return Answer({}, {}, {each.path: problem for each in asked})


def _read(descriptor: int, deadline: float) -> bytes | None:
    """Everything up to the end; None when that does not come in time."""
    end = time.monotonic() + deadline
    found = bytearray()
    while len(found) <= MAX_ANSWER:
        left = end - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        piece = os.read(descriptor, 65536)
        if not piece:
            return bytes(found)
        found += piece
    return b""


def _end(child: int) -> None:
    """Kill it and wait, but not for ever: one that hangs in the kernel is left to it."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    for doubled in range(10):
        with suppress(ChildProcessError):
            if os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.001 * 2**doubled)
                continue
        return


def _in_child(asked: list[Asked], job: HookJob, writing: int, deadline: float) -> None:
    """Never returns. Nothing of the Prolog's is left open to it; the user may end it at any time."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, deadline + 1)
        # whoever hangs here for ever must not hold slurmd's pipe, which it reads to the end, nor be in its group
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.closerange(3, writing)
        os.closerange(writing + 1, 4096)
        os.chdir("/")
        directories = {each: _as_root(each) for one in asked for each in one.directories}
        become(job.user, job.uid, job.gid)
        paths: dict[str, list[str]] = {}
        problems: dict[str, str] = {}
        for one in asked:
            try:
                paths[one.path] = walk(one.path, job, folder=one.rule == "path.work-dir")
            except (OSError, ValueError, RecursionError, Unresolved) as error:
                problems[one.path] = f"cannot be resolved by {quote(job.user)}: {_why(error)}"
        text = json.dumps({"paths": paths, "directories": directories, "problems": problems})
        with open(writing, "wb") as file:
            file.write(text.encode())
    except BaseException:  # noqa: BLE001  the parent's code above the fork must not run twice
        os._exit(1)
    os._exit(0)


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__


def _as_root(path: str) -> str | None:
    try:
        return os.path.realpath(path, strict=True)
    except OSError:
        return None


def become(user: str, uid: int, gid: int) -> None:
    """This process as that user, with the groups of the directory and no capability. Raises Unresolved or OSError.

    As root's own job it stays root. Not dumpable any more after the change (prctl(2)), so the user cannot trace it.
    """
    if uid < 0 or gid < 0 or not user:
        raise Unresolved("Slurm does not say who the user is")
    if os.geteuid() == 0:
        os.initgroups(user, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if uid == 0:
        return
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123
        status = dict(line.split(b":\t", 1) for line in file.read().splitlines() if b":\t" in line)
    if any(int(status[name], 16) for name in (b"CapEff", b"CapPrm", b"CapAmb")) or os.getresuid() != (uid, uid, uid):
        raise Unresolved("the process kept rights of root's")
