"""The words of a case in ``policy-tests.yaml``, and what may stand behind each of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from admin.sbatch_fields import Said, fields_of
from conf import units
from conf.errors import UsageError
from conf.forms import kind
from conf.quote import one_of, quote
from conf.tag import ENVIRONMENT
from slurm_hooks import trial
from submit.sbatch_args import read


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else f"must be a text, not {kind(value)}"


def _truth(value: object) -> str | None:
    return None if isinstance(value, bool) else f"must be true or false, not {kind(value)}"


def _size(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be a size such as 200M or 10G, not {kind(value)}"
    try:
        units.parse_size(value)
    except UsageError as error:
        return f"{error}; {error.advice}"
    return None


def _script(value: object) -> str | None:
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return None
    return "must be a list of the script's lines, each a text"


def _environment(value: object) -> str | None:
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        return "must be a mapping of variables to texts"
    other = next((name for name in value if name not in ENVIRONMENT), None)
    return None if other is None else f"names {quote(other)}, which nothing looks at; use {one_of(ENVIRONMENT)}"


def options_of(text: str, user: str, environment: Mapping[str, str]) -> Said:
    """What ``options``, sbatch's own words, say of a job that is submitted from the user's home with a session."""
    session = {"HOME": f"/home/{user}", "PATH": "/usr/bin:/bin", "USER": user, **environment}
    return fields_of(read(shlex.split(text)), session, f"/home/{user}", "job")


def _options(value: object) -> str | None:
    if not isinstance(value, str):
        return f"must be a text with options of sbatch, not {kind(value)}"
    try:
        words = shlex.split(value)
        said = options_of(value, "user", {})
    except ValueError as error:
        return f"cannot be split into words: {error}"
    except UsageError as error:
        return f"{error}; {error.advice}"
    if said.unread:
        return f"says something that is not understood here: {said.unread[0]}"
    end = read(words).end
    return None if end == len(words) else f"has {quote(words[end])}, which is no option"


SUBMIT: dict[str, Callable[[object], str | None]] = {
    **dict.fromkeys((*trial.TEXTS, "class", "residency", "datasets", "from_partition"), _text),
    **dict.fromkeys(("shared_by_force", "het", "cron"), _truth),
    "scratch": _size,
    "script": _script,
    "env": _environment,
    "options": _options,
}
SET: dict[str, Callable[[object], str | None]] = {
    **dict.fromkeys(("constraint", "prefer", "batch", "class", "residency", "time", "nodes"), _text),
    **dict.fromkeys(("exclusive", "requeue"), _truth),
    # empty: the job has no encrypted scratch
    "scratch": lambda value: None if value == "" else _size(value),
}
