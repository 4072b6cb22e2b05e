"""One job of the accounting as the submission that it once was, as far as the accounting knows.

Accounting keeps a job as it ended up: in the partition where it ran, with the constraint, account and limits that it
was given. Nothing here trusts it: any field may be missing, of another type, or hold what a user put there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from admin.why_cmd import parse_comment
from conf.errors import UsageError
from conf.tag import KEYS, Tag, mentions_tag, parse_extra
from slurm_hooks.record import looks_like
from slurm_hooks.request import Submission

NOBODY = 65534
"""The uid of a job whose record does not say it; sacct's JSON has none."""
INFINITE = 0xFFFFFFFF
MAX_JOB = 0xFFFFFFFF
# of 24.11 and 26.05, measured: as the user wrote it, without quotes
_EXTRA = re.compile(r"--extra[= ]['\"]?(secure-slurm:[^\s'\"]*)")

UNKNOWN = (
    "lines and #SECURE directives of the script",
    "the environment (SECURE_* variables, --export, --get-user-env)",
    "--prefer, --nodelist, --exclude and --batch",
    "--dependency, --clusters, burst buffers and mail",
    "the size of an array",
    "the host from which a job was submitted, and whether it came from scrontab",
    "whether a partition has OverSubscribe=FORCE",
    "GRES that AccountingStorageTRES in slurm.conf does not list",
    "jobs that were refused, and jobs that ended before they were eligible: they are not in the accounting",
)
"""What a decision at submission looks at and the accounting does not have."""

Source = Literal["record", "submit line", "extra", "none"]


class Accounted(NamedTuple):
    """A job of the accounting.

    ``name``: ``123``, ``123_4`` or ``123+1``. ``policy``: the first 16 digits of the hash of the policy under which it
    was accepted, as its decision record says (its MAC is not checked: only the daemons have the key); empty without
    a record. ``tag_from``: where the tag was found.
    """

    name: str
    user: str
    policy: str
    tag_from: Source
    submission: Submission


def accounted(entry: object) -> Accounted | None:
    """The job in one entry of ``jobs``; None: there is none that could be judged, or its record is damaged."""
    if not isinstance(entry, Mapping):
        return None
    job = _number(entry, "job_id")
    if not job or job > MAX_JOB:
        return None
    comment = _text(entry, "comment", "administrator")
    record = parse_comment(comment)[0]
    try:
        tag, source = _tag(entry, record, damaged=not record and looks_like(comment))
    except UsageError:
        return None
    user = _user(entry, record)
    uid = record.get("uid", "")
    submission = Submission(
        uid=int(uid) if uid.isascii() and uid.isdigit() and len(uid) <= len(str(MAX_JOB)) else NOBODY,
        user=user or None,
        texts={name: text or None for name, text in {**_texts(entry), "extra": tag}.items()},
        numbers=_numbers(entry),
        script=None if _is_interactive(_text(entry, "submit_line")) else b"",
    )
    return Accounted(_shown_name(entry, job), user, record.get("policy", ""), source, submission)


def _tag(entry: Mapping[str, object], record: Mapping[str, str], *, damaged: bool) -> tuple[str, Source]:
    """The tag as text for ``extra``, and where it is from. UsageError: there is one that cannot be read.

    What was decided on is in the record; slurmdbd has it when the job has ended. What the user asked for, before the
    class's defaults were put in, is in the submit line: another policy has other defaults.
    """
    if damaged:
        raise UsageError("the decision record is damaged")
    asked = _EXTRA.findall(_text(entry, "submit_line"))
    if record:
        decided = Tag.from_pairs({key: record[key] for key in KEYS if key in record})
        return _as_asked(asked[-1] if asked else "", decided).to_extra(), "record"
    if asked:
        # not judged by its syntax here: the engine does that
        return asked[-1], "submit line"
    extra = _text(entry, "extra")
    return extra, "extra" if mentions_tag(extra) else "none"


