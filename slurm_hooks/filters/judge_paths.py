"""Where a job reads and writes beside its scratch: working directory, standard input, output and error. Pure.

Texts only: slurmctld waits meanwhile, and a look at a file system can hang. The node judges the same paths by where
they resolve, as the job's owner, just before the job starts (:mod:`slurm_hooks.resolve`).
"""

from __future__ import annotations

import posixpath
import re

from conf.quote import quote
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.judge_class import class_of
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict

NOWHERE = frozenset({"/dev/null"})
MAX_PATH = 4096  # limits.h, PATH_MAX; what %x makes of a path counts
_NAME = re.compile("%[0-9]*x")
_STREAMS = {"std_out": "--output", "std_err": "--error", "std_in": "--input"}


def work_dir(job: SubmitJob, context: Context) -> Verdict:
    """``path.work-dir``: in one of the class's directories; a job that names none is refused where they are listed."""
    data_class = class_of(job, context)
    if data_class is None or data_class.work_dirs is None:
        return ALLOW
    path = job.string("work_dir") or ""
    if lies_in(path, data_class.work_dirs):
        return ALLOW
    return Deny(
        "path.work-dir",
        f"the working directory {quote(path)} is none for jobs of class {quote(data_class.name)}",
        f"submit it with --chdir in {' or '.join(data_class.work_dirs)}",
    )


def output(job: SubmitJob, context: Context) -> Verdict:
    """``path.output``: standard input, output and error of a batch job, which writes one in any case."""
    data_class = class_of(job, context)
    if data_class is None or data_class.output_dirs is None:
        return ALLOW
    for field, option in _STREAMS.items():
        path = job.string(field)
        if not path and not (field == "std_out" and job.has_script):
            continue
        # sbatch(1): slurm-%j.out in the working directory
        whole = posixpath.join(job.string("work_dir") or "", path or "slurm-%j.out")
        if whole in NOWHERE or (lies_in(whole, data_class.output_dirs) and not _name_leads_away(whole, job)):
            continue
        return Deny(
            "path.output",
            f"{option} would be {quote(whole)}, which is no place for jobs of class {quote(data_class.name)}",
            f"use {option} with a file in {' or '.join(data_class.output_dirs)}",
        )
    return ALLOW


def lies_in(path: str, directories: tuple[str, ...]) -> bool:
    """Whether an absolute path is one of the directories or below one. One with ``..`` in it is nowhere."""
    if not path.startswith("/") or len(path) > MAX_PATH or ".." in path.split("/"):
        return False
    plain = posixpath.normpath(path)
    return any(plain == each or plain.startswith(f"{each.rstrip('/')}/") for each in directories)


def _name_leads_away(path: str, job: SubmitJob) -> bool:
    """``%x`` is the job's name, which may have slashes or be dots; a backslash switches patterns off and is taken out,
    so that ``.\\.`` is ``..`` (sbatch(1), filename pattern).
    """
    name = job.string("name") or ""
    if "\\" in path or ("%" in path and "/" in name):
        return True
    # measured before it is built: slurmctld waits, and %x%x%x... with a long name would be megabytes
    if len(path) + path.count("%") * len(name) > MAX_PATH:
        return True
    return "%" in path and ".." in _NAME.sub(lambda _: name, path).split("/")
