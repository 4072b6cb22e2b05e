"""The node's Prolog: grant, data key, dm-crypt scratch; or a held job, and a node that stays in service.

Runs as root under ``python3 -IS`` in slurmd's namespaces, with the same code for mounting as the Epilog has for
unmounting. The whole budget is ``node.prolog_deadline``, below Slurm's own limits (MessageTimeout, BatchStartTimeout).

Who is to blame decides how it ends (docs/decisions/0024-blame-and-breaker.md): what is the job's fault holds it, what
is a service's puts it back into the queue once; a broken node is drained with its reason, and the job goes elsewhere.
All of these exit 0; 1 is left for when Slurm could not be told.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from audit.chain import AuditError, Chain
from conf.errors import BackendUnavailable, InternalError, Refused, SecureSlurmError, UsageError
from conf.hookconf import check_sources, read_hook_config
from conf.safefile import read_safely
from conf.slurmnames import for_node
from conf.tag import parse_extra
from keys import machine
from keys.journal import journal_of
from keys.place import PROOFS, NotProved, Verdict
from keys.scratch import deadboot
from keys.scratch.plan import ScratchPlan
from keys.scratch.setup import open_scratch
from keys.secret import Secret
from slurm_hooks import clear, patience, room, surroundings, taskfile, wire
from slurm_hooks.blame import SERVICES, drain, hold, put_back
from slurm_hooks.hookenv import HookJob, read_job, say

if TYPE_CHECKING:
    from types import FrameType

    from keys.journal import Journal
    from keys.scratch.report import Report

SOCKET = "daemon/node.sock"
"""Below the run directory, which is root's; only the folder ``daemon`` is the node daemon's own."""
NODE_FAULTS = frozenset({"residency.node", "node.place", "node.place-proof"}) | clear.RULES
"""Refusals that are this node's own fault, for whatever job: it is not where its feature says, or cannot prove it."""
EARLIER_START = "left by an earlier start of the job"
SWEEP = 5.0
"""Seconds of the Prolog's time for what earlier boots of the node left."""
KEY_BYTES = 64
"""AES-256-XTS takes two 256-bit keys (dm-crypt, Documentation/admin-guide/device-mapper/dm-crypt.rst)."""


class OutOfTime(BackendUnavailable):
    """The Prolog's whole budget is spent; what was set up has been undone."""


def main() -> int:
    """The hook. 0: the job may start, was put back or held, or this node was drained; 1: Slurm could not be told."""
    os.umask(0o077)
    try:
        config = read_hook_config(check_sources=False)
        job = read_job(os.environ)
    except SecureSlurmError as error:
        say("prolog", f"this node is not fit for secured jobs: {error} {error.advice}")
        return 1
    try:
        check_sources(config)
    except SecureSlurmError as error:
        # an admin is in the middle of a change: that puts jobs back, it does not take the node out of service
        return _refuse(config, job, None, error)
    return _guard(config, job)


def _guard(config: dict[str, Any], job: HookJob) -> int:
    try:
        chain = Chain(f"{config['audit']['directory']}/node-{job.node}", "node", job.node)
    except (SecureSlurmError, OSError, ValueError) as error:
        return _refuse(config, job, None, Refused("audit.unwritable", f"no audit trail on node {job.node}: {error}"))
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, float(config["node"]["prolog_deadline"]))
    try:
        try:
            _start(config, job, chain)
        finally:
            # inside the outer try: an alarm that comes at this very moment is caught below like any other
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (Refused, BackendUnavailable) as error:
        if isinstance(error, Refused) and error.rule in NODE_FAULTS:
            return _broken(config, chain, job, error.rule, error)
        if isinstance(error, Refused) and error.rule == room.RULE and room.is_the_nodes_fault(config["scratch"], job):
            return _broken(config, chain, job, room.NODES_RULE, error)
        return _refuse(config, job, chain, error)
    except (SecureSlurmError, OSError, ValueError, KeyError) as error:
        # ValueError, KeyError: a node daemon that does not answer as it must
        return _broken(config, chain, job, "node.broken", error)
    return 0


def _broken(config: dict[str, Any], chain: Chain | None, job: HookJob, rule: str, error: Exception) -> int:
    """Take this node out of service, as the next job would fare no better on it, and send this one elsewhere."""
    _record_refusal(chain, job, rule)
    reason = f"[{rule}] {error}"
    say("prolog", f"job {job.job}: this node cannot run secured jobs: {reason}")
    slurm_bin = config["cluster"]["slurm_bin"]
    try:
        # first, or the job could come back to this node; failing, Slurm itself drains it
        drain(slurm_bin, job.node, reason)
        end = put_back(slurm_bin, job.job, f"{reason} (node {job.node})")
    except SecureSlurmError as failure:
        say("prolog", f"job {job.job}: Slurm could not be told: {failure}")
        return 1
    say("prolog", f"job {job.job} was {end}")
    return 0


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise OutOfTime("the Prolog's time is spent", advice="look at Vault and at the node's disk")


