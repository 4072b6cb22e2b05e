"""Which grants count: every reason why one does not, then the one that does."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.policy import BreakGlass
from slurm_hooks.breakglass import Frame, Grant, judge
from slurm_hooks.breakglass_papers import Paper
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot
from tests.unit.glass.conftest import (
    HOUR,
    NOW,
    OFFICERS,
    OPERATORS,
    UIDS,
    Everybody,
    approval_paper,
    end_paper,
    make_members,
    make_policy,
    request_paper,
)

State = Callable[[dict[str, Paper]], Grant]
Papers = dict[str, Paper]


def both(request: Paper, owner: int = 12, **more: float) -> Papers:
    return {"request": request, "approval": approval_paper(request, owner, **more)}


@pytest.mark.parametrize(
    ("rule", "asked"),
    [
        ("glass.requester", request_paper(0)),
        ("glass.requester", request_paper(12)),
        ("glass.requester", request_paper(13)),
        ("glass.requester", request_paper(99)),
        ("glass.syntax", Paper(11, b"{}\n", NOW - 60)),
        ("glass.syntax", request_paper(id="g2")),
        ("glass.too-long", request_paper(until=int(NOW) - 60 + 8 * HOUR + 1)),
        ("glass.too-long", request_paper(time=int(NOW) - 9 * HOUR)),
        ("glass.clock", request_paper(time=int(NOW) + 120, changed=NOW + 120)),
        ("glass.clock", request_paper(changed=NOW + 61)),
        # dated ahead, to be used at a time that suits
        ("glass.clock", request_paper(time=int(NOW) + 50, changed=NOW - 20)),
        ("glass.user", request_paper(user="nobody-here")),
        ("glass.user", request_paper(user="root")),
        ("glass.role", request_paper(role="no-such-role")),
        ("glass.role", request_paper(role="gone")),
    ],
)
def test_a_request_that_does_not_count(state: State, rule: str, asked: Paper) -> None:
    for found in ({"request": asked}, both(asked)):
        grant = state(found)
        assert (grant.state, grant.rule) == ("refused", rule), grant
        assert grant.actor == asked.by
        assert grant.reason
        assert grant.exemption() is None


def test_an_approval_or_end_without_a_request(state: State) -> None:
    for kind in ("approval", "end"):
        grant = state({kind: end_paper(12)})
        assert (grant.state, grant.rule, grant.actor) == ("refused", "glass.request", 12)


@pytest.mark.parametrize(
    ("rule", "owner", "asked"),
    [
        ("glass.approver", 0, request_paper()),
        ("glass.approver", 99, request_paper()),
        # ann is an officer as well
        ("glass.same-person", 11, request_paper()),
        ("glass.same-person", 14, request_paper(14)),
        # bob is an officer, and gets it
        ("glass.same-person", 13, request_paper()),
    ],
)
def test_an_approval_that_does_not_count(state: State, rule: str, owner: int, asked: Paper) -> None:
    grant = state(both(asked, owner))

    assert (grant.state, grant.rule, grant.actor, grant.requester) == ("refused", rule, owner, asked.by)
    assert grant.exemption() is None


def test_an_approver_who_is_in_no_group_of_approvers(frame: Frame) -> None:
    members = Snapshot(
        NOW, "test", {OPERATORS: Group("o", frozenset({"ann", "ben"})), OFFICERS: Group("f", frozenset())}
    )

    assert judge("g1", both(request_paper()), frame._replace(members=members)).rule == "glass.approver"


def test_two_names_of_one_person(frame: Frame, approved: Papers) -> None:
    """The approver's login name differs from the requester's, or from the user's, in letter case alone."""
    groups = {OPERATORS: Group("o", frozenset({"ann"})), OFFICERS: Group("f", frozenset({"Ann", "BOB"}))}
    people = Everybody(Ann=21, BOB=22)
    other = frame._replace(members=Snapshot(NOW, "test", groups), people=people)
    for owner in (21, 22):
        assert judge("g1", both(request_paper(), owner), other).rule == "glass.same-person"
    assert judge("g1", approved, frame).state == "in-force"


def test_an_approval_of_other_bytes(state: State, approved: Papers) -> None:
    changed = {**approved, "request": request_paper(until=int(NOW) + 2 * HOUR)}
    assert state(changed).rule == "glass.digest"
    assert state({**approved, "approval": approval_paper(changed["request"])}).rule == "glass.digest"
    assert state({**approved, "approval": Paper(12, b"yes\n", NOW)}).rule == "glass.syntax"
    assert state({**approved, "approval": approval_paper(approved["request"], name="g2")}).rule == "glass.syntax"
    assert state(both(request_paper(), changed=NOW + 100)).rule == "glass.clock"


def test_without_a_section_in_the_policy_there_is_none(frame: Frame, approved: Papers) -> None:
    policy = attrs.evolve(make_policy(), break_glass=None)

    assert judge("g1", approved, frame._replace(policy=policy)).rule == "glass.off"


def test_a_policy_that_allows_less(frame: Frame, approved: Papers) -> None:
    short = BreakGlass(requesters=(OPERATORS,), approvers=(OFFICERS,), longest=60.0)
    policy = attrs.evolve(make_policy(), break_glass=short)

    assert judge("g1", approved, frame._replace(policy=policy)).rule == "glass.too-long"


