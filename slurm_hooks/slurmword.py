"""What Slurm says of one job on one node, for somebody who would destroy what the job has there.

Measured on 24.11 and 26.05: ``scontrol --json show job`` ends with 0 and an empty list both for a job that is not known
and while *no slurmctld answers*. So the words that count are others: ``scontrol ping`` says UP, ``scontrol show node``
knows this very node, and ``scontrol show job`` says, in the text form, that there is no such job, or the JSON names
exactly one, in a state that is over. Everything else, an empty answer first of all, is no answer.

Standard library only: this runs every few seconds on every compute node.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

from conf.errors import SecureSlurmError, UsageError
from keys.process import Completed, run
from slurm_hooks.blame import ANSWER_LIMIT, number
from slurm_hooks.hostlist import contains

TIMEOUT = 10.0
"""Seconds for one command."""
NOT_KNOWN = b"slurm_load_jobs error: Invalid job id specified"

_UP = re.compile(r"^Slurmctld\([a-z0-9]+\) at \S+ is UP$", re.MULTILINE)
# slurm.h, enum job_states: in one of these a job has nothing to run any more
_OVER = frozenset(
    ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
)
# flags that change nothing about that; any other does, COMPLETING first of all: its Epilog is to come
_HARMLESS = frozenset(("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "LAUNCH_FAILED", "RECONFIG_FAIL"))
_WAITING = "PENDING"
_BASES = _OVER | {_WAITING, "RUNNING", "SUSPENDED"}


class Word(NamedTuple):
    """``kind``: ``alive``, ``over`` (ended, or waiting for its next start), ``unknown`` (Slurm says that there is no
    such job), or ``silent`` (no answer that says anything). ``why`` is for people.
    """

    kind: str
    why: str


class Answer(NamedTuple):
    """How a command ended; ``failed`` says why it could not be run to its end."""

    returncode: int
    stdout: bytes
    stderr: bytes
    failed: str = ""


class Start(NamedTuple):
    """The start of a job that something was left of: whose, and after how many requeues. -1: not known."""

    uid: int = -1
    restarts: int = -1


def controller_answers(ping: Answer, shown: Answer, node: str) -> str:
    """Why the controller cannot be asked about jobs on this node; "" when it can."""
    if ping.failed or ping.returncode != 0 or not _UP.search(ping.stdout.decode("utf-8", "replace")):
        return f"no slurmctld says that it is up ({ping.failed or _line(ping)})"
    words = shown.stdout.decode("utf-8", "replace").split()
    if shown.failed or shown.returncode != 0 or words[:1] != [f"NodeName={node}"]:
        return f"slurmctld does not know the node {node} ({shown.failed or _line(shown)})"
    return ""


def read_word(text: Answer, facts: Answer | None, node: str, job: int, start: Start) -> Word:
    """What the two forms of ``scontrol show job`` say together; ``facts`` (the JSON) only when the text form has it."""
    if not text.failed and text.returncode == 1 and text.stderr.strip() == NOT_KNOWN and not text.stdout.strip():
        return Word("unknown", "slurmctld says that there is no such job")
    if text.failed or text.returncode != 0 or facts is None or facts.failed or facts.returncode != 0:
        return Word("silent", f"slurmctld's answer about the job is none ({text.failed or _line(text)})")
    try:
        entries = json.loads(facts.stdout)["jobs"]
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        return Word("silent", "slurmctld's JSON about the job cannot be read, or is empty")
    found = [entry for entry in entries if entry.get("job_id") == job]
    if not found and all(number(entry.get("array_job_id"), 0) == job for entry in entries):
        # by the number of an array's first task Slurm shows the array's other tasks
        return Word("unknown", "slurmctld knows other tasks of the array, and this one no more")
    if len(found) != 1:
        return Word("silent", f"slurmctld names {len(found)} jobs with this number")
    return _judge(found[0], node, start)


def _judge(entry: dict[str, Any], node: str, start: Start) -> Word:
    states = entry.get("job_state")
    names = list(map(str, states)) if isinstance(states, list) else str(states or "").split()
    uid, restarts = number(entry.get("user_id"), -1), number(entry.get("restart_cnt"), -1)
    told = "+".join(names)[:120] or "no state"
    bases = [name for name in names if name in _BASES]
    if len(bases) != 1:
        return Word("alive" if names else "silent", told)
    base, flags = bases[0], set(names) - set(bases)
    if base in ("RUNNING", "SUSPENDED"):
        return _elsewhere(entry, node, told, restarts, start)
    if not flags <= _HARMLESS:
        return Word("alive", told)
    why = ""
    if uid < 0 or restarts < 0:
        why = "slurmctld's answer says neither whose job it is nor how often it was started"
    elif start.uid >= 0 and uid != start.uid:
        why = f"slurmctld speaks of a job of user {uid}, and this was user {start.uid}'s"
    elif restarts < start.restarts or (base == _WAITING and restarts == start.restarts):
        # a controller that was restored from a state older than this start
        why = f"slurmctld speaks of an earlier start (restarts {restarts}, here {start.restarts})"
    return Word("silent", why) if why else Word("over", told)


def _elsewhere(entry: dict[str, Any], node: str, told: str, restarts: int, start: Start) -> Word:
    """A job that runs is over *here* once it was started anew on other nodes."""
    nodes = entry.get("nodes")
    try:
        away = isinstance(nodes, str) and nodes != "" and not contains(nodes, node)
    except UsageError:
        away = False
    if away and 0 <= start.restarts < restarts:
        return Word("over", f"{told} on {str(nodes)[:60]}")
    return Word("alive", told)


def _line(answer: Answer) -> str:
    lines = (answer.stderr.strip() or answer.stdout.strip()).decode("utf-8", "replace").splitlines()
    words = "".join(c if c.isprintable() else "?" for c in lines[0])[:120] if lines else "nothing"
    return f"exit code {answer.returncode}: {words}"


class Slurm:
    """The real thing. ``refresh`` asks for controller and node once, for all jobs of one pass."""

    def __init__(self, slurm_bin: str, node: str) -> None:
        self._scontrol = f"{slurm_bin}/scontrol"
        self._node = node
        self._silent: str | None = None

    def refresh(self) -> None:
        """Forget what the controller said of itself."""
        self._silent = None

    def word(self, job: int, start: Start) -> Word:
        """What Slurm says of a job; never raises."""
        if self._silent is None:
            ping = self._ask("ping")
            shown = self._ask("--oneliner", "show", "node", self._node)
            self._silent = controller_answers(ping, shown, self._node)
        if self._silent:
            return Word("silent", self._silent)
        text = self._ask("--oneliner", "show", "job", str(job))
        facts = self._ask("--json", "show", "job", str(job)) if text.returncode == 0 and not text.failed else None
        return read_word(text, facts, self._node, job, start)

    def _ask(self, *words: str) -> Answer:
        conf = os.environ.get("SLURM_CONF", "")
        try:
            done: Completed = run(
                [self._scontrol, *words],
                timeout=TIMEOUT,
                allowed=range(-64, 256),
                max_output=ANSWER_LIMIT,
                env_extra={"SLURM_CONF": conf} if conf else None,
            )
        except (SecureSlurmError, OSError) as error:
            return Answer(-1, b"", b"", str(error))
        return Answer(done.returncode, done.stdout, done.stderr)
