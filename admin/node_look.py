"""What there is of encrypted scratch on this node, and what Slurm runs here.

What is looked for has a name that follows from node and job (keys/scratch/plan.py), so that it is found with or without
a journal. Nothing is changed by looking.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import BackendUnavailable, SecureSlurmError
from keys.journal import Journal, Record, journal_of
from keys.process import ProcessError, run
from keys.scratch.errors import NodeBroken
from keys.scratch.plan import ScratchNames, names_from_config, names_of
from keys.scratch.present import jobs_present
from keys.scratch.teardown import verify_gone
from slurm_hooks.steps import running_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

QUERY_TIMEOUT = 20.0
"""Seconds."""
MAX_QUEUE = 4 * 1024**2


class Node(NamedTuple):
    """This node as the rendered configuration describes it."""

    name: str
    run_dir: str
    config: dict[str, Any]

    @property
    def journal(self) -> Journal:
        """Its journal."""
        return journal_of(self.config, self.name)

    def names(self, job: int) -> ScratchNames:
        """What a job's scratch is called here."""
        return names_from_config(self.name, job, self.config["scratch"])


class Finding(NamedTuple):
    """One job. ``journal`` is its state there, ``none`` or ``damaged``; ``since`` in Unix seconds (0: unknown);
    ``step``: a slurmstepd of it runs on this machine; ``there``: what exists, as ``kind: name``.
    """

    job: int
    journal: str
    uid: int | None
    key: str
    since: float
    step: bool
    there: list[str]


def look(node: Node, problems: list[str]) -> list[Finding]:
    """Every job of which there is anything, destroyed ones left out. What cannot be looked at goes to ``problems``."""
    jobs: set[int] = set()
    for search in (node.journal.jobs, lambda: jobs_present(node.name, node.config["scratch"])):
        try:
            jobs.update(search())
        except (SecureSlurmError, OSError) as error:
            problems.append(str(error))
    steps = set(running_steps().values())
    found = [_finding(node, job, problems, step=job in steps) for job in sorted(jobs)]
    return [each for each in found if each.there or each.journal != "destroyed"]


def _finding(node: Node, job: int, problems: list[str], *, step: bool) -> Finding:
    record, state = None, "none"
    try:
        record = node.journal.read(job)
        state = record.state if record else "none"
    except (SecureSlurmError, OSError) as error:
        problems.append(str(error))
        state = "damaged"
    there: list[str] = []
    try:
        there += [item for names in _all_names(node, job, record) for item in verify_gone(names)]
    except (SecureSlurmError, OSError) as error:
        problems.append(f"job {job}: {error}")
        there.append("unknown")
    return Finding(
        job=job,
        journal=state,
        uid=record.uid if record else None,
        key=record.key_name if record else "",
        since=record.changed if record else 0.0,
        step=step,
        there=list(dict.fromkeys(there)),
    )


def _all_names(node: Node, job: int, record: Record | None) -> Iterator[ScratchNames]:
    """By today's configuration, and by the one that the job started under, if that was another."""
    yield node.names(job)
    if record is not None:
        where = record.backing_path.rpartition("/")[0] if record.backing in ("file", "lvm") else record.backing_path
        with contextlib.suppress(NodeBroken):
            yield names_of(node.name, job, record.backing, where, record.mount_root)


def slurm_state(node: Node, job: int) -> str:
    """The state of a job that slurmctld knows on this node; empty: there is none."""
    argv = [f"{node.config['cluster']['slurm_bin']}/squeue", "--noheader", f"--nodelist={node.name}", "--states=all"]
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        answer = run([*argv, "--format=%A %T"], timeout=QUERY_TIMEOUT, env_extra=where, max_output=MAX_QUEUE)
    except ProcessError as error:
        raise BackendUnavailable(
            f"whether Slurm runs job {job} here is not known: {error.stderr or error}",
            advice="is slurmctld running? If it is down and the job does not run here: --without-slurm",
        ) from None
    lines = (line.split() for line in answer.stdout.decode("ascii", "replace").splitlines())
    return next((line[1] for line in lines if len(line) == 2 and line[0] == str(job)), "")
