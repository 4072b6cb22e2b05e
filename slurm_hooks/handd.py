"""The hand: root's part of a revocation on a node, for a node daemon that has no right to touch a job.

It answers requests over a Unix socket, to root and the node daemon's account alone, about jobs of the journal and no
others: ``jobs`` (which are there), ``renew`` (the head node has been heard), ``stop`` (freeze a job and wipe its key),
and for one that may go on ``freeze``, ``wrapped`` and ``thaw`` (:mod:`slurm_hooks.handfreeze`). ``trail`` gives lines
of the node's audit trails (:mod:`slurm_hooks.segments_read`). It reads no network, and nothing that a user wrote.

It also keeps the lease: a job for which nothing was renewed for ``revocation.offline_grace`` is stopped, whoever is to
blame: the network, the head node, or a node daemon that does not run. The clock is the kernel's since the boot. What
was stopped stays stopped, processes that appear later too, until the job is over.

Standard library only, as everything that root runs here.
"""

# pathlib is left out on purpose, and argparse and logging: it is as light as the hooks
# ruff: noqa: PTH123

from __future__ import annotations

import contextlib
import json
import os
import pwd
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

from audit.chain import AuditError, Chain
from conf.errors import ConfigError, Refused, SecureSlurmError
from conf.hookconf import for_node, is_node_name, read_hook_config
from keys import freezer, stopping
from keys.claims import jobs_here
from keys.journal import Journal
from slurm_hooks import presence, segments_read, wire
from slurm_hooks.handfreeze import Freezes
from slurm_hooks.hookenv import say
from slurm_hooks.notify import Systemd
from slurm_hooks.presence import Present

SOCKET = "hand.sock"
"""In the run directory, which is root's: nobody else can put a socket in its place."""
STATE = "hand.json"
NODE_USER = "secure-node"
TICK = 1.0
REQUEST = 2.0
"""Seconds for a request to arrive and its answer to be taken."""
LINGER = 120.0
"""Seconds for which a stopped job is remembered at least: longer than from its Prolog's claim to its first process."""

_UCRED = struct.Struct("3i")


