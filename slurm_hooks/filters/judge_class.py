"""What a data class limits: partitions, nodes, time, GPUs, GRES, array tasks. Pure; None in the policy: not limited.

What cannot be counted for certain counts as too much. Each rule has a function of its own, so that one of them can be
in shadow without taking another with it.
"""

from __future__ import annotations

import re

from conf.policy import DataClass
from conf.quote import quote
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict

INFINITE = 0xFFFFFFFF  # slurm.h
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", re.ASCII)
_TRES = ("tres_per_job", "tres_per_node", "tres_per_task", "tres_per_socket")
_COUNT = re.compile(r"([0-9]{1,9})([kKmM]?)", re.ASCII)


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
    """``limit.gpus``: all GPUs of the job together."""
    data_class = class_of(job, context)
    if data_class is None or data_class.max_gpus is None:
        return ALLOW
    most = data_class.max_gpus
    advice = f"ask for --gpus={most} or less"
    total = 0
    for field in _TRES:
        for name, count in tres(job.string(field) or ""):
            if name != "gpu":
                continue
            times = _times(field, job)
            if count is None or times is None:
                return Deny("limit.gpus", "how many GPUs the job would have cannot be counted", advice)
            total = max(total, count * times)
    if total <= most:
        return ALLOW
    return Deny(
        "limit.gpus",
        f"a job of class {quote(data_class.name)} has at most {most} GPUs, this one asks for {total}",
        advice,
    )


def _times(field: str, job: SubmitJob) -> int | None:
    """How often a count of this field holds in one job; None: unknown (sockets are a node's own business)."""
    if field == "tres_per_job":
        return 1
    if field == "tres_per_node":
        return job.number("max_nodes") or job.number("min_nodes")
    return job.number("num_tasks") if field == "tres_per_task" else None


def tres(text: str) -> list[tuple[str, int | None]]:
    """GRES and their counts in a ``tres_per_*``: ``gres/gpu:a100:2,gres/nvme``; None for a count that is none.

    Slurm writes ``gres/`` (to 24.05 also ``gres:``) before the name and ``:`` or ``=`` behind it; CPUs, memory and
    licences are other TRES.
    """
    found: list[tuple[str, int | None]] = []
    for part in filter(None, text.split(",")):
        kind, _, rest = part.replace("gres:", "gres/", 1).partition("/")
        if kind != "gres" and not rest and kind.partition(":")[0].partition("=")[0] in {"cpu", "mem", "node"}:
            continue
        if kind in {"license", "bb", "fs", "ic"}:
            continue
        words = re.split(r"[:=]", rest if kind == "gres" else part)
        last = _COUNT.fullmatch(words[-1]) if len(words) > 1 else None
        scale = {"k": 1024, "m": 1024**2}.get(last[2].lower(), 1) if last else 1
        found.append((words[0].lower(), int(last[1]) * scale if last else (1 if len(words) < 3 else None)))
    return found


def gres(job: SubmitJob, context: Context) -> Verdict:
    """``limit.gres``: a class may be bound to some kinds of GRES."""
    data_class = class_of(job, context)
    if data_class is None or data_class.gres is None:
        return ALLOW
    wrong = [name for field in _TRES for name, _ in tres(job.string(field) or "") if name not in data_class.gres]
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
