"""Keeping a job from starting without draining a node for it.

Slurm drains the node of a Prolog that fails, and requeues the job of a PrologSlurmctld that fails for ever. What is the
job's fault, or a service's, must do neither (measured on 24.11 and 26.05): ``scontrol requeuehold`` holds a batch job
with its reason; a job that may not be requeued is cancelled; the hook then *succeeds*. Only when both commands
fail does the caller fail its hook, which is the last way left to keep the job from running.

:func:`hold` is for what is the job's own fault. What is a service's or a node's is put back into the queue once
(:func:`put_back`), with a mark behind the decision record (:mod:`slurm_hooks.tries`) that says so.

Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time

from conf.errors import SecureSlurmError
from keys.process import Completed, run
from slurm_hooks import tries

SCONTROL_TIMEOUT = 10.0
"""Seconds for one Slurm command; three of them fit into the Prolog's budget."""
PATIENCE, PAUSE = 3.0, 0.5
"""Seconds: from then on a reason that slurmctld refuses is not tried again; and between two tries."""
LEAST_TRIES = 3
"""As many there are all the same where one try alone took that long, as on a machine that stood still; within
``SCONTROL_TIMEOUT`` together."""
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

OUTAGE, TRIAL = "service.outage", "service.trial"
"""The lifecycle daemon tries no start at all for now; or one, and it is another job's."""
SERVICES = frozenset(
    (
        *("backend.unavailable", "audit.unwritable", "vault.denied", "vault.login", "vault.tls", "rbac.snapshot"),
        *("engine.error", "engine.timeout", "engine.no-verdict", "lifecycle.no-verdict", "node.no-verdict"),
        *("wire.malformed", "wire.timeout", "lifecycle.busy", OUTAGE, TRIAL),
    )
)
"""Rules that say that a service, or a daemon of ours, is at fault: neither the job nor the node."""

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
        if is_over(facts):
            return "over"
        name = name_of(job, facts)
        _explain(slurm_bin, name, facts.get("admin_comment"), reason)
    return _send_back(slurm_bin, job, name, hold=True)


def put_back(slurm_bin: str, job: int, reason: str, *, tried: bool = True, outage: bool = False) -> str:
    """Send a job back whose start failed through no fault of its own. Returns ``requeued``, ``held``, ``cancelled`` or
    ``over`` (see :func:`hold`).

    The first time it is requeued; what fails again is held: until the service is back, when it is away for everybody
    (``outage``), else for good. ``tried`` False: it was not even tried, so nothing is counted and it waits, held.
    Raises SecureSlurmError when the job could neither be requeued, held nor cancelled.
    """
    try:
        facts = job_facts(slurm_bin, job)
    except SecureSlurmError:
        # without a count it might be sent back for ever
        return hold(slurm_bin, job, reason)
    if is_over(facts):
        return "over"
    name, comment = name_of(job, facts), facts.get("admin_comment")
    restarts = number(facts.get("restart_cnt"), 0)
    mark = tries.of_comment(comment)
    if mark is not None and mark.restarts == restarts and mark.word != tries.WAITING:
        # another node of this job is at it, for this very start: the same once more, and counted once
        word, written = mark.word, True
    else:
        count = tries.so_far(mark, restarts) + (1 if tried else 0)
        word = tries.judge(count, tried=tried, outage=outage)
        written = _explain(slurm_bin, name, comment, reason, tries.Mark(word, count, restarts, ""))
    # without a written count it might be sent back for ever
    return _send_back(slurm_bin, job, name, hold=word != tries.REQUEUED or not written)


def note(slurm_bin: str, job: int, reason: str, word: str = tries.WAITING) -> bool:
    """Write behind the job's record what it waits for; what it is counted for stays. Whether that was written: failing
    to do so stops nothing.
    """
    try:
        facts = job_facts(slurm_bin, job)
    except SecureSlurmError:
        return False
    comment, restarts = facts.get("admin_comment"), number(facts.get("restart_cnt"), 0)
    count = tries.so_far(tries.of_comment(comment), restarts)
    return _explain(slurm_bin, name_of(job, facts), comment, reason, tries.Mark(word, count, restarts, ""))


