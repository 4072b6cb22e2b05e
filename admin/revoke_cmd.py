"""``secure-slurm revoke``: end running jobs, refuse and hold what is like them; and take that back.

The lifecycle daemon of this head node does the work, and goes on with it after this command has ended. Only what Slurm
lets root alone do is done here: waiting jobs are held, and with ``--kill`` running ones are cancelled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from typing import Any

from admin.output import printable, say, say_json, say_table
from conf.errors import EXIT_BACKEND, EXIT_OK, BackendUnavailable, Refused, SecureSlurmError, UsageError
from conf.hookconf import read_hook_config
from conf.tag import mentions_tag
from keys.process import run
from slurm_hooks import blame, wire

KINDS = {
    "job": "this job",
    "user": "every secured job of a user, by name or uid",
    "role": "every one that a role may have let in",
    "dataset": "every one that names a dataset",
    "node": "every one that has a node",
    "jurisdiction": "every one whose data stays there",
}
SLURM = 30.0
"""Seconds for one Slurm command."""
ANSWER_LIMIT = 256 * 1024 * 1024
BATCH = 2000
"""Waiting jobs in one message to the daemon; each takes some 200 bytes of the megabyte that a message may have."""
JSON = "--json=v0.0.42"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``revoke``."""
    parser = subparsers.add_parser(
        "revoke",
        help="end running jobs and their keys, now, and let nothing like them start",
        description="Freeze running jobs, wipe their keys on the nodes and delete them in Vault (or, with --freeze, "
        "lock them); refuse new jobs of the same kind, and hold those that wait. It may be repeated, and holds "
        "until it is lifted, or resumed.",
        allow_abbrev=False,
    )
    what = add_kinds(parser)
    what.add_argument("--list", action="store_true", help="show what is revoked, and which nodes have not confirmed")
    what.add_argument("--lift", metavar="ID", help="let jobs start again that a revocation refuses")
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--kill", action="store_true", help="cancel the jobs as well, once they are frozen")
    then.add_argument("--freeze", action="store_true", help="so that 'secure-slurm resume' can have them go on")
    parser.add_argument("--reason", default="", help="for the audit trail")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_revoke)


