"""ParallelCluster's own schema and validators, run in a child process of another Python; see child.py.

The child gets the configuration by standard input, no credentials, no way to the network, and a deadline. What it
says is text of another program: it is compared with nothing and shown with what cannot be printed escaped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from conf.errors import BackendUnavailable
from conf.quote import quote
from keys.process import ProcessError, run

DEADLINE = 120.0
"""Seconds; it takes one to three, most of them for the import."""
MAX_ANSWER = 4 * 1024 * 1024
CHILD = Path(__file__).with_name("child.py")
_LEVELS = {"ERROR": "error", "WARNING": "warning"}
"""INFO says what will be, not what is wrong: a shared file system that outlives the cluster, for one."""


class Said(NamedTuple):
    """One thing that a validator says. ``where``: keys and indices; ``about``: what it was given, or the known keys."""

    severity: str
    validator: str
    message: str
    where: tuple[str | int, ...]
    about: dict[str, object]


class Answer(NamedTuple):
    """What ParallelCluster says. ``run`` and ``not_run``: names of validators; those not run need AWS."""

    version: str
    said: tuple[Said, ...]
    run: tuple[str, ...]
    not_run: tuple[str, ...]


def find_python() -> str:
    """The Python of the ``pcluster`` on the PATH. BackendUnavailable: there is none, or root must not run it."""
    program = shutil.which("pcluster")
    if program is None:
        raise BackendUnavailable(
            "there is no pcluster on the PATH",
            advice="name the Python of a virtual environment with aws-parallelcluster by --pcluster-python",
        )
    folder = Path(program).resolve().parent
    status = folder.stat()
    if os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & 0o022):
        raise BackendUnavailable(
            f"{folder} is not in the hands of root alone, and root does not run what is in it",
            advice="run the check as another user, or name the Python by --pcluster-python",
        )
    for name in ("python3", "python"):
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    raise BackendUnavailable(f"{folder} has pcluster and no Python", advice="name it by --pcluster-python")


def ask(python: str, data: bytes, *, name: str, region: str) -> Answer:
    """What ParallelCluster finds in the configuration of a cluster ``name``.

    Raises BackendUnavailable when that Python cannot be run, has no ParallelCluster, or does not answer in time.
    """
    where = {
        "HOME": "/nonexistent",
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    command = [str(Path(python).absolute()), "-I", "-B", str(CHILD), name]
    try:
        done = run(command, timeout=DEADLINE, input=data, env_extra=where, max_output=MAX_ANSWER)
        return _read(json.loads(done.stdout))
    except ProcessError as error:
        raise BackendUnavailable(
            f"ParallelCluster's own validators did not run: {error}",
            advice=f"see that it has aws-parallelcluster 3.13 or later: {python} -m pip show aws-parallelcluster",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise BackendUnavailable(
            "ParallelCluster's own validators gave no answer that can be read",
            advice=f"see what {quote(python)} is",
        ) from None


def _read(answer: Any) -> Answer:  # noqa: ANN401 - JSON
    said = tuple(
        Said(
            _LEVELS[each["level"]],
            str(each["validator"]),
            str(each["message"]),
            tuple(step if isinstance(step, int) else str(step) for step in each["where"]),
            {str(name): value for name, value in each["about"].items()},
        )
        for each in answer["findings"]
        if each["level"] != "INFO"
    )
    return Answer(str(answer["version"]), said, tuple(map(str, answer["run"])), tuple(map(str, answer["not_run"])))
