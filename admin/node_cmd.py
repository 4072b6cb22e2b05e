"""``secure-slurm node status``, ``clean`` and ``reap``: what there is of encrypted scratch here, and the end of it.

All run as root on the compute node, and need neither the node daemon nor Vault.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from pathlib import Path

from admin import check_cmd, enrol_cmd, imds_cmd, place_cmd, store_cmd
from admin.node_look import Finding, Node, look, slurm_state
from admin.output import printable, say, say_json, say_table
from audit.chain import Chain
from conf.errors import EXIT_OK, EXIT_REFUSED, Refused, SecureSlurmError, UsageError
from conf.hookconf import HOOKS_JSON, read_hook_config
from conf.slurmnames import for_node
from keys.scratch.errors import NodeBroken, ScratchLeft
from keys.scratch.report import Report
from keys.scratch.teardown import close_locked
from slurm_hooks import reaper, taskfile, wire
from slurm_hooks.steps import running_steps

SOCKET = "daemon/node.sock"
PING_TIMEOUT = 5.0
LOCK_TIMEOUT = 20.0
"""Seconds each."""

# squeue(1), JOB STATE CODES: a job in one of these is not on a node; in any other, or an unknown one, it may be
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING", "PREEMPTED",
    "REVOKED", "TIMEOUT",
}  # fmt: skip


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``node status``, ``clean``, ``reap``, ``check``, ``enrol``, ``imds``, ``store``, ``manifest`` and others."""
    node = subparsers.add_parser("node", help="show what there is of encrypted scratch on this node, or take it down")
    commands = node.add_subparsers(dest="node_command", required=True, metavar="COMMAND")
    status = commands.add_parser(
        "status",
        help="journals, mappings, mounts, loop devices and backing files of jobs, and the node daemon",
        description="Show what there is of encrypted scratch on this node, with or without a journal, and whether the "
        "node daemon answers, by what it proves its place, and whether users reach the instance metadata service. "
        "Exit 0: all of it has a journal, the daemon answers, and users do not reach the service; 1: not so.",
        allow_abbrev=False,
    )
    status.set_defaults(run=run_status)
    clean = commands.add_parser(
        "clean",
        help="take down the scratch of a job that does not run here",
        description="Unmount, wipe, close and remove what is left of a job's scratch on this node. Refused while "
        "Slurm runs the job here.",
        allow_abbrev=False,
    )
    clean.add_argument("job", type=_job, metavar="JOB", help="job id; of an array task its own id, not 123_4")
    clean.add_argument(
        "--without-slurm",
        action="store_true",
        help="do not ask slurmctld, because it is down and you know that the job does not run here",
    )
    clean.set_defaults(run=run_clean)
    reap = commands.add_parser(
        "reap",
        help="take down what no job has any more, as the timer does",
        description="Take down the scratch of jobs that Slurm has twice, 20 seconds apart, called ended or unknown, "
        "and of which nothing runs here; and what an earlier boot left. Exit 0: nothing is left that should not be; "
        "1: something could not be taken down or looked at, or has a name of ours and is not ours.",
        allow_abbrev=False,
    )
    reap.add_argument("--once", action="store_true", help="one look, without waiting for a second")
    reap.set_defaults(run=run_reap)
    check_cmd.add_to(commands)
    imds_cmd.add_to(commands)
    place_cmd.add_to(commands)
    enrol_cmd.add_to(commands)
    store_cmd.add_to(commands)
    for parser in (status, clean, reap):
        parser.add_argument("--node", metavar="NAME", default="", help="this node's name in Slurm (the host name)")
        parser.add_argument("--json", action="store_true", help="print JSON")


def _job(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job id")
    return int(text)


def _node(name: str) -> Node:
    """Refused to anybody but root. UsageError when this machine is not that node."""
    if not _is_root():
        raise Refused("node.not-root", "only root may look at a node's scratch", advice="run it as root on the node")
    config = read_hook_config(HOOKS_JSON, check_sources=False)
    name = name or socket.gethostname().partition(".")[0]
    run_dir = for_node(config["node"]["run_dir"], name)
    if not Path(run_dir).is_dir():
        raise UsageError(
            f"this machine is not set up as the node {name}: there is no {run_dir}",
            advice="give the node's Slurm name with --node; on a node that was never set up run install.sh",
        )
    return Node(name, run_dir, config)


def _is_root() -> bool:
    return os.geteuid() == 0


def run_status(args: argparse.Namespace) -> int:
    """Look and show; 1 when something is not as it should be."""
    node = _node(args.node)
    daemon, proof, problems = _ping(node)
    metadata = imds_cmd.state()
    problems += [metadata.problem] if metadata.problem else []
    findings = look(node, problems)
    problems += [
        f"job {each.job} has scratch here and no journal of it: secure-slurm node clean {each.job}"
        for each in findings
        if each.there and each.journal in ("none", "destroyed")
    ]
    if args.json:
        jobs = [each._asdict() for each in findings]
        place = {"daemon": daemon or None, "proof": proof or None, "metadata": metadata._asdict()}
        say_json({"node": node.name, **place, "jobs": jobs, "problems": problems})
        return EXIT_REFUSED if problems else EXIT_OK
    say(f"node {node.name}: " + (f"the daemon answers, {printable(daemon)}" if daemon else "the daemon is no help"))
    if proof:
        say(printable(f"place: {proof}"))
    say(f"instance metadata service: {metadata.words()}")
    if findings:
        say_table(("JOB", "JOURNAL", "SINCE", "UID", "STEP", "THERE"), map(_row, findings))
    else:
        say("no scratch of any job")
    for problem in problems:
        say(printable(f"problem: {problem}"))
    return EXIT_REFUSED if problems else EXIT_OK


def _row(found: Finding) -> tuple[object, ...]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since)) if found.since else ""
    uid = "" if found.uid is None else found.uid
    step = "runs" if found.step else "none"
    return found.job, found.journal, since, uid, step, ", ".join(found.there) or "nothing"