def add_kinds(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Have it take one of :data:`KINDS`, or what is added to the group."""
    what = parser.add_mutually_exclusive_group(required=True)
    for kind, words in KINDS.items():
        what.add_argument(f"--{kind}", metavar=kind.upper(), help=words)
    return what


def linked_config(act: str) -> dict[str, Any]:
    """The hooks' configuration, for root on a head node with links to its nodes. UsageError for anybody else."""
    if os.geteuid() != 0:
        raise UsageError(f"only root may {act}", advice="run it as root on a head node")
    config = read_hook_config(check_sources=False)
    if not config.get("revocation", {}).get("linked"):
        raise UsageError("there is no link to the nodes", advice="set link.listen in secure-slurm.yaml (docs/admin.md)")
    return config


def run_revoke(args: argparse.Namespace) -> int:
    """Exit code 0: every node and Vault have confirmed. 4: not yet all, the daemon goes on."""
    config = linked_config("revoke")
    if args.list:
        return _list(config, as_json=args.json)
    if args.lift:
        words = wire.text(ask(config, {"verb": "lift", "id": args.lift}), "words")
        say_json({"lifted": args.lift}) if args.json else say(
            f"{printable(words)} may submit again; held jobs stay held until 'scontrol release'"
        )
        return EXIT_OK
    kind = next(kind for kind in KINDS if getattr(args, kind) is not None)
    value = getattr(args, kind)
    if kind == "job" and not re.fullmatch(r"[1-9][0-9]{0,9}", value, re.ASCII):
        raise UsageError(
            f"{value!r} is not a job's number", advice="a task of an array has one of its own: squeue --array"
        )
    mode = "freeze" if args.freeze else "stop"
    request = {"verb": "revoke", "kind": kind, "value": value, "reason": args.reason, "mode": mode}
    report = parsed(ask(config, request), "report")
    problems: list[str] = []
    killed = _kill(config, sorted(report["jobs"], key=int), problems) if args.kill else []
    held = _hold_waiting(config, problems)
    if args.json:
        say_json({**report, "held": held, "killed": killed, "problems": problems})
    else:
        _tell(report, held, killed, problems)
    return EXIT_OK if report["confirmed"] and not problems else EXIT_BACKEND


def ask(config: dict[str, Any], fields: dict[str, bytes | str], patience: float = 0.0) -> dict[str, bytes]:
    """One request to the lifecycle daemon. Raises what the daemon refuses as Refused.

    ``patience``: seconds; 0 for as long as the daemon may take.
    """
    timeout = patience or float(config["lifecycle"]["start_deadline"]) + 5.0
    answer = wire.exchange(config["lifecycle"]["socket"], fields, timeout=timeout)
    if answer.get("verdict") == b"allow":
        return answer
    rule, message = wire.text(answer, "rule", "engine.no-verdict"), wire.text(answer, "message", "it gave no reason")
    advice = wire.text(answer, "advice", "")
    if rule == "backend.unavailable":
        raise BackendUnavailable(message, advice=advice)
    raise Refused(rule, message, advice=advice)


def parsed(answer: dict[str, bytes], name: str) -> Any:  # noqa: ANN401  JSON
    """A part of an answer. SecureSlurmError when it cannot be read."""
    try:
        return json.loads(wire.text(answer, name))
    except ValueError:
        raise SecureSlurmError("the lifecycle daemon's answer cannot be read") from None


def _hold_waiting(config: dict[str, Any], problems: list[str]) -> list[int]:
    """Hold what waits and could not start any more; a problem is told, and the rest is done."""
    held: list[int] = []
    try:
        waiting = _waiting(config)
        for first in range(0, len(waiting), BATCH):
            request: dict[str, bytes | str] = {"verb": "matching", "jobs": json.dumps(waiting[first : first + BATCH])}
            for job in parsed(ask(config, request), "jobs"):
                _slurm(config, "scontrol", "hold", str(job))
                held.append(int(job))
    except SecureSlurmError as error:
        problems.append(f"waiting jobs are not all held, they will be refused when they start: {error}")
    return held


def _waiting(config: dict[str, Any]) -> list[dict[str, object]]:
    text = _slurm(config, "squeue", JSON, "--states=PENDING")
    try:
        jobs = json.loads(text)["jobs"]
        return [
            {
                "job": job["job_id"],
                "uid": job["user_id"],
                "user": job.get("user_name", ""),
                "extra": job.get("extra", ""),
            }
            for job in jobs
            # what is held already need not be held again
            if mentions_tag(job.get("extra") or "") and _number(job.get("priority")) != 0
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SecureSlurmError("Slurm's list of waiting jobs cannot be read") from None


def _number(value: object) -> object:
    return value.get("number") if isinstance(value, dict) else value


def _kill(config: dict[str, Any], jobs: list[str], problems: list[str]) -> list[int]:
    """Cancel what still runs of them: a revocation remembers jobs whose numbers may be other jobs' by now, and by the
    number of an array's task scancel means every task.
    """
    killed: list[int] = []
    for job in jobs:
        try:
            facts = blame.job_facts(config["cluster"]["slurm_bin"], int(job))
            if not blame.is_over(facts) and mentions_tag(str(facts.get("extra") or "")):
                _slurm(config, "scancel", blame.name_of(int(job), facts))
                killed.append(int(job))
        except SecureSlurmError as error:
            problems.append(f"job {job} is not cancelled: {error}")
    return killed


def _slurm(config: dict[str, Any], tool: str, *words: str) -> bytes:
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    path = f"{config['cluster']['slurm_bin']}/{tool}"
    return run([path, *words], timeout=SLURM, env_extra=where, max_output=ANSWER_LIMIT).stdout


def _tell(report: dict[str, Any], held: list[int], killed: list[int], problems: list[str]) -> None:
    words = "frozen" if report.get("mode") == "freeze" else "revoked"
    say(f"{words}: {printable(report['kind'])} {printable(report['value'])} (revocation {report['id']})")
    tell_rows([report])
    for words, jobs in (("held", held), ("cancelled", killed)):
        if jobs:
            say(f"{words}: {', '.join(map(str, jobs))}")
    for problem in problems:
        say(f"problem: {printable(problem)}")
    if report["confirmed"]:
        say("every node and Vault have confirmed")
    else:
        say("not all have confirmed; the lifecycle daemon goes on: secure-slurm revoke --list")


def tell_rows(reports: list[dict[str, Any]]) -> None:
    """What each job's nodes and Vault have confirmed."""
    rows = [
        (job, node, state, one["keys"])
        for report in reports
        for job, one in report["jobs"].items()
        for node, state in one["nodes"].items()
    ]
    if rows:
        say_table(("JOB", "NODE", "STATE", "KEY IN VAULT"), rows)


def _list(config: dict[str, Any], *, as_json: bool) -> int:
    answer = ask(config, {"verb": "revocations"})
    reports, nodes = parsed(answer, "report"), parsed(answer, "nodes")
    if as_json:
        say_json({"revocations": reports, "nodes": nodes})
        return EXIT_OK
    say(f"connected nodes: {', '.join(nodes) or 'none'}")
    for report in reports:
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report["at"]))
        state = "confirmed" if report["confirmed"] else "waiting"
        mode = {"freeze": "frozen", "resume": "to go on"}.get(report["mode"], "revoked")
        say(f"{report['id']}  {printable(report['kind'])} {printable(report['value'])}  {mode} since {when}  {state}")
        tell_rows([report])
    return EXIT_OK
