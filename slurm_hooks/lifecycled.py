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
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from audit.chain import AuditError, Chain
from audit.events import UID_LIMIT
from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from conf.slurmnames import is_node_name
from keys.lifecycle_keys import ABSENT, Evidence
from keys.names import new_incarnation
from slurm_hooks import pulse, record, running, wire
from slurm_hooks.acting import Acting, OwnSlurmctld
from slurm_hooks.admission import Admission
from slurm_hooks.breakglass_live import BreakGlass
from slurm_hooks.certifying import Certifier
from slurm_hooks.ended import EndedJob
from slurm_hooks.filters.verdict import Context
from slurm_hooks.headreaper import Held
from slurm_hooks.hostnames import Table
from slurm_hooks.lifecycle import Destroyed, Jobs, StartJob
from slurm_hooks.lifecyclestatus import Status
from slurm_hooks.live import LOOK_EVERY, Live, account, every
from slurm_hooks.lostnodes import LostNodes
from slurm_hooks.notify import Systemd
from slurm_hooks.orders import Keys
from slurm_hooks.outage import Outage, known_members, services
from slurm_hooks.pending import Pending, SpoolNotes
from slurm_hooks.reaping import HeadReaper
from slurm_hooks.revoker import Revoker
from slurm_hooks.revokeverbs import RevokeVerbs
from slurm_hooks.roleloss import RoleLoss, roles_of
from slurm_hooks.segments import Segments
from slurm_hooks.segments_link import Intake
from slurm_hooks.serve import Answer, Fields, Peer, serve
from slurm_hooks.sight import Questions, Sighted
from slurm_hooks.snapshot import SnapshotCache
from slurm_hooks.start import StartRequest, judge_start, read_start
from slurm_hooks.tenants import Tenants
from slurm_hooks.vaultjobs import VaultJobs

LOG = logging.getLogger(__name__)
SNAPSHOT_USER = "secure-ldap"
THREADS = 16
"""For calls to Vault and Slurm; more than starts are made at once, so that what ends need not wait for them."""

_JOB = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


