"""The node daemon: logs in to Vault as this node, reads the grant, hands the data key to the Prolog. Unprivileged.

It cannot mount and needs no capability; the root Prolog asks it over a Unix socket that answers to root alone. What the
Prolog says of the job is compared with the grant, what the grant says of the place with this node's own place file and
its proof (keys/place_proof.py); the data key is asked for only when all agree.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from conf.errors import BackendUnavailable, Refused, SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.policy import Policy, load_policy
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from conf.slurmnames import for_node
from keys.grant import Grant
from keys.names import check_node
from keys.place import Verdict
from keys.place_proof import Prover
from keys.secret import Secret
from keys.vault_node import VaultNode
from slurm_hooks import enrolment, pulse, spread, wire
from slurm_hooks.nodelink import NodeLink
from slurm_hooks.notify import Systemd
from slurm_hooks.serve import Answer, Fields, Peer, refusal, serve

LOG = logging.getLogger(__name__)
SOCKET = "daemon/node.sock"
ROOT = frozenset({0})
SEEN_LIMIT = 10_000
"""Incarnations remembered; a node that starts a job a second goes through them in hours."""
THREADS = 8
"""Prologs served at once; a node rarely starts more jobs than that in the same second."""


class NodeDaemon:
    """What the daemon answers; ``place`` is the jurisdiction of this node, None when its region is in no table."""

    def __init__(self, site: Site, policy: Policy, node: str) -> None:
        self.site = site
        self.policy = policy
        self.node = check_node(node)
        self.enrolment = enrolment.Enrolment(site, self.node)
        self._vault = VaultNode.from_site(site.vault, self.node, self.enrolment.login())
        self._prover = Prover(site, self.node)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="vault")
        self._seen: dict[str, object] = {}

    def close(self) -> None:
        """Give the token back; needs Vault, and does without when it is away."""
        self._vault.close()

    def place(self) -> tuple[str, Verdict]:
        """This node's jurisdiction and the proof of it, read anew each time.

        :raises Refused: ``node.place``: no place file, or a region that is unknown; ``node.place-proof``: not proved.
        :raises BackendUnavailable: the metadata service does not answer.
        """
        region = self._prover.read_place()
        jurisdiction = self.policy.jurisdiction_of_region(region)
        if jurisdiction is None:
            raise Refused(
                "node.place",
                f"{self.site.node.place_file}: the region {region!r} belongs to no jurisdiction of the policy",
                advice="add it to exactly one jurisdiction in policy.yaml, or mend the file",
            )
        return jurisdiction, self._prover.prove(region)

    async def open(self, fields: Fields, _peer: Peer) -> Answer:
        """The verb of the Prolog."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._open, fields)
        except Refused as error:
            LOG.warning("job %s: [%s] %s", wire.text(fields, "job", "?"), error.rule, error)
            raise

    def _open(self, fields: Fields) -> Answer:
        job = wire.text(fields, "job")
        if wire.text(fields, "node") != self.node:
            raise Refused("node.other", f"this is the daemon of node {self.node}")
        wait = spread.pause(len(wire.text(fields, "nodes").split(",")), self.site.node.prolog_deadline)
        if wait and not self._vault.session.has_token:
            time.sleep(wait)
        found = self._vault.read_grant(job)
        if found is None:
            raise Refused(
                "grant.missing",
                f"there is no grant for job {job} on node {self.node}",
                advice="PrologSlurmctld did not run or was refused; its log on the head node says why",
            )
        grant = Grant.from_dict(found)
        grant.matches(
            job=job,
            uid=wire.text(fields, "uid"),
            cluster=wire.text(fields, "cluster"),
            restarts=wire.text(fields, "restarts"),
            nodes=wire.text(fields, "nodes").split(","),
            node=self.node,
        )
        try:
            jurisdiction, verdict = self.place()
        except Refused as error:
            # no exception: the answer carries the verdict, which belongs into the audit trail
            LOG.warning("job %s: [%s] %s", job, error.rule, error)
            failed = Verdict(self._prover.method, reason=str(error))
            return refusal(error.rule, str(error), error.advice) | failed.to_answer()
        if grant.residency and grant.residency != jurisdiction:
            here = f"{verdict.region} ({jurisdiction})"
            raise Refused(
                "residency.node",
                f"node {self.node} is in {here}, the job's data must stay in {grant.residency}",
                advice="the node's feature and its place disagree: an admin must look at both",
            )
        mine = object()
        # one step, for two Prologs may ask in the same instant: asking and then noting would let both through
        while len(self._seen) >= SEEN_LIMIT:
            # the oldest first; the Prolog's own journal remembers each for weeks
            self._seen.pop(next(iter(self._seen)), None)
        if self._seen.setdefault(grant.incarnation, mine) is not mine:
            raise Refused("grant.seen", f"the grant of job {job} was used on this node before")
        answer: dict[str, bytes | str] = {"verdict": "allow", "place": verdict.region, **verdict.to_answer()}
        answer |= {f"grant.{name}": value for name, value in grant.to_dict().items()}
        if grant.scratch != "0":
            try:
                plaintext, wrapped = self._vault.data_key(grant.key)
            except SecureSlurmError:
                # nothing was handed out: the Prolog asks again when Vault is back
                self._seen.pop(grant.incarnation, None)
                raise
            with plaintext:
                # the copy on its way into the socket is CPython's own and cannot be wiped; it lives for one message
                answer |= {"plaintext": bytes(plaintext.reveal()), "wrapped": wrapped}
        return answer

    def unwrap(self, job: str, incarnation: str, key: str, wrapped: str) -> Secret:
        """The data key of a job that was frozen and may go on, by the head node's order. Blocks.

        Judged as at its start, as far as that can have changed: its grant is still there, and this node still is where
        the data must stay. Whether it may have its key at all, Vault knows (the lifecycle daemon has locked it there).

        :raises Refused: ``freeze.grant``, ``residency.node``, ``node.place*``. :raises SecureSlurmError: as Vault says.
        """
        found = self._vault.read_grant(job)
        grant = None if found is None else Grant.from_dict(found)
        if grant is None or (grant.job, grant.incarnation, grant.key) != (job, incarnation, key):
            raise Refused(
                "freeze.grant",
                f"Vault has no grant for this start of job {job} on node {self.node}",
                advice="its keys were destroyed, so it cannot go on: scancel it",
            )
        jurisdiction, verdict = self.place()
        if grant.residency and grant.residency != jurisdiction:
            where = f"{verdict.region} ({jurisdiction})"
            raise Refused("residency.node", f"node {self.node} is in {where}, its data must stay in {grant.residency}")
        return self._vault.unwrap(key, wrapped)

    async def ping(self, _fields: Fields, _peer: Peer) -> Answer:
        """Whether the daemon lives, where it thinks it is, and what proves that."""
        jurisdiction, verdict = await asyncio.get_running_loop().run_in_executor(self._pool, self.place)
        place = {"region": verdict.region, "jurisdiction": jurisdiction, "proof": verdict.summary()}
        return {"verdict": "allow", "node": self.node, **place}


