"""What a stub asks the hook server for: which hook, and the closed list of variables that Python would be started with.

A request is what sh can write without another process: texts that end in NUL, the last one empty. The first is the
hook's name, the second the stub's process id, the others are ``NAME=value``. The list of names is each stub's own, and
stands here as well: a request that is not exactly that is refused, and the stub starts Python itself.

Standard library only (root's hooks).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from conf.errors import UsageError

FIXED = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
MAX_REQUEST = 65536
"""Bytes. What a pipe holds (pipe(7)): a stub never waits for a reader, and sends less than this or nothing."""

_START = (
    *("SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_GID"),
    *("SLURM_JOB_USER", "SLURM_JOB_NODELIST", "SLURM_JOB_RESTART_COUNT", "SLURM_JOB_EXTRA"),
    *("SLURM_JOB_WORK_DIR", "SLURM_JOB_STDIN", "SLURM_JOB_STDOUT", "SLURM_JOB_STDERR"),
)
NAMES = {"prolog": _START, "protected": _START, "epilog": ("SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_JOB_UID")}
"""Each hook's variables, as its stub hands them on."""

_NUMBER = re.compile(rb"[1-9][0-9]{0,9}")


class Request(NamedTuple):
    """A hook to run. ``stub`` is the process that waits; ``job`` is its job's id as the stub wrote it: digits."""

    hook: str
    stub: int
    job: str
    environ: dict[str, str]

    @property
    def address(self) -> str:
        """What each answer repeats, so that it cannot be taken for another's."""
        return f"{self.job} {self.stub}"


def is_whole(data: bytes) -> bool:
    """Whether a request has ended: with an empty text, which stands nowhere else in it."""
    return data.endswith(b"\0\0")


def parse(data: bytes) -> Request:
    """A whole request. Raises UsageError for everything that no stub of this version writes."""
    texts = data[:-2].split(b"\0") if is_whole(data) else []
    hook, stub, pairs = (texts[0], texts[1], texts[2:]) if len(texts) > 2 else (b"", b"", [])
    names = NAMES.get(hook.decode("ascii", "replace"), ())
    if not names or not _NUMBER.fullmatch(stub):
        raise UsageError("the request is for no hook of this version")
    environ = dict(FIXED)
    for name, pair in zip(names, pairs, strict=False):
        if not pair.startswith(name.encode() + b"="):
            raise UsageError("the request has other variables than this version's")
        environ[name] = os.fsdecode(pair[len(name) + 1 :])
    if len(pairs) != len(names):
        raise UsageError("the request has more or fewer variables than this version's")
    job = environ["SLURM_JOB_ID"].encode("utf-8", "replace")
    if not _NUMBER.fullmatch(job):
        # Python would refuse it as well, and says so to Slurm
        raise UsageError("the request is for no job")
    return Request(hook.decode("ascii"), int(stub), job.decode("ascii"), environ)


def answer(request: Request, code: int, out: bytes, err: bytes) -> bytes:
    """What the stub prints, line by line, and its exit status, which is the last line."""
    lines = [b"%s %s\n" % (mark, line) for mark, text in ((b"1", out), (b"2", err)) for line in _lines(text)]
    return b"".join(lines) + f"exit {request.address} {code}\n".encode()


def _lines(text: bytes) -> list[bytes]:
    # sh's read drops a NUL; a carriage return is no end of a line there
    return text.removesuffix(b"\n").split(b"\n") if text else []
