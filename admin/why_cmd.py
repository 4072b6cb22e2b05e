"""``secure-slurm why JOB``: the decision about a job and the reason why it is where it is, in words.

Everything here comes from the job's admin_comment, which any user may read and only slurmctld's side may write: the
decision record, and behind it what a hook wrote when it held or cancelled the job. slurmctld is asked first; what it
has forgotten (MinJobAge, slurm.conf(5)) the accounting database may still know.

Slurm does not know that a running job is frozen or was revoked. The lifecycle daemon does, and tells root alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from admin import revoke_cmd
from admin.output import printable, say, say_json
from conf.errors import EXIT_OK, BackendUnavailable, SecureSlurmError, UsageError
from conf.hookconf import read_hook_config
from conf.units import format_size
from keys.process import ProcessError, run
from slurm_hooks import tries
from slurm_hooks.record import PREFIX, split
from slurm_hooks.revoked import FREEZE, MODES, RESUME
from submit.main import find_tool

QUERY_TIMEOUT = 20.0
"""Seconds for one Slurm command: a person waits."""
JSON = "--json=v0.0.42"
"""Named, so that the fields stay where they are: 24.11 and 26.05 both speak it."""

_STATES = {
    "JobHeldAdmin": "held: correct what the reason says, then 'scontrol release' or submit again",
    "JobHeldUser": "held by its user",
    "BeginTime": "waits for its begin time, as a requeued job does",
    "Resources": "waits for free nodes",
    "Priority": "waits behind jobs of higher priority",
    "BadConstraints": "no node can ever satisfy it",
    "PartitionConfig": "asks for more than its partition gives",
}


_UNKNOWN = "whether it is frozen or was revoked is not known here"


class Answer(NamedTuple):
    """One job: ``record`` has the fields of its decision record as text, empty for a job without one.

    ``stopped``: that it is frozen or was revoked, in words; empty when it is not, or when who asks is not to know.
    """

    job: str
    user: str
    state: str
    state_reason: str
    record: dict[str, str]
    reason: str
    stopped: str = ""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``why``."""
    parser = subparsers.add_parser(
        "why",
        help="say why a job is where it is",
        description="Say what was decided about a job, and why it waits, was held or was cancelled; as root on the "
        "head node that acts, also whether it is frozen or was revoked.",
        allow_abbrev=False,
    )
    parser.add_argument("job", type=_job, metavar="JOB", help="job id, 123 or 123_4")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run_why)


def _job(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,9}(_[0-9]{1,9})?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a job id")
    return text


def run_why(args: argparse.Namespace) -> int:
    """Ask and answer. Raises UsageError for a job that nobody knows, BackendUnavailable when nobody answers."""
    answers = with_stopped([_answer(job) for job in ask(args.job)], _revocations)
    if args.json:
        say_json([answer._asdict() for answer in answers])
    else:
        say("\n\n".join("\n".join(words(answer)) for answer in answers))
    return EXIT_OK


def ask(job: str) -> list[dict[str, object]]:
    """What Slurm knows of the job: slurmctld's form or the accounting's, for an array one entry per task."""
    complaints: list[str] = []
    for tool, words_of_it in (
        ("scontrol", [JSON, "show", "job", job]),
        ("sacct", [JSON, "--allocations", f"--jobs={job}"]),
    ):
        try:
            found = _query([find_tool(tool), *words_of_it])
        except ProcessError as error:
            if "wrote more than" in str(error):
                raise UsageError(
                    f"Slurm has more to say about job {job} than can be shown: it is a large array",
                    advice=f"name one of its tasks, such as {job.partition('_')[0]}_1",
                ) from None
            complaints.append(error.stderr or str(error))
            continue
        if found:
            return found
    if all("nvalid job id" in complaint for complaint in complaints[:1]):
        raise UsageError(
            f"neither slurmctld nor the accounting knows job {job}",
            advice="slurmctld forgets a job some minutes after its end; see 'secure-slurm audit show --job'",
        )
    raise BackendUnavailable(f"Slurm does not answer: {printable(complaints[0])}", advice="is slurmctld running?")


def _query(argv: list[str]) -> list[dict[str, object]]:
    # the one variable of the caller's that says which cluster is meant
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    answer = run(argv, timeout=QUERY_TIMEOUT, env_extra=where)
    try:
        jobs = json.loads(answer.stdout)["jobs"]
    except (ValueError, KeyError, TypeError):
        raise SecureSlurmError("Slurm's answer cannot be read", advice=f"does this Slurm know {JSON}?") from None
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []


def _answer(job: dict[str, object]) -> Answer:
    state, state_reason = _state(job)
    record, reason = parse_comment(_admin_comment(job))
    return Answer(
        job=str(job.get("job_id", "")),
        user=str(job.get("user_name") or job.get("user") or ""),
        state=state,
        state_reason=state_reason,
        record=record,
        reason=reason,
    )


def with_stopped(answers: list[Answer], revocations: Callable[[], list[dict[str, Any]]]) -> list[Answer]:
    """The same, with what is said of those that run.

    ``revocations`` is asked only if there is one, and raises SecureSlurmError when it is not known.
    """
    run = {answer.job for answer in answers if answer.record and _runs(answer.state)}
    if not run:
        return answers
    try:
        reports = revocations()
        words = {job: stopped_words(job, reports) for job in run}
    except SecureSlurmError as error:
        words = dict.fromkeys(run, f"{_UNKNOWN} ({error}): ask on the head node that acts")
    return [one._replace(stopped=words.get(one.job, "")) for one in answers]


