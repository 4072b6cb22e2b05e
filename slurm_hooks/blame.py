"""Keeping a job from starting without draining a node for it.

Slurm drains the node of a Prolog that fails, and requeues the job of a PrologSlurmctld that fails for ever. What is the
job's fault, or a service's, must do neither (measured on 24.11 and 26.05): ``scontrol requeuehold`` holds a batch job
with its reason; a job that may not be requeued is cancelled; the hook then *succeeds*. Only when both commands
fail does the caller fail its hook, which is the last way left to keep the job from running.

Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import json
import os
import re

from conf.errors import SecureSlurmError
from keys.process import Completed, run

SCONTROL_TIMEOUT = 10.0
"""Seconds for one Slurm command; three of them fit into the Prolog's budget."""
REASON_LIMIT = 400
ANSWER_LIMIT = 64 * 1024 * 1024
"""Bytes of slurmctld's JSON about one job. One task of an array has the array's own id, and asking for that gives every
task that slurmctld remembers, ended ones included, at 8 KB each."""

# slurm.h, enum job_states and its flags, as the JSON writes them
OVER = frozenset(
    (
        *("PENDING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
        *("OUT_OF_MEMORY", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "REVOKED"),
    )
)

_UNSAFE = re.compile(r"[^ -{}~]")


def hold(slurm_bin: str, job: int, reason: str) -> str:
    """Hold ``job``, or cancel it if it cannot be requeued. Returns ``held``, ``cancelled``, or ``over``.

    ``over``: it has been cancelled or requeued already, which is often why its grant was gone; to hold it now would
    bring a job back that its user has ended (measured: a job cancelled while its Prolog ran).

    The reason goes behind the decision record in AdminComment, where ``secure-slurm why`` finds it. Failing to write
    the reason stops nothing. Raises SecureSlurmError when the job could neither be held nor cancelled.
    """
    try:
        facts = job_facts(slurm_bin, job)
    except SecureSlurmError:
        name = str(job)
    else:
        if _is_over(facts):
            return "over"
        name = _name(job, facts)
        _explain(slurm_bin, name, facts.get("admin_comment"), reason)
    try:
        _slurm(f"{slurm_bin}/scontrol", "requeuehold", name)
    except SecureSlurmError:
        # --no-requeue and interactive jobs: "Requested operation is presently disabled"
        _slurm(f"{slurm_bin}/scancel", name)
        return "cancelled"
    return "held"


def _is_over(facts: dict[str, object]) -> bool:
    """Whether Slurm has ended this start of the job. Whatever starts next has a Prolog of its own to pass."""
    states = facts.get("job_state")
    names = states if isinstance(states, list) else str(states).split()
    return any(name in OVER for name in names)


def _name(job: int, facts: dict[str, object]) -> str:
    """What Slurm's commands take for this job alone.

    One task of an array has the array's own id, by which scontrol and scancel mean every task: running ones would be
    stopped, and ended ones run again (measured on 24.11).
    """
    array, task = number(facts.get("array_job_id"), 0), number(facts.get("array_task_id"), -1)
    return f"{array}_{task}" if array > 0 and task >= 0 else str(job)


def number(value: object, default: int) -> int:
    """A number of Slurm's JSON: plain, or ``{"set": true, "infinite": false, "number": 7}`` (data_parser plugins)."""
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") and not value.get("infinite") else None
    return value if type(value) is int else default


def job_facts(slurm_bin: str, job: int) -> dict[str, object]:
    """What slurmctld knows of one job, by one query. Raises SecureSlurmError when it does not answer or knows none."""
    answer = _slurm(f"{slurm_bin}/scontrol", "--json", "show", "job", str(job))
    try:
        jobs = list(json.loads(answer.stdout)["jobs"])
    except (ValueError, KeyError, TypeError):
        raise SecureSlurmError(f"slurmctld's answer about job {job} cannot be read") from None
    found = [entry for entry in jobs if isinstance(entry, dict) and entry.get("job_id") == job]
    if len(found) != 1:
        raise SecureSlurmError(f"slurmctld knows {len(found)} jobs with the id {job}, not one")
    return dict(found[0])


def _slurm(*argv: str) -> Completed:
    """One of Slurm's commands, with the configuration that slurmctld or slurmd named to the hook, and nothing else."""
    conf = os.environ.get("SLURM_CONF", "")
    return run(
        argv, timeout=SCONTROL_TIMEOUT, max_output=ANSWER_LIMIT, env_extra={"SLURM_CONF": conf} if conf else None
    )


def _explain(slurm_bin: str, name: str, comment: object, reason: str) -> None:
    text = _UNSAFE.sub("?", reason)[:REASON_LIMIT]
    record = comment.split(" | ", 1)[0] if isinstance(comment, str) else ""
    value = f"{record} | {text}" if record else text
    try:
        _slurm(f"{slurm_bin}/scontrol", "update", f"JobId={name}", f"AdminComment={value}")
    except (SecureSlurmError, ValueError):
        # ValueError: a comment that no argument can carry (a NUL, half a character)
        return
