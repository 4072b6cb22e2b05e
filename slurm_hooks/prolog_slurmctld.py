"""PrologSlurmctld: hand a job that is about to start to the lifecycle daemon, which judges it again and makes its keys.

Runs as SlurmUser. One query gives the decision record (AdminComment reaches no hook's environment) and the job as it
now is; the daemon trusts the record's MAC and slurmctld, nothing else.

Waiting for a service belongs here, where no node works on the job yet: it asks again, with jitter, until
``lifecycle.start_deadline``. Then the job goes back into the queue, once; a job that fails again is held
(docs/decisions/0024-blame-and-breaker.md). What is the job's own fault holds it at once.
"""

from __future__ import annotations

import os
import time
from typing import Any

from conf.errors import Refused, SecureSlurmError
from conf.hookconf import read_hook_config
from slurm_hooks import wire
from slurm_hooks.blame import OUTAGE, SERVICES, TRIAL, hold, is_over, job_facts, note, number, put_back
from slurm_hooks.hookenv import HookJob, read_job, say
from slurm_hooks.patience import FIRST_WAIT, MOST_WAIT, jitter

SENT = {
    **{name: name for name in ("admin_comment", "extra", "features", "prefer", "partition", "user_name", "cluster")},
    **{name: name for name in ("dependency", "account", "qos", "licenses")},
    **{name: name for name in ("tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task")},
    "reservation": "resv_name",
}
"""The job's texts by the filters' names, and scontrol's (data_parser, JOB_INFO)."""


LAST_TRY = 5.0
"""Seconds that must be left of the deadline for another try."""
ASK = 20.0
"""Seconds for the daemon to say whether the service is away for everybody; it asks the service itself."""


def main() -> int:
    """The hook. 0: the job may start, was put back or was held; 1: it may not start and Slurm is to stop it."""
    since = time.monotonic_ns()
    os.umask(0o077)
    try:
        config = read_hook_config(check_sources=False)
        job = read_job(os.environ)
    except SecureSlurmError as error:
        say("prolog_slurmctld", f"{error} {error.advice}")
        return 1
    return _try(config, job, since)


def _try(config: dict[str, Any], job: HookJob, since: int) -> int:
    """Try until it may start, may not, or the time is up. What waits here keeps a node that does nothing yet."""
    end = time.monotonic() + float(config["lifecycle"]["start_deadline"])
    wait, tried, noted = FIRST_WAIT, False, False
    while True:
        try:
            # an admin in the middle of a change: wait for the end of it
            read_hook_config()
            _start(config, job, since, end)
            return 0
        except SecureSlurmError as error:
            rule, failure = _rule(error), error
        if rule not in SERVICES:
            return _refuse(config, job, rule, failure)
        tried = tried or rule not in (OUTAGE, TRIAL)
        pause = jitter(wait)
        if rule == OUTAGE or time.monotonic() + pause + LAST_TRY > end:
            return _put_back(config, job, rule, failure, tried=tried)
        if not noted:
            noted = note(config["cluster"]["slurm_bin"], job.job, f"[{rule}] {failure}")
        say("prolog_slurmctld", f"job {job.job} waits: [{rule}] {failure}")
        time.sleep(pause)
        wait = min(wait * 2, MOST_WAIT)


def _start(config: dict[str, Any], job: HookJob, since: int, end: float) -> None:
    facts = job_facts(config["cluster"]["slurm_bin"], job.job)
    if is_over(facts):
        raise Refused("lifecycle.ended", f"job {job.job} has ended while it waited to start")
    request: dict[str, bytes | str] = {
        "verb": "start",
        "job": str(job.job),
        "uid": str(job.uid),
        "nodes": ",".join(job.nodes),
        "restarts": str(number(facts.get("restart_cnt"), 0)),
        "user_id": str(number(facts.get("user_id"), -1)),
        "het_job_id": str(number(facts.get("het_job_id"), 0)),
        # a job that ends while slurmctld is asked about it has no other end: its start must not come after that
        "since": str(since),
    }
    request |= {f"job.{name}": str(facts[key]) for name, key in SENT.items() if facts.get(key)}
    # minutes; slurmctld calls a limit that is none infinite
    request["job.time_limit"] = str(number(facts.get("time_limit"), 0xFFFFFFFF))
    request["job.num_tasks"] = str(number(facts.get("tasks"), 1))
    answer = wire.exchange(config["lifecycle"]["socket"], request, timeout=max(end - time.monotonic(), 1.0))
    if answer.get("verdict") != b"allow":
        raise Refused(
            wire.text(answer, "rule", "lifecycle.no-verdict"),
            wire.text(answer, "message", "the lifecycle daemon gave no verdict"),
        )


def _rule(error: SecureSlurmError) -> str:
    if isinstance(error, Refused):
        return error.rule
    # a command of Slurm's that fails, hooks.json that is not up to date: neither is the job's fault
    return "backend.unavailable"


def _refuse(config: dict[str, Any], job: HookJob, rule: str, error: SecureSlurmError) -> int:
    """Hold a job that may not start as it is."""
    say("prolog_slurmctld", f"job {job.job} may not start: [{rule}] {error}")
    try:
        end = hold(config["cluster"]["slurm_bin"], job.job, f"[{rule}] {error}")
    except SecureSlurmError as failure:
        say("prolog_slurmctld", f"job {job.job} could neither be held nor cancelled: {failure}")
        return 1
    # a cancelled srun or salloc still waits for its allocation: the failure ends that wait
    return 1 if end == "cancelled" else 0


def _put_back(config: dict[str, Any], job: HookJob, rule: str, error: SecureSlurmError, *, tried: bool) -> int:
    """Back into the queue once, then held: the service is at fault, and no node has seen the job yet."""
    say("prolog_slurmctld", f"job {job.job} cannot start: [{rule}] {error}")
    outage = rule in (OUTAGE, TRIAL) or _give_up(config, job, rule, error)
    try:
        end = put_back(config["cluster"]["slurm_bin"], job.job, f"[{rule}] {error}", tried=tried, outage=outage)
    except SecureSlurmError as failure:
        say("prolog_slurmctld", f"job {job.job} could neither be requeued, held nor cancelled: {failure}")
        return 1
    say("prolog_slurmctld", f"job {job.job} was {end}" if end != "over" else f"job {job.job} is over")
    return 1 if end == "cancelled" else 0


def _give_up(config: dict[str, Any], job: HookJob, rule: str, error: SecureSlurmError) -> bool:
    """Tell the daemon, which counts; whether the service is away for everybody. A daemon that is away says so too."""
    request: dict[str, bytes | str] = {"verb": "gave-up", "job": str(job.job), "rule": rule, "reason": str(error)[:200]}
    try:
        answer = wire.exchange(config["lifecycle"]["socket"], request, timeout=ASK)
    except SecureSlurmError:
        return True
    return answer.get("outage") != b"0"