def stopped_words(job: str, reports: list[dict[str, Any]]) -> str:
    """What the revocations say of a job that runs; of several the one that takes most counts, as on its nodes."""
    about = [one for one in reports if job in one["jobs"]]
    if not about:
        return ""
    one = min(about, key=lambda each: MODES.index(each["mode"]))
    what = f"{one['kind']} {one['value']}, revocation {one['id']}"
    if one["mode"] == FREEZE:
        return f"frozen ({what}): it goes on after 'secure-slurm resume --id {one['id']}'; its time limit runs on"
    if one["mode"] == RESUME:
        return f"was frozen and is told to go on ({what}): 'secure-slurm revoke --list' shows what has not confirmed"
    return f"revoked for good ({what}): it stands still without its key; 'scancel {job}' ends it"


def _revocations() -> list[dict[str, Any]]:
    """What is revoked, by the lifecycle daemon of this head node; nothing for other users, and without a link."""
    if os.geteuid() != 0:
        return []
    config = read_hook_config(check_sources=False)
    if not config.get("revocation", {}).get("linked"):
        return []
    found = revoke_cmd.parsed(revoke_cmd.ask(config, {"verb": "revocations"}, QUERY_TIMEOUT), "report")
    return list(found)


def _runs(state: str) -> bool:
    # whose Prolog is still at work is not frozen yet
    words = state.split(",")
    return "CONFIGURING" not in words and not {"RUNNING", "SUSPENDED"}.isdisjoint(words)


def _state(job: dict[str, object]) -> tuple[str, str]:
    """The state and its reason, from ``job_state``/``state_reason`` (scontrol) or ``state`` (sacct)."""
    accounted = job.get("state")
    if isinstance(accounted, dict):
        current, reason = accounted.get("current"), accounted.get("reason")
    else:
        current, reason = job.get("job_state"), job.get("state_reason")
    words = [str(each) for each in current] if isinstance(current, list) else [str(current or "unknown")]
    return ",".join(words), "" if reason in (None, "None") else str(reason)


def _admin_comment(job: dict[str, object]) -> str:
    accounted = job.get("comment")
    comment = accounted.get("administrator") if isinstance(accounted, dict) else job.get("admin_comment")
    return comment if isinstance(comment, str) else ""


def parse_comment(comment: str) -> tuple[dict[str, str], str]:
    """The fields of the record in an admin_comment, and the reason behind it.

    The MAC is not checked: its key belongs to the daemons, which check it at every start.
    """
    if not comment.startswith(PREFIX):
        return {}, comment
    text, reason = split(comment)
    pairs = (word.partition("=") for word in text.removeprefix(PREFIX).split(" "))
    return {key: value for key, equals, value in pairs if equals and key != "mac"}, reason


def words(answer: Answer) -> list[str]:
    """The answer as lines for a person."""
    state = f"{answer.state} ({answer.state_reason})" if answer.state_reason else answer.state
    lines = [f"job {answer.job} of {answer.user or 'unknown'}: {state}"]
    mark = tries.read(answer.reason)
    # one that was stopped has done its waiting
    is_stopped = answer.stopped and not answer.stopped.startswith(_UNKNOWN)
    told = None if mark is None or is_stopped else outage_words(mark, answer.state, answer.state_reason)
    if answer.stopped:
        lines.append(f"  state:    {answer.stopped}")
    if told:
        lines.append(f"  state:    {told}")
    elif answer.state_reason in _STATES:
        # what a hook has held, by requeuehold, Slurm calls held by its user
        hook = answer.state_reason == "JobHeldUser" and answer.reason.startswith("[")
        lines.append(f"  state:    {_STATES['JobHeldAdmin' if hook else answer.state_reason]}")
    if answer.record:
        lines += _record_lines(answer.record)
    else:
        lines.append("  tag:      none: the job has no decision record")
    reason = answer.reason if mark is None else mark.text
    label = "earlier:" if mark and not told else "reason:"
    lines.append(f"  {label:<9} {reason or 'none was written'}")
    return [printable(line) for line in lines]


def outage_words(mark: tries.Mark, state: str, state_reason: str) -> str:
    """What a mark of ours means for a job in this state; empty when the job is past that."""
    times = {1: "once"}.get(mark.tries, f"{mark.tries} times")
    held = state_reason in ("JobHeldAdmin", "JobHeldUser")
    pending, running = "PENDING" in state, {"RUNNING", "CONFIGURING"} & set(state.split(","))
    if mark.word == tries.WAITING and running:
        return "waits for a service before it starts, or has waited: the head node asks again by itself"
    if not pending:
        return ""
    if mark.word == tries.WAITS and held:
        tried = f"it failed {times}" if mark.tries else "it was not tried"
        return f"held while a service is away ({tried}): nothing to do, it is released when the service is back"
    if mark.word == tries.TWICE and held:
        return f"held after it failed {times} through no fault of its own: mend the reason, then 'scontrol release'"
    if mark.word == tries.REQUEUED and not held:
        return f"back in the queue after its start failed {times} through no fault of its own: it will start again"
    return ""


def _record_lines(record: dict[str, str]) -> list[str]:
    tag = [f"class {record.get('class', '?')}"]
    if "residency" in record:
        tag.append(f"residency {record['residency']}")
    size = record.get("scratch", "")
    if size.isascii() and size.isdigit():
        tag.append(f"{format_size(int(size))} of encrypted scratch on each node")
    return [
        f"  tag:      {', '.join(tag)}",
        f"  decided:  {_when(record.get('time', ''))}, for {record.get('user', '?')} (uid {record.get('uid', '?')})"
        f" under policy {record.get('policy', '?')}",
        f"  audit:    nonce {record.get('nonce', '?')}",
    ]


def _when(text: str) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(int(text)))
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
