"""What of Slurm's jobs lives on this machine by the kernel's own word: slurmstepds, and cgroups with processes in them.

No answer of slurmctld goes over this: it may have been restored from an old state, or have forgotten a job that runs.
Several slurmds on one kernel cannot be told apart here; then what lives for one of them counts as living for all.
"""

# pathlib is left out on purpose: what runs every few seconds on a compute node has to be light
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import contextlib
import os
import re

ROOT = "0"
CGROUPS = "/sys/fs/cgroup"

# slurmstepd writes its step into its own command line: "slurmstepd: [123.batch]"
_STEP = re.compile(r"slurmstepd: \[([1-9][0-9]{0,9})\b", re.ASCII)
# cgroup(v1 and v2)/common: .../job_123/step_0/...
_JOB = re.compile(r"job_([1-9][0-9]{0,9})", re.ASCII)


def running_steps() -> dict[int, int | None]:
    """The slurmstepds of this machine: process id to job, None for one whose job cannot be told.

    Root's only: any user can call a process of theirs so. ``slurmstepd infinity`` keeps a cgroup scope and has no job.
    """
    found: dict[int, int | None] = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, StopIteration):
            words = _read(f"/proc/{name}/cmdline").rstrip(b"\0 ").split(b"\0")
            title = words[0].decode("utf-8", "replace")
            if not title.startswith("slurmstepd: ") and title.rpartition("/")[2] != "slurmstepd":
                continue
            lines = _read(f"/proc/{name}/status").decode("utf-8", "replace").splitlines()
            uids = next(line for line in lines if line.startswith("Uid:")).split()[1:4]
            if ROOT in uids and words[1:2] != [b"infinity"]:
                match = _STEP.match(title)
                found[int(name)] = int(match[1]) if match else None
    return found


def jobs_in_cgroups() -> set[int]:
    """The jobs that have a process in a cgroup of theirs. One that is empty is what a killed slurmstepd left.

    :raises OSError: the cgroups cannot be looked at.
    """
    found: set[int] = set()
    for folder, folders, files in os.walk(CGROUPS, onerror=_tell):
        match = next((each for each in map(_JOB.fullmatch, reversed(folder.split("/"))) if each), None)
        if match and "cgroup.procs" in files and _has_processes(f"{folder}/cgroup.procs"):
            found.add(int(match[1]))
            folders.clear()
    return found


def _has_processes(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except FileNotFoundError:
        return False
    except OSError:
        # a threaded cgroup says EOPNOTSUPP of its processes: it has some
        return True


def _tell(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
