"""The facts that TaskProlog hands to a job's tasks, in a file that only root can write and every job may read.

Standard library only (root hooks import it under ``python3 -IS``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from conf.errors import InternalError, SecureSlurmError
from slurm_hooks import privatetmp
from slurm_hooks.hookenv import say

if TYPE_CHECKING:
    from collections.abc import Mapping


def _folder(run_dir: str) -> str:
    return f"{run_dir}/task"


def write(run_dir: str, job: int, grant: Mapping[str, str], scratch: str) -> None:
    """Publish ``NAME=value`` lines for one job; replaced whole, so that a task never reads half a file.

    Raises InternalError for a value with anything but printable ASCII: a line feed in it would set any other variable.
    """
    lines = [f"SECURE_CLASS={grant['class']}"]
    if grant["residency"]:
        lines.append(f"SECURE_RESIDENCY={grant['residency']}")
    if grant["datasets"]:
        lines.append(f"SECURE_DATASETS={grant['datasets']}")
    if scratch:
        lines.append(f"SECURE_SCRATCH_SIZE={grant['scratch']}")
        lines += [f"SECURE_SCRATCH={scratch}", f"TMPDIR={scratch}/tmp"]  # noqa: S108  inside the job's own scratch
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise InternalError(f"the grant of job {job} has values that a task's environment cannot take")
    folder = _folder(run_dir)
    os.makedirs(folder, mode=0o755, exist_ok=True)  # noqa: PTH103  pathlib is too heavy for a hook
    os.chmod(folder, 0o755)  # noqa: PTH101, S103  the tasks of every user read their own job's file in it
    temporary = f"{folder}/.{job}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "w") as file:
        os.fchmod(descriptor, 0o644)
        file.write("\n".join(lines) + "\n")
    os.rename(temporary, f"{folder}/{job}")  # noqa: PTH104


def remove(run_dir: str, job: int) -> bool:
    """Take one job's facts away, and the place of its /tmp; whether there were any. May be called again.

    A place that cannot be taken away is told and stays noted (:func:`jobs`): it never stops the end of the scratch.
    """
    there = False
    try:
        there = privatetmp.release(run_dir, job)
    except (SecureSlurmError, OSError) as error:
        say("private tmp", f"job {job}: the place of its /tmp is not gone: {error}")
    try:
        os.unlink(f"{_folder(run_dir)}/{job}")  # noqa: PTH108
    except FileNotFoundError:
        return there
    return True


def jobs(run_dir: str) -> list[int]:
    """The jobs that facts were published for, or a place for their /tmp. OSError: a folder cannot be listed."""
    try:
        names = os.listdir(_folder(run_dir))  # noqa: PTH208
    except FileNotFoundError:
        names = []
    found = {name for name in names if name.isascii() and name.isdecimal() and name == str(int(name)) and int(name)}
    return sorted({*map(int, found), *privatetmp.jobs(run_dir)})
