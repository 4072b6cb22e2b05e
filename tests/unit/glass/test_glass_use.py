"""What a grant does: a role at submission and at the start, another tag for a waiting job; and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from conf.errors import Refused
from conf.policy import Partition, Policy
from keys.secret import Secret
from slurm_hooks import engine, record
from slurm_hooks.filters.verdict import Context, Exemption
from slurm_hooks.start import StartRequest, judge_start
from tests.unit.glass.conftest import HOUR, NOW, make_members, make_policy

KEY = Secret(b"k" * 32)
SIGNER = engine.Signer("test", KEY, frozenset({0, 64030}))
EXTRA = "secure-slurm:class=phi;residency=eu;scratch=1073741824"
ROLE = Exemption(id="g1", user="bob", uid=13, until=NOW + HOUR, role="phi-eu")
JOB = Exemption(id="g2", user="root", uid=0, until=NOW + HOUR, job=7)

Fields = dict[str, bytes]


@pytest.fixture
def policy() -> Policy:
    demanding = Partition(demand_tag=True, least_class="phi", jurisdiction="eu")
    partitions = {"phi": demanding, "us": Partition(jurisdiction="us")}
    return attrs.evolve(make_policy(), partitions=partitions)


@pytest.fixture
def context(policy: Policy) -> Callable[..., Context]:
    return lambda *exemptions, now=NOW: Context(policy, make_members(), now=now, exemptions=exemptions)


def submission(user: str = "bob") -> Fields:
    return {
        "verb": b"submit",
        "submit_uid": b"13",
        "user_id": b"13",
        "user_name": user.encode(),
        "extra": EXTRA.encode(),
        "partition": b"phi",
        "has_script": b"1",
        "alloc_node": b"login1",
    }


# -- a role ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grant",
    [
        attrs.evolve(ROLE, user="ann"),
        attrs.evolve(ROLE, until=NOW),
        attrs.evolve(ROLE, ended=True),
        attrs.evolve(ROLE, role="gone"),
        attrs.evolve(ROLE, role="no-such-role"),
        attrs.evolve(ROLE, role=None, job=7),
    ],
)
def test_a_grant_that_gives_nothing(context: Callable[..., Context], grant: Exemption) -> None:
    decision = engine.decide_submit(submission(), context(grant), SIGNER)

    assert (decision.allowed, decision.exemption) == (False, "")
    assert decision.rule in ("rbac.role", "role.expired")


def test_a_role_by_grant(context: Callable[..., Context]) -> None:
    decision = engine.decide_submit(submission(), context(ROLE), SIGNER)

    assert (decision.allowed, decision.rule, decision.exemption) == (True, "allow.tagged", "g1")
    assert "g1" in str(decision.answer()["message"])


def test_who_has_the_role_anyway_uses_no_grant(context: Callable[..., Context]) -> None:
    decision = engine.decide_submit(submission("zoe"), context(attrs.evolve(ROLE, user="zoe")), SIGNER)

    assert (decision.allowed, decision.exemption) == (True, "")
    assert "message" not in decision.answer()


def test_it_gives_the_role_and_nothing_more(context: Callable[..., Context]) -> None:
    for change, rule in (
        ({"partition": b"us"}, "residency.partition"),
        ({"extra": EXTRA.replace("1073741824", str(2**50)).encode()}, "scratch.too-large"),
        ({"user_id": b"14"}, "identity.submit-uid"),
        ({"features": b"us"}, "residency.constraint"),
    ):
        assert engine.decide_submit({**submission(), **change}, context(ROLE), SIGNER).rule == rule


def test_a_role_that_is_too_narrow_for_the_job(policy: Policy, context: Callable[..., Context]) -> None:
    narrow = attrs.evolve(policy.roles["phi-eu"], partitions=("other",))
    given = context(ROLE)._replace(policy=attrs.evolve(policy, roles={"phi-eu": narrow}))

    assert engine.decide_submit(submission(), given, SIGNER).rule == "role.partition"


def test_a_refusal_tells_of_a_grant_that_has_ended(context: Callable[..., Context]) -> None:
    for grant, now in ((ROLE, NOW + HOUR), (attrs.evolve(ROLE, ended=True), NOW)):
        decision = engine.decide_submit(submission(), context(grant, now=now), SIGNER)
        assert decision.rule == "rbac.role"
        assert "'g1'" in decision.message
        assert "has ended" in decision.message
    assert "g1" not in engine.decide_submit(submission(), context(), SIGNER).message


def started(signed: str) -> StartRequest:
    strings = {"admin_comment": signed, "extra": EXTRA, "features": "eu", "partition": "phi"}
    return StartRequest(job=7, uid=13, user_id=13, restarts=0, het_job_id=0, nodes=("n1",), strings=strings)


def test_at_the_start_it_is_judged_again(context: Callable[..., Context]) -> None:
    signed = engine.decide_submit(submission(), context(ROLE), SIGNER).changes["admin_comment"]

    assert judge_start(started(signed), "test", KEY, context(ROLE)).exemptions == ("g1",)
    for later in (context(), context(ROLE, now=NOW + HOUR), context(attrs.evolve(ROLE, ended=True))):
        with pytest.raises(Refused) as caught:
            judge_start(started(signed), "test", KEY, later)
        assert caught.value.rule == "rbac.role"
    assert "has ended" in str(caught.value)


# -- another tag -------------------------------------------------------------------------------------------------------


def stored(**changes: Any) -> Fields:
    """A waiting job of zoe's, who has the role, and root's request to change it."""
    signed = record.sign(
        record.Record("test", 20, "zoe", "phi", "eu", 2**30, "ab" * 8, record.new_nonce(), record.now()), KEY
    )
    fields = {
        "verb": b"modify",
        "modify_uid": b"0",
        "rec.user_id": b"20",
        "rec.user_name": b"zoe",
        "rec.job_id": b"7",
        "rec.job_state": b"0",
        "rec.extra": EXTRA.encode(),
        "rec.admin_comment": signed.encode(),
        "rec.partition": b"main",
        "rec.features": b"(a|b)&eu",
        "rec.alloc_node": b"login1",
        "demand_nodes": b"phi=n[1-2]",
        "extra": b"secure-slurm:class=phi;residency=us",
        "features": None,
    }
    fields.update({name.replace("__", "."): value for name, value in changes.items()})
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("rule", "grants", "changes"),
    [
        ("modify.tag", (), {}),
        ("modify.tag", (attrs.evolve(JOB, until=NOW),), {}),
        ("modify.tag", (attrs.evolve(JOB, ended=True),), {}),
        ("modify.tag", (attrs.evolve(JOB, job=8),), {}),
        ("modify.tag", (attrs.evolve(JOB, uid=13),), {}),
        ("modify.tag", (attrs.evolve(JOB, uid=None),), {}),
        ("modify.tag", (attrs.evolve(ROLE, uid=0, user="root"),), {}),
        ("modify.tag", (JOB,), {"modify_uid": b"20"}),
        ("modify.tag", (attrs.evolve(JOB, uid=20),), {"modify_uid": b"20"}),
        ("modify.tag", (JOB,), {"modify_uid": b"64030"}),
        ("modify.tag", (JOB,), {"rec__job_id": None}),
        ("modify.running", (JOB,), {"rec__job_state": b"1"}),
        ("modify.running", (JOB,), {"rec__job_state": b"32768"}),
        ("modify.running", (JOB,), {"rec__job_state": None}),
        ("modify.record", (attrs.evolve(JOB, uid=30),), {"modify_uid": b"30"}),
        ("record.foreign", (JOB,), {"admin_comment": b"secure-slurm/1 cluster=test"}),
        ("modify.field", (attrs.evolve(JOB, uid=30),), {"modify_uid": b"30", "admin_comment": b"x", "shared": b"1"}),
        ("modify.field", (JOB,), {"user_id": b"13"}),
        ("modify.field", (JOB,), {"a_field_of_tomorrow": b"1"}),
        ("modify.field", (JOB,), {"requeue": b"0"}),
        ("tag.syntax", (JOB,), {"extra": b"secure-slurm:klass=phi"}),
        ("class.unknown", (JOB,), {"extra": b"secure-slurm:class=none"}),
        ("residency.unknown", (JOB,), {"extra": b"secure-slurm:class=phi;residency=mars"}),
        ("residency.required", (JOB,), {"extra": b"secure-slurm:class=phi"}),
        ("scratch.too-large", (JOB,), {"extra": b"secure-slurm:class=phi;residency=us;scratch=1099511627777"}),
        ("residency.partition", (JOB,), {"rec__partition": b"phi"}),
        ("residency.constraint", (JOB,), {"features": b"eu"}),
        ("residency.constraint", (JOB,), {"prefer": b"eu"}),
        ("partition.class", (JOB,), {"rec__partition": b"phi", "extra": b"secure-slurm:class=internal;residency=eu"}),
        ("tag.missing", (JOB,), {"rec__partition": b"phi", "extra": b""}),
        ("tag.missing", (JOB,), {"partition": b"phi", "extra": b"note"}),
        ("tag.inherit", (JOB,), {"extra": b"", "rec__alloc_node": b"n1"}),
        ("tag.inherit", (JOB,), {"extra": b"", "rec__alloc_node": None}),
        ("route.dependency-expand", (JOB,), {"extra": b"", "dependency": b"expand:3"}),
        ("input.too-long", (JOB,), {"extra__cut": b"1"}),
        ("input.control-characters", (JOB,), {"name": b"a\nb"}),
        ("record.mismatch", (JOB,), {"rec__user_id": b"21"}),
        ("record.mismatch", (JOB,), {"rec__extra": b"secure-slurm:class=internal"}),
        ("record.missing", (JOB,), {"rec__admin_comment": None}),
    ],
)  # fmt: skip
def test_a_tag_that_does_not_change(
    context: Callable[..., Context], rule: str, grants: tuple[Exemption, ...], changes: dict[str, Any]
) -> None:
    decision = engine.decide_modify(stored(**changes), context(*grants), SIGNER)

    assert (decision.allowed, decision.rule, dict(decision.changes)) == (False, rule, {}), decision
    assert decision.message


def test_the_owner_is_judged_and_not_who_changes_it(policy: Policy, context: Callable[..., Context]) -> None:
    eu = attrs.evolve(policy.roles["phi-eu"], jurisdictions=("eu",))
    given = context(JOB)._replace(policy=attrs.evolve(policy, roles={"phi-eu": eu}))

    decision = engine.decide_modify(stored(), given, SIGNER)
    assert (decision.rule, decision.exemption) == ("rbac.role", "g2")


@pytest.mark.parametrize(
    ("changes", "extra", "features"),
    [
        ({}, "secure-slurm:class=phi;residency=us;scratch=1073741824", "(a|b)&us"),
        ({"rec__features": b"eu"}, "secure-slurm:class=phi;residency=us;scratch=1073741824", "us"),
        ({"rec__features": b"a&eu"}, "secure-slurm:class=phi;residency=us;scratch=1073741824", "a&us"),
        ({"features": b"c"}, "secure-slurm:class=phi;residency=us;scratch=1073741824", "c&us"),
        ({"features": b""}, "secure-slurm:class=phi;residency=us;scratch=1073741824", "us"),
        ({"extra": EXTRA.replace("1073741824", "2097152").encode()}, None, None),
        ({"extra": b"secure-slurm:class=internal;residency=eu"}, None, None),
        ({"extra": b"secure-slurm:class=internal"}, None, None),
        (
            {"extra": b"secure-slurm:class=phi;residency=eu", "partition": b"phi"},
            "secure-slurm:class=phi;residency=eu;scratch=1073741824",
            None,
        ),
    ],
)
def test_another_tag(
    context: Callable[..., Context], changes: dict[str, Any], extra: str | None, features: str | None
) -> None:
    asked = stored(**changes)
    decision = engine.decide_modify(asked, context(JOB), SIGNER)

    assert (decision.allowed, decision.rule, decision.exemption) == (True, "allow.tagged", "g2"), decision
    told = dict(decision.changes)
    signed = record.verify(told["admin_comment"], KEY)
    # what is told to Slurm or was asked for is what the record says
    assert signed.tag.to_extra() == told.get("extra", asked["extra"].decode())
    assert (told.get("extra"), told.get("features")) == (extra, features)
    assert (signed.uid, signed.user, signed.nonce) == (20, "zoe", decision.nonce)
    assert record.split(told["admin_comment"])[1] == "tag changed by break-glass g2"
    assert decision.tag == signed.tag
    # the job is whole again: its record is the new one
    again = {**asked, "rec.extra": signed.tag.to_extra().encode(), "rec.admin_comment": told["admin_comment"].encode()}
    if "features" in told:
        again["rec.features"] = told["features"].encode()
    later = {name: value for name, value in again.items() if name.startswith("rec.") or name in ("verb", "modify_uid")}
    assert engine.decide_modify({**later, "name": b"x"}, context(), SIGNER).allowed


def test_an_administrator_who_asks_for_an_admin_comment_too(context: Callable[..., Context]) -> None:
    asked = stored(modify_uid=b"30", admin_comment=b"x")
    decision = engine.decide_modify(asked, context(attrs.evolve(JOB, uid=30)), SIGNER)

    assert (decision.allowed, decision.actor) == (True, 30), decision
    assert decision.changes["admin_comment"].endswith(" | tag changed by break-glass g2")
    assert engine.decide_modify(stored(admin_comment=b"x", extra=b""), context(JOB), SIGNER).changes == {
        "admin_comment": "tag removed by break-glass g2"
    }


@pytest.mark.parametrize("extra", [b"", b"a note"])
def test_no_tag_at_all(context: Callable[..., Context], extra: bytes) -> None:
    asked = stored(extra=extra)
    asked["rec.admin_comment"] += b" | held: because"
    decision = engine.decide_modify(asked, context(JOB), SIGNER)

    assert (decision.allowed, decision.rule, decision.exemption) == (True, "allow.untagged", "g2"), decision
    assert decision.tag is not None
    assert decision.tag.klass == "phi"
    assert dict(decision.changes) == {"admin_comment": "held: because; tag removed by break-glass g2"}
    later = {**stored(extra=None, name=b"x"), "rec.extra": extra, "rec.admin_comment": b"tag removed by break-glass g2"}
    assert engine.decide_modify(later, context(), SIGNER).rule == "allow.untagged"


def test_a_tag_that_stays_needs_no_grant(context: Callable[..., Context]) -> None:
    decision = engine.decide_modify(stored(extra=EXTRA.encode()), context(), SIGNER)

    assert (decision.allowed, decision.exemption, dict(decision.changes)) == (True, "", {})


@pytest.mark.parametrize(
    ("old", "new", "more"),
    [
        ({"mail": "allow"}, {"mail": "refuse"}, {}),
        ({"mail": "allow"}, {"mail": "owner"}, {}),
        ({"mail": "owner"}, {"mail": "refuse"}, {}),
        ({"burst_buffers": "allow"}, {"burst_buffers": "refuse"}, {}),
        ({"environment": "any"}, {"environment": "none"}, {}),
        ({"environment": "none"}, {"environment": "nil"}, {}),
        ({}, {"max_array": 5}, {"rec__array_job_id": b"7"}),
        ({"max_array": 6}, {"max_array": 5}, {"rec__array_job_id": b"7"}),
    ],
)
def test_what_nobody_can_see_may_not_matter_more_than_before(
    policy: Policy, context: Callable[..., Context], old: dict[str, Any], new: dict[str, Any], more: dict[str, Any]
) -> None:
    weak, strong = policy.classes
    asked = stored(extra=b"secure-slurm:class=internal;residency=eu", **more)

    def decide(phi: dict[str, Any], internal: dict[str, Any]) -> engine.Decision:
        classes = (attrs.evolve(weak, **internal), attrs.evolve(strong, **phi))
        return engine.decide_modify(asked, context(JOB)._replace(policy=attrs.evolve(policy, classes=classes)), SIGNER)

    assert decide(old, new).rule == "modify.unseen"
    assert decide(new, old).allowed
    assert decide(new, new).allowed


def test_whole_nodes_are_asked_for_when_they_were_not(policy: Policy, context: Callable[..., Context]) -> None:
    signed = record.sign(
        record.Record("test", 20, "zoe", "internal", "eu", None, "ab" * 8, record.new_nonce(), record.now()), KEY
    )
    weak = {"rec__extra": b"secure-slurm:class=internal;residency=eu", "rec__admin_comment": signed.encode()}
    decision = engine.decide_modify(stored(extra=EXTRA.encode(), **weak), context(JOB), SIGNER)
    assert decision.changes["shared"] == "0"
    decision = engine.decide_modify(stored(**weak, extra=EXTRA.encode(), forced_sharing=b"main"), context(JOB), SIGNER)
    assert decision.rule == "partition.sharing"
    assert "shared" not in engine.decide_modify(stored(), context(JOB), SIGNER).changes


def test_a_container_of_the_stored_job_is_judged(policy: Policy, context: Callable[..., Context]) -> None:
    decision = engine.decide_modify(stored(rec__container=b"/oci"), context(JOB), SIGNER)
    assert decision.rule == "route.container"


def test_an_untagged_job_gets_no_tag_by_grant(context: Callable[..., Context]) -> None:
    untagged = stored(rec__extra=None, rec__admin_comment=None)

    assert engine.decide_modify(untagged, context(JOB), SIGNER).rule == "modify.tag"
