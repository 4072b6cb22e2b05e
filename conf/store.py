"""What ``scratch.backing: auto`` has chosen on this machine: one small file beside the rendered ones.

``secure-slurm node store --prepare`` writes it; rendering puts it in the place of ``auto``. A machine without the file
keeps ``auto``, which no hook knows how to set up: then every start with scratch is refused here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from conf.errors import ConfigError
from conf.quote import quote
from conf.safefile import read_safely

if TYPE_CHECKING:
    from conf.site import Scratch

NAME = "scratch-store.json"
DIRECTORY = "/var/lib/secure-slurm/scratch"
"""Of backing files, where the site file names none."""
_CHOICES = ("file", "lvm", "memory")
_LIMIT = 4096


def read(directory: str) -> tuple[str, str]:
    """What was chosen, and why; both empty when nothing was. ConfigError: the file is not to be trusted."""
    path = Path(directory) / NAME
    if not path.exists() and not path.is_symlink():
        return "", ""
    try:
        said = json.loads(read_safely(path, limit=_LIMIT))
        chosen, why = said["backing"], said["why"]
    except (ValueError, KeyError, TypeError, RecursionError):
        chosen, why = None, None
    if chosen not in _CHOICES or not isinstance(why, str):
        raise ConfigError(f"{quote(str(path))} holds no choice", advice="run: secure-slurm node store --prepare")
    return str(chosen), why


def text(backing: str, why: str) -> str:
    """What the file is to hold."""
    return json.dumps({"backing": backing, "why": why}, sort_keys=True) + "\n"


def rendered(scratch: Scratch, directory: str) -> dict[str, Any]:
    """The ``scratch`` part of hooks.json. ``chosen``: why the backing is what it is; "": the site file says so."""
    part = attrs.asdict(scratch) | {"chosen": ""}
    if scratch.backing == "auto":
        chosen, why = read(directory)
        if chosen:
            part |= {"backing": chosen, "chosen": f"auto: {why}"[:200]}
    return part
