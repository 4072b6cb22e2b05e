"""Break-glass grants: which of the papers that people had written count, judged anew at every look. Pure.

A request says who shall get what, until when and why; the approval of exactly these bytes is somebody else's; an end
ends it for good, by being there. Each says by whom it is: secure-slurm-glassd, which writes them, has that from the
kernel. Because everything is judged again each time, a grant ends when its requester or approver leaves the group that
let them do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol

import attrs

from conf.errors import Refused
from conf.policy import BreakGlass, Policy, ended
from conf.quote import quote
from conf.units import format_duration
from slurm_hooks.breakglass_papers import Paper, Request, digest, parse_approval, parse_end, parse_request
from slurm_hooks.filters.verdict import Exemption
from slurm_hooks.snapshot import Snapshot

SKEW = 60.0
"""Seconds that a date may lie ahead: a clock step that NTP makes in one go."""
ROOT = 0


class People(Protocol):
    """Login names, as the head node resolves them."""

    def name_of(self, uid: int) -> str | None:
        """The login name of a uid; None for an unknown one."""

    def uid_of(self, name: str) -> int | None:
        """The uid of a login name; None for an unknown one."""


@attrs.frozen(kw_only=True)
class Grant:
    """The state of one id. Uids: ``requester`` and ``approver`` said so in their papers, ``user`` is who gets it.

    ``actor``: whose paper made the state what it is, None for the policy or the clock. ``rule`` and ``reason``: why it
    ended or does not count. ``in-force`` is as of the look: whether it is over is asked again at each use.
    """

    id: str
    state: Literal["waiting", "in-force", "ended", "refused"]
    actor: int | None = None
    requester: int | None = None
    approver: int | None = None
    user: int | None = None
    request: Request | None = None
    digest: str = ""
    rule: str = ""
    reason: str = ""

    def exemption(self) -> Exemption | None:
        """What the judges are told of it; also of one that has ended, so that a refusal can say so."""
        if self.request is None or self.approver is None or self.state not in ("in-force", "ended"):
            return None
        asked = self.request
        return Exemption(
            id=self.id,
            user=asked.user,
            until=float(asked.until),
            role=asked.role,
            job=asked.job,
            uid=self.user,
            ended=self.state == "ended",
        )


class Frame(NamedTuple):
    """What grants are judged by. ``members`` None: who is in which group is not known, and not asked.

    That is for showing them to people, who may not read the members; no daemon lets a grant count without.
    """

    policy: Policy
    members: Snapshot | None
    people: People
    now: float


def judge(name: str, papers: Mapping[str, Paper], frame: Frame) -> Grant:
    """The state of the grant ``name``, whose ``papers`` are given by kind. Never raises."""
    asked = papers.get("request")
    if asked is None:
        by = next((paper.by for paper in papers.values()), None)
        return Grant(id=name, state="refused", actor=by, rule="glass.request", reason="there is no request of its id")
    grant = Grant(id=name, state="waiting", actor=asked.by, requester=asked.by, digest=digest(asked.data))
    try:
        request = _requested(name, asked, frame)
        grant = attrs.evolve(grant, request=request, user=frame.people.uid_of(request.user))
        _may_ask(asked, request, frame)
    except Refused as error:
        return _refused(grant, error)
    approval = papers.get("approval")
    if approval is not None:
        grant = attrs.evolve(grant, actor=approval.by)
        try:
            grant = attrs.evolve(grant, reason=_approved(grant, request, approval, frame), approver=approval.by)
        except Refused as error:
            grant = _refused(grant, error)
    end = papers.get("end")
    if end is not None:
        # who may end is asked before it is written; what is there ends, whatever it says
        return attrs.evolve(grant, state="ended", actor=end.by, rule="glass.end", reason=_why(name, end))
    if grant.state == "refused":
        return grant
    if frame.now >= request.until:
        over = "its time is over" if grant.approver is not None else "nobody approved it in time"
        return attrs.evolve(grant, state="ended", actor=None, rule="glass.over", reason=over)
    return grant if approval is None else attrs.evolve(grant, state="in-force")


def _requested(name: str, asked: Paper, frame: Frame) -> Request:
    if frame.policy.break_glass is None:
        raise Refused("glass.off", "the policy of this cluster knows no break-glass", advice="see break_glass in it")
    return parse_request(name, asked.data)


def _may_ask(asked: Paper, request: Request, frame: Frame) -> None:
    """The request by itself: who asks, for whom, for what and for how long."""
    rules = _rules(frame)
    _check_person("glass.requester", request.by, rules.requesters, frame)
    if max(asked.changed, request.time) > frame.now + SKEW or request.time > asked.changed + SKEW:
        raise Refused("glass.clock", "the request is dated in the future", advice="correct the clock, and ask again")
    if request.until - request.time > rules.longest:
        raise Refused(
            "glass.too-long",
            f"it asks for {format_duration(request.until - request.time)}, the policy gives "
            f"{format_duration(rules.longest)} at most",
            advice="ask for less; it can be asked for again",
        )
    uid = frame.people.uid_of(request.user)
    if uid is None:
        raise Refused("glass.user", f"there is no user {quote(request.user)}", advice="name the login name of a person")
    if request.role is None:
        return
    if uid == ROOT:
        raise Refused("glass.user", "root can hold no role", advice="name the person who needs it")
    role = frame.policy.roles.get(request.role)
    if role is None:
        raise Refused("glass.role", f"the policy has no role {quote(request.role)}", advice="name one of its roles")
    if ended(role.until, frame.now):
        # an agreement that has run out is not prolonged by two people of this site
        raise Refused("glass.role", f"the role {quote(request.role)} itself ended on {role.until}")


def _approved(grant: Grant, request: Request, approval: Paper, frame: Frame) -> str:
    """The approver's reason. Refused unless it is another person's approval of exactly this request."""
    note = parse_approval(grant.id, approval.data)
    _check_person("glass.approver", note.by, _rules(frame).approvers, frame)
    if approval.changed > frame.now + SKEW:
        raise Refused(
            "glass.clock", "the approval is dated in the future", advice="correct the clock, and approve again"
        )
    approver = _person(note.by, frame)
    if approver & _person(grant.requester, frame):
        raise Refused("glass.same-person", "nobody approves their own request", advice="somebody else must approve it")
    if approver & {request.user.casefold(), grant.user}:
        raise Refused(
            "glass.same-person", "nobody approves what they get themselves", advice="somebody else must approve it"
        )
    if note.digest != grant.digest:
        raise Refused(
            "glass.digest",
            "the approval is of another request than the one that is there now",
            advice="read the request, and approve it again",
        )
    return note.reason


def _check_person(rule: str, uid: int, groups: Iterable[str], frame: Frame) -> None:
    what = rule.partition(".")[2]
    if uid == ROOT:
        raise Refused(rule, f"root is nobody, so no {what}", advice="do it as yourself, not as root")
    name = frame.people.name_of(uid)
    if name is None:
        raise Refused(rule, f"uid {uid} has no login name on this machine")
    if frame.members is not None and frame.members.groups_of(name).isdisjoint(groups):
        raise Refused(rule, f"uid {uid} is in no group of break_glass.{what}s")


def _person(uid: int | None, frame: Frame) -> set[str | int]:
    """A uid and its name: two accounts of one name, or two names of one uid, are one person."""
    name = None if uid is None else frame.people.name_of(uid)
    return {each for each in (uid, None if name is None else name.casefold()) if each is not None}


def _rules(frame: Frame) -> BreakGlass:
    if frame.policy.break_glass is None:
        raise LookupError("_requested lets nothing pass without")
    return frame.policy.break_glass


def _refused(grant: Grant, error: Refused) -> Grant:
    return attrs.evolve(grant, state="refused", rule=error.rule, reason=str(error))


def _why(name: str, end: Paper) -> str:
    try:
        return parse_end(name, end.data).reason
    except Refused:
        return "without a reason that can be read"
