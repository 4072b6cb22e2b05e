"""What nodes have sent of their audit trails, as the head node keeps it: verbatim, one folder for each node.

``<folder>/<node>/<node>-<writer>.jsonl``, in the form of every other trail, for the same verifier. A line is on disk
before the node is told that it is held; on the node it may be gone the next moment. What is held is never written
again: what follows is judged by :mod:`audit.continuity`.

Everything here blocks; for one node there is one call at a time.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from audit.continuity import WRITERS, Held, check
from audit.line import GENESIS, HEAD_SUFFIX, TRAIL_SUFFIX, Link, parse_line
from audit.sealing import is_due, month_of, seal
from audit.store import File, Folder, read_head, tail, write_head, write_whole
from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.slurmnames import is_node_name

LOG = logging.getLogger(__name__)

BURST = 64 * 1024 * 1024
PER_SECOND = 2048
"""Bytes that one node may send, at once and for ever: ten thousand jobs at once, and a job every three seconds."""
FREE = 0.05
"""The share of the file system that is left to the head node's own trails."""

REMEMBERED = 20_000
"""Ended jobs of which it is known without a look at the files."""

Answer = dict[str, bytes | str]


class Say(Protocol):
    """Writes to the head node's own trail, and never raises because that is full."""

    def __call__(self, event: str, **fields: object) -> None: ...  # noqa: D102


class _Chain:
    """One trail of one node. ``lost``: lines that it could not send."""

    def __init__(self, held: Held) -> None:
        self.held = held
        self.lost = 0