def _refuse(config: dict[str, Any], job: HookJob, chain: Chain | None, error: SecureSlurmError) -> int:
    """Keep the job from running without draining this node."""
    rule = error.rule if isinstance(error, Refused) else "backend.unavailable"
    reason = f"[{rule}] {error}"
    _record_refusal(chain, job, rule)
    say("prolog", f"job {job.job} may not start on {job.node}: {reason}")
    try:
        # several nodes of one job may say so at once: the first one does it, to the others the job is over
        away = put_back if rule in SERVICES else hold
        end = away(config["cluster"]["slurm_bin"], job.job, f"{reason} (node {job.node})")
    except SecureSlurmError as failure:
        say("prolog", f"job {job.job} could neither be held nor cancelled: {failure}")
        return 1
    say("prolog", f"job {job.job} was {end}")
    return 0


def _record_refusal(chain: Chain | None, job: HookJob, rule: str) -> None:
    if chain is None:
        return
    try:
        chain.append("start.refused", durable=True, job=job.job, uid=job.uid, node=job.node, rule=rule, hook="Prolog")
    except (AuditError, ValueError) as error:
        # ValueError: the node daemon named a rule that is no rule; that must neither hide the refusal nor drain a node
        say("prolog", str(error))


def _start(config: dict[str, Any], job: HookJob, chain: Chain) -> None:
    here = for_node(config["node"]["run_dir"], job.node)
    journal = journal_of(config, job.node)
    if not job.marked:
        raise Refused("tag.missing", "this partition demands a tag and the job has none")
    shadowed = surroundings.judge(config, job, os.environ)
    until = time.monotonic() + float(config["node"]["prolog_deadline"]) / 2
    answer = patience.ask(lambda: _ask(here, config, job), until)
    verdict = Verdict.from_answer(answer)
    _note_place(chain, job, verdict)
    _must_allow(answer)
    grant = {name.removeprefix("grant."): value.decode() for name, value in answer.items() if name.startswith("grant.")}
    with Secret(answer.pop("plaintext", b"")) as key:
        _check_grant(config, job, grant)
        _check_place(config, verdict)
        size = int(grant["scratch"])
        journal.claim_incarnation(job.job, grant["incarnation"])
        facts = {"job": job.job, "node": job.node, "incarnation": grant["incarnation"]}
        in_shadow = ",".join(shadowed) or None
        chain.append("node.grant-read", durable=False, region=wire.text(answer, "place"), shadowed=in_shadow, **facts)
        if size:
            if len(key) != KEY_BYTES:
                raise InternalError(f"the node daemon sent a key of {len(key)} bytes, not {KEY_BYTES}")
            _sweep(journal, config, chain)
            chain.append("node.datakey", durable=False, key=grant["key"], **facts)
            store = {"backing": config["scratch"]["backing"], "reason": config["scratch"].get("chosen") or None}
            chain.append("scratch.open", durable=True, bytes=size, **store, **facts)
            scratch = open_scratch(
                _plan(config, job, here, size),
                key,
                journal,
                incarnation=grant["incarnation"],
                key_name=grant["key"],
                wrapped=wire.text(answer, "wrapped"),
                restarts=job.restarts,
                place=verdict.summary() if verdict else "",
                healed=lambda report: _healed(chain, report, EARLIER_START),
            )
            chain.append(
                "scratch.ready",
                durable=True,
                mapper=scratch.mapper,
                cipher=scratch.cipher,
                key_bits=scratch.key_bits,
                bytes=scratch.size_bytes,
                filesystem=scratch.filesystem,
                **facts,
            )
        taskfile.write(here, job.job, grant, f"{config['scratch']['mount_root']}/{job.job}" if size else "")


def _sweep(journal: Journal, config: dict[str, Any], chain: Chain) -> None:
    """Give back the space that earlier boots of this node hold. The reaper tries again what fails here."""
    try:
        for taken in deadboot.sweep(journal, config["scratch"], seconds=SWEEP):
            if taken.problem:
                say("prolog", f"job {taken.job}: {deadboot.REASON}, and not gone: {taken.problem}")
            else:
                _healed(chain, taken.report, deadboot.REASON)
    except (InternalError, OSError) as error:
        say("prolog", str(error))


