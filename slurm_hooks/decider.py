"""What the decision daemon answers: each verb decides, writes its line of the trail, and then says so.

One decision at a time. Untagged jobs that job_submit.lua let pass by itself come as notes (decision 0018).
"""

from __future__ import annotations

import logging
import math
import threading
import time

from audit.chain import AuditError, Chain
from conf.version import __version__
from slurm_hooks.answering import Fields, Peer
from slurm_hooks.engine import POLICY_DIGITS, Decision, Signer, decide_modify, decide_submit
from slurm_hooks.explained import Explainer
from slurm_hooks.folding import Folding
from slurm_hooks.live import Live
from slurm_hooks.notes import Judged
from slurm_hooks.running import Places

LOG = logging.getLogger(__name__)

MAX_USERS = 4096
"""Bytes of the list of users with tagged jobs; with a longer one, every job is asked about."""

UNTAGGED = "allow.untagged"
_UNWRITABLE = ("audit.unwritable", "the decision could not be written to the audit trail, so the job is refused")


class Decider:
    """The state of the daemon and its verbs."""

    def __init__(self, live: Live, signer: Signer, chain: Chain, deadline: float = math.inf) -> None:
        self._live = live
        self._signer = signer
        self._chain = chain
        self._explainer = Explainer(live.path, signer)
        self._unflushed = False
        self._audit_broken = False
        # one decision at a time: a batch of notes lets a request in between two of them
        self._turn = threading.Lock()
        self._notes = Judged(signer)
        self._deadline = deadline
        self._folding = Folding()
        self._distrusted: str | None = None
        self._inside: tuple[Places, str] = ({}, "")
        self.decided = {"allow": 0, "refuse": 0}

    def submit(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``submit``."""
        begun = time.monotonic()
        with self._turn:
            context = self._live.context()
            decision = self._explainer.decide(fields, context) or decide_submit(fields, context, self._signer)
            return self._answer(decision, begun)

    def modify(self, fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``modify``."""
        begun = time.monotonic()
        with self._turn:
            return self._answer(decide_modify(fields, self._live.context(), self._signer), begun)

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
                self._differs(own, of_another=fields.get("policy", own.policy.encode()) != own.policy.encode())
            return self._confirmed({"verdict": "allow"})

    def ping(self, _fields: Fields, _peer: Peer) -> dict[str, bytes | str]:
        """Verb ``ping``: the daemon is there."""
        return {"verdict": "allow", "version": __version__}

    def words(self) -> str:
        """For ``systemctl status``: what is in use."""
        audit = ", the audit trail cannot be written" if self._audit_broken else ""
        return f"policy {self._live.policy.hash[:12]}, members {self._live.members_age()}{audit}"

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

    def look_inside(self) -> None:
        """Take over where tagged jobs run. Does file I/O."""
        self._live.look_at_jobs()

    def flush(self) -> None:
        """Put the audit lines so far on the disk."""
        self.fold()
        if not self._unflushed:
            return
        self._unflushed = False
        try:
            self._chain.flush()
        except AuditError as error:
            self._unflushed = True
            LOG.error("%s", error)

    def fold(self, *, everything: bool = False) -> None:
        """Tell how many refusals had no line of their own."""
        with self._turn:
            for one in self._folding.due(time.monotonic(), everything=everything):
                self._write(
                    "decision.folded",
                    rule=one.rule,
                    verb=one.verb,
                    uid=one.uid,
                    count=one.number,
                    state="counted",
                    seconds=one.seconds,
                )

    def _answer(self, decision: Decision, begun: float) -> dict[str, bytes | str]:
        if time.monotonic() - begun > self._deadline:
            # the door would refuse it, and the trail must not say otherwise
            decision = decision.refused("engine.timeout", "the decision took too long", "try again in a moment")
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

    def _differs(self, own: Decision, *, of_another: bool) -> None:
        """Tell that a job was let pass which should not have been, and let no further one pass without being asked.

        ``of_another``: it was let pass under the policy before, while this one came into use; that ends by itself.
        """
        LOG.error(
            "uid %d: job_submit.lua let a job pass as untagged whose verdict is %s: it must ask", own.actor, own.rule
        )
        if not of_another:
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
        if not decision.allowed and self._is_folded(decision):
            return decision
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

    def _is_folded(self, decision: Decision) -> bool:
        """Whether a refusal is counted instead of written: its user has had so many."""
        now = time.monotonic()
        if self._folding.has_line(decision.actor, now):
            return False
        if self._folding.count(decision.actor, decision.rule, decision.verb, now):
            self._write(
                "decision.folded",
                rule=decision.rule,
                verb=decision.verb,
                uid=decision.actor,
                count=0,
                state="begun",
            )
        return True

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
