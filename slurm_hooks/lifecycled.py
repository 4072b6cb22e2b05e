"""The lifecycle daemon: the head node's side of keys. Vault, and nothing that a user wrote but signed records.

Its verbs belong to SlurmUser alone: ``start`` (PrologSlurmctld) judges the job again and makes a grant and a key for
each node, ``ended`` (EpilogSlurmctld) destroys them and proves it. What Vault could not confirm is tried again until
it does.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from audit.chain import AuditError, Chain
from audit.events import UID_LIMIT
from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from conf.slurmnames import is_node_name
from keys.names import new_incarnation
from slurm_hooks import ended, record, running, wire
from slurm_hooks.breakglass_live import BreakGlass
from slurm_hooks.lifecycle import Destroyed, Jobs
from slurm_hooks.live import LOOK_EVERY, Live, account, every
from slurm_hooks.serve import Answer, Fields, Peer, notify, serve
from slurm_hooks.snapshot import SnapshotCache
from slurm_hooks.start import StartRequest, judge_start, read_start
from slurm_hooks.vaultjobs import VaultJobs

LOG = logging.getLogger(__name__)
SNAPSHOT_USER = "secure-ldap"
THREADS = 16
RETRY_FIRST, RETRY_MOST = 1.0, 30.0
"""Seconds between two tries to destroy what Vault has not confirmed; doubled up to the second figure."""

_JOB = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


class SpoolNotes:
    """The notes of ended jobs in one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def all(self) -> list[ended.EndedJob]:
        """Every note there is."""
        return self._read(None)

    def of(self, job: int) -> list[ended.EndedJob]:
        """The notes of one job. BackendUnavailable when the folder cannot be read: no start without its notes."""
        return self._read(job)

    def _read(self, job: int | None) -> list[ended.EndedJob]:
        try:
            return ended.read(self._folder, job)
        except OSError as error:
            raise BackendUnavailable(
                f"{self._folder}: the notes of ended jobs cannot be read: {error.strerror}",
                advice="it must belong to this daemon's account, group SlurmUser's, mode 0770 (conf/tmpfiles)",
            ) from None

    def remove(self, note: ended.EndedJob) -> None:
        """Once Vault has confirmed."""
        ended.remove(note)


class LifecycleDaemon:
    """What the daemon answers, and what it does by itself."""

    def __init__(self, site: Site, live: Live, chain: Chain) -> None:
        self.site = site
        self._key = record.load_key(site.controller.record_key)
        self._live = live
        self._chain = chain
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="job")
        self._notes = SpoolNotes(site.lifecycle.ended_dir)
        self._vault = VaultJobs(site.vault, self._write_before, self._prove)
        self._jobs = Jobs(self._vault, self._notes, self._pool)

    def close(self) -> None:
        """Give the token back; needs Vault, and does without when it is away."""
        self._vault.close()

    async def start(self, fields: Fields, _peer: Peer) -> Answer:
        """PrologSlurmctld's verb. Every refusal is in the audit trail before it is answered."""
        request = read_start(fields)
        incarnation = new_incarnation()
        try:
            job = judge_start(request, self.site.cluster.name, self._key, self._live.context())
            self._chain.append(
                "start.judged",
                durable=True,
                job=job.job,
                uid=job.uid,
                incarnation=incarnation,
                verdict="allow",
                rule="start.allowed",
                nodes=",".join(job.nodes),
                restarts=job.restarts,
                klass=job.klass,
                residency=job.residency or None,
                scratch=job.scratch,
                datasets=",".join(job.datasets) or None,
                shadowed=",".join(job.shadowed) or None,
                exemption=",".join(job.exemptions) or None,
                policy=self._live.policy.hash,
                nonce=job.nonce,
            )
            running.write(self.site.lifecycle.running_dir, job.job, job.uid, job.tag, job.nodes)
            known = asyncio.get_running_loop().time() + 2 * running.LOOK_EVERY
            closed = await self._jobs.start(job, incarnation, since=request.since)
            # by then the decision daemon has read it; Vault mostly takes longer anyway
            await asyncio.sleep(max(0.0, known - asyncio.get_running_loop().time()))
        except SecureSlurmError as error:
            running.remove(self.site.lifecycle.running_dir, request.job)
            self._refused(request, _rule(error), str(error))
            raise
        except asyncio.CancelledError:
            running.remove(self.site.lifecycle.running_dir, request.job)
            self._refused(request, "engine.timeout", "it took longer than lifecycle.start_deadline")
            raise
        self._done(job.job, closed)
        return {"verdict": "allow", "incarnation": incarnation}

    def _refused(self, request: StartRequest, rule: str, reason: str) -> None:
        LOG.warning("job %d may not start: [%s] %s", request.job, rule, reason)
        # what the hook could not read is -1; the trail takes no number that is no uid
        uid = request.uid if 0 <= request.uid <= UID_LIMIT else None
        self._chain.append("start.refused", durable=True, job=request.job, uid=uid, rule=rule)

    async def ended(self, fields: Fields, _peer: Peer) -> Answer:
        """EpilogSlurmctld's verb."""
        job, nodes = read_ended(fields)
        running.remove(self.site.lifecycle.running_dir, job)
        self._say("revocation.pending", job=job, reason=f"the job ended on {','.join(nodes)}")
        try:
            destroyed = await self._jobs.ended(job, nodes)
        except SecureSlurmError as error:
            LOG.warning("job %d has ended, its keys wait for Vault: %s", job, error)
            raise
        self._done(job, destroyed)
        return {"verdict": "allow", "destroyed": str(len(destroyed))}

    async def ping(self, _fields: Fields, _peer: Peer) -> Answer:
        """Whether the daemon lives, and how much is open and pending."""
        return {"verdict": "allow", "open": str(len(self._jobs.open_jobs())), "pending": str(len(self._notes.all()))}

    async def retry_forever(self) -> None:
        """Destroy what notes still name, until nothing is left of them."""
        wait = RETRY_FIRST
        while True:
            wait = RETRY_FIRST if await self.retry_once() else min(wait * 2, RETRY_MOST)
            await asyncio.sleep(wait)

    async def retry_once(self) -> bool:
        """Try once for every note; whether all are done. Whatever goes wrong with one must not keep the others."""
        done = True
        try:
            notes = self._notes.all()
        except SecureSlurmError as error:
            LOG.error("%s", error)
            return False
        for note in notes:
            try:
                self._done(note.job, await self._jobs.retry(note.job, note.nodes))
            except SecureSlurmError as error:
                done = False
                LOG.warning("job %d: keys are not confirmed as destroyed yet: %s", note.job, error)
            except Exception:
                done = False
                LOG.exception("job %d: destroying its keys failed", note.job)
        return done

    def _write_before(self, event: str, **fields: object) -> None:
        """An audit line that is on disk before the act it announces; the act does not happen without it."""
        self._chain.append(event, durable=True, **fields)

    def _prove(self, job: int, one: Destroyed) -> None:
        found = f"reading it was answered with 404 at {one.at}"
        self._say("key.delete", job=job, node=one.node, key=one.key, evidence=found)

    def _done(self, job: int, destroyed: list[Destroyed]) -> None:
        if destroyed:
            self._say("revocation.done", job=job, count=len(destroyed))

    def _say(self, event: str, **fields: object) -> None:
        """An audit line about a destruction, which a full disk must not stop."""
        try:
            self._chain.append(event, durable=True, **fields)
        except AuditError:
            LOG.exception("the audit trail lacks %s %s", event, fields)


