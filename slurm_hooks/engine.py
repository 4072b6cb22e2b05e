"""The decision itself: a request's fields in, an answer's fields out. No file, no clock but the record's, no network.

Whatever is not a clear yes is a no: a request that cannot be read, a step that raises, a chain without a verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import attrs

from conf.errors import Refused
from conf.tag import Tag, mentions_tag
from keys.secret import Secret
from slurm_hooks import record
from slurm_hooks.filters import chain, change, retag
from slurm_hooks.filters.job import SubmitJob, from_fields
from slurm_hooks.filters.judge_place import clean_strings
from slurm_hooks.filters.verdict import Allow, Context, Deny

LOG = logging.getLogger(__name__)

POLICY_DIGITS = 16
ERROR = Deny("engine.error", "the decision failed, so the job is refused", "tell an admin: the daemon's log says why")


class Signer(NamedTuple):
    """What a decision record is made with. ``privileged``: the uids (root, SlurmUser) that may add a reason to it."""

    cluster: str
    key: Secret
    privileged: frozenset[int]


@attrs.frozen(kw_only=True)
class Decision:
    """What was decided, and what the trail says of it. ``uid`` is the job's owner; ``changes`` is told to Slurm.

    ``shadowed``: the rules in shadow that would have refused it. ``reason``: more for the trail, in a few words.
    ``exemption``: the ids of the break-glass grants without which it would have been refused, joined by commas.
    """

    allowed: bool
    rule: str
    verb: str
    uid: int
    actor: int
    message: str = ""
    advice: str = ""
    changes: Mapping[str, str] = attrs.field(factory=dict)
    tag: Tag | None = None
    partition: str = ""
    policy: str = ""
    nonce: str = ""
    job: int | None = None
    shadowed: tuple[str, ...] = ()
    reason: str = ""
    exemption: str = ""

    def answer(self) -> dict[str, bytes | str]:
        """The fields of the answer."""
        if not self.allowed:
            return {"verdict": "refuse", "rule": self.rule, "message": self.message, "advice": self.advice}
        values = {f"set.{name}": value.encode("utf-8", "surrogateescape") for name, value in self.changes.items()}
        # what stands on a grant ends with it. Not for a change: scontrol shows it in the place of slurmctld's own error
        told = (
            {"message": f"allowed by break-glass {self.exemption}"} if self.exemption and self.verb == "submit" else {}
        )
        return {"verdict": "allow", "rule": self.rule, **told, **values}

    def refused(self, rule: str, message: str, advice: str) -> Decision:
        """The same decision, turned into a refusal after the fact."""
        return attrs.evolve(self, allowed=False, rule=rule, message=message, advice=advice, changes={}, nonce="")


def decide_submit(fields: Mapping[str, bytes], context: Context, signer: Signer) -> Decision:
    """The decision about a new job. Never raises."""
    uid = _uid(fields, "user_id", "submit_uid")
    actor = _uid(fields, "submit_uid")
    try:
        return _submit(fields, context, signer, Decision(allowed=False, rule="", verb="submit", uid=uid, actor=actor))
    except Exception:
        LOG.exception("deciding about a submission of uid %d failed", uid)
        return Decision(allowed=False, verb="submit", uid=uid, actor=actor, **ERROR._asdict())


def decide_modify(fields: Mapping[str, bytes], context: Context, signer: Signer) -> Decision:
    """The decision about a change to a stored job. Never raises."""
    uid = _uid(fields, "rec.user_id", "modify_uid")
    actor = _uid(fields, "modify_uid")
    try:
        blank = Decision(
            allowed=False, rule="", verb="modify", uid=uid, actor=actor, job=_number(fields.get("rec.job_id"))
        )
        return _modify(change.from_fields(fields), context, signer, blank)
    except Exception:
        LOG.exception("deciding about a change by uid %d failed", actor)
        return Decision(allowed=False, verb="modify", uid=uid, actor=actor, **ERROR._asdict())


def _submit(fields: Mapping[str, bytes], context: Context, signer: Signer, blank: Decision) -> Decision:
    asked = from_fields(fields)
    # put together at the end: a copy of a decision costs as much as twenty judges
    facts: dict[str, Any] = {"partition": _shown(asked.partitions), "policy": context.policy.hash[:POLICY_DIGITS]}
    job = chain.mutate_job(asked, context)
    if isinstance(job, Deny):
        return _denied(attrs.evolve(blank, **facts), job)
    facts["tag"] = job.tag
    verdict = chain.judge_job(job, context, chain.SUBMIT_JUDGES)
    if isinstance(verdict, Deny):
        return _denied(attrs.evolve(blank, **facts), verdict)
    facts |= {"shadowed": _rules(verdict), "exemption": ",".join(verdict.exemptions), "allowed": True}
    if job.tag is None:
        return attrs.evolve(blank, rule="allow.untagged", **facts)
    signed = record_of(job, job.tag, context, signer)
    given = job.string("admin_comment")
    text = record.sign(signed, signer.key) + (f"{record.SEPARATOR}{given}" if given else "")
    changes = {**job.changes, "admin_comment": text}
    return attrs.evolve(blank, rule="allow.tagged", changes=changes, nonce=signed.nonce, **facts)


def record_of(job: SubmitJob, tag: Tag, context: Context, signer: Signer) -> record.Record:
    """What the decision record of an allowed job says. LookupError for a job that no judge should have let pass."""
    if job.user_id is None or job.user_name is None:
        raise LookupError("judge_who lets no unknown user pass")
    return record.Record(
        cluster=signer.cluster,
        uid=job.user_id,
        user=job.user_name,
        klass=tag.klass,
        residency=tag.residency,
        scratch=tag.scratch,
        policy=context.policy.hash[:POLICY_DIGITS],
        nonce=record.new_nonce(),
        time=record.now(),
        datasets=tag.datasets,
    )


def _modify(asked: change.Change, context: Context, signer: Signer, blank: Decision) -> Decision:
    blank = attrs.evolve(
        blank,
        partition=asked.asked_text("partition") or asked.stored_text("partition") or "",
        policy=context.policy.hash[:POLICY_DIGITS],
    )
    try:
        kept = _kept_record(asked, signer)
    except Refused as error:
        return _denied(blank, Deny(error.rule, str(error), error.advice))
    if kept is None:
        verdict = change.untagged(asked, context)
        if isinstance(verdict, Deny):
            return _denied(blank, verdict)
        return attrs.evolve(blank, allowed=True, rule="allow.untagged")
    tag = kept.tag
    blank = attrs.evolve(blank, tag=tag, nonce=kept.nonce)
    if retag.wanted(asked, tag):
        return _retagged(asked, kept, context, signer, blank)
    verdict = change.tagged(asked, signer.privileged)
    if isinstance(verdict, Deny):
        return _denied(blank, verdict)
    return _merged(asked, kept, context, attrs.evolve(blank, allowed=True, rule="allow.tagged"))


def _kept_record(asked: change.Change, signer: Signer) -> record.Record | None:
    """The job's verified record; None for a job that never had a tag. Refuses a job that is neither."""
    text = asked.stored_text("admin_comment") or ""
    extra = asked.stored_text("extra")
    if not record.looks_like(text) and not mentions_tag(extra):
        return None
    advice = "it can be cancelled, and submitted again with secure-sbatch"
    try:
        kept = record.verify(text, signer.key)
    except Refused as error:
        raise Refused(error.rule, f"{error}, so nothing about it can be changed", advice=advice) from None
    tag = kept.tag
    if kept.uid != asked.owner or kept.cluster != signer.cluster or extra != tag.to_extra():
        raise Refused(
            "record.mismatch",
            "the job and its decision record differ, so nothing about it can be changed",
            advice=advice,
        )
    return kept


