"""What a data class limits: partitions, nodes, time, GPUs, GRES, array tasks. Pure; None in the policy: not limited.

What cannot be counted for certain counts as too much. Each rule has a function of its own, so that one of them can be
in shadow without taking another with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from conf.policy import DataClass
from conf.quote import quote
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict

INFINITE = 0xFFFFFFFF  # slurm.h
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", re.ASCII)
_TRES = ("tres_per_job", "tres_per_node", "tres_per_task", "tres_per_socket")
_SUFFIXES = ("", "k", "m", "g", "t", "p")
_GRES = re.compile(
    r"(?:gres[/:])?(?P<name>(?!cpu|mem|node|license)[A-Za-z_][A-Za-z0-9_-]*)"
    r"(?:[:=](?P<kind>(?![0-9]+[kKmMgGtTpP]?(?:,|$))[A-Za-z0-9_.+-]+))?"
    r"(?:[:=](?P<count>[0-9]{1,9})(?P<suffix>[kKmMgGtTpP]?))?",
    re.ASCII,
)
_OTHER_TRES = re.compile(
    r"(?:cpu|mem|node)(?:[:=][0-9]{1,18}[kKmMgGtTpP]?)?|license/[A-Za-z0-9_.@+-]+(?:[:=][0-9]+)?", re.ASCII
)
UNREADABLE = "?"
"""In the place of a name: a part of which nobody can say for certain what Slurm makes of it."""


def class_of(job: SubmitJob, context: Context) -> DataClass | None:
    """The class of a tagged job. None: it carries no tag (an unknown class stops at the tag's reading)."""
    return None if job.tag is None else context.policy.data_class(job.tag.klass)


def partitions(job: SubmitJob, context: Context) -> Verdict:
    """``class.partition``: a class may be bound to some partitions."""
    data_class = class_of(job, context)
    if data_class is None or data_class.partitions is None:
        return ALLOW
    wrong = [name for name in job.partitions if name not in data_class.partitions]
    if job.partitions and not wrong:
        return ALLOW
    return Deny(
        "class.partition",
        f"jobs of class {quote(data_class.name)} do not run in partition {quote(wrong[0] if wrong else 'default')}",
        f"use --partition={' or --partition='.join(data_class.partitions)}",
    )


def nodes(job: SubmitJob, context: Context) -> Verdict:
    """``limit.nodes``: what was asked for; a job that asks for no maximum was given the class's before."""
    data_class = class_of(job, context)
    if data_class is None or data_class.max_nodes is None:
        return ALLOW
    asked = max(job.number("min_nodes") or 0, job.number("max_nodes") or INFINITE)
    if asked <= data_class.max_nodes:
        return ALLOW
    return Deny(
        "limit.nodes",
        f"a job of class {quote(data_class.name)} has at most {data_class.max_nodes} nodes",
        f"ask for --nodes={data_class.max_nodes} or less",
    )


def time(job: SubmitJob, context: Context) -> Verdict:
    """``limit.time``: the time limit, which must be named where the class has one and no default."""
    data_class = class_of(job, context)
    if data_class is None or data_class.max_time is None:
        return ALLOW
    most = int(data_class.max_time // 60)
    asked = job.number("time_limit")
    # sbatch(1), --time: zero asks for no limit at all
    if asked is not None and 0 < asked <= most:
        return ALLOW
    said = "names no time limit" if asked is None else "asks for more"
    return Deny(
        "limit.time",
        f"a job of class {quote(data_class.name)} runs for at most {shown_minutes(most)}, and this one {said}",
        f"add --time={shown_minutes(most)} or less",
    )


def shown_minutes(minutes: int) -> str:
    """Minutes as ``--time`` takes them: ``days-hours:minutes`` (sbatch(1))."""
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02}:{rest % 60:02}" if days else f"{rest // 60:02}:{rest % 60:02}:00"


def gpus(job: SubmitJob, context: Context) -> Verdict:
    """``limit.gpus``: all GPUs of the job together, each kind of them by the field that asks for most of it."""
    data_class = class_of(job, context)
    if data_class is None or data_class.max_gpus is None:
        return ALLOW
    most = data_class.max_gpus
    advice = f"ask for --gpus={most} or less"
    kinds: dict[str, int] = {}
    for kind, count in _gpus(job):
        if count is None:
            return Deny("limit.gpus", "how many GPUs the job would have cannot be counted", advice)
        kinds[kind] = max(kinds.get(kind, 0), count)
    total = sum(kinds.values())
    if total <= most:
        return ALLOW
    return Deny(
        "limit.gpus",
        f"a job of class {quote(data_class.name)} has at most {most} GPUs, this one asks for {total}",
        advice,
    )


def _gpus(job: SubmitJob) -> Iterator[tuple[str, int | None]]:
    """GPUs by kind and field; None: cannot be counted, which is more than any limit."""
    for field in _TRES:
        times = _times(field, job)
        counts: dict[str, int] = {}
        for name, kind, count in tres(job.string(field) or ""):
            if name == "gpu" and count is not None and times is not None:
                # the same kind twice in one field is twice as many
                counts[kind] = counts.get(kind, 0) + count * times
            elif name in {"gpu", UNREADABLE}:
                yield kind, None
        yield from counts.items()
    tasks_each = job.number("ntasks_per_tres")
    if tasks_each:
        count = job.number("num_tasks")
        yield "", None if count is None else -(-count // tasks_each)


def _times(field: str, job: SubmitJob) -> int | None:
    """How often a count of this field holds in one job; None: unknown (sockets are a node's own business)."""
    if field == "tres_per_job":
        return 1
    if field == "tres_per_node":
        return job.number("max_nodes") or job.number("min_nodes")
    return job.number("num_tasks") if field == "tres_per_task" else None


def tres(text: str) -> list[tuple[str, str, int | None]]:
    """GRES in a ``tres_per_*``: name, kind ("" for any) and count; ``gres/gpu:a100:2,gres/nvme``.

    Slurm writes ``gres/`` (to 24.05 also ``gres:``) before the name and ``:`` or ``=`` behind it; CPUs, memory and
    licences are other TRES. It looks for ``gres`` anywhere in a part (slurm_get_next_tres), so a part that has not
    exactly one of these forms is :data:`UNREADABLE`.
    """
    found: list[tuple[str, str, int | None]] = []
    for part in filter(None, text.split(",")):
        if _OTHER_TRES.fullmatch(part) and "gres" not in part.lower():
            continue
        read = _GRES.fullmatch(part)
        if read is None:
            found.append((UNREADABLE, "", None))
            continue
        scale = 1024 ** _SUFFIXES.index((read["suffix"] or "").lower())
        found.append((read["name"].lower(), (read["kind"] or "").lower(), int(read["count"] or 1) * scale))
    return found


def gres(job: SubmitJob, context: Context) -> Verdict:
    """``limit.gres``: a class may be bound to some kinds of GRES."""
    data_class = class_of(job, context)
    if data_class is None or data_class.gres is None:
        return ALLOW
    wrong = [name for field in _TRES for name, _, _ in tres(job.string(field) or "") if name not in data_class.gres]
    if not wrong:
        return ALLOW
    return Deny(
        "limit.gres",
        f"a job of class {quote(data_class.name)} may not ask for the GRES {quote(wrong[0])}",
        f"leave it out; allowed: {', '.join(data_class.gres)}",
    )


def array(job: SubmitJob, context: Context) -> Verdict:
    """``limit.array``: the tasks of an array together."""
    data_class = class_of(job, context)
    text = job.string("array_inx")
    if data_class is None or data_class.max_array is None or not text:
        return ALLOW
    count = tasks(text)
    if count is not None and count <= data_class.max_array:
        return ALLOW
    shown = "a number of tasks that cannot be counted" if count is None else f"{count} tasks"
    return Deny(
        "limit.array",
        f"an array of class {quote(data_class.name)} has at most {data_class.max_array} tasks, this one has {shown}",
        "submit it in parts",
    )


def tasks(text: str) -> int | None:
    """How many tasks an ``--array`` has, ``0-9:2,15%4``; an index named twice counts twice; None: unreadable."""
    total = 0
    for part in text.partition("%")[0].split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            return None
        low, high, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
        if high < low or step == 0:
            return None
        total += (high - low) // step + 1
    return total