class Hand:
    """What the hand knows. ``grace``: seconds; 0 when there is no link, and so no lease."""

    def __init__(self, node: str, run_dir: str, grace: float, chain: Chain | None) -> None:
        self.node = node
        self.run_dir = run_dir
        self.grace = grace
        self.journal = Journal(run_dir, node)
        self._chain = chain
        self.trail = segments_read.Reader(chain.directory if chain is not None else "", node)
        self._dead: dict[int, int] = {}
        self._leases: dict[int, tuple[str, float]] = {}
        self._stopped: dict[int, tuple[str, float]] = {}
        self._keyed: set[int] = set()
        self.freezes = Freezes(self.journal, run_dir, self._save, self._write, self._write_before)
        self._load()

    def jobs(self) -> dict[int, Present]:
        """What is here. :raises SecureSlurmError, OSError: that is not known."""
        here = jobs_here(self.journal, self._dead)
        for job, (incarnation, since) in list(self._stopped.items()):
            if here.get(job, incarnation) != incarnation:
                del self._stopped[job]  # another start of it, which the head node has let happen
                self._keyed.discard(job)
            elif job not in here and now() - since > LINGER and not freezer.is_there(self.node, job):
                del self._stopped[job]
                self._keyed.discard(job)
        self.freezes.forget(here)
        everything = {job: start for job, (start, _) in self._stopped.items()} | here
        return {job: Present(job, start, self._state(job)) for job, start in sorted(everything.items())}

    def report(self) -> list[Present]:
        """:meth:`jobs` for the head node, which takes a state for a confirmation: of what failed it gets none."""
        unsure = self._keyed | self.freezes.unsure
        return [
            one._replace(state=presence.UNSURE) if one.state != presence.RUNNING and one.job in unsure else one
            for one in self.jobs().values()
        ]

    def _state(self, job: int) -> str:
        if job in self._stopped:
            return presence.STOPPED
        return presence.FROZEN if job in self.freezes.jobs else presence.RUNNING

    def find(self, job: int, incarnation: str) -> Present | None:
        """A job that is here, or that start of it alone."""
        present = self.jobs().get(job)
        return None if present is None or (incarnation and present.incarnation != incarnation) else present

    def renew(self, age: float) -> None:
        """The head node answered ``age`` seconds after it was told of the jobs that were here then."""
        heard = now() - max(age, 0.0)
        for job, (start, at) in self._leases.items():
            self._leases[job] = (start, max(at, heard))
        self._save()

    def stop(self, job: int, incarnation: str, reason: str) -> str:
        """Stop a job, or that start of it alone: ``stopped``, ``gone`` when there is none, or ``failed``."""
        present = self.find(job, incarnation)
        if present is None:
            return "gone"
        if present.state == presence.STOPPED and stopping.is_keyless(self.node, job):
            freezer.freeze(self.node, job)
            self._keyed.discard(job)
            return "stopped"
        return self._stop(present, reason)

    def tick(self) -> None:
        """Once a second: jobs that came or went, leases that have ended, processes of stopped jobs that came since."""
        here = self.jobs()
        for job in self._leases.keys() - here.keys():
            del self._leases[job]
        for job, present in here.items():
            if self._leases.get(job, ("", 0.0))[0] != present.incarnation:
                self._leases[job] = (present.incarnation, now())
            if present.state == presence.STOPPED:
                freezer.freeze(self.node, job)
                if stopping.is_keyless(self.node, job):
                    self._keyed.discard(job)
                else:
                    self._stop(present, "its key was to be gone")
                continue
            if present.state == presence.FROZEN:
                self.freezes.tick(present, self._stop)
                if job not in self.freezes.unsure:
                    # nothing is left to take from it; when it goes on it has the whole grace
                    self._leases[job] = (present.incarnation, now())
            if self.grace and now() - self._leases[job][1] > self.grace:
                reason = f"nothing was heard from the head node for {self.grace:.0f} s"
                self._write("lease.expired", present, reason=reason)
                self._stop(present, reason)
        self._save()

    def left(self) -> float:
        """Seconds until the first lease ends; -1 when none does."""
        running = [at for job, (_, at) in self._leases.items() if self._state(job) == presence.RUNNING]
        return max(0.0, min(running) + self.grace - now()) if running and self.grace else -1.0

    def words(self) -> str:
        """For ``systemctl status``: how many jobs it watches, and how many of them it has stopped."""
        return f"{len(self._leases)} jobs here, {len(self._stopped)} stopped, {len(self.freezes.jobs)} frozen"

    def _stop(self, present: Present, reason: str) -> str:
        # first remembered: whoever comes after a crash in the middle goes on with it
        self._stopped[present.job] = (present.incarnation, now())
        self._keyed.add(present.job)
        self.freezes.drop(present.job)
        self._save()
        found = stopping.stop_job(self.journal, self.run_dir, present.job)
        if found.done:
            self._keyed.discard(present.job)
        result = "stopped" if found.done else "failed"
        self._write("job.stopped", present, reason=reason, result=result, evidence=found.evidence(), wiped=found.wiped)
        return result

    def _write(self, event: str, present: Present, **fields: object) -> None:
        """A full log never stops a destruction."""
        try:
            self._write_before(event, present, **fields)
        except (AuditError, ValueError) as error:
            say("handd", str(error))

    def _write_before(self, event: str, present: Present, **fields: object) -> None:
        if self._chain is None:
            raise AuditError("this node's audit trail cannot be written")
        facts = {"job": present.job, "node": self.node, "incarnation": present.incarnation or None}
        self._chain.append(event, durable=True, **facts, **fields)

    def _load(self) -> None:
        """What an earlier run of the same boot knew. Whatever cannot be read counts as heard from just now."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            with open(f"{self.run_dir}/{STATE}", encoding="ascii") as file:
                said = json.load(file)
            if said["boot"] == _boot():
                self._leases = {int(job): (str(start), float(at)) for job, (start, at) in said["leases"].items()}
                self._stopped = {int(job): (str(start), float(at)) for job, (start, at) in said["stopped"].items()}
                self.freezes.jobs = {int(job): str(start) for job, start in said.get("frozen", {}).items()}
                # it may have died in the middle: the next look tells
                self._keyed, self.freezes.unsure = set(self._stopped), set(self.freezes.jobs)

    def _save(self) -> None:
        temporary = f"{self.run_dir}/.{STATE}"
        said = {"boot": _boot(), "leases": self._leases, "stopped": self._stopped, "frozen": self.freezes.jobs}
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(said, file)
            os.rename(temporary, f"{self.run_dir}/{STATE}")  # noqa: PTH104
        except OSError as error:
            say("handd", f"{self.run_dir}/{STATE} cannot be written: {error.strerror}")


def now() -> float:
    """Seconds since the boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def answer(hand: Hand, fields: dict[str, bytes]) -> dict[str, str]:
    """One request. :raises Refused: it is none that is known, or may not be now. :raises WireError: it is malformed."""
    verb = wire.text(fields, "verb")
    if verb == "jobs":
        return {"jobs": presence.write(hand.report()), "left": f"{hand.left():.1f}"}
    if verb == "renew":
        hand.renew(_seconds(wire.text(fields, "age")))
        return {}
    if verb == "trail":
        return segments_read.answer(hand.trail, fields)
    if verb not in ("stop", "freeze", "wrapped", "thaw"):
        raise Refused("wire.verb", "the hand does not know this request")
    ((job, meant),) = presence.read(f"{wire.text(fields, 'job')}:{wire.text(fields, 'incarnation')}:running").items()
    if verb == "stop":
        return {"result": hand.stop(job, meant.incarnation, wire.text(fields, "reason")[:200])}
    present = hand.find(job, meant.incarnation)
    return {"result": "gone"} if present is None else hand.freezes.answer(verb, present, fields)


