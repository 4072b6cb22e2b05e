"""What the audit trails should say and do not: jobs without a record, keys without an end, silent nodes. Pure.

A chain that is whole proves that nothing was taken out of it, not that everything was written. So each thing that must
have left a second line somewhere is looked for there. Every finding names the job, what is missing, and where to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audit.facts import Facts, Key

SLACK = 120.0
"""Seconds at the end of what was read in which a second line may still be on its way."""
SKEW = 5.0
"""Seconds by which the clocks of two hosts may differ."""
MOST = 1000
"""Findings of one kind that are told one by one."""


class Gap(NamedTuple):
    """``kind`` is a stable word; ``job`` 0: about no job in particular."""

    kind: str
    job: int
    what: str
    where: str


def find(facts: Facts) -> list[Gap]:
    """Everything that the trails alone show, by kind and job."""
    found = [*_starts(facts), *_keys(facts), *_ends(facts), *_clocks(facts)]
    return sorted(found, key=lambda gap: (gap.kind, gap.job, gap.what))


def open_keys(facts: Facts) -> list[Key]:
    """Keys of which no end is told, and none has to be: the job may run."""
    return [key for key in facts.keys.values() if key.made and not key.over and not _is_over(facts, key)]


def _starts(facts: Facts) -> Iterator[Gap]:
    made = {(key.job, key.incarnation) for key in facts.keys.values()}
    for start in facts.starts.values():
        if facts.decisions_from and start.at > facts.decisions_from and start.nonce not in facts.nonces:
            yield Gap(
                "job-without-decision",
                start.job,
                f"it started, and no decision with the nonce {start.nonce or '(none)'} of its record is told",
                "decision/<head>-decision.jsonl of every SlurmctldHost; a missing file, or lines cut before it",
            )
        late = start.at > facts.last - SLACK
        if start.has_scratch and not start.refused and not late and (start.job, start.incarnation) not in made:
            yield Gap(
                "start-without-key",
                start.job,
                "its start was allowed and not refused, and no key was made for it",
                "lifecycle/<head>-lifecycle.jsonl, the daemon's log at that time",
            )


def _keys(facts: Facts) -> Iterator[Gap]:
    if not facts.has_lifecycle:
        # a node's own trails, on that node: of keys the head node tells
        return
    for key in facts.keys.values():
        if not key.made:
            yield Gap(
                "key-without-creation",
                key.job,
                f"the key {key.name} was used or deleted, and its making is not told",
                "the lifecycle trail of every SlurmctldHost; a trail that is missing",
            )
        elif not key.over and _is_over(facts, key):
            yield Gap(
                "key-without-revocation",
                key.job,
                f"the job has ended, and the end of the key {key.name} is not told",
                "secure-slurm status (is it pending?), then: secure-slurm audit certificate JOB",
            )


def _ends(facts: Facts) -> Iterator[Gap]:
    for key in facts.keys.values():
        over = key.deleted or (facts.ends.get(key.job, 0.0) if _is_over(facts, key) else 0.0)
        if not over or over > facts.last - SLACK:
            continue
        if (key.taken_back or key.unmade) and not key.ready:
            # no node was told of that start
            continue
        if key.node not in facts.hosts:
            yield Gap(
                "segment-missing",
                key.job,
                f"of node {key.node}, which it ran on, there is no line at all",
                f"node-{key.node}/ on the node, lifecycle/nodes/{key.node}/ on the head node; is link.listen set?",
            )
        elif key.ready and facts.gone.get((key.node, key.job), 0.0) < key.ready:
            yield Gap(
                "mapping-unconfirmed",
                key.job,
                f"node {key.node} has not said that nothing is left of its scratch",
                f"the node's trail behind its last line here; secure-slurm node reap on {key.node}",
            )
    for job, at in facts.done.items():
        if at < facts.last - SLACK and facts.certified.get(job, 0.0) < at:
            yield Gap(
                "certificate-missing",
                job,
                "its keys were destroyed, and no certificate was signed",
                f"secure-slurm status; secure-slurm audit certificate {job}",
            )


def _clocks(facts: Facts) -> Iterator[Gap]:
    for back in facts.backwards:
        yield Gap(
            "clock",
            0,
            f"the clock of {back.trail} went back by {back.seconds:.1f} s before its line {back.seq}",
            "the time service of that host",
        )
    for key in facts.keys.values():
        if key.made and key.ready and key.ready < key.made - SKEW:
            yield Gap(
                "clock",
                key.job,
                f"node {key.node} had its scratch {key.made - key.ready:.1f} s before its key was made",
                f"the time services of {key.node} and of the head node",
            )


def _is_over(facts: Facts, key: Key) -> bool:
    """The trails say that its start has ended: an end after it was made, and long enough ago."""
    end = max(facts.ends.get(key.job, 0.0), facts.done.get(key.job, 0.0))
    return key.made < end < facts.last - SLACK
