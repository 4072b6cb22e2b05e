"""The decision daemon: answers job_submit.lua while slurmctld waits.

Everything that a decision needs lies in memory. Policy and group members are looked at in the background, and swapped
in whole when they change; a broken new policy leaves the last good one in use and an error in the log. A request
touches no network, no name service and no LDAP. One line of audit is written before each answer and reaches the disk
within a second.

Untagged jobs may be let pass by job_submit.lua itself and told here as notes (decision 0018). It does so only while
this daemon confirms, second by second, that it decides by the policy which job_submit.lua was rendered from.
"""

from __future__ import annotations

import argparse
import logging
import os
import pwd
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from audit.chain import AuditError, Chain
from conf.errors import SecureSlurmError
from conf.policy import DEFAULT_PATH as POLICY_PATH
from conf.site import DEFAULT_PATH as SITE_PATH
from conf.site import Site, load_site
from conf.version import __version__
from slurm_hooks import background, record
from slurm_hooks.answering import Fields, Peer, notify
from slurm_hooks.breakglass_live import WRITER as GLASS_WRITER
from slurm_hooks.breakglass_live import BreakGlass, Trail
from slurm_hooks.desk import Desk
from slurm_hooks.engine import POLICY_DIGITS, Decision, Signer, decide_modify, decide_submit
from slurm_hooks.explained import Explainer
from slurm_hooks.live import LOOK_EVERY, Live, account
from slurm_hooks.notes import Judged
from slurm_hooks.running import Places, Running
from slurm_hooks.snapshot import SnapshotCache

LOG = logging.getLogger(__name__)

WRITER = "decision"
SNAPSHOT_USER = "secure-ldap"
LIFECYCLE_USER = "secure-life"
SOCKET_MODE = 0o660
DEADLINE_SHARE = 0.75
"""Of the time that slurmctld waits: an answer that would come too late is better given up here."""

MAX_USERS = 4096
"""Bytes of the list of users with tagged jobs; with a longer one, every job is asked about."""

UNTAGGED = "allow.untagged"
_UNWRITABLE = ("audit.unwritable", "the decision could not be written to the audit trail, so the job is refused")


