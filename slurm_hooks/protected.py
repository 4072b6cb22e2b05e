"""The Prolog of a job that needs no tag, on a node where its stub found what may be protected data.

Whoever put this node into a partition that demands no tag, or mounted the data here, did it for every job, so the node
is at fault: it is drained, with the reason, and the job goes back to the queue as it was
(docs/decisions/0020-mounts-and-paths.md). Runs as root under ``python3 -IS``; standard library only.
"""

from __future__ import annotations

import os
import re

from audit.chain import Chain
from conf.errors import SecureSlurmError
from conf.hookconf import read_hook_config
from keys.process import run
from slurm_hooks import mounts
from slurm_hooks.blame import SCONTROL_TIMEOUT
from slurm_hooks.hookenv import HookJob, read_job, say
from slurm_hooks.surroundings import section

RULE = "node.protected-mount"
REASON_LIMIT = 250
_UNSAFE = re.compile(r"[^ -{}~]|[\"'\\]")


def main() -> int:
    """The hook. Returns 0 when the job may start, or has been sent back and the node drained; 1 has Slurm do both."""
    os.umask(0o077)
    try:
        # a stale file protects what it names: an admin in the middle of a change must not stop untagged jobs
        config = read_hook_config(check_sources=False)
        job = read_job(os.environ)
        policy = section(config, "mounts")
        found = mounts.exposed(mounts.read(), policy["datasets"], policy["owned"])
    except (SecureSlurmError, KeyError, AttributeError) as error:
        say("prolog", f"whether protected data is mounted here cannot be told: {error}")
        return 1
    if found is None:
        return 0
    mount, owner = found
    reason = f"[{RULE}] {mount.point} ({mount.source}, {owner}) is mounted, and the node is in a partition without tags"
    say("prolog", f"job {job.job}: {reason}")
    _record(config["audit"]["directory"], job, f"{mount.point}: {owner}")
    return _drain(config["cluster"]["slurm_bin"], job, reason)


def _drain(slurm_bin: str, job: HookJob, reason: str) -> int:
    """Slurm's own reason would be "Prolog error", and it would hold the job, for no fault of its user's."""
    text = _UNSAFE.sub("?", reason)[:REASON_LIMIT]
    if not _slurm(f"{slurm_bin}/scontrol", "update", f"NodeName={job.node}", "State=DRAIN", f"Reason={text}"):
        return 1
    if _slurm(f"{slurm_bin}/scontrol", "requeue", str(job.job)):
        return 0
    # srun and salloc cannot be requeued; a cancelled one says so on its user's terminal
    return 0 if _slurm(f"{slurm_bin}/scancel", str(job.job)) else 1


def _slurm(*argv: str) -> bool:
    conf = os.environ.get("SLURM_CONF", "")
    try:
        run(argv, timeout=SCONTROL_TIMEOUT, env_extra={"SLURM_CONF": conf} if conf else None)
    except SecureSlurmError as error:
        say("prolog", str(error))
        return False
    return True


def _record(directory: str, job: HookJob, what: str) -> None:
    """Best effort: a node that cannot write its trail is drained all the same."""
    try:
        chain = Chain(f"{directory}/node-{job.node}", "node", job.node)
        fields = {"job": job.job, "uid": job.uid, "node": job.node}
        chain.append("start.refused", durable=True, rule=RULE, hook="Prolog", reason=what, **fields)
    except (SecureSlurmError, OSError, ValueError) as error:
        say("prolog", f"the audit trail has no line about it: {error}")