def _seconds(text: str) -> float:
    if not text.replace(".", "", 1).isdigit() or not text.isascii() or len(text) > 20:
        raise wire.WireError("a time is not a number of seconds")
    return float(text)


def serve_one(hand: Hand, connection: socket.socket, allowed: frozenset[int]) -> None:
    """Read one request and answer it. Nothing that a client does is raised."""
    with connection:
        nonce = ""
        said: dict[str, str]
        try:
            uid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
            if uid not in allowed:
                raise Refused("peer.refused", "this user may not ask this of the hand")
            fields = wire.receive(connection, REQUEST)
            nonce = wire.valid_nonce(fields.get("nonce"))
            if not nonce:
                raise Refused("wire.nonce", "the request has no usable nonce")
            said = {"verdict": "allow", **answer(hand, fields)}
        except Refused as error:
            said = {"verdict": "refuse", "rule": error.rule, "message": str(error), "advice": error.advice}
        except (SecureSlurmError, OSError, ValueError) as error:
            say("handd", str(error))
            said = {"verdict": "refuse", "rule": "engine.error", "message": str(error)[:300], "advice": ""}
        with contextlib.suppress(OSError):
            connection.settimeout(REQUEST)
            connection.sendall(wire.encode({**said, "nonce": nonce}))


def run(hand: Hand, path: str, allowed: frozenset[int], gid: int, stop: socket.socket) -> None:
    """Serve until ``stop`` can be read."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  root's own folder, and one hand a node
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening:
        mask = os.umask(0o177)
        listening.bind(path)
        os.umask(mask)
        # before anybody may connect, or who does so at once would be turned away
        listening.listen(16)
        os.chown(path, 0, gid)
        os.chmod(path, 0o660)  # noqa: PTH101
        systemd, following = Systemd(), 0.0
        systemd.ready(hand.words())
        while True:
            ready = select.select([listening, stop], [], [], max(0.0, following - now()))[0]
            if stop in ready:
                systemd.stopping()
                return
            if listening in ready:
                serve_one(hand, listening.accept()[0], allowed)
            if now() >= following:
                try:
                    hand.tick()
                except (SecureSlurmError, OSError) as error:
                    say("handd", f"the jobs of this node cannot be looked at: {error}")
                following = now() + TICK
            systemd.alive(hand.words())


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def build(node: str, config: dict[str, Any]) -> Hand:
    """The hand of a node by the hooks' configuration."""
    revocation = config.get("revocation", {})
    grace = float(revocation["offline_grace"]) if revocation.get("linked") else 0.0
    try:
        chain = Chain(f"{config['audit']['directory']}/node-{node}", "hand", node)
    except (SecureSlurmError, OSError, ValueError) as error:
        say("handd", str(error))
        chain = None
    return Hand(node, for_node(config["node"]["run_dir"], node), grace, chain)


def main(argv: list[str] | None = None) -> int:
    """``secure-slurm-handd --node NAME``."""
    words = sys.argv[1:] if argv is None else argv
    os.umask(0o077)
    try:
        if len(words) != 2 or words[0] != "--node" or not is_node_name(words[1]):
            raise ConfigError("usage: secure-slurm-handd --node NAME")
        hand = build(words[1], read_hook_config(check_sources=False))
        account = pwd.getpwnam(NODE_USER)
    except (SecureSlurmError, KeyError) as error:
        advice = (
            error.advice
            if isinstance(error, SecureSlurmError)
            else f"is there an account {NODE_USER}, and hooks.json rendered by this version?"
        )
        say("handd", f"{error} {advice}")
        return 3
    inside, outside = socket.socketpair()
    outside.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(outside.fileno())
    try:
        run(hand, f"{hand.run_dir}/{SOCKET}", frozenset({0, account.pw_uid}), account.pw_gid, inside)
    except OSError as error:
        say("handd", f"{hand.run_dir}/{SOCKET}: {error.strerror}")
        return 4
    return 0
