"""What a node's Slurm does with /tmp: the plugin in slurm.conf, and its job_container.conf(5).

The files are read, not asked for by scontrol: every Prolog of a large job would ask slurmctld at once. A slurmd that
was not restarted since they changed does as they said before; so TaskProlog looks at the mounts themselves as well.
Standard library only (root hooks import it under ``python3 -IS``).
"""

# pathlib is left out on purpose: root hooks import this module
# ruff: noqa: PTH118, PTH120, PTH123

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING, NamedTuple

from conf.errors import BackendUnavailable, UsageError
from slurm_hooks.hostlist import expand

if TYPE_CHECKING:
    from collections.abc import Iterator

SLURM_CONF = "/etc/slurm/slurm.conf"
PLUGINS = ("job_container/tmpfs", "namespace/tmpfs")
"""The second is the first's name from Slurm 25.11 on."""
DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  what is asked for, nothing is written there
_DEFAULT_DIRS = "/tmp,/dev/shm"  # noqa: S108  job_container.conf(5), Dirs
# as Slurm's own parser has it (parse_config.c): blanks on either side of the sign, and a value in quotes may hold some
_PAIR = re.compile(r'(?<!\S)(?P<key>[\w.]+)\s*[-*+/]?=\s*(?P<value>"[^"]*"|\S*)', re.ASCII)
_MAX_BYTES = 16 * 1024**2
_MAX_FILES = 64
_MAX_NODES = 100_000


class TmpConf(NamedTuple):
    """``plugin``: as slurm.conf names it, "" for none; ``flags``: PrologFlags in lower case; of job_container.conf, for
    this node, ``base`` ("" or ``none``: switched off), ``dirs`` and ``script`` (InitScript).
    """

    plugin: str
    flags: frozenset[str]
    base: str
    dirs: frozenset[str]
    script: str


def read(path: str, node: str) -> TmpConf:
    """What is configured for a node. ``path``: of slurm.conf, "" for the usual one.

    :raises BackendUnavailable: a file cannot be read, so that what Slurm does is not known.
    """
    path = path or SLURM_CONF
    plugin, flags = "", ""
    for words in _lines(path, {path}):
        for key, value in _pairs(words):
            if key in ("jobcontainertype", "namespacetype"):
                plugin = value.lower()
            elif key == "prologflags":
                flags = value.lower()
    plugin = "" if plugin.endswith("/none") else plugin
    own = _own_lines(os.path.join(os.path.dirname(path), "job_container.conf"), node) if plugin in PLUGINS else {}
    host = socket.gethostname().partition(".")[0]
    base = own.get("basepath", "").replace("%n", node).replace("%h", host)
    dirs = frozenset(each.rstrip("/") for each in own.get("dirs", _DEFAULT_DIRS).split(","))
    return TmpConf(plugin, frozenset(flags.split(",")), base, dirs, own.get("initscript", ""))


def _own_lines(path: str, node: str) -> dict[str, str]:
    """The values for this node: those of every line without NodeName, and then of the lines that name it."""
    common: dict[str, str] = {}
    own: dict[str, str] = {}
    for words in _lines(path, {path}):
        pairs = dict(_pairs(words))
        names = pairs.pop("nodename", "")
        if not names:
            common.update(pairs)
            continue
        try:
            if node in expand(names, limit=_MAX_NODES):
                own.update(pairs)
        except UsageError as error:
            raise BackendUnavailable(f"{path}: {error}", advice="write NodeName as Slurm does") from None
    return common | own


def _lines(path: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file of Slurm's and of those that it includes, without comments (slurm.conf(5))."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(_MAX_BYTES)
    except OSError as error:
        raise BackendUnavailable(
            f"{path} cannot be read ({error.strerror}), so what jobs get for /tmp is not known",
            advice="is SLURM_CONF right?",
        ) from None
    for line in text.replace("\\\n", "").split("\n"):
        plain = line.split("#", 1)[0].strip()
        words = plain.split(None, 1)
        if len(words) < 2 or words[0].lower() != "include":
            yield plain
            continue
        other = os.path.join(os.path.dirname(path), words[1])
        if other in seen or len(seen) >= _MAX_FILES:
            raise BackendUnavailable(
                f"{path} includes {other} again, or is one of more than {_MAX_FILES} files",
                advice="let each file be included once",
            )
        seen.add(other)
        yield from _lines(other, seen)


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    for match in _PAIR.finditer(line):
        yield match["key"].lower(), match["value"].strip('"')
