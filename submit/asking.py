"""Asking the cluster: sbatch --test-only as a child, and what the filter said in it.

No shell, no search in PATH, a deadline, and a bound on what is read. The child shares the terminal's process group, so
that Ctrl-C ends both.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import BackendUnavailable, ConfigError
from conf.quote import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

MARK = 'secure-slurm: {"explanation":'
"""How the line of a refusal that is an explanation begins, after what sbatch puts in front."""
FORMAT = 1
DEADLINE = 60.0
MAX_OUTPUT = 1024 * 1024
UNREACHABLE = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Zero Bytes were transmitted",
    "(rule daemon.down)",
)
_CHUNK = 65536


class Said(NamedTuple):
    """How a command ended (negative: by a signal), and what it wrote."""

    code: int
    stdout: str
    stderr: str


def run(path: str, argv: list[str], environ: Mapping[str, str], deadline: float = DEADLINE) -> Said:
    """Run it to its end with our stdin. BackendUnavailable: out of time; ConfigError: it cannot be executed."""
    out, err = os.pipe(), os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, out[1], 1),
        (os.POSIX_SPAWN_DUP2, err[1], 2),
    ]
    try:
        # SIGPIPE is ignored by Python, and that would be inherited
        pid = os.posix_spawn(path, argv, dict(environ), file_actions=actions, setsigdef=[signal.SIGPIPE])
    except OSError as error:
        raise ConfigError(f"cannot execute {path}: {error.strerror}", advice="check the Slurm installation") from None
    finally:
        os.close(out[1])
        os.close(err[1])
    try:
        stdout, stderr = _read([out[0], err[0]], time.monotonic() + deadline)
        return Said(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stdout, stderr)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(out[0])
        os.close(err[0])


def _read(pipes: list[int], end: float) -> list[str]:
    """All that comes out of the pipes, as far as it is bounded; the rest is read and dropped."""
    texts = {pipe: bytearray() for pipe in pipes}
    open_ones = set(pipes)
    while open_ones:
        left = end - time.monotonic()
        ready = select.select(list(open_ones), [], [], left)[0] if left > 0 else []
        if not ready:
            raise BackendUnavailable("the cluster did not answer in time", advice="try again later, or ask an admin")
        for pipe in ready:
            data = os.read(pipe, _CHUNK)
            texts[pipe] += data[: MAX_OUTPUT - len(texts[pipe])]
            if not data:
                open_ones.discard(pipe)
    return [bytes(texts[pipe]).decode("utf-8", "replace") for pipe in pipes]


def explanation(stderr: str) -> dict[str, Any] | None:
    """The explanation in what sbatch wrote; None when there is none that this version understands."""
    for line in stderr.split("\n"):
        _, mark, rest = line.partition(MARK)
        if not mark:
            continue
        try:
            found = json.loads(mark.partition(" ")[2] + rest)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("explanation") == FORMAT and isinstance(found.get("allowed"), bool):
            return found
    return None


def no_explanation(tool: str, said: Said) -> BackendUnavailable | None:
    """Why there is none, as an error; None when the command itself says why it would not take the job."""
    reached = not any(words in said.stderr for words in UNREACHABLE)
    if not reached:
        return BackendUnavailable(
            "nobody could decide about the job", advice="try again in a minute; if it stays so, tell an admin"
        )
    if "secure-slurm: " in said.stderr:
        # an older daemon refuses the word that asks, as part of a tag that it does not know
        return BackendUnavailable(
            "the cluster's decision daemon explains nothing", advice="an admin updates secure-slurm on the head node"
        )
    if said.code == 0:
        return BackendUnavailable(
            f"{tool} was answered without a policy: no filter of secure-slurm is in this cluster's controller",
            advice="tell an admin",
        )
    return None


def shown(text: str) -> str:
    """Somebody else's text as one line that moves no cursor."""
    return text if text.isprintable() else quote(text)[1:-1]