async def run(daemon: NodeDaemon) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    handlers = {"open": (ROOT, daemon.open), "ping": (ROOT, daemon.ping)}
    path = f"{for_node(daemon.site.node.run_dir, daemon.node)}/{SOCKET}"
    # root connects whatever the mode says; nobody else has any business here
    async with await serve(path, handlers, mode=0o600, group=None, deadline=daemon.site.node.prolog_deadline):
        LOG.info("node %s: serving %s", daemon.node, path)
        linked = NodeLink(daemon.site, daemon.node, lambda: daemon.place()[0], daemon.unwrap)
        site_linked = bool(daemon.site.link.listen)
        works = [linked.keep()] if site_linked else []
        if daemon.site.enrol.listen:
            works.append(enrolment.keep(daemon.enrolment))
        tasks = [asyncio.create_task(work) for work in works]
        systemd = Systemd()

        def words() -> str:
            head = "" if not site_linked else ", connected to a head node" if linked.connected else ", no head node"
            return f"node {daemon.node}: serving{head}"

        systemd.ready(words())
        beating = asyncio.create_task(pulse.keep(systemd, tasks, words))
        await stop.wait()
        systemd.stopping()
        for task in (beating, *tasks):
            task.cancel()
    await asyncio.to_thread(daemon.close)


def main(argv: list[str] | None = None) -> int:
    """``secure-slurm-noded``: start the daemon of one node. Exit codes as everywhere (docs/exit-codes.md)."""
    parser = argparse.ArgumentParser(prog="secure-slurm-noded", description=__doc__, allow_abbrev=False)
    parser.add_argument("--node", default=socket.gethostname().split(".")[0], help="this node's name in Slurm")
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    parser.add_argument("--policy", default=POLICY_PATH, help="the policy (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        daemon = NodeDaemon(load_site(arguments.config), load_policy(arguments.policy), arguments.node)
        try:
            jurisdiction, verdict = daemon.place()
            LOG.info("node %s is in %s: %s", daemon.node, jurisdiction, verdict.summary())
        except (Refused, BackendUnavailable) as error:
            # it serves all the same: a daemon that is away holds jobs, one that says why takes a misplaced node out
            LOG.error("%s %s", error, error.advice)
        asyncio.run(run(daemon))
    except SecureSlurmError as error:
        LOG.error("%s %s", error, error.advice)
        return error.exit_code
    return 0
