"""Where the batch script is, found without understanding the scheduler's options, and its text.

The script is guessed: the first word that does not begin with ``-`` and names a regular file that begins with ``#!``
(sbatch demands the ``#!``), no later than where the options have certainly ended. With ``-o old-job.sh job.sh`` the
guess is wrong. That is harmless: what is read here only helps to write the tag, and the filter in slurmctld compares
the tag with the script that sbatch really sent and with the environment. A wrong guess can lead to a refusal there,
never to a weaker tag.

Nothing is consumed that sbatch is going to read: a script on a plain file's stdin is read without moving its offset,
and one on a pipe is put into memory and handed on as the new stdin.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from conf.errors import UsageError
from conf.quote import quote

SCRIPT_LIMIT = 4 * 1024 * 1024
"""Bytes; Slurm's own default (max_script_size, slurm.conf(5))."""
STDIN = 0

# -n4: a short option with its value attached takes no further word
_ATTACHED = re.compile(r"-[A-Za-z][^A-Za-z-]")


class Guess(NamedTuple):
    """``script``: index of the script in the words, None: not seen. ``end``: no option stands at or after it."""

    script: int | None
    end: int

    @property
    def options_end(self) -> int:
        """How far the scheduler's own options may reach."""
        return self.end if self.script is None else self.script


def options_end(words: list[str]) -> int:
    """The index of the first word that is certainly neither an option nor the value of one.

    An option takes at most the one word after it, and none when it is written ``--name=value`` or ``-n4``.
    """
    for index, word in enumerate(words):
        if word == "--":
            return index + 1
        if word.startswith("-") and word != "-":
            continue
        before = words[index - 1] if index else ""
        free = not before.startswith("-") or (before.startswith("--") and "=" in before) or _ATTACHED.match(before)
        if free:
            return index
    return len(words)


def guess(words: list[str]) -> Guess:
    """Find the script; a script that sbatch would find in ``PATH`` comes second to a file that is there."""
    end = options_end(words)
    near = [index for index, word in enumerate(words[: end + 1]) if word == "-" or not word.startswith("-")]
    for look in (str, _in_path):
        for index in near:
            path = look(words[index])
            if path and _is_script(path) and not wraps(words[:index]):
                return Guess(index, end)
    return Guess(None, end)


def wraps(options: list[str]) -> bool:
    """Whether sbatch makes the script itself (``--wrap``, or short for it as getopt_long allows)."""
    return any(len(name) >= len("--wr") and "--wrap".startswith(name) for name in _long_names(options))


def sets_extra(options: list[str]) -> bool:
    """Whether an option sets ``extra``, where the tag goes: Slurm keeps the last one, so it would replace ours."""
    return "--extra" in _long_names(options)


def _long_names(options: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in options if word.startswith("--")]


def _in_path(word: str) -> str:
    if "/" in word:
        return ""
    places = (f"{place}/{word}" for place in os.environ.get("PATH", "").split(":") if place)
    return next((path for path in places if _is_script(path)), "")


def _is_script(path: str) -> bool:
    try:
        return _read_file(path, 2) == b"#!"
    except (OSError, ValueError):
        return False


def _read_file(path: str, limit: int) -> bytes:
    # O_NONBLOCK: a FIFO that bears the name of a job must not hang us
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return _read_at(fd, 0, limit) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)


def _read_at(fd: int, offset: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit:
        chunk = os.pread(fd, limit - len(data), offset + len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def read_script(word: str) -> bytes:
    """The text of the guessed script, at most :data:`SCRIPT_LIMIT` bytes (sbatch refuses a longer one itself)."""
    try:
        return _read_file(word if _is_script(word) else _in_path(word), SCRIPT_LIMIT)
    except OSError as error:
        raise UsageError(f"cannot read the script {quote(word)}: {error.strerror}", advice="check its path") from None


def read_stdin() -> bytes:
    """The script on stdin, left there for sbatch; empty for a terminal, a device or a closed stdin.

    Raises UsageError for a piped script beyond :data:`SCRIPT_LIMIT`.
    """
    try:
        kind = os.fstat(STDIN).st_mode
        if stat.S_ISREG(kind):
            return _read_at(STDIN, os.lseek(STDIN, 0, os.SEEK_CUR), SCRIPT_LIMIT)
    except OSError:
        return b""
    return _keep_pipe() if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) else b""


def _keep_pipe() -> bytes:
    data = bytearray()
    while chunk := os.read(STDIN, 65536):
        data += chunk
        if len(data) > SCRIPT_LIMIT:
            raise UsageError(
                f"the script on stdin is longer than {SCRIPT_LIMIT} bytes", advice="a script calls programs: split it"
            )
    memory = os.memfd_create("batch-script", os.MFD_CLOEXEC)
    with os.fdopen(memory, "r+b") as file:
        file.write(data)
        file.seek(0)
        os.dup2(memory, STDIN)
    return bytes(data)