def _as_asked(text: str, decided: Tag) -> Tag:
    """What was asked for, if that and defaults make what was decided on; else what was decided on."""
    try:
        asked = parse_extra(text)
    except UsageError:
        return decided
    fits = (
        asked.klass in ("", decided.klass)
        and asked.residency in (None, decided.residency)
        and asked.scratch in (None, decided.scratch)
        and asked.datasets == decided.datasets
    )
    return asked if fits else decided


def _user(entry: Mapping[str, object], record: Mapping[str, str]) -> str:
    """The user's name; of a deleted user sacct knows none (or says the uid), but the association or the record may."""
    found = (_text(entry, "user"), _text(entry, "association", "user"), record.get("user", ""))
    return next((name for name in found if name and not name.isdigit()), "")


def _texts(entry: Mapping[str, object]) -> dict[str, str]:
    return {
        "account": _text(entry, "account") or _text(entry, "association", "account"),
        "comment": _text(entry, "comment", "job"),
        "container": _text(entry, "container"),
        "features": _text(entry, "constraints"),
        "licenses": _text(entry, "licenses"),
        "mcs_label": _text(entry, "mcs", "label"),
        "name": _text(entry, "name"),
        "partition": _text(entry, "partition"),
        "qos": _text(entry, "qos"),
        "reservation": _text(entry, "reservation", "name"),
        "std_err": _text(entry, "stderr"),
        "std_in": _text(entry, "stdin"),
        "std_out": _text(entry, "stdout"),
        "tres_per_job": _gres(entry),
        "work_dir": _text(entry, "working_directory"),
    }


def _numbers(entry: Mapping[str, object]) -> dict[str, int | None]:
    nodes = _number(entry, "allocation_nodes") or _requested(entry).get(("node", ""))
    component = _number(entry, "het", "job_offset") or 0
    return {
        "het_job_offset": component if _number(entry, "het", "job_id") else None,
        "min_nodes": nodes,
        "max_nodes": nodes,
        "time_limit": _number(entry, "time", "limit"),
    }


def _gres(entry: Mapping[str, object]) -> str:
    """As ``--gres`` of the whole job: ``gres/gpu:4``."""
    return ",".join(
        f"gres/{name}:{count}" for (kind, name), count in _requested(entry).items() if kind == "gres" and name
    )


def _requested(entry: Mapping[str, object]) -> dict[tuple[str, str], int]:
    """What the job asked for, by type and name."""
    tres = entry.get("tres")
    rows = tres.get("requested") if isinstance(tres, Mapping) else None
    found = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, Mapping):
            count = _number(row, "count")
            if count is not None:
                found[_text(row, "type"), _text(row, "name")] = count
    return found


def _is_interactive(submit_line: str) -> bool:
    return submit_line.partition(" ")[0].rpartition("/")[2] in {"srun", "salloc", "secure-srun", "secure-salloc"}


def _shown_name(entry: Mapping[str, object], job: int) -> str:
    array, task = _number(entry, "array", "job_id"), _number(entry, "array", "task_id")
    if array and task is not None:
        return f"{array}_{task}"
    leader = _number(entry, "het", "job_id")
    return f"{leader}+{_number(entry, 'het', 'job_offset') or 0}" if leader else str(job)


def _text(entry: Mapping[str, object], *path: str) -> str:
    """A text that can be sent; empty when it is not there. Half a character becomes bytes that are not UTF-8."""
    value: object = entry
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, str):
        return ""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    return value


def _number(entry: Mapping[str, object], *path: str) -> int | None:
    """A whole number of 32 bits, plain or as ``{"set": .., "infinite": .., "number": ..}``; None: unset, or none."""
    value: object = entry
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):
        if value.get("infinite") is True:
            return INFINITE
        value = value.get("number") if value.get("set") is True else None
    return value if type(value) is int and 0 <= value <= INFINITE else None
