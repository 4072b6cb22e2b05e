"""Judging a job again at its start, as it is now: what was decided weeks ago may no longer hold.

Pure. The decision record says what was decided (its MAC is checked), slurmctld says what the job is now, policy and
group members say what is allowed today. All three must agree, or the job is held and no key is made.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from conf.errors import Refused, UsageError
from conf.quote import quote
from conf.tag import Tag, parse_extra
from keys.secret import Secret
from slurm_hooks import constraint, record, wire
from slurm_hooks.filters import judge_place, judge_routes, judge_tag, judge_who
from slurm_hooks.filters.chain import LIMITS, judge_job
from slurm_hooks.filters.derive import derive_tag
from slurm_hooks.filters.job import SubmitJob, partitions
from slurm_hooks.filters.verdict import Context, Deny
from slurm_hooks.lifecycle import StartJob

JUDGES = (
    judge_who.known_user,
    judge_place.residency,
    judge_place.partition,
    judge_place.least_class,
    judge_routes.routes,
    judge_tag.scratch,
    *LIMITS,
    judge_who.role,
)
_NO_VAL = 0xFFFFFFFE  # slurm.h: greater than every job id
_CHANGED = "the job was changed after it was accepted; cancel it and submit it again"


@attrs.frozen(kw_only=True)
class StartRequest:
    """What PrologSlurmctld reported: numbers from its environment and from slurmctld's answer, texts as they are.

    ``since``: when it began, in nanoseconds of this machine's monotonic clock; 0 when it does not say.
    """

    job: int
    uid: int
    user_id: int
    restarts: int
    het_job_id: int
    nodes: tuple[str, ...]
    strings: Mapping[str, str]
    since: int = 0


def read_start(fields: Mapping[str, bytes]) -> StartRequest:
    """The request of the ``start`` verb; WireError for anything missing or odd."""
    try:
        numbers = {name: int(wire.text(fields, name)) for name in ("job", "uid", "user_id", "restarts", "het_job_id")}
        since = int(wire.text(fields, "since", "0"))
    except ValueError:
        raise wire.WireError("a number of the request is not one") from None
    if not 0 < numbers["job"] < _NO_VAL:
        raise wire.WireError("the job of the request is not a job's number")
    return StartRequest(
        **numbers,
        since=since,
        nodes=tuple(wire.text(fields, "nodes").split(",")),
        strings={name.removeprefix("job."): wire.text(fields, name) for name in fields if name.startswith("job.")},
    )


def judge_start(request: StartRequest, cluster: str, key: Secret, context: Context) -> StartJob:
    """The job that may start. Refused with the rule that forbids it: ``record.*``, ``start.*`` or a filter's."""
    decided = record.verify(request.strings.get("admin_comment", ""), key)
    if decided.cluster != cluster:
        raise Refused("record.cluster", f"the job was accepted on cluster {quote(decided.cluster)}")
    if not request.uid == request.user_id == decided.uid:
        raise Refused("record.uid", "the decision was about another user's job")
    tag = decided.tag
    _same_tag(request.strings.get("extra", ""), tag)
    if request.het_job_id:
        raise Refused("route.het", "a component of a heterogeneous job cannot carry a tag")
    if not request.nodes or not all(request.nodes):
        raise Refused("start.nodes", "Slurm names no nodes for the job")
    if tag.residency is not None:
        _still_forced(request.strings, tag.residency, context)
    job = SubmitJob(
        submit_uid=decided.uid,
        user_id=decided.uid,
        user_name=decided.user,
        strings=dict(request.strings),
        tag=tag,
        partitions=partitions(request.strings.get("partition")),
        numbers=_numbers(request),
    )
    # what a dataset demands may be more than when the job was accepted
    derived = derive_tag(job, context)
    verdict = derived if isinstance(derived, Deny) else judge_job(job, context, JUDGES)
    if isinstance(verdict, Deny):
        raise Refused(verdict.rule, verdict.message, advice=verdict.advice)
    return StartJob(
        job=request.job,
        uid=decided.uid,
        user=decided.user,
        cluster=cluster,
        nodes=request.nodes,
        restarts=request.restarts,
        klass=tag.klass,
        residency=tag.residency or "",
        scratch=tag.scratch or 0,
        datasets=tag.datasets,
        shadowed=tuple(dict.fromkeys(each.rule for each in verdict.shadowed)),
        exemptions=verdict.exemptions,
        nonce=decided.nonce,
    )


def _numbers(request: StartRequest) -> dict[str, int]:
    """What the job has now: its nodes are given, its limit is what slurmctld says (minutes)."""
    found = {"min_nodes": len(request.nodes), "max_nodes": len(request.nodes)}
    for name in ("time_limit", "num_tasks"):
        text = request.strings.get(name, "")
        if text.isascii() and text.isdigit():
            found[name] = int(text)
    return found


def _same_tag(extra: str, tag: Tag) -> None:
    try:
        found = parse_extra(extra)
    except UsageError:
        found = None
    if found != tag:
        raise Refused("start.tag", "the job's tag is not the one that was decided on", advice=_CHANGED)


def _still_forced(strings: Mapping[str, str], residency: str, context: Context) -> None:
    """Refuse a job whose constraint, or preference, would let it run elsewhere."""
    place = context.policy.jurisdictions.get(residency)
    if place is None:
        raise Refused("residency.unknown", f"the policy no longer knows the jurisdiction {quote(residency)}")
    for name in ("features", "prefer"):
        expression = strings.get(name, "")
        if not expression and name == "prefer":
            continue
        if len(expression) > constraint.MAX_LENGTH or not constraint.is_forced(expression, place.feature):
            raise Refused(
                "start.constraint", f"the job's {name} no longer binds it to {quote(residency)}", advice=_CHANGED
            )
