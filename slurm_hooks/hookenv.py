"""What a hook knows of its job: Slurm's variables, each checked before anything is done with it.

Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import re
import sys
import syslog
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import InternalError, UsageError
from conf.tag import mentions_tag
from slurm_hooks.hostlist import expand

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBER = re.compile(r"(0|[1-9][0-9]{0,9})")
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_CLUSTER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
MAX_NODES = 20_000
"""Nodes of one job; Slurm's own largest installations have fewer."""


class HookJob(NamedTuple):
    """A job as Slurm's hook environment states it. Names that the hook was not given are empty, numbers -1."""

    job: int
    uid: int
    gid: int
    user: str
    cluster: str
    node: str
    nodes: tuple[str, ...]
    restarts: int
    extra: str

    @property
    def marked(self) -> bool:
        """Whether the job means to be tagged, well-formed or not."""
        return mentions_tag(self.extra)


def read_job(environ: Mapping[str, str], *, any_nodes: bool = False) -> HookJob:
    """The job of this hook. Raises InternalError when Slurm's variables are missing or are not what Slurm writes.

    ``any_nodes``: a node list that cannot be read is taken for none instead; for a hook that only ends things.
    """
    return HookJob(
        job=_number(environ, "SLURM_JOB_ID"),
        uid=_number(environ, "SLURM_JOB_UID", -1),
        gid=_number(environ, "SLURM_JOB_GID", -1),
        user=environ.get("SLURM_JOB_USER", ""),
        cluster=_name(environ, "SLURM_CLUSTER_NAME", _CLUSTER),
        node=_name(environ, "SLURMD_NODENAME", _NODE),
        nodes=_nodes(environ.get("SLURM_JOB_NODELIST", ""), lenient=any_nodes),
        restarts=_number(environ, "SLURM_JOB_RESTART_COUNT", 0),
        extra=environ.get("SLURM_JOB_EXTRA", ""),
    )


def _nodes(text: str, *, lenient: bool) -> tuple[str, ...]:
    try:
        return tuple(expand(text, limit=MAX_NODES))
    except UsageError:
        if lenient:
            return ()
        raise


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name, "")
    if not value and default is not None:
        return default
    if not _NUMBER.fullmatch(value):
        raise InternalError(f"Slurm's variable {name} is {value[:40]!r}, not a number")
    return int(value)


def _name(environ: Mapping[str, str], name: str, pattern: re.Pattern[str]) -> str:
    value = environ.get(name, "")
    if value and not pattern.fullmatch(value):
        raise InternalError(f"Slurm's variable {name} is {value[:80]!r}, not a name")
    return value


def say(hook: str, message: str) -> None:
    """To Slurm's log (it keeps a failed hook's output) and to syslog, on one line, with control characters escaped."""
    line = message.encode("unicode_escape").decode("ascii")
    print(f"secure-slurm {hook}: {line}", file=sys.stderr)
    syslog.openlog("secure-slurm", syslog.LOG_PID, syslog.LOG_DAEMON)
    syslog.syslog(syslog.LOG_NOTICE, f"{hook}: {line}")
