"""``secure-slurm status``: what is pending on the head node and why, and how the services answer its daemons.

Root asks the daemons over their sockets; nothing is asked of Vault or the directory with another identity than theirs.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NamedTuple

from admin.output import printable, say, say_json
from conf.errors import EXIT_OK, EXIT_REFUSED, SecureSlurmError
from conf.site import load_site
from slurm_hooks import wire
from slurm_hooks.acting import SEEN_WITHIN

TIMEOUT = 60.0
"""Seconds for one daemon: it asks Vault and Slurm, each of which may take its time to fail."""
SHOWN = 20


class Part(NamedTuple):
    """One line of the report. ``good`` False makes the exit code 1."""

    name: str
    good: bool
    text: str


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``status``."""
    parser = subparsers.add_parser(
        "status",
        help="what is pending on the head node, and how the services answer",
        description="Ask the daemons of this head node, as root. Exit 0: all is well, nothing is pending; 1: not so.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask and tell; 1 when something is pending or wrong."""
    site = load_site(args.config)
    lifecycle, why = _ask(site.lifecycle.socket)
    decision, why_not = _ask(site.controller.socket)
    report = _report(lifecycle)
    if lifecycle and not report:
        why = "it gives no report: another version?"
    parts = [*lifecycle_parts(report, why), *decision_parts(decision, why_not)]
    good = all(part.good for part in parts)
    if args.json:
        told = {"good": good, "parts": [part._asdict() for part in parts], "lifecycle": report, "decision": decision}
        say_json(told)
    else:
        for part in parts:
            say(printable(f"{'ok ' if part.good else 'BAD'} {part.name}: {part.text}"))
        for line in details(report):
            say(printable(f"    {line}"))
    return EXIT_OK if good else EXIT_REFUSED


def _ask(path: str) -> tuple[dict[str, str], str]:
    """The daemon's answer as text, or why there is none."""
    try:
        answer = wire.exchange(path, {"verb": "status"}, timeout=TIMEOUT)
        told = {name: wire.text(answer, name) for name in answer}
    except SecureSlurmError as error:
        return {}, str(error)
    if told.get("verdict") != "allow":
        return {}, told.get("message", "it gave no verdict")
    return told, ""


def _report(answer: dict[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(answer.get("report", ""))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def lifecycle_parts(report: dict[str, Any], why: str) -> list[Part]:
    """What the lifecycle daemon says; one bad line when it says nothing."""
    if not report:
        return [Part("lifecycle daemon", False, f"no answer: {why}")]
    pending, reaper, certificates = report["pending_count"], report["reaper"], report["certificates"]
    looked = "never" if reaper["age"] is None else f"{reaper['age']:.0f} s ago"
    reaper_good = (
        not reaper["error"] and not reaper["damaged"] and not reaper["kept_count"] and reaper["age"] is not None
    )
    return [
        Part("lifecycle daemon", True, f"answers; {report['open']} jobs have keys as far as it knows"),
        *start_parts(report.get("starts") or {}),
        *head_parts(report.get("acting") or {}),
        Part("revocations", not pending, f"{pending} wait for Vault" if pending else "none is pending"),
        Part("reaper", reaper_good, f"looked {looked}: {reaper['result']}"),
        _service("Vault", report["vault"]),
        _service("Slurm", report["slurm"]),
        *_breaker(report.get("breaker")),
        Part("group members", not report["members"], report["members"] or report["members_age"]),
        Part("audit trail of the lifecycle daemon", not report["audit"], report["audit"] or "is written"),
        *segment_parts(report.get("segments")),
        Part(
            "certificates",
            not certificates["error"],
            certificates["error"] or f"{certificates['waiting']} are being made",
        ),
    ]


def start_parts(starts: dict[str, Any]) -> list[Part]:
    """The queue of starts: many of them are no fault."""
    if not starts:
        return []
    text = (
        f"{starts['active']} are being made, {starts['waiting']} wait, {starts['turned_away']} were told to ask again"
    )
    return [Part("starts", True, text)]


def head_parts(acting: dict[str, Any]) -> list[Part]:
    """Which head node acts, and whether the daemons of the others were seen; nothing where there is one."""
    if not acting.get("several"):
        return []
    words = {True: "acts", False: "stands by"}.get(acting["acts"], "does not know yet whether it acts")
    problem = f": {acting['problem']}" if acting["problem"] else ""
    parts = [Part("this head node", acting["acts"] is not None and not problem, f"{words}{problem}")]
    for head, age in sorted(acting["heads"].items()):
        good = age is not None and age < SEEN_WITHIN
        when = "never" if age is None else f"{age:.0f} s ago"
        advice = "" if good else " (is lifecycle.state_dir the same folder on both?)"
        parts.append(Part(f"lifecycle daemon of {head}", good, f"was seen {when}{advice}"))
    return parts


def segment_parts(said: dict[str, Any] | None) -> list[Part]:
    """Whether what the nodes write arrives here."""
    if said is None:
        return []
    problems = [f"node {one['node']}, {one['trail']}: {one['why']}" for one in said["problems"]]
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    text = "; ".join(problems[:SHOWN]) + more if problems else f"lines of {said['nodes']} nodes are held here"
    return [Part("audit trails of the nodes", not problems, text)]


def decision_parts(answer: dict[str, str], why: str) -> list[Part]:
    """What the decision daemon says."""
    if not answer:
        return [Part("decision daemon", False, f"no answer: {why}")]
    written = answer.get("audit", "")
    return [
        Part("decision daemon", True, f"answers; group members: {answer.get('members', 'not known')}"),
        Part("audit trail of the decision daemon", written == "written", f"is {written or 'not known'}"),
    ]


def details(report: dict[str, Any]) -> list[str]:
    """The pending jobs and what the reaper leaves alone, one a line."""
    if not report:
        return []
    lines = [f"job {one['job']}: pending for {one['age']:.0f} s: {one['reason']}" for one in report["pending"][:SHOWN]]
    lines += [f"job {one['job']}: left alone: {one['why']}" for one in report["reaper"]["kept"][:SHOWN]]
    more = report["pending_count"] + report["reaper"]["kept_count"] - len(lines)
    return [*lines, f"and {more} more: secure-slurm status --json"] if more else lines


def _breaker(told: dict[str, Any] | None) -> list[Part]:
    if told is None:
        return []
    if told["state"] == "closed":
        failed = f"; {told['failures']} starts have failed lately" if told["failures"] else ""
        waiting = f"; {told['held']} held jobs are being released" if told["held"] else ""
        return [Part("secured starts", not waiting, f"go on{failed}{waiting}")]
    held = f"{told['state']} for {told['age']:.0f} s, {told['turned_away']} starts were held back"
    return [Part("secured starts", False, f"the breaker is {held}: {told['reason']}")]


def _service(name: str, problem: str) -> Part:
    return Part(name, not problem, problem or "answers")
