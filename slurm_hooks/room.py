"""Whose fault it is that a node has no space for a job's scratch: the job's, which asked for more than there is, or the
node's, whose disk something else has filled. Standard library only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from conf.errors import UsageError
from conf.tag import parse_extra

if TYPE_CHECKING:
    from slurm_hooks.hookenv import HookJob

RULE, NODES_RULE = "scratch.no-space", "node.no-space"
_KEEP_BYTES, _KEEP_PART = 1024**3, 20
"""What stays free, as keys/scratch/backing.py has it."""


def is_the_nodes_fault(scratch: dict[str, Any], job: HookJob) -> bool:
    """Whether the job's scratch would fit beside that of the other jobs here, if nothing else were on the disk.

    Only of backing files that are reserved can that be told; of all else, and of what cannot be read, it is not said.
    """
    if scratch["backing"] != "file" or scratch["overcommit"]:
        return False
    try:
        size = parse_extra(job.extra).scratch or 0
        space = os.statvfs(scratch["directory"])
        ours = sum(
            entry.stat(follow_symlinks=False).st_blocks * 512
            for entry in os.scandir(scratch["directory"])
            if entry.name.endswith(".img") and entry.is_file(follow_symlinks=False)
        )
    except (OSError, UsageError):
        return False
    # without what only root may use
    total = (space.f_blocks - space.f_bfree + space.f_bavail) * space.f_frsize
    keep = min(_KEEP_BYTES, space.f_blocks * space.f_frsize // _KEEP_PART)
    if 0 < scratch.get("limit", 0) < size + ours:
        return False
    return size + ours + keep <= total
