"""EpilogSlurmctld: tell the lifecycle daemon that a job has ended. The note on disk comes first, the message second.

Runs as SlurmUser. If the daemon is away the note waits for it: a key is never forgotten because a socket was closed.
"""

from __future__ import annotations

import os

from conf.errors import SecureSlurmError
from conf.hookconf import read_hook_config
from slurm_hooks import ended, wire
from slurm_hooks.hookenv import HookJob, read_job, say

POKE_TIMEOUT = 30.0
"""Seconds that slurmctld keeps the job COMPLETING at most while its keys are deleted; the note outlives this wait."""


def main() -> int:
    """The hook. Slurm only logs its exit status."""
    os.umask(0o007)
    try:
        config = read_hook_config(check_sources=False)
        # without its nodes the end is told all the same: the daemon asks Vault where the job has grants
        job = read_job(os.environ, any_nodes=True)
        _note(config["lifecycle"]["ended_dir"], job)
        answer = wire.exchange(
            config["lifecycle"]["socket"],
            {"verb": "ended", "job": str(job.job), "nodes": ",".join(job.nodes)},
            timeout=POKE_TIMEOUT,
        )
        if answer.get("verdict") != b"allow":
            raise SecureSlurmError(wire.text(answer, "message", "the lifecycle daemon gave no verdict"))
    except (SecureSlurmError, OSError) as error:
        say("epilog_slurmctld", f"keys will be deleted when the lifecycle daemon can: {error}")
        return 1
    return 0


def _note(folder: str, job: HookJob) -> None:
    try:
        ended.write(folder, job.job, job.nodes)
    except OSError as error:
        # a full disk must not keep the key: the daemon may well be there, and the message needs no disk
        say("epilog_slurmctld", f"job {job.job}: no note could be left in {folder}: {error}")