def _healed(chain: Chain, report: Report, reason: str) -> None:
    """Without the first of the two the trail would lack an end of that start's scratch for good."""
    if report.incarnation:
        # without it the line would be true of the start that begins now, too (audit/certificate.py)
        chain.append("scratch.gone", durable=True, **report.absent())
    chain.append("reaper.healed", durable=False, **report.healed(reason))


def _check_grant(config: dict[str, Any], job: HookJob, grant: dict[str, str]) -> None:
    """Compare what the node daemon handed over with the job's tag and with this node's place, both read by root.

    The daemon compared more than this; but it is not root, and its word alone must not take a job's protection away.
    """
    try:
        tag = parse_extra(job.extra)
    except UsageError as error:
        raise Refused("grant.tag", f"the job's tag cannot be read: {error}") from None
    if (grant["class"], grant["residency"], int(grant["scratch"]), grant["datasets"]) != (
        tag.klass,
        tag.residency or "",
        tag.scratch or 0,
        ",".join(tag.datasets),
    ):
        raise Refused("grant.tag", "the grant says something else than the job's tag")
    if tag.residency is None:
        return
    region = read_safely(config["node"]["place_file"], limit=256).decode("ascii", "replace").strip()
    if config["regions"].get(region) != tag.residency:
        raise Refused("residency.node", f"this node is in {region!r}, the job's data must stay in {tag.residency!r}")


def _ask(here: str, config: dict[str, Any], job: HookJob) -> dict[str, bytes]:
    request = {
        "verb": "open",
        "job": str(job.job),
        "uid": str(job.uid),
        "user": job.user,
        "cluster": job.cluster,
        "node": job.node,
        "nodes": ",".join(job.nodes),
        "restarts": str(job.restarts),
    }
    return wire.exchange(f"{here}/{SOCKET}", request, timeout=float(config["node"]["prolog_deadline"]))


def _must_allow(answer: dict[str, bytes]) -> None:
    if answer.get("verdict") != b"allow":
        rule = wire.text(answer, "rule", "node.no-verdict")
        message = wire.text(answer, "message", "the node daemon gave no verdict")
        raise Refused(rule, message, advice=wire.text(answer, "advice", ""))


def _note_place(chain: Chain, job: HookJob, verdict: Verdict | None) -> None:
    """Into the audit trail, also when it is why the job does not start."""
    if verdict is None:
        return
    try:
        chain.append("place.verdict", durable=False, job=job.job, node=job.node, **verdict.audit_fields())
    except ValueError as error:
        raise NotProved(f"the node daemon's verdict on the node's place cannot be recorded: {error}") from None


def _check_place(config: dict[str, Any], verdict: Verdict | None) -> None:
    """The verdict is of the method that the site demands, and about the region that root wrote down."""
    method = config["node"].get("proof", "none")
    if method not in ("file", *PROOFS) or verdict is None or verdict.method != method:
        raise NotProved(
            f"this node's place is to be proved by {method!r}, and the node daemon went by another method",
            advice="set node.proof, render the configuration, and restart secure-slurm-noded",
        )
    if method in PROOFS and not verdict.verified:
        raise NotProved("this node's place is not proved", advice="see: secure-slurm node status")
    region = read_safely(config["node"]["place_file"], limit=256).decode("ascii", "replace").strip()
    if verdict.region != region:
        raise Refused("node.place", f"the place file says {region!r}, the node daemon {verdict.region!r}")
    if verdict.machine and machine.matches(verdict.machine) is not True:
        raise NotProved(
            "the manifest is for another machine", advice="have one signed for this machine: secure-slurm node manifest"
        )


def _plan(config: dict[str, Any], job: HookJob, here: str, size: int) -> ScratchPlan:
    scratch = config["scratch"]
    return ScratchPlan(
        node=job.node,
        job=job.job,
        uid=job.uid,
        gid=job.gid,
        size_bytes=size,
        backing=scratch["backing"],
        directory=scratch["directory"],
        overcommit=scratch["overcommit"],
        volume_group=scratch["volume_group"],
        device=scratch["device"],
        mount_root=scratch["mount_root"],
        filesystem=scratch["filesystem"],
        run_dir=here,
        limit=scratch.get("limit", 0),
        volume=scratch.get("volume", ""),
        # one drive of several would be that many times slower than what ParallelCluster had made of them
        striped=bool(scratch.get("take_over")),
    )