class LifecycleDaemon:
    """What the daemon answers, and what it does by itself."""

    def __init__(self, site: Site, live: Live, chain: Chain) -> None:
        self.site = site
        self._key = record.load_key(site.controller.record_key)
        self._live = live
        self._chain = chain
        self.admission = Admission(site.lifecycle.start_deadline)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="job")
        self._notes = SpoolNotes(site.lifecycle.ended_dir)
        self._vault = VaultJobs(site.vault, self._write_before, self._prove, self._taken_back)
        self._jobs = Jobs(self._vault, self._notes, self._pool)
        self.questions = Questions()
        self._slurm = Sighted(site.cluster.slurm_bin, site.cluster.name, self.questions)
        self.reaper = HeadReaper(
            self._vault,
            self._slurm,
            self._jobs,
            self._pool,
            cluster=site.cluster.name,
            running_dir=site.lifecycle.running_dir,
            announce=self._reaping,
            healed=self._healed,
            may_end=lambda boot: self.acting.may_end(boot),  # noqa: PLW0108  it is made below
            acted_for=lambda: self.acting.acted_for(),  # noqa: PLW0108
            lost=LostNodes(self._slurm, self._vault.held, self._take_start, self._say),
        )
        self.certifier = Certifier(
            self._vault.head, site.cluster.name, _host(), f"{chain.directory}/certificates", self._say
        )
        self.status = Status(
            live, chain, vault=self._vault.check, slurm=self._slurm.controller, notes=self._notes.all, jobs=self._jobs
        )
        members = known_members(self._members_problem)
        self.outage = Outage(self.start, services(self._here, self._vault.check, members, chain.flush), self._say)
        self.status.breaker = self.outage.told
        self.segments = Segments(f"{chain.directory}/nodes", self._say)
        self.status.segments = self.segments
        self.certifier.trails = self.segments
        keys = Keys(self._end_keys, self._jobs.lock)
        self.revoker = Revoker(site, live.context, keys, self._write_before, self._say)
        self.pending = Pending(
            self._notes,
            self._finish,
            look=self._slurm.look,
            revoked=self.revoker.ends,
            failures=self.status.failures,
        )
        own = OwnSlurmctld(self._slurm, site.cluster.name, _host(), os.path.dirname(site.lifecycle.socket))  # noqa: PTH120
        self.acting = Acting(
            *(site.cluster.head_nodes, _host(), f"{site.lifecycle.state_dir}/heads", own.look),
            took_over=self._took_over,
            stands_by=self._stands_by,
        )
        self.admin = RevokeVerbs(self.acting, self.revoker, site.revocation.confirm_within)
        self.roles = RoleLoss(site, live.context, self.revoker.revoke, self._say, self._acts)
        self.status.watch(self.reaper, self.certifier, self.acting, self.admission)
        self.revoker.links.intake = Intake(self.segments)
        self.tenants = Tenants(site.lifecycle.running_dir, self._take, self._say, self._vault.instance)
        self.revoker.links.arrived = self.tenants.arrived
        self.status.connected = lambda: list(self.revoker.links.nodes)

    def close(self) -> None:
        """Give the token back; needs Vault, and does without when it is away."""
        self.questions.close()
        self._vault.close()

    async def start(self, fields: Fields, _peer: Peer) -> Answer:
        """PrologSlurmctld's verb, when it is its turn."""
        request = read_start(fields)
        async with self.admission.turn():
            return await self._start(request)

    async def _judged(self, request: StartRequest) -> tuple[Context, StartJob]:
        """Refused only by what is in the files now: the decision daemon may have read a grant before this one did."""
        context = self._live.context()
        try:
            return context, judge_start(request, self.site.cluster.name, self._key, context)
        except SecureSlurmError:
            await self._live.look_again()
            context = self._live.context()
            return context, judge_start(request, self.site.cluster.name, self._key, context)

    async def _start(self, request: StartRequest) -> Answer:
        """Every refusal is in the audit trail before it is answered."""
        incarnation = new_incarnation()
        try:
            if self.acting.several:
                # another head node may have acted since this one looked last
                self.revoker.reload()
            context, job = await self._judged(request)
            self.revoker.check_start(job)
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
            by = (job.user, roles_of(context, job.user, job.tag))
            running.write(self.site.lifecycle.running_dir, job.job, job.uid, job.tag, job.nodes, by)
            self.tenants.started(job.job, self._machines(job.nodes))
            known = asyncio.get_running_loop().time() + 2 * running.LOOK_EVERY
            # once more: what was revoked before the file above was there has not seen this job
            self.revoker.check_start(job)
            self.revoker.started(job)
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

    def _here(self) -> None:
        """A head node that stands by releases nothing: it is not the one that knows."""
        if self.acting.acts is False:
            raise BackendUnavailable("another head node acts")

    def _members_problem(self) -> str:
        known = self._live.context()
        return "" if known.members else known.members_problem

    def _refused(self, request: StartRequest, rule: str, reason: str) -> None:
        LOG.warning("job %d may not start: [%s] %s", request.job, rule, reason)
        # what the hook could not read is -1; the trail takes no number that is no uid
        uid = request.uid if 0 <= request.uid <= UID_LIMIT else None
        self._chain.append("start.refused", durable=True, job=request.job, uid=uid, rule=rule)

    async def ended(self, fields: Fields, _peer: Peer) -> Answer:
        """EpilogSlurmctld's verb."""
        job, nodes = read_ended(fields)
        running.remove(self.site.lifecycle.running_dir, job)
        self.revoker.ended(job)
        self._say("revocation.pending", job=job, reason=f"the job ended on {','.join(nodes)}")
        try:
            destroyed = await self._jobs.ended(job, nodes)
        except SecureSlurmError as error:
            LOG.warning("job %d has ended, its keys wait for Vault: %s", job, error)
            self.status.failures[job] = str(error)
            raise
        self._done(job, destroyed)
        return {"verdict": "allow", "destroyed": str(len(destroyed))}

    async def _end_keys(self, job: int, nodes: tuple[str, ...]) -> None:
        """A job that runs on was revoked: its keys go as if it had ended."""
        self._done(job, await self._jobs.ended(job, nodes))

    def _machines(self, nodes: tuple[str, ...]) -> dict[str, str]:
        there = self.revoker.links.nodes
        return {node: there[node].machine for node in nodes if node in there}

    async def _take(self, job: int, node: str, still: Callable[[], bool]) -> list[Destroyed]:
        return await self._jobs.in_turn(job, lambda: self._vault.take(job, node) if still() else [])

    async def _take_start(self, job: int, node: str, incarnation: str) -> list[Destroyed]:
        return await self._jobs.in_turn(job, lambda: self._vault.take(job, node, incarnation))

    async def ping(self, _fields: Fields, _peer: Peer) -> Answer:
        """Whether the daemon lives, and how much is open and pending."""
        return {"verdict": "allow", "open": str(len(self._jobs.open_jobs())), "pending": str(len(self._notes.all()))}

    def words(self) -> str:
        """For ``systemctl status``: whether this head node acts, and what is open."""
        part = {True: "acts", False: "stands by: another head node acts", None: "does not know yet who acts"}
        jobs, endings = len(self._jobs.open_jobs()), len(self._notes.all())
        return f"{part[self.acting.acts]}; {jobs} jobs open, {endings} endings pending"

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """What the daemon does by itself, for ever."""
        return [
            *(self.acting.forever(), self.pending.forever(self._acts)),
            *(self.reaper.forever(), self.certifier.forever(self._pool), self.outage.forever()),
            *(self.revoker.forever(self._acts), self.roles.forever()),
            self.tenants.forever(),
            Table(self.site.lifecycle.running_dir, self._slurm.hosts, self._acts).forever(),
        ]

    def _acts(self) -> bool:
        return self.acting.acts is True

    async def _finish(self, note: EndedJob) -> None:
        self._done(note.job, await self._jobs.retry(note.job, note.nodes))
        self.revoker.keys_gone(note.job)

    def _took_over(self) -> None:
        """The slurmctld of this machine acts: what the other head node left is this one's now."""
        if self.acting.several:
            self.pending.take_over()
            self.revoker.reload()
            self._say("head.part", result="acts")
        self.revoker.links.open()
        self.revoker.go_on()

    def _stands_by(self) -> None:
        # nodes look for the head node that acts
        self.revoker.links.shut()
        self._say("head.part", result="standby")

    def _write_before(self, event: str, **fields: object) -> None:
        """An audit line that is on disk before the act it announces; the act does not happen without it."""
        self._chain.append(event, durable=True, **fields)

    def _prove(self, job: int, one: Destroyed) -> None:
        found = f"reading it was answered with 404 at {one.at}"
        self._say("key.delete", job=job, node=one.node, key=one.key, evidence=found)

    def _taken_back(self, job: int, one: Evidence) -> None:
        """A start that failed: without a word of its keys the trail would tell of keys that never ended."""
        if one.read_answer == ABSENT:
            found = f"taken back: reading it was answered with 404 at {one.at}"
            self._say("key.delete", job=job, node=one.node, key=one.key, evidence=found, result="taken-back")
        else:
            self._say("key.unmade", job=job, node=one.node, key=one.key)

    def _done(self, job: int, destroyed: list[Destroyed]) -> None:
        if destroyed:
            # first the note of it: whoever reads of an end finds its certificate later, whatever happens to this daemon
            self.certifier.ended(job, destroyed)
            self._say("revocation.done", job=job, count=len(destroyed))

    def _reaping(self, held: Held, evidence: str) -> None:
        self._say("revocation.pending", job=held.job, incarnation=held.start, reason=f"the reaper: {evidence}")

    def _healed(self, held: Held, evidence: str, destroyed: list[Destroyed]) -> None:
        self._say("reaper.healed", job=held.job, incarnation=held.start, reason=evidence, count=len(destroyed))
        self._done(held.job, destroyed)

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