def read_ended(fields: Fields) -> tuple[int, tuple[str, ...]]:
    """Job and nodes of the ``ended`` verb; WireError for anything that is not one."""
    job, text = wire.text(fields, "job"), wire.text(fields, "nodes")
    nodes = tuple(text.split(",")) if text else ()
    if not _JOB.fullmatch(job):
        raise wire.WireError("the job of the request is not a job's number")
    if not all(map(is_node_name, nodes)):
        raise wire.WireError("the nodes of the request are not nodes' names")
    return int(job), nodes


def _rule(error: SecureSlurmError) -> str:
    if isinstance(error, Refused):
        return error.rule
    return "backend.unavailable" if isinstance(error, BackendUnavailable) else "engine.error"


async def run(daemon: LifecycleDaemon, live: Live) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    slurm_uid = account(daemon.site.cluster.slurm_user, "SlurmUser").pw_uid
    slurm, anyone = frozenset({slurm_uid}), frozenset({slurm_uid, 0})
    handlers = {"start": (slurm, daemon.start), "ended": (slurm, daemon.ended), "ping": (anyone, daemon.ping)}
    lifecycle = daemon.site.lifecycle
    async with await serve(lifecycle.socket, handlers, mode=0o660, group=None, deadline=lifecycle.start_deadline):
        background = [asyncio.create_task(every(LOOK_EVERY, live.look)), asyncio.create_task(daemon.retry_forever())]
        LOG.info("serving %s", lifecycle.socket)
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        for task in background:
            task.cancel()
    await asyncio.to_thread(daemon.close)


def main(argv: list[str] | None = None) -> int:
    """``secure-slurm-lifecycled``: start the daemon. Exit codes as everywhere (docs/exit-codes.md)."""
    parser = argparse.ArgumentParser(prog="secure-slurm-lifecycled", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    parser.add_argument("--policy", default=POLICY_PATH, help="the policy (default: %(default)s)")
    arguments = parser.parse_args(argv)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        site = load_site(arguments.config)
        reader = account(SNAPSHOT_USER, "the LDAP reader").pw_uid
        members = SnapshotCache(site.ldap.snapshot, reader, site.ldap.max_age)
        live = Live(arguments.policy, members, BreakGlass(site.controller.break_glass_dir))
        chain = Chain(f"{site.audit.directory}/lifecycle", "lifecycle", socket.gethostname().split(".")[0])
        chain.append("daemon.start", durable=True)
        asyncio.run(run(LifecycleDaemon(site, live, chain), live))
        chain.append("daemon.stop", durable=True)
    except SecureSlurmError as error:
        LOG.error("%s %s", error, error.advice)
        return error.exit_code
    return 0
