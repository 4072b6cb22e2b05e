"""Which nodes a host is, where hosts are called by their address: on EC2 slurmctld's reverse DNS says ``ip-10-0-0-5``.

The filter has to know whether a job was submitted on a node, and slurmctld names the host by reverse DNS. With
ParallelCluster's UseEc2Hostnames that is no node's name in Slurm (``phi-dy-small-1``), though slurmctld knows both:
ResumeProgram tells it the node's NodeHostName and NodeAddr before the instance has booted. The decision daemon has no
network, so the lifecycle daemon asks, and leaves a table beside the files that say where tagged jobs run.

Names of this form alone are looked up; every other host goes by its own name, as ever. While the lifecycle daemon is
down no secured job starts, so no new host can have one, and an old table says enough. While it is up and is not told
what there is, jobs do start: then the table is taken away, and such a host may be any node.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from conf.errors import BackendUnavailable, SecureSlurmError
from conf.slurmnames import is_node_name

LOG = logging.getLogger(__name__)
FILE = ".hosts"
"""In ``lifecycle.running_dir``, whose other files are called by numbers."""
LOOK_EVERY = 10.0
"""Seconds between two tables; an instance takes longer than that to boot."""
KEEP = 60.0
"""Seconds for which the last table stays while slurmctld does not say anew what there is."""
MAX_BYTES = 16 * 1024 * 1024

# "Amazon EC2 instance hostname types": by address (IPv4), and by instance (resource names)
_BY_ADDRESS = re.compile(r"ip((?:-[0-9]{1,3}){4})", re.ASCII)
_BY_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}", re.ASCII)
_LINE = re.compile(r"([^|]+)\|([^|]+)\|([^|]+)", re.ASCII)

Hosts = Mapping[str, tuple[str, ...]]
"""NodeHostName and NodeAddr in lower case, and the nodes that have it."""


def is_made_up(host: str) -> bool:
    """Whether a host's name says no more than its address or its instance. job_submit.lua asks the same."""
    short = host.lower().partition(".")[0]
    return _BY_ADDRESS.fullmatch(short) is not None or _BY_INSTANCE.fullmatch(short) is not None


def nodes_of(host: str, hosts: Hosts | None) -> tuple[str, ...] | None:
    """The nodes that a host with such a name is, () when it is none; None: there is no table, so it may be any."""
    if hosts is None:
        return None
    full = host.lower()
    short = full.partition(".")[0]
    found = _BY_ADDRESS.fullmatch(short)
    names = [full, short, *([found[1][1:].replace("-", ".")] if found else [])]
    return tuple(dict.fromkeys(node for name in names for node in hosts.get(name, ())))


def read_sinfo(text: str) -> dict[str, list[str]]:
    """``sinfo --Node --format=%N|%n|%o`` as a table. BackendUnavailable for a line that is none, and for no line."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None or not is_node_name(match[1]):
            raise BackendUnavailable("sinfo's list of nodes cannot be read")
        for name in {word.strip().lower() for word in match.groups()[1:]} - {match[1].lower()}:
            nodes = found.setdefault(name, [])
            if match[1] not in nodes:
                nodes.append(match[1])
    if not text.strip():
        raise BackendUnavailable("slurmctld shows no nodes", advice="PrivateData=nodes hides them: leave it out")
    return found


def write(folder: str, hosts: Mapping[str, list[str]]) -> None:
    """Leave the table for the decision daemon, whole; nothing when it is there already. BackendUnavailable."""
    text = json.dumps(hosts, sort_keys=True)
    path, temporary = Path(folder, FILE), Path(folder, f"{FILE}.new")
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o640)
            file.write(text)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise BackendUnavailable(f"{folder}: the table of hosts cannot be written: {error}") from None


def parse(text: bytes) -> Hosts:
    """What :func:`write` wrote; ValueError for anything else."""
    said = json.loads(text)
    if not isinstance(said, dict) or not all(isinstance(nodes, list) for nodes in said.values()):
        raise ValueError("no table")
    return {str(host): tuple(str(node) for node in nodes) for host, nodes in said.items()}


class Table:
    """The lifecycle daemon's side. ``ask`` returns :func:`read_sinfo`'s table, and blocks."""

    def __init__(
        self,
        folder: str,
        ask: Callable[[], dict[str, list[str]]],
        acts: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._ask = ask
        self._acts = acts
        self._clock = clock
        self._good = clock()
        self._told = ""

    def look(self) -> None:
        """Once. What fails is logged when it is new; the table stays as it was for :data:`KEEP` seconds."""
        try:
            if self._acts():
                write(self._folder, self._ask())
            self._good = self._clock()
            self._told = ""
        except SecureSlurmError as error:
            if str(error) != self._told:
                LOG.warning("which hosts are nodes stays as it was read last: %s", error)
            self._told = str(error)
            if self._clock() - self._good > KEEP:
                self._forget()

    def _forget(self) -> None:
        try:
            Path(self._folder, FILE).unlink()
            LOG.error("which hosts are nodes is not known any more, so that each may be one: %s", self._told)
        except FileNotFoundError:
            pass
        except OSError as error:
            LOG.error("%s/%s is too old, and cannot be removed: %s", self._folder, FILE, error.strerror)

    async def forever(self) -> None:
        """Look, wait."""
        while True:
            await asyncio.to_thread(self.look)
            await asyncio.sleep(LOOK_EVERY)