def _host() -> str:
    return socket.gethostname().split(".")[0]


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
    root = frozenset({0})
    handlers = {
        **{"start": (slurm, daemon.outage.start), "gave-up": (slurm, daemon.outage.gave_up)},
        "may-release": (slurm, daemon.questions.beside(daemon.outage.may_release)),
        **{"released": (slurm, daemon.outage.released), "seen": (slurm, daemon.questions.seen)},
        **{"ended": (slurm, daemon.ended)},
        **{"ping": (anyone, daemon.ping), "status": (anyone, daemon.status.answer)},
        **{"public-key": (anyone, daemon.certifier.public_key), "certify": (root, daemon.certifier.certify)},
        "sign-export": (root, daemon.certifier.sign_export),
        **{"revoke": (root, daemon.admin.revoke), "revocations": (root, daemon.admin.revocations)},
        **{"lift": (root, daemon.admin.lift), "matching": (root, daemon.admin.matching)},
        "resume": (root, daemon.admin.resume),
    }
    lifecycle = daemon.site.lifecycle
    listener = await serve(lifecycle.socket, handlers, mode=0o660, group=None, deadline=lifecycle.start_deadline)
    async with listener, daemon.revoker.links:
        if not daemon.acting.several:
            daemon.revoker.go_on()
        background = [asyncio.create_task(work) for work in (every(LOOK_EVERY, live.look), *daemon.background())]
        LOG.info("serving %s", lifecycle.socket)
        systemd = Systemd()
        systemd.ready(daemon.words())
        beating = asyncio.create_task(pulse.keep(systemd, background, daemon.words))
        await stop.wait()
        systemd.stopping()
        for task in (beating, *background):
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
        chain = Chain(f"{site.audit.directory}/lifecycle", "lifecycle", _host())
        chain.append("daemon.start", durable=True)
        asyncio.run(run(LifecycleDaemon(site, live, chain), live))
        chain.append("daemon.stop", durable=True)
    except SecureSlurmError as error:
        LOG.error("%s %s", error, error.advice)
        return error.exit_code
    return 0