def release(slurm_bin: str, job: int) -> bool:
    """Release a job that an outage holds, by its own mark and by nobody else's word; whether it was one.

    A job that somebody has held since then, or that waits for another reason, is left alone. Raises SecureSlurmError
    when slurmctld does not answer or refuses.
    """
    facts = job_facts(slurm_bin, job)
    mark = tries.of_comment(facts.get("admin_comment"))
    restarts = number(facts.get("restart_cnt"), 0)
    if mark is None or mark.word != tries.WAITS or mark.restarts != restarts - 1 or not _held_by_hook(facts):
        return False
    name = name_of(job, facts)
    _slurm(f"{slurm_bin}/scontrol", "release", name)
    # it does not wait any more: who holds it from now on is somebody else
    _explain(slurm_bin, name, facts.get("admin_comment"), mark.text, mark._replace(word=tries.REQUEUED, text=""))
    return True


def drain(slurm_bin: str, node: str, reason: str) -> None:
    """Take a node out of service, with the reason where ``sinfo -R`` shows it. Raises SecureSlurmError."""
    text = _UNSAFE.sub("?", f"secure-slurm: {reason}")[:REASON_LIMIT]
    _slurm(f"{slurm_bin}/scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={text}")


def _send_back(slurm_bin: str, job: int, name: str, *, hold: bool) -> str:
    """Requeue it, held or not, or cancel it if it cannot be requeued; what became of it, as :func:`put_back`."""
    try:
        _slurm(f"{slurm_bin}/scontrol", "requeuehold" if hold else "requeue", name)
    except SecureSlurmError:
        # another node may have been quicker: then nothing is to be cancelled
        if _over_by_now(slurm_bin, job):
            return "over"
        # --no-requeue and interactive jobs: "Requested operation is presently disabled"
        _slurm(f"{slurm_bin}/scancel", name)
        return "cancelled"
    return "held" if hold else "requeued"


def _held_by_hook(facts: dict[str, object]) -> bool:
    """Whether ``requeuehold`` holds it, and nobody who held it since (measured on 24.11 and 26.05).

    Slurm calls that JobHeldUser and keeps a description; an admin's hold makes it JobHeldAdmin, and a release takes the
    description away.
    """
    states = facts.get("job_state")
    pending = "PENDING" in states if isinstance(states, list) else states == "PENDING"
    held = (facts.get("state_reason"), facts.get("state_description"))
    return pending and held == ("JobHeldUser", "job requeued in held state")


def _over_by_now(slurm_bin: str, job: int) -> bool:
    """Whether somebody else has ended this start since it was looked at: the Prolog of the job's other node, mostly. A
    second requeuehold is refused then, and a scancel would end for good what was only sent back.
    """
    try:
        return is_over(job_facts(slurm_bin, job))
    except SecureSlurmError:
        return False


def is_over(facts: dict[str, object]) -> bool:
    """Whether Slurm has ended this start of the job. Whatever starts next has a Prolog of its own to pass."""
    states = facts.get("job_state")
    names = states if isinstance(states, list) else str(states).split()
    return any(name in OVER for name in names)


def name_of(job: int, facts: dict[str, object]) -> str:
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


def _slurm(*argv: str, timeout: float = SCONTROL_TIMEOUT) -> Completed:
    """One of Slurm's commands, with the configuration that slurmctld or slurmd named to the hook, and nothing else."""
    conf = os.environ.get("SLURM_CONF", "")
    return run(argv, timeout=timeout, max_output=ANSWER_LIMIT, env_extra={"SLURM_CONF": conf} if conf else None)


def _explain(slurm_bin: str, name: str, comment: object, reason: str, mark: tries.Mark | None = None) -> bool:
    """Put the reason behind the record, with the mark; whether that was written."""
    text = _UNSAFE.sub("?", reason)[:REASON_LIMIT]
    if mark is not None:
        text = tries.write(mark._replace(text=text))
    record = comment.split(" | ", 1)[0] if isinstance(comment, str) else ""
    value = f"{record} | {text}" if record else text
    began = time.monotonic()
    for count in itertools.count(1):
        left = SCONTROL_TIMEOUT - (time.monotonic() - began)
        try:
            _slurm(f"{slurm_bin}/scontrol", "update", f"JobId={name}", f"AdminComment={value}", timeout=left)
        except ValueError:
            # a comment that no argument can carry (a NUL, half a character)
            return False
        except SecureSlurmError:
            # our own filter refuses every change for as long as the decision daemon is late
            took = time.monotonic() - began
            if (took >= PATIENCE and count >= LEAST_TRIES) or took + PAUSE >= SCONTROL_TIMEOUT:
                break
            time.sleep(PAUSE)
        else:
            return True
    return False
