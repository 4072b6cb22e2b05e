"""The decision daemon: answers job_submit.lua while slurmctld waits.

Everything that a decision needs lies in memory. Policy and group members are looked at in the background, and swapped
in whole when they change; a broken new policy leaves the last good one in use and an error in the log. A request
touches no network, no name service and no LDAP. One line of audit is written before each answer and reaches the disk
within a second.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import pwd
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from audit.chain import AuditError, Chain
from conf.errors import SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from conf.version import __version__
from slurm_hooks import record
from slurm_hooks.engine import Decision, Signer, decide_modify, decide_submit
from slurm_hooks.live import LOOK_EVERY, Live, account, every
from slurm_hooks.serve import Fields, Listener, Peer, notify, serve
from slurm_hooks.snapshot import SnapshotCache

LOG = logging.getLogger(__name__)

WRITER = "decision"
SNAPSHOT_USER = "secure-ldap"
SOCKET_MODE = 0o660
DEADLINE_SHARE = 0.75
"""Of the time that slurmctld waits: an answer that would come too late is better given up here."""

_UNWRITABLE = ("audit.unwritable", "the decision could not be written to the audit trail, so the job is refused")


class Decider:
    """The state of the daemon and its verbs."""

    def __init__(self, live: Live, signer: Signer, chain: Chain) -> None:
        self._live = live
        self._signer = signer
        self._chain = chain
        self._unflushed = False
        self._audit_broken = False
        self.decided = {"allow": 0, "refuse": 0}

    async def submit(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``submit``."""
        return self._answer(decide_submit(fields, self._live.context(), self._signer))

    async def modify(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``modify``."""
        return self._answer(decide_modify(fields, self._live.context(), self._signer))

    async def ping(self, _fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``ping``: the daemon is there."""
        return {"verdict": "allow", "version": __version__}

    async def status(self, _fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``status``: what is in use, for an admin."""
        return {
            "verdict": "allow",
            "version": __version__,
            "policy": self._live.policy.hash,
            "members": self._live.members_age(),
            "audit": "unwritable" if self._audit_broken else "written",
            **{f"decided.{verdict}": str(count) for verdict, count in self.decided.items()},
        }

    def look(self) -> None:
        """Take over a changed policy and changed members. Does file I/O: never call it while a request waits."""
        self._live.look()

    def flush(self) -> None:
        """Put the audit lines so far on the disk."""
        if not self._unflushed:
            return
        self._unflushed = False
        try:
            self._chain.flush()
        except AuditError as error:
            self._unflushed = True
            LOG.error("%s", error)

    def _answer(self, decision: Decision) -> dict[str, bytes | str]:
        decision = self._written(decision)
        self.decided["allow" if decision.allowed else "refuse"] += 1
        if not decision.allowed:
            LOG.info("refused uid %d (%s): %s", decision.actor, decision.verb, decision.rule)
        return decision.answer()

    def _written(self, decision: Decision) -> Decision:
        """The decision, once the trail has it; a tagged one that it cannot have is refused."""
        tag = decision.tag
        try:
            self._chain.append(
                "decision",
                durable=False,
                verdict="allow" if decision.allowed else "refuse",
                rule=decision.rule,
                verb=decision.verb,
                uid=decision.uid,
                submit_uid=decision.actor,
                job=decision.job,
                klass=tag.klass if tag else None,
                residency=tag.residency if tag else None,
                scratch=tag.scratch if tag else None,
                partition=decision.partition or None,
                policy=decision.policy or None,
                nonce=decision.nonce or None,
            )
        except (AuditError, ValueError) as error:
            self._note_broken(error)
            return (
                decision if tag is None else decision.refused(*_UNWRITABLE, "tell an admin: the audit trail is stuck")
            )
        self._unflushed = True
        self._audit_broken = False
        return decision

    def _note_broken(self, error: Exception) -> None:
        if not self._audit_broken:
            LOG.error("jobs that carry a tag are refused: %s", error)
        self._audit_broken = True


async def run(decider: Decider, site: Site, slurm: pwd.struct_passwd, stop: asyncio.Event) -> None:
    """Serve until ``stop``. Only SlurmUser and root may ask, by the kernel's word."""
    controllers = frozenset({0, slurm.pw_uid})
    handlers = {
        "submit": (controllers, decider.submit),
        "modify": (controllers, decider.modify),
        "ping": (controllers, decider.ping),
        "status": (frozenset({0}), decider.status),
    }
    deadline = site.controller.deadline * DEADLINE_SHARE
    listener: Listener = await serve(
        site.controller.socket, handlers, mode=SOCKET_MODE, group=_group_for(slurm), deadline=deadline
    )
    tasks = [asyncio.create_task(every(LOOK_EVERY, work)) for work in (decider.look, decider.flush)]
    try:
        notify("READY=1")
        LOG.info("deciding at %s", site.controller.socket)
        await stop.wait()
    finally:
        notify("STOPPING=1")
        await listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        decider.flush()


def _group_for(slurm: pwd.struct_passwd) -> int | None:
    """The socket's group: SlurmUser's, if this process may give it away."""
    return slurm.pw_gid if os.geteuid() == 0 or slurm.pw_gid in os.getgroups() else None


def build(config: str, policy: str, snapshot_user: str) -> tuple[Decider, Site, pwd.struct_passwd]:
    """Everything that is read once, at the start. ConfigError names what is missing: then nothing is decided at all."""
    site = load_site(config)
    slurm = account(site.cluster.slurm_user, "SlurmUser")
    reader = account(snapshot_user, "the LDAP reader").pw_uid
    live = Live(policy, SnapshotCache(site.ldap.snapshot, reader, site.ldap.max_age))
    signer = Signer(
        cluster=site.cluster.name,
        key=record.load_key(site.controller.record_key),
        privileged=frozenset({0, slurm.pw_uid}),
    )
    chain = Chain(f"{site.audit.directory}/{WRITER}", WRITER, socket.gethostname().partition(".")[0])
    return Decider(live, signer, chain), site, slurm


async def _serve_until_signal(config: str, policy: str, snapshot_user: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    decider, site, slurm = build(config, policy, snapshot_user)
    await run(decider, site, slurm, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """``secure-slurm`` starts it; exit codes as in conf.errors."""
    parser = argparse.ArgumentParser(prog="secure-slurm-decisiond", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default=SITE_PATH, help="the site file (default: %(default)s)")
    parser.add_argument("--policy", default=POLICY_PATH, help="the policy file (default: %(default)s)")
    parser.add_argument("--snapshot-user", default=SNAPSHOT_USER, help="who writes the members file")
    parser.add_argument("--verbose", action="store_true", help="log every step")
    options = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    with suppress(KeyboardInterrupt):
        try:
            asyncio.run(_serve_until_signal(options.config, options.policy, options.snapshot_user))
        except SecureSlurmError as error:
            LOG.error("%s%s", error, f" ({error.advice})" if error.advice else "")
            return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
