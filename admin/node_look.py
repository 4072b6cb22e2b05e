"""What there is of encrypted scratch on this node, and what Slurm runs here.

What is looked for has a name that follows from node and job (keys/scratch/plan.py), so that it is found with or without
a journal. Nothing is changed by looking.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from conf.errors import BackendUnavailable, SecureSlurmError
from keys.journal import Journal, Record
from keys.process import ProcessError, program, run
from keys.scratch.errors import NodeBroken
from keys.scratch.mounts import mounts
from keys.scratch.plan import ScratchNames, names_from_config, names_of
from keys.scratch.teardown import verify_gone

if TYPE_CHECKING:
    from collections.abc import Iterator

QUERY_TIMEOUT = 20.0
"""Seconds."""
SYSFS = Path("/sys/block")
MAX_QUEUE = 4 * 1024**2

_NUMBER = re.compile(r"([1-9][0-9]{0,9})(?:\.img)?(?: \(deleted\))?", re.ASCII)
# slurmstepd writes its step into its own command line: "slurmstepd: [123.batch]"
_STEP = re.compile(r"slurmstepd: \[([1-9][0-9]{0,9})\b", re.ASCII)
_ROOT = "0"


class Node(NamedTuple):
    """This node as the rendered configuration describes it."""

    name: str
    run_dir: str
    config: dict[str, Any]

    @property
    def journal(self) -> Journal:
        """Its journal."""
        return Journal(self.run_dir, self.name)

    def names(self, job: int) -> ScratchNames:
        """What a job's scratch is called here."""
        return names_from_config(self.name, job, self.config["scratch"])


class Finding(NamedTuple):
    """One job. ``journal`` is its state there, ``none`` or ``damaged``; ``since`` in Unix seconds (0: unknown);
    ``step``: a slurmstepd of it runs on this machine; ``there``: what exists, as ``kind: name``.
    """

    job: int
    journal: str
    uid: int | None
    key: str
    since: float
    step: bool
    there: list[str]


def look(node: Node, problems: list[str]) -> list[Finding]:
    """Every job of which there is anything, destroyed ones left out. What cannot be looked at goes to ``problems``."""
    jobs: set[int] = set()
    for search in (node.journal.jobs, lambda: _named(node)):
        try:
            jobs.update(search())
        except (SecureSlurmError, OSError) as error:
            problems.append(str(error))
    steps = set(running_steps().values())
    found = [_finding(node, job, problems, step=job in steps) for job in sorted(jobs)]
    return [each for each in found if each.there or each.journal != "destroyed"]


def _finding(node: Node, job: int, problems: list[str], *, step: bool) -> Finding:
    record, state = None, "none"
    try:
        record = node.journal.read(job)
        state = record.state if record else "none"
    except (SecureSlurmError, OSError) as error:
        problems.append(str(error))
        state = "damaged"
    there: list[str] = []
    try:
        there += [item for names in _all_names(node, job, record) for item in verify_gone(names)]
    except (SecureSlurmError, OSError) as error:
        problems.append(f"job {job}: {error}")
        there.append("unknown")
    return Finding(
        job=job,
        journal=state,
        uid=record.uid if record else None,
        key=record.key_name if record else "",
        since=record.changed if record else 0.0,
        step=step,
        there=list(dict.fromkeys(there)),
    )


def _all_names(node: Node, job: int, record: Record | None) -> Iterator[ScratchNames]:
    """By today's configuration, and by the one that the job started under, if that was another."""
    yield node.names(job)
    if record is not None:
        where = record.backing_path.rpartition("/")[0] if record.backing in ("file", "lvm") else record.backing_path
        with contextlib.suppress(NodeBroken):
            yield names_of(node.name, job, record.backing, where, record.mount_root)


def _named(node: Node) -> Iterator[int]:
    """The jobs that something of our names is there for. Raises NodeBroken when LVM does not answer."""
    root, store = node.names(1).mount_root, node.names(1).path.rpartition("/")[0]
    seen = [*_attributes("dm/name"), *_attributes("loop/backing_file")]
    seen += [f"{root}/{mount.point.removeprefix(root + '/').partition('/')[0]}" for mount in mounts()]
    seen += [f"{root}/{name}" for name in _entries(root)]
    backing = node.config["scratch"]["backing"]
    if backing == "file":
        seen += [f"{store}/{name}" for name in _entries(store)]
    elif backing == "lvm":
        seen += [f"{store}/{name}" for name in _volumes(store)]
    for text in seen:
        match = _NUMBER.fullmatch(text, max(text.rfind("-"), text.rfind("/")) + 1)
        if match:
            with contextlib.suppress(NodeBroken):
                names = node.names(int(match[1]))
                if text.removesuffix(" (deleted)") in (names.mapper, names.mount_point, names.path):
                    yield names.job


def _attributes(name: str) -> Iterator[str]:
    for path in SYSFS.iterdir():
        with contextlib.suppress(OSError):  # another kind of device, or it went away while it was looked at
            yield os.fsdecode((path / name).read_bytes().rstrip(b"\n"))


def _entries(folder: str) -> list[str]:
    try:
        return [path.name for path in Path(folder).iterdir()]
    except FileNotFoundError:
        return []


def _volumes(group: str) -> list[str]:
    """The logical volumes of a group. Without udevd LVM would wait for its list of devices."""
    config = "devices{obtain_device_list_from_udev=0}"
    try:
        argv = [program("lvs"), "--config", config, "--noheadings", "--options", "lv_name", "--", group]
        return run(argv, timeout=QUERY_TIMEOUT).stdout.decode("ascii", "replace").split()
    except ProcessError as error:
        raise NodeBroken(f"the volume group {group} does not answer: {error}", advice=f"see: vgs {group}") from None


def running_steps() -> dict[int, int | None]:
    """The slurmstepds of this machine: process id to job, None for one whose job cannot be told.

    Root's only: any user can call a process of theirs so. ``slurmstepd infinity`` keeps a cgroup scope and has no job.
    """
    found: dict[int, int | None] = {}
    for path in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            words = (path / "cmdline").read_bytes().rstrip(b"\0 ").split(b"\0")
            title = words[0].decode("utf-8", "replace")
            if not title.startswith("slurmstepd: ") and title.rpartition("/")[2] != "slurmstepd":
                continue
            lines = (path / "status").read_text("utf-8", "replace").splitlines()
            uids = next(line for line in lines if line.startswith("Uid:")).split()[1:4]
            if _ROOT in uids and words[1:2] != [b"infinity"]:
                match = _STEP.match(title)
                found[int(path.name)] = int(match[1]) if match else None
    return found


def slurm_state(node: Node, job: int) -> str:
    """The state of a job that slurmctld knows on this node; empty: there is none."""
    argv = [f"{node.config['cluster']['slurm_bin']}/squeue", "--noheader", f"--nodelist={node.name}", "--states=all"]
    where = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    try:
        answer = run([*argv, "--format=%A %T"], timeout=QUERY_TIMEOUT, env_extra=where, max_output=MAX_QUEUE)
    except ProcessError as error:
        raise BackendUnavailable(
            f"whether Slurm runs job {job} here is not known: {error.stderr or error}",
            advice="is slurmctld running? If it is down and the job does not run here: --without-slurm",
        ) from None
    lines = (line.split() for line in answer.stdout.decode("ascii", "replace").splitlines())
    return next((line[1] for line in lines if len(line) == 2 and line[0] == str(job)), "")
