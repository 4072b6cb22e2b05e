"""PrologSlurmctld: hand a job that is about to start to the lifecycle daemon, which judges it again and makes its keys.

Runs as SlurmUser. One query gives the decision record (AdminComment reaches no hook's environment) and the job as it
now is; the daemon trusts the record's MAC and slurmctld, nothing else. Waiting for Vault belongs here, where no node
is blocked yet.
"""

from __future__ import annotations

import os
import time
from typing import Any

from conf.errors import Refused, SecureSlurmError
from conf.hookconf import read_hook_config
from slurm_hooks import wire
from slurm_hooks.blame import hold, job_facts, number
from slurm_hooks.hookenv import HookJob, read_job, say

SENT = {
    **{name: name for name in ("admin_comment", "extra", "features", "prefer", "partition", "user_name", "cluster")},
    **{name: name for name in ("dependency", "account", "qos", "licenses")},
    **{name: name for name in ("tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task")},
    "reservation": "resv_name",
}
"""The job's texts by the filters' names, and scontrol's (data_parser, JOB_INFO)."""


def main() -> int:
    """The hook. 0: the job may start, or was held; 1: the job may not start and Slurm is to stop it."""
    since = time.monotonic_ns()
    os.umask(0o077)
    try:
        config = read_hook_config(check_sources=False)
        job = read_job(os.environ)
    except SecureSlurmError as error:
        say("prolog_slurmctld", f"{error} {error.advice}")
        return 1
    try:
        # an admin in the middle of a change holds jobs with a reason; failing here would requeue them for ever
        read_hook_config()
        _start(config, job, since)
    except SecureSlurmError as error:
        return _refuse(config, job, error)
    return 0


def _start(config: dict[str, Any], job: HookJob, since: int) -> None:
    facts = job_facts(config["cluster"]["slurm_bin"], job.job)
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
    lifecycle = config["lifecycle"]
    answer = wire.exchange(lifecycle["socket"], request, timeout=float(lifecycle["start_deadline"]))
    if answer.get("verdict") != b"allow":
        raise Refused(
            wire.text(answer, "rule", "lifecycle.no-verdict"),
            wire.text(answer, "message", "the lifecycle daemon gave no verdict"),
        )


def _refuse(config: dict[str, Any], job: HookJob, error: SecureSlurmError) -> int:
    rule = error.rule if isinstance(error, Refused) else "backend.unavailable"
    say("prolog_slurmctld", f"job {job.job} may not start: [{rule}] {error}")
    try:
        end = hold(config["cluster"]["slurm_bin"], job.job, f"[{rule}] {error}")
    except SecureSlurmError as failure:
        say("prolog_slurmctld", f"job {job.job} could neither be held nor cancelled: {failure}")
        return 1
    # a cancelled srun or salloc still waits for its allocation: the failure ends that wait
    return 1 if end == "cancelled" else 0