class Segments:
    """``folder``: made when it is needed. ``say``: the daemon's own trail."""

    def __init__(self, folder: str, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._say = say
        self._clock = clock
        self._chains: dict[tuple[str, str], _Chain] = {}
        self._allowance: dict[str, tuple[float, float]] = {}
        self._broken: dict[tuple[str, str], str] = {}
        self._told: dict[tuple[str, str], str] = {}
        self._gone: dict[tuple[str, int], set[str]] = {}
        self._lock = threading.Lock()

    def take(self, node: str, writer: str, lines: bytes) -> Answer:
        """Keep what a node has sent, if it goes on where its chain was left. Without lines: only say what is held.

        ``problem`` in the answer: nothing was kept, and why.
        """
        chain = None
        try:
            chain = self._chain(node, writer)
            if lines:
                self._take(node, writer, chain, lines)
                self._broken.pop((node, writer), None)
                self._told.pop((node, writer), None)
        except SecureSlurmError as error:
            problem = str(error)
            self._refused(node, writer, chain, error)
        except OSError as error:
            problem = f"the head node cannot write: {error.strerror or error}"
            self._refused(node, writer, chain, BackendUnavailable(problem))
            # how far it came is on the disk alone
            self._chains.pop((node, writer), None)
        else:
            problem = ""
        link = chain.held.link if chain is not None else GENESIS
        return {"writer": writer, "seq": str(link.seq), "hash": link.hash, "problem": problem}

    def _take(self, node: str, writer: str, chain: _Chain, lines: bytes) -> None:
        self._afford(node, len(lines))
        batch = check(lines, node, writer, chain.held)
        name = f"{node}-{writer}{TRAIL_SUFFIX}"
        if batch.begun:
            # before what it is about: the successor of a machine is told even if the disk is full behind this
            self._say("segment.begun", node=node, trail=writer, count=chain.held.link.seq)
        with Folder(f"{self.folder}/{node}") as folder:
            info = os.fstatvfs(folder.fd)
            if info.f_bavail < info.f_blocks * FREE:
                raise BackendUnavailable("the head node's disk for audit trails is nearly full")
            with File(folder.fd, name, create=True) as file:
                self._seal(folder.fd, file.fd, name, lines, anew=batch.begun)
            with File(folder.fd, name, create=True) as file:
                write_whole(file.fd, lines, os.fstat(file.fd).st_size)
                os.fsync(file.fd)
                write_head(folder.fd, name + HEAD_SUFFIX, batch.held.link)
                os.fsync(folder.fd)
        chain.held = batch.held
        if writer == "node":
            self._note(node, lines)
        if batch.lost:
            chain.lost += batch.lost
            self._say("segment.gap", node=node, trail=writer, lost=batch.lost, count=batch.held.link.seq)

    def _seal(self, folder: int, fd: int, name: str, lines: bytes, *, anew: bool) -> None:
        size = os.fstat(fd).st_size
        when = parse_line(lines[: lines.index(b"\n") + 1]) or {}
        if size and (anew or is_due(size, month_of(fd), str(when.get("time")))) and not seal(folder, name, fd) and anew:
            raise BackendUnavailable("the chain that is held cannot be sealed")

    def _afford(self, node: str, size: int) -> None:
        now = self._clock()
        left, since = self._allowance.get(node, (float(BURST), now))
        left = min(BURST, left + (now - since) * PER_SECOND)
        if size > left:
            self._allowance[node] = (left, now)
            raise Refused("segment.rate", f"more than {BURST} bytes at once, or {PER_SECOND} a second for ever")
        self._allowance[node] = (left - size, now)

    def _refused(self, node: str, writer: str, chain: _Chain | None, error: SecureSlurmError) -> None:
        rule = error.rule if isinstance(error, Refused) else "backend.unavailable"
        if writer in WRITERS and is_node_name(node):
            self._broken[node, writer] = str(error)
        if chain is None:
            LOG.error("node %s, %s: audit lines are not kept: %s", node, writer[:40], error)
            return
        # once for each kind: the node tries again and again
        if self._told.get((node, writer)) != rule:
            self._told[node, writer] = rule
            LOG.error("node %s, %s: audit lines are not kept: [%s] %s", node, writer, rule, error)
            self._say("segment.refused", node=node, trail=writer, rule=rule, reason=str(error))

    def _chain(self, node: str, writer: str) -> _Chain:
        if writer not in WRITERS or not is_node_name(node):
            raise Refused("segment.foreign", "no trail of a node has a writer of that name")
        with self._lock:
            chain = self._chains.get((node, writer))
            if chain is None:
                chain = self._chains[node, writer] = _Chain(_load(self.folder, node, writer))
        return chain

    def has_said_gone(self, node: str, job: int, incarnation: str) -> bool:
        """Whether this daemon has taken the node's word that nothing is left of one start of a job."""
        said = self._gone.get((node, job), ())
        return incarnation in said or "" in said

    def end(self, node: str) -> Link:
        """The last line of a node's own trail that is held; GENESIS when there is none, or it cannot be told."""
        try:
            return self._chain(node, "node").held.link
        except (SecureSlurmError, OSError):
            return GENESIS

    def _note(self, node: str, lines: bytes) -> None:
        for raw in lines.splitlines(keepends=True):
            if b'"event":"scratch.gone"' in raw:
                line = parse_line(raw) or {}
                job = line.get("job")
                if isinstance(job, int):
                    while len(self._gone) >= REMEMBERED:
                        self._gone.pop(next(iter(self._gone)), None)
                    self._gone.setdefault((node, job), set()).add(str(line.get("incarnation", "")))

    def about(self, node: str, job: int) -> Iterator[dict[str, object]]:
        """The lines about a job that a node has sent, of those that are not sealed and the last sealed file."""
        try:
            files = sorted(
                Path(self.folder, node).glob(f"{node}-node{TRAIL_SUFFIX}*"), key=lambda one: one.stat().st_mtime
            )
        except OSError:
            return
        mark = f'"job":{job},'.encode()
        for path in [one for one in files if not one.name.endswith(HEAD_SUFFIX)][-2:]:
            try:
                with path.open("rb") as file:
                    found = [parse_line(raw) for raw in file if mark in raw]
            except OSError:
                continue
            yield from (line for line in found if line is not None and line.get("job") == job)

    def report(self, connected: Iterable[str]) -> dict[str, Any]:
        """For ``secure-slurm status``: how many nodes' lines are held, whose are not, and what was lost."""
        with self._lock:
            chains, broken = dict(self._chains), dict(self._broken)
        lost = {which: f"{chain.lost} lines of it are missing" for which, chain in chains.items() if chain.lost}
        problems = [
            {"node": node, "trail": writer, "why": why} for (node, writer), why in sorted((lost | broken).items())
        ]
        silent = sorted(set(connected) - {node for node, _ in {**chains, **broken}})
        problems += [{"node": node, "trail": "node", "why": "it is connected and has sent no lines"} for node in silent]
        return {"nodes": len({node for node, _ in chains}), "problems": problems}


def _load(folder: str, node: str, writer: str) -> Held:
    """What is held of a chain. A torn end is cut off: it was never confirmed. OSError, BackendUnavailable: unknown."""
    name = f"{node}-{writer}{TRAIL_SUFFIX}"
    Path(folder).mkdir(mode=0o755, exist_ok=True)
    Path(folder, node).mkdir(mode=0o755, exist_ok=True)
    with Folder(f"{folder}/{node}") as opened:
        head = read_head(opened.fd, name + HEAD_SUFFIX) or GENESIS
        try:
            with File(opened.fd, name, create=False) as file:
                last, torn = tail(file.fd, os.fstat(file.fd).st_size)
                if torn:
                    os.ftruncate(file.fd, os.fstat(file.fd).st_size - len(torn))
                # what is said to be held is on the disk
                os.fsync(file.fd)
                boot = _boot(file.fd)
        except FileNotFoundError:
            last, boot = None, ""
    link = last or GENESIS
    sealed = list(Path(folder, node).glob(f"{name}.*-{head.seq:012d}-{head.hash[:8]}"))
    if last is None and sealed:
        with sealed[0].open("rb") as file_of_head:
            return Held(head, _boot(file_of_head.fileno()))
    # a head of a sealed file: the machine's successor has begun a chain, and the head was not written any more
    if (not sealed and link.seq < head.seq) or (link.seq == head.seq and link != head):
        raise BackendUnavailable(
            f"{folder}/{node}/{name} holds less than its head file says", advice="secure-slurm audit verify"
        )
    return Held(link, boot)


def _boot(fd: int) -> str:
    size = os.fstat(fd).st_size
    block = os.pread(fd, 65536, max(0, size - 65536))
    line = parse_line(block[block.rfind(b"\n", 0, len(block) - 1) + 1 :]) or {}
    return str(line.get("boot", ""))