def test_one_that_waits(state: State) -> None:
    grant = state({"request": request_paper()})

    assert (grant.state, grant.rule, grant.requester, grant.approver) == ("waiting", "", 11, None)
    assert grant.exemption() is None


def test_one_that_counts(state: State, approved: Papers) -> None:
    grant = state(approved)

    assert (grant.state, grant.rule, grant.requester, grant.approver, grant.user) == ("in-force", "", 11, 12, 13)
    assert grant.reason == "checked by telephone"
    exemption = grant.exemption()
    assert exemption is not None
    assert (exemption.id, exemption.user, exemption.uid, exemption.role) == ("g1", "bob", 13, "phi-eu")
    assert exemption.holds(NOW)
    assert not exemption.holds(float(exemption.until))


def test_one_for_a_job_may_be_for_root(state: State) -> None:
    """On a cluster without accounting nobody else may write an admin comment."""
    grant = state(both(request_paper(user="root", role=None, job=7)))

    assert grant.state == "in-force"
    exemption = grant.exemption()
    assert exemption is not None
    assert (exemption.uid, exemption.job, exemption.role) == (0, 7, None)


def test_its_requester_may_get_it(state: State) -> None:
    assert state(both(request_paper(user="ann"))).state == "in-force"


def test_the_end_of_its_time(frame: Frame, approved: Papers) -> None:
    over = frame._replace(now=NOW + HOUR)
    grant = judge("g1", approved, over)
    assert (grant.state, grant.rule, grant.actor) == ("ended", "glass.over", None)
    exemption = grant.exemption()
    assert exemption is not None
    assert not exemption.holds(over.now)
    unapproved = judge("g1", {"request": approved["request"]}, over)
    assert (unapproved.state, unapproved.exemption()) == ("ended", None)


@pytest.mark.parametrize("owner", [0, 11, 12])
def test_an_end(state: State, approved: Papers, owner: int) -> None:
    grant = state({**approved, "end": end_paper(owner)})

    assert (grant.state, grant.rule, grant.actor, grant.reason) == ("ended", "glass.end", owner, "no more needed")
    exemption = grant.exemption()
    assert exemption is not None
    assert not exemption.holds(NOW)
    assert state({**approved, "end": Paper(owner, b"\xff not json", NOW)}).state == "ended"


@pytest.mark.parametrize("end", [end_paper(13), end_paper(99), Paper(None, b"", 0.0), Paper(12, b"{}\n", NOW)])
def test_whatever_end_is_there_ends_it(state: State, approved: Papers, end: Paper) -> None:
    """Who may end is the daemon's question, before it writes one; here nothing may keep a grant alive."""
    grant = state({**approved, "end": end})

    assert (grant.state, grant.rule, grant.actor) == ("ended", "glass.end", end.by)


def test_who_says_it_is_in_the_bytes(state: State) -> None:
    """The digest covers who asks: an approval is of that person's request."""
    mine, others = request_paper(11), request_paper(14)
    assert state({"request": others, "approval": approval_paper(mine)}).rule == "glass.digest"
    assert state({"request": mine, "approval": approval_paper(mine)}).requester == 11
    assert state({"request": Paper(None, b"junk", NOW)}).rule == "glass.syntax"


def test_leaving_the_group_ends_it(frame: Frame, approved: Papers) -> None:
    members = frame.members
    assert members is not None
    for group in (OPERATORS, OFFICERS):
        left = Snapshot(NOW, "test", {**members.groups, group: Group("x", frozenset({"nobody"}))})
        grant = judge("g1", approved, frame._replace(members=left))
        assert grant.state == "refused"
        assert grant.exemption() is None


def test_shown_without_members(frame: Frame, approved: Papers) -> None:
    assert judge("g1", approved, frame._replace(members=None)).state == "in-force"


OWNERS = st.sampled_from([0, 11, 12, 13, 14, 99])
TIMES = st.integers(int(NOW) - 10 * HOUR, int(NOW) + 10 * HOUR)


@given(
    asked_by=OWNERS,
    approved_by=OWNERS,
    ended_by=st.none() | OWNERS,
    user=st.sampled_from(["ann", "ben", "bob", "both", "root", "ghost"]),
    role=st.sampled_from(["phi-eu", "gone", "none", None]),
    time=TIMES,
    length=st.integers(1, 10 * HOUR),
    changed=TIMES,
    other=st.booleans(),
)
def test_whatever_counts_is_of_two_people_who_may(
    *, asked_by: int, approved_by: int, ended_by: int | None, user: str, role: str | None, time: int, length: int,
    changed: int, other: bool,
) -> None:  # fmt: skip
    asked = request_paper(
        asked_by, float(changed), user=user, role=role, job=None if role else 7, time=time, until=time + length
    )
    found = {"request": asked, "approval": approval_paper(request_paper() if other else asked, approved_by)}
    if ended_by is not None:
        found["end"] = end_paper(ended_by)
    grant = judge("g1", found, Frame(make_policy(), make_members(), Everybody(), NOW))

    if grant.state == "in-force":
        assert asked_by in (11, 14)
        assert approved_by in (12, 13, 14)
        assert approved_by not in (asked_by, UIDS[user])
        assert role in (None, "phi-eu")
        assert not (user == "root" and role)
        assert ended_by is None
        assert time - 60 <= NOW < time + length <= time + 8 * HOUR
        assert changed <= NOW + 60
        assert not other or asked == request_paper()
