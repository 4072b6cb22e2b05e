"""What sbatch makes of its options: the fields of the job that slurmctld gets, as far as a policy looks at them.

Measured against sbatch 24.11 and 26.05 (tests/services/slurm/test_sbatch.py sends the same words through both).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from conf.errors import UsageError
from conf.quote import quote
from slurm_hooks.hostlist import expand
from submit.sbatch_args import Arguments, Given, suggestion
from submit.sbatch_options import IGNORED, UNREAD

INFINITE = 0xFFFFFFFF
"""slurm.h"""
_MAIL = {
    **dict(BEGIN=0x1, END=0x2, FAIL=0x4, REQUEUE=0x8, TIME_LIMIT=0x10, TIME_LIMIT_90=0x20, TIME_LIMIT_80=0x40),
    **dict(TIME_LIMIT_50=0x80, STAGE_OUT=0x100, ARRAY_TASKS=0x200, INVALID_DEPEND=0x400, ALL=0x50F, NONE=0x0),
}
_SHARED = {"": 0, "user": 2, "mcs": 3, "topo": 4}
_TIME = re.compile(r"(?:([0-9]{1,9})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", re.ASCII)
_COUNT = re.compile(r"([0-9]{1,9})([kKmM]?)", re.ASCII)
_SCALE = {"": 1, "k": 1024, "m": 1024 * 1024}


class Said(NamedTuple):
    """``texts`` and ``numbers`` by Slurm's names; ``environment``: what goes with a batch job of it.

    ``unread``: options that may change what a rule looks at, in a way that is not followed here, in words.
    """

    texts: dict[str, str]
    numbers: dict[str, int]
    environment: dict[str, str]
    unread: tuple[str, ...]


def fields_of(args: Arguments, environ: Mapping[str, str], folder: str, name: str) -> Said:
    """The fields of a batch job. ``folder``: where sbatch is called; ``name``: of a job without ``--job-name``.

    UsageError for a value that sbatch would refuse.
    """
    texts = {"name": name, "work_dir": folder, "std_in": "/dev/null"}
    numbers = {"mail_type": 0}
    unread = [_unread(given) for given in args.given if given.option is None or given.option.kind == UNREAD]
    # one of a kind counts: the last
    for given in {each.name: each for each in args.given}.values():
        read = _READERS.get(given.option.kind) if given.option else None
        if given.option is None or read is None:
            continue
        for field, value in read(given.option.field, given.value or "", given):
            if isinstance(value, int):
                numbers[field] = value
            elif field == UNREAD:
                unread.append(value)
            else:
                texts[field] = value
    for field in ("work_dir", "std_in", "std_out", "std_err"):
        if texts.get(field, "/") and not texts.get(field, "/").startswith("/"):
            texts[field] = posixpath.join(folder, texts[field])
    _together(args, texts, numbers)
    return Said(texts, numbers, _environment(args, environ), (*unread, *args.unread))


def _unread(given: Given) -> str:
    if given.option is None:
        hint = suggestion(given)
        return f"{given.name} ({given.source}) is no option of sbatch{hint}; a plugin's is taken as one without a value"
    return f"--{given.name} ({given.source})"


Found = Iterator[tuple[str, str | int]]
Reader = Callable[[str, str, Given], Found]


def _text(field: str, value: str, _given: Given) -> Found:
    yield field, value


def _number(field: str, value: str, given: Given) -> Found:
    yield field, _count(value, given)


def _count(value: str, given: Given) -> int:
    found = _COUNT.fullmatch(value)
    if found is None:
        raise _wrong(given)
    return int(found[1]) * _SCALE[found[2].lower()]


def _wrong(given: Given) -> UsageError:
    return UsageError(
        f"{given.source}: {quote(given.value)} is no value for sbatch's --{given.name}", advice="see sbatch(1)"
    )


def minutes(value: str, given: Given) -> int:
    """``--time`` in minutes, rounded up (sbatch(1)): minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s; zero has no end."""
    if value.lower() in {"infinite", "unlimited", "-1"}:
        return INFINITE
    found = _TIME.fullmatch(value)
    if found is None:
        raise _wrong(given)
    days, first, second, third = (None if part is None else int(part) for part in found.groups())
    if days is not None:
        seconds = days * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)
    elif third is not None:
        seconds = (first or 0) * 3600 + (second or 0) * 60 + third
    else:
        seconds = (first or 0) * 60 + (second or 0)
    return -(-seconds // 60) or INFINITE


def _minutes(field: str, value: str, given: Given) -> Found:
    yield field, minutes(value, given)


def _nodes(_field: str, value: str, given: Given) -> Found:
    """``2``, ``2-4``, ``1,3-5``: the least and the most."""
    counts: list[int] = []
    for part in value.split(","):
        ends, step, _ = part.partition(":")
        low, dash, high = ends.partition("-")
        first, last = _count(low, given), _count(high if dash else low, given)
        if last < first:
            raise _wrong(given)
        counts += [first, last]
        if step:
            yield UNREAD, f"the step in --nodes={value} ({given.source})"
    yield "min_nodes", min(counts)
    if max(counts):
        yield "max_nodes", max(counts)


def _nodelist(field: str, value: str, given: Given) -> Found:
    if "/" in value:
        yield UNREAD, f"--nodelist ({given.source}) names a file, which is not read"
        return
    yield field, value


def _file(field: str, value: str, _given: Given) -> Found:
    yield field, "/dev/null" if value.lower() == "none" else value


def _gpus(field: str, value: str, _given: Given) -> Found:
    yield field, ",".join(f"gres/gpu:{part}" for part in value.split(","))


def _gpus_per_task(field: str, value: str, _given: Given) -> Found:
    parts = (part.rpartition(":") for part in value.split(","))
    yield field, ",".join(f"gres/gpu{':' if kind else ''}{kind}={count}" for kind, _, count in parts)


def _gres(field: str, value: str, _given: Given) -> Found:
    if value.lower() != "none":
        parts = (part.removeprefix("gres/").removeprefix("gres:") for part in value.split(",") if part)
        yield field, ",".join(f"gres/{part}" for part in parts)


def _mail(field: str, value: str, _given: Given) -> Found:
    # sbatch ignores a word that it does not know
    kinds = [_MAIL.get(word.strip().upper(), 0) for word in value.split(",")]
    total = 0
    for kind in kinds:
        total |= kind
    yield field, total


def _exclusive(field: str, value: str, given: Given) -> Found:
    if value.lower() not in _SHARED:
        raise _wrong(given)
    yield field, _SHARED[value.lower()]


def _burst_buffer_file(_field: str, value: str, given: Given) -> Found:
    yield "burst_buffer", f"#bbf {value}"
    yield UNREAD, f"--bbf ({given.source}) names a file, which is not read"


def _constant(number: int) -> Reader:
    def read(field: str, _value: str, _given: Given) -> Found:
        yield field, number

    return read


def _nothing(_field: str, _value: str, _given: Given) -> Found:
    yield from ()


_READERS: dict[str, Reader] = {
    "text": _text,
    "number": _number,
    "minutes": _minutes,
    "nodes": _nodes,
    "nodelist": _nodelist,
    "directory": _text,
    "file": _file,
    "gpus": _gpus,
    "gpus-per-task": _gpus_per_task,
    "gres": _gres,
    "mail": _mail,
    "exclusive": _exclusive,
    "oversubscribe": _constant(1),
    "requeue": _constant(1),
    "no-requeue": _constant(0),
    "burst-buffer-file": _burst_buffer_file,
    # what these say is read elsewhere: the environment, the script
    **dict.fromkeys(("export", "user-env", "wrap", IGNORED, UNREAD), _nothing),
}
KINDS = frozenset(_READERS)


def _together(args: Arguments, texts: dict[str, str], numbers: dict[str, int]) -> None:
    """What follows from several options."""
    gpus, gres = args.last("gpus-per-node"), args.last("gres")
    if gpus is not None and gres is not None:
        both = [value for each, read in ((gpus, _gpus), (gres, _gres)) for _, value in read("", each.value or "", each)]
        texts["tres_per_node"] = ",".join(str(value) for value in both)
    if "tres_per_task" not in texts and "cpus_per_task" in numbers:
        texts["tres_per_task"] = f"cpu={numbers['cpus_per_task']}"
    elif "cpus_per_task" in numbers and args.last("tres-per-task") is None:
        texts["tres_per_task"] = f"cpu={numbers['cpus_per_task']},{texts['tres_per_task']}"
    if "req_nodes" in texts and "min_nodes" not in numbers:
        try:
            numbers["min_nodes"] = len(set(expand(texts["req_nodes"])))
        except UsageError:
            return


def _environment(args: Arguments, environ: Mapping[str, str]) -> dict[str, str]:
    """The job's variables after ``--export`` and ``--get-user-env`` (sbatch(1))."""
    given = args.last("export")
    asked = "ALL" if given is None else given.value or "ALL"
    kept = {name: value for name, value in environ.items() if name.startswith(("SLURM_", "SPANK_"))}
    words = asked.split(",")
    loads = args.last("get-user-env") is not None
    if asked.upper() == "ALL" or "ALL" in (word.upper() for word in words):
        kept = dict(environ)
    elif asked.upper() not in {"NONE", "NIL"}:
        kept |= {word: environ[word] for word in words if word in environ}
    if asked.upper() not in {"NONE", "NIL", "ALL"}:
        kept |= {name: value for name, equals, value in (word.partition("=") for word in words) if equals}
    if loads or asked.upper() not in {"ALL", "NIL"}:
        kept["SLURM_GET_USER_ENV"] = "1"
    return kept