def _ping(node: Node) -> tuple[str, str, list[str]]:
    """Where the node daemon says it is and by what proof, or what is wrong with it."""
    try:
        answer = wire.exchange(f"{node.run_dir}/{SOCKET}", {"verb": "ping"}, timeout=PING_TIMEOUT)
        if answer.get("verdict") == b"allow":
            where = f"in {wire.text(answer, 'region')} ({wire.text(answer, 'jurisdiction')})"
            return where, wire.text(answer, "proof", ""), []
        return "", "", [f"the node daemon: {wire.text(answer, 'message', 'no verdict')}"]
    except SecureSlurmError as error:
        return "", "", [f"the node daemon does not answer: {error}"]


def run_clean(args: argparse.Namespace) -> int:
    """Take a job's scratch down. Raises Refused while it may run here, ScratchLeft when something is left."""
    node, job = _node(args.node), int(args.job)
    report = Report(node.name, job)
    # Under the job's lock: a start of the same job waits for us, and shows itself to Slurm before it comes so far.
    with node.journal.lock(job, LOCK_TIMEOUT):
        refuse_running(node, job, ask=not args.without_slurm)
        _note(node, "scratch.close", job=job, reason="secure-slurm node clean")
        try:
            taskfile.remove(node.run_dir, job)
            close_locked(node.journal, node.names(job), report)
        except ScratchLeft:
            if args.json:
                say_json({**report.as_dict(), "gone": False})
            raise
        except OSError as error:
            raise NodeBroken(f"whether the scratch of job {job} is gone is not known: {error}") from None
        evidence = "; ".join(report.removed) or "nothing was there"
        incarnation = report.incarnation or None
        _note(node, "scratch.gone", job=job, evidence=evidence, incarnation=incarnation, wiped=report.wiped)
    if args.json:
        say_json({**report.as_dict(), "gone": True})
        return EXIT_OK
    say(printable(f"job {job}: nothing is left on node {node.name} ({evidence})"))
    for problem in report.problems:
        say(printable(f"on the way: {problem}"))
    return EXIT_OK


def run_reap(args: argparse.Namespace) -> int:
    """Run the reaper and show what it saw and did; 1 when an admin has to look."""
    node = _node(args.node)
    outcomes = reaper.reap(node.config, node.name, once=args.once)
    code = EXIT_REFUSED if any(each.bad for each in outcomes) else EXIT_OK
    if args.json:
        say_json({"node": node.name, "jobs": [each._asdict() for each in outcomes]})
        return code
    if outcomes:
        say_table(
            ("JOB", "IS", "WHY", "REMOVED"),
            [(*each[:2], printable(each.why), ", ".join(each.removed)) for each in outcomes],
        )
    else:
        say(f"node {node.name}: no scratch of any job")
    return code


def refuse_running(node: Node, job: int, *, ask: bool) -> None:
    """Refuse (``node.job-runs``) while a step of the job runs on this machine, or slurmctld has it on this node.

    An allocation without a step has no slurmstepd, hence the question to slurmctld. BackendUnavailable without an
    answer: not knowing is no permission.
    """
    for pid, owner in running_steps().items():
        if owner in (job, None):
            raise Refused(
                "node.job-runs",
                f"job {job} runs on this machine: slurmstepd has process id {pid}"
                if owner
                else f"the slurmstepd with process id {pid} does not say which job it has",
                advice=f"end the job first: scancel {job}",
            )
    state = slurm_state(node, job) if ask else ""
    if state and state not in _OVER:
        raise Refused(
            "node.job-runs",
            f"slurmctld has job {job} on node {node.name}, {state}",
            advice=f"its Epilog takes the scratch down; to end the job: scancel {job}",
        )


def _note(node: Node, event: str, **fields: object) -> None:
    """An audit line as the Epilog writes it; a log that is full never stops a destruction."""
    try:
        chain = Chain(f"{node.config['audit']['directory']}/node-{node.name}", "node", node.name)
        chain.append(event, durable=True, node=node.name, **fields)
    except (SecureSlurmError, OSError, ValueError) as error:
        sys.stderr.write(printable(f"secure-slurm: the audit trail lacks {event}: {error}") + "\n")