class Decider:
    """The state of the daemon and its verbs."""

    def __init__(self, live: Live, signer: Signer, chain: Chain) -> None:
        self._live = live
        self._signer = signer
        self._chain = chain
        self._explainer = Explainer(live.path, signer)
        self._unflushed = False
        self._audit_broken = False
        # one decision at a time: a batch of notes lets a request in between two of them
        self._turn = threading.Lock()
        self._notes = Judged(signer)
        self._distrusted: str | None = None
        self._inside: tuple[Places, str] = ({}, "")
        self.decided = {"allow": 0, "refuse": 0}

    def submit(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``submit``."""
        with self._turn:
            context = self._live.context()
            return self._answer(self._explainer.decide(fields, context) or decide_submit(fields, context, self._signer))

    def modify(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``modify``."""
        with self._turn:
            return self._answer(decide_modify(fields, self._live.context(), self._signer))

    def note(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``note``: an untagged job that job_submit.lua has let pass, for the trail; it is judged all the same."""
        with self._turn:
            own = self._notes.decide(fields, self._live.context())
            self._write(
                "decision",
                verdict="allow",
                rule=UNTAGGED,
                verb="note",
                uid=own.uid,
                submit_uid=own.actor,
                partition=own.partition or None,
                policy=own.policy or None,
            )
            self.decided["allow"] += 1
            if not own.allowed or own.rule != UNTAGGED:
                self._differs(own)
            return self._confirmed({"verdict": "allow"})

    def ping(self, _fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``ping``: the daemon is there."""
        return {"verdict": "allow", "version": __version__}

    def status(self, _fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
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
        self._explainer.look(self._live.policy)

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
        return self._confirmed(decision.answer())

    def _confirmed(self, answer: dict[str, bytes | str]) -> dict[str, bytes | str]:
        """The answer, with the policy by which job_submit.lua may let untagged jobs pass if it was rendered from it.

        Not so the jobs of users who have a tagged job running, which might come from inside that one.
        """
        policy = self._live.policy.hash[:POLICY_DIGITS]
        running = self._live.context().running
        if running is not self._inside[0]:
            uids = {inside.uid for found in running.values() for inside in found}
            self._inside = (running, ",".join(map(str, sorted(uids))))
        users = self._inside[1]
        if policy == self._distrusted or len(users) > MAX_USERS:
            return answer
        return {**answer, "policy": policy, "ask_about": users}

    def _differs(self, own: Decision) -> None:
        """Tell that a job was let pass which should not have been, and let no further one pass without being asked."""
        LOG.error(
            "uid %d: job_submit.lua let a job pass as untagged whose verdict is %s: it must ask", own.actor, own.rule
        )
        self._distrusted = self._live.policy.hash[:POLICY_DIGITS]
        self._write(
            "decision.differs",
            verdict="allow" if own.allowed else "refuse",
            rule=own.rule,
            verb="note",
            uid=own.uid,
            submit_uid=own.actor,
            partition=own.partition or None,
            policy=own.policy or None,
        )

    def _written(self, decision: Decision) -> Decision:
        """The decision, once the trail has it; a tagged one that it cannot have is refused."""
        tag = decision.tag
        written = self._write(
            "decision",
            verdict="allow" if decision.allowed else "refuse",
            rule=decision.rule,
            verb=decision.verb,
            uid=decision.uid,
            submit_uid=decision.actor,
            job=decision.job,
            klass=tag.klass if tag else None,
            residency=tag.residency if tag else None,
            scratch=tag.scratch if tag else None,
            datasets=",".join(tag.datasets) or None if tag else None,
            shadowed=",".join(decision.shadowed) or None,
            exemption=decision.exemption or None,
            partition=decision.partition or None,
            policy=decision.policy or None,
            nonce=decision.nonce or None,
            reason=decision.reason or None,
        )
        if written or tag is None:
            return decision
        return decision.refused(*_UNWRITABLE, "tell an admin: the audit trail is stuck")

    def _write(self, event: str, **fields: object) -> bool:
        try:
            self._chain.append(event, durable=False, **fields)
        except (AuditError, ValueError) as error:
            self._note_broken(error)
            return False
        self._unflushed = True
        self._audit_broken = False
        return True

    def _note_broken(self, error: Exception) -> None:
        if not self._audit_broken:
            LOG.error("jobs that carry a tag are refused: %s", error)
        self._audit_broken = True


def run(decider: Decider, site: Site, slurm: pwd.struct_passwd, stop: threading.Event) -> None:
    """Serve until ``stop``. Only SlurmUser and root may ask, by the kernel's word."""
    controllers = frozenset({0, slurm.pw_uid})
    handlers = {
        "submit": (controllers, decider.submit),
        "modify": (controllers, decider.modify),
        "ping": (controllers, decider.ping),
        "status": (frozenset({0}), decider.status),
    }
    notes = {"note": (controllers, decider.note)}
    desk = Desk(site.controller.socket, handlers, notes, deadline=site.controller.deadline * DEADLINE_SHARE)
    desk.open(mode=SOCKET_MODE, group=_group_for(slurm))
    threads = background.start(stop, (LOOK_EVERY, decider.look), (LOOK_EVERY, decider.flush))
    try:
        notify("READY=1")
        LOG.info("deciding at %s", site.controller.socket)
        stop.wait()
    finally:
        stop.set()
        notify("STOPPING=1")
        desk.close()
        for thread in threads:
            thread.join()
        decider.flush()


def _group_for(slurm: pwd.struct_passwd) -> int | None:
    """The socket's group: SlurmUser's, if this process may give it away."""
    return slurm.pw_gid if os.geteuid() == 0 or slurm.pw_gid in os.getgroups() else None


def build(config: str, policy: str, snapshot_user: str) -> tuple[Decider, Site, pwd.struct_passwd]:
    """Everything that is read once, at the start. ConfigError names what is missing: then nothing is decided at all."""
    site = load_site(config)
    slurm = account(site.cluster.slurm_user, "SlurmUser")
    reader = account(snapshot_user, "the LDAP reader").pw_uid
    host = socket.gethostname().partition(".")[0]
    directory = f"{site.audit.directory}/{WRITER}"
    trail = Trail(Chain(directory, GLASS_WRITER, host))
    glass = BreakGlass(site.controller.break_glass_dir, trail)
    running = Running(site.lifecycle.running_dir, LIFECYCLE_USER)
    live = Live(policy, SnapshotCache(site.ldap.snapshot, reader, site.ldap.max_age), glass, running)
    signer = Signer(
        cluster=site.cluster.name,
        key=record.load_key(site.controller.record_key),
        privileged=frozenset({0, slurm.pw_uid}),
    )
    chain = Chain(directory, WRITER, host)
    return Decider(live, signer, chain), site, slurm


def _serve_until_signal(config: str, policy: str, snapshot_user: str) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    decider, site, slurm = build(config, policy, snapshot_user)
    decider.look()  # what is read at the first look takes long, and nobody waits yet
    background.give_way()
    run(decider, site, slurm, stop)


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
    try:
        _serve_until_signal(options.config, options.policy, options.snapshot_user)
    except SecureSlurmError as error:
        LOG.error("%s%s", error, f" ({error.advice})" if error.advice else "")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
