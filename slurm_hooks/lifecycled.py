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
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

from audit.chain import AuditError, Chain
from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from keys.names import new_incarnation
from slurm_hooks import ended, record, wire
from slurm_hooks.lifecycle import Destroyed, Jobs
from slurm_hooks.live import LOOK_EVERY, Live, account
from slurm_hooks.serve import Answer, Fields, Peer, notify, serve
from slurm_hooks.snapshot import SnapshotCache
from slurm_hooks.start import judge_start, read_start
from slurm_hooks.vaultjobs import VaultJobs

LOG = logging.getLogger(__name__)
SNAPSHOT_USER = "secure-ldap"
THREADS = 16
RETRY_FIRST, RETRY_MOST = 1.0, 30.0
"""Seconds between two tries to destroy what Vault has not confirmed; doubled up to the second figure."""


class SpoolNotes:
    """The notes of ended jobs in one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def all(self) -> list[ended.EndedJob]:
        """Every note there is."""
        return ended.read(self._folder)

    def of(self, job: int) -> list[ended.EndedJob]:
        """The notes of one job."""
        return [note for note in self.all() if note.job == job]

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
        self._jobs = Jobs(VaultJobs(site.vault, self._write_before), self._notes, self._pool)

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
                policy=self._live.policy.hash,
                nonce=job.nonce,
            )
            closed = await self._jobs.start(job, incarnation)
        except (Refused, BackendUnavailable) as error:
            rule = error.rule if isinstance(error, Refused) else "backend.unavailable"
            LOG.warning("job %d may not start: [%s] %s", request.job, rule, error)
            self._chain.append("start.refused", durable=True, job=request.job, uid=request.uid, rule=rule)
            raise
        self._prove(job.job, closed)
        return {"verdict": "allow", "incarnation": incarnation}

    async def ended(self, fields: Fields, _peer: Peer) -> Answer:
        """EpilogSlurmctld's verb."""
        job = int(wire.text(fields, "job"))
        nodes = tuple(wire.text(fields, "nodes").split(","))
        self._say("revocation.pending", job=job, reason=f"the job ended on {','.join(nodes)}")
        try:
            destroyed = await self._jobs.ended(job, nodes)
        except BackendUnavailable as error:
            LOG.warning("job %d has ended, its keys wait for Vault: %s", job, error)
            raise
        self._prove(job, destroyed)
        return {"verdict": "allow", "destroyed": str(len(destroyed))}

    async def ping(self, _fields: Fields, _peer: Peer) -> Answer:
        """Whether the daemon lives, and how much is open and pending."""
        return {"verdict": "allow", "open": str(len(self._jobs.open_jobs())), "pending": str(len(self._notes.all()))}

    async def retry_forever(self) -> None:
        """Destroy what notes still name, until nothing is left of them."""
        wait = RETRY_FIRST
        while True:
            done = True
            for note in self._notes.all():
                try:
                    self._prove(note.job, await self._jobs.retry(note.job, note.nodes))
                except SecureSlurmError as error:
                    done = False
                    LOG.warning("job %d: keys are not confirmed as destroyed yet: %s", note.job, error)
            wait = RETRY_FIRST if done else min(wait * 2, RETRY_MOST)
            await asyncio.sleep(wait)

    def _write_before(self, event: str, **fields: object) -> None:
        """An audit line that is on disk before the act it announces; the act does not happen without it."""
        self._chain.append(event, durable=True, **fields)

    def _prove(self, job: int, destroyed: list[Destroyed]) -> None:
        for one in destroyed:
            found = f"reading it was answered with 404 at {one.at}"
            self._say("key.delete", job=job, node=one.node, key=one.key, evidence=found)
        if destroyed:
            self._say("revocation.done", job=job, count=len(destroyed))

    def _say(self, event: str, **fields: object) -> None:
        """An audit line about a destruction, which a full disk must not stop."""
        try:
            self._chain.append(event, durable=True, **fields)
        except AuditError:
            LOG.exception("the audit trail lacks %s %s", event, fields)


async def follow(live: Live) -> None:
    """Look at policy and members for as long as the daemon runs."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            await asyncio.to_thread(live.look)
        except Exception:
            LOG.exception("looking at policy and members failed")


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
        background = [asyncio.create_task(follow(live)), asyncio.create_task(daemon.retry_forever())]
        LOG.info("serving %s", lifecycle.socket)
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        for task in background:
            task.cancel()


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
        live = Live(arguments.policy, SnapshotCache(site.ldap.snapshot, reader, site.ldap.max_age))
        chain = Chain(f"{site.audit.directory}/lifecycle", "lifecycle", socket.gethostname().split(".")[0])
        chain.append("daemon.start", durable=True)
        asyncio.run(run(LifecycleDaemon(site, live, chain), live))
        chain.append("daemon.stop", durable=True)
    except SecureSlurmError as error:
        LOG.error("%s %s", error, error.advice)
        return error.exit_code
    return 0
