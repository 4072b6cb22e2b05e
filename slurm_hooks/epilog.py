"""The node's Epilog: unmount, wipe, close, remove, and make sure. It needs no daemon and no network.

A failed Epilog drains the node ("Epilog error"): right when key or data may still be there, and only then. Slurm never
runs an Epilog again, so what this leaves is left to the reaper.
"""

from __future__ import annotations

import os
from typing import Any

from audit.chain import AuditError, Chain
from conf.errors import SecureSlurmError
from conf.hookconf import read_hook_config
from conf.slurmnames import for_node
from keys.journal import journal_of
from keys.scratch.teardown import close_scratch
from slurm_hooks import taskfile
from slurm_hooks.hookenv import HookJob, read_job, say


def main() -> int:
    """The hook. 0: nothing of the job is left on this node; 1: something is, and the node drains."""
    os.umask(0o077)
    try:
        # a configuration that changed since it was rendered must not keep a key in the kernel
        config = read_hook_config(check_sources=False)
        job = read_job(os.environ)
    except SecureSlurmError as error:
        say("epilog", f"{error} {error.advice}")
        return 1
    chain = _chain(config, job)
    _note(chain, "scratch.close", job)
    try:
        here = for_node(config["node"]["run_dir"], job.node)
        taskfile.remove(here, job.job)
        report = close_scratch(journal_of(config, job.node), job.job, config["scratch"], uid=max(job.uid, 0) or None)
    except (SecureSlurmError, OSError) as error:
        say("epilog", f"job {job.job}: scratch is not gone: {error}")
        _note(chain, "hook.error", job, rule="scratch.not-gone", hook="Epilog", reason=str(error))
        return 1
    _note(
        chain,
        "scratch.gone",
        job,
        evidence="; ".join(report.removed) or "nothing was there",
        incarnation=report.incarnation or None,
        wiped=report.wiped,
    )
    return 0


def _chain(config: dict[str, Any], job: HookJob) -> Chain | None:
    try:
        return Chain(f"{config['audit']['directory']}/node-{job.node}", "node", job.node)
    except (SecureSlurmError, OSError, ValueError) as error:
        say("epilog", str(error))
        return None


def _note(chain: Chain | None, event: str, job: HookJob, **fields: object) -> None:
    """Write an audit line before the act; a log that is full never stops a destruction."""
    if chain is None:
        return
    try:
        chain.append(event, durable=True, job=job.job, node=job.node, **fields)
    except AuditError as error:
        say("epilog", str(error))