def _merged(asked: change.Change, kept: record.Record, context: Context, allowed: Decision) -> Decision:
    """Judge the job as it would be: what is stored, with what is asked over it."""
    job = attrs.evolve(
        from_fields({**change.merged(asked), "submit_uid": str(kept.uid).encode()}),
        user_id=kept.uid,
        user_name=kept.user,
        forced_sharing=asked.forced_sharing,
        tag=allowed.tag,
    )
    if not change.moves(asked):
        verdict = clean_strings(_without_record(job), context)
        return _denied(allowed, verdict) if isinstance(verdict, Deny) else allowed
    forced = chain.force_place(job, context, asked.stored_text("features"))
    if isinstance(forced, Deny):
        return _denied(allowed, forced)
    verdict = chain.judge_job(_without_record(forced), context, chain.MODIFY_JUDGES)
    if isinstance(verdict, Deny):
        return _denied(allowed, verdict)
    return attrs.evolve(
        allowed, changes=forced.changes, shadowed=_rules(verdict), exemption=",".join(verdict.exemptions)
    )


def _retagged(asked: change.Change, kept: record.Record, context: Context, signer: Signer, blank: Decision) -> Decision:
    """Judge a change of the tag, which only a break-glass grant allows, as a submission of the job's owner."""
    grant = retag.permission(asked, context, signer.privileged)
    if isinstance(grant, Deny):
        return _denied(blank, grant)
    # also of a refusal: somebody has tried to use it
    blank = attrs.evolve(blank, exemption=grant.id)
    job = chain.mutate_job(retag.submission(asked, kept, context.policy), context)
    if isinstance(job, Deny):
        return _denied(blank, job)
    blank = attrs.evolve(blank, tag=job.tag or kept.tag)
    verdict = retag.unseen(asked, kept.tag, job.tag, context.policy) or chain.judge_job(
        job, context, chain.SUBMIT_JUDGES
    )
    if isinstance(verdict, Deny):
        return _denied(blank, verdict)
    signed = None if job.tag is None else record_of(job, job.tag, context, signer)
    text = retag.comment(asked, grant, "" if signed is None else record.sign(signed, signer.key))
    return attrs.evolve(
        blank,
        allowed=True,
        rule="allow.untagged" if signed is None else "allow.tagged",
        changes={**job.changes, "admin_comment": text},
        nonce="" if signed is None else signed.nonce,
        shadowed=_rules(verdict),
        exemption=",".join(dict.fromkeys((grant.id, *verdict.exemptions))),
    )


def _without_record(job: SubmitJob) -> SubmitJob:
    # its record part was compared byte by byte, its free text was checked with it
    return attrs.evolve(job, strings={name: text for name, text in job.strings.items() if name != "admin_comment"})


def _rules(verdict: Allow) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.rule for each in verdict.shadowed))


def _denied(decision: Decision, verdict: Deny) -> Decision:
    return decision.refused(verdict.rule, verdict.message, verdict.advice)


def _shown(names: tuple[str, ...]) -> str:
    return ",".join(names)


def _uid(fields: Mapping[str, bytes], *names: str) -> int:
    """The first of the fields that is a uid, for the trail; the value of ``nobody`` when there is none."""
    for name in names:
        value = _number(fields.get(name))
        if value is not None and value < 2**32:
            return value
    return 65534


def _number(value: bytes | None) -> int | None:
    return int(value) if value is not None and value.isdigit() and len(value) <= 10 else None
