"""Every rule of a change to a stored job: what it refuses, and the nearest change that it lets pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from pytest_mock import MockerFixture

from conf.policy import Policy
from keys.secret import Secret
from slurm_hooks import engine, record
from slurm_hooks.filters import change
from slurm_hooks.filters.verdict import Context
from tests.services.slurm.modify_table import documented

Fields = dict[str, bytes]
Changes = dict[str, bytes | None]
Decide = Callable[..., engine.Decision]

ROOT: Changes = {"modify_uid": b"0"}
SLURM: Changes = {"modify_uid": b"64030"}
OPERATOR: Changes = {"modify_uid": b"1003"}

TAGGED_REFUSED: list[tuple[str, Changes]] = [
    ("modify.tag", {"extra": b""}),
    ("modify.tag", {"extra": b"note"}),
    ("modify.tag", {"extra": b"secure-slurm:class=internal"}),
    ("modify.tag", {"extra": b"secure-slurm:class=internal", **ROOT}),
    ("modify.tag", {"extra": b"secure-slurm:class=internal", **SLURM}),
    ("modify.field", {"requeue": b"0"}),
    ("modify.field", {"requeue": b"0", **ROOT}),
    ("modify.field", {"admin_comment": b"x"}),
    ("modify.field", {"user_id": b"1002", **ROOT}),
    ("modify.field", {"user_id": b"1002"}),
    ("modify.field", {"shared": b"1", **ROOT}),
    ("modify.field", {"end_time": b"1795288887", **ROOT}),
    ("modify.field", {"reboot": b"1", **ROOT}),
    ("modify.field", {"network": b"x"}),
    ("modify.field", {"burst_buffer": b"x"}),
    ("modify.field", {"container": b"x"}),
    ("modify.field", {"batch_features": b"eu"}),
    ("modify.field", {"ntasks_per_tres": b"2"}),
    ("modify.field", {"mcs_label": b"x"}),
    ("modify.field", {"clusters": b"other"}),
    ("modify.field", {"a_field_of_tomorrow": b"1"}),
    ("modify.unseen", {}),
    ("modify.unseen", ROOT),
    ("modify.unseen", OPERATOR),
    # what slurmctld and the filter send with every change is none
    ("modify.unseen", {"user_id": b"1001", "user_name": b"alice", "het_job_offset": b"0", "alloc_node": b"n1"}),
    ("modify.unseen", {"default_account": b"lab", "default_qos": b"normal"}),
    ("modify.running", {"min_nodes": b"1", "max_nodes": b"1", "rec__job_state": b"1"}),
    ("modify.running", {"req_nodes": b"n1", "rec__job_state": b"1", **ROOT}),
    ("modify.running", {"min_nodes": b"1", "rec__job_state": b"2"}),
    # completing after a failed start, with the flags of a state above its base (slurm.h)
    ("modify.running", {"min_nodes": b"1", "rec__job_state": b"32769"}),
    ("modify.running", {"min_nodes": b"1", "rec__job_state": None}),
    ("route.mail", {"mail_type": b"2"}),
    ("route.mail", {"mail_user": b"eve"}),
    ("route.dependency-expand", {"dependency": b"expand:3"}),
    ("route.dependency-other", {"dependency": b"afterok:3", "dependency_uids": b"1002"}),
    ("route.dependency-other", {"dependency": b"afterok:3", "dependency_uids": b"?", **ROOT}),
    ("modify.record", {"admin_comment": b"", **ROOT}),
    ("modify.record", {"admin_comment": b"gone", **ROOT}),
    ("modify.record", {"admin_comment": b"secure-slurm/1 cluster=test", **SLURM}),
    ("identity.modify-uid", {"comment": b"x", **OPERATOR}),
    ("identity.modify-uid", {"partition": b"open", **OPERATOR}),
    ("identity.modify-uid", {"priority": b"0", "comment": b"x", **OPERATOR}),
    ("residency.constraint", {"features": b"us"}),
    ("residency.constraint", {"features": b"a*2"}),
    ("residency.constraint", {"prefer": b"us", **ROOT}),
    ("residency.partition", {"partition": b"us"}),
    ("residency.partition", {"partition": b"us", **ROOT}),
    ("role.partition", {"partition": b"gpu"}),
    ("partition.sharing", {"partition": b"open", "forced_sharing": b"open"}),
    ("partition.sharing", {"partition": b"open", "forced_sharing": b"open", **ROOT}),
    ("partition.sharing", {"features": b"a", "forced_sharing": b"phi"}),
    ("input.control-characters", {"name": b"a\nb"}),
    ("input.control-characters", {"comment": b"a\x1bb"}),
    ("input.control-characters", {"partition": b"open", "comment": b"a\x1bb"}),
    ("input.too-long", {"comment": b"x", "comment__cut": b"1"}),
    ("input.too-long", {"partition": b"open", "partition__cut": b"1"}),
    ("record.mac", {"rec__admin_comment": b"secure-slurm/1 cluster=test uid=0 mac=" + b"0" * 64}),
    ("record.syntax", {"rec__admin_comment": b"secure-slurm/1 cluster=test"}),
    ("record.missing", {"rec__admin_comment": None}),
    ("record.missing", {"rec__admin_comment": b"my secure-slurm/1 story"}),
    ("record.missing", {"rec__admin_comment": None, **ROOT}),
    ("record.mismatch", {"rec__extra": None}),
    ("record.mismatch", {"rec__extra": b"secure-slurm:class=internal"}),
    ("record.mismatch", {"rec__user_id": b"1002"}),
    ("record.mismatch", {"rec__user_id": None}),
    ("engine.error", {"modify_uid": None}),
    ("engine.error", {"rec__user_id": b"alice"}),
]


@pytest.mark.parametrize(("rule", "changed"), TAGGED_REFUSED)
def test_refused_for_a_tagged_job(modify: Decide, stored: Fields, rule: str, changed: Changes) -> None:
    decision = modify(stored, **changed)

    assert (decision.allowed, decision.rule) == (False, rule), decision
    assert decision.message
    assert decision.advice
    assert set(decision.answer()) == {"verdict", "rule", "message", "advice"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"name": b"other", "comment": b"why", "time_limit": b"60", "begin_time": b"1795288887"}, {}),
        ({"priority": b"0"}, {}),
        ({"priority": b"0", **OPERATOR}, {}),
        ({"priority": b"4294967295", **ROOT}, {}),
        ({"min_nodes": b"1", "max_nodes": b"2", "min_mem_per_node": b"100"}, {}),
        ({"time_limit": b"90", **OPERATOR}, {}),
        ({"array_inx": b"2", "nice": b"2147483648", **OPERATOR}, {}),
        ({"req_nodes": b"n1", "exc_nodes": b"n2"}, {}),
        ({"account": b"x", "qos": b"y", "licenses": b"z:1", "reservation": b"r"}, {}),
        ({"work_dir": b"/tmp", "std_out": b"o"}, {}),
        ({"tres_per_node": b"gres/gpu:1", "num_tasks": b"4"}, {}),
        ({"dependency": b"afterok:3", "dependency_uids": b"1001"}, {}),
        ({"dependency": b""}, {}),
        ({"mail_user": b""}, {}),
        ({"requeue": b"1"}, {}),
        # it has to be possible to hold it, wherever it is
        ({"priority": b"0", "forced_sharing": b"phi"}, {}),
        ({"extra": b"secure-slurm:class=phi;residency=eu;scratch=1073741824"}, {}),
        # what scontrol sends with every change, on 24.11 and 26.05
        (
            {"user_id": b"1001", "user_name": b"alice", "het_job_offset": b"0", "alloc_node": b"n1", "nice": b"0"},
            {},
        ),
        ({"partition": b"open"}, {}),
        ({"partition": b"open", "rec__features": b"big"}, {"features": "big&eu"}),
        ({"partition": b"open", "rec__features": None}, {"features": "eu"}),
        ({"features": b"a|b"}, {"features": "(a|b)&eu"}),
        ({"features": b""}, {"features": "eu"}),
        ({"prefer": b"fast"}, {"prefer": "fast&eu"}),
        ({"prefer": b""}, {}),
        ({"prefer": b"fast", "partition": b"phi,open", **ROOT}, {"prefer": "fast&eu"}),
    ],
)
def test_allowed_for_a_tagged_job(modify: Decide, stored: Fields, changed: Changes, told: dict[str, str]) -> None:
    decision = modify(stored, **changed)

    assert (decision.allowed, decision.rule, dict(decision.changes)) == (True, "allow.tagged", told), decision


@pytest.fixture
def limited(context: Context) -> Context:
    """The same policy, with limits for class and role."""
    weak, phi, *others = context.policy.classes
    phi = attrs.evolve(
        phi,
        max_nodes=3,
        max_time=1800.0,
        max_gpus=4,
        gres=("gpu",),
        work_dirs=("/data/phi",),
        output_dirs=("/data/phi",),
        mail="owner",
    )
    role = attrs.evolve(
        context.policy.roles["phi-eu"], accounts=("lab",), qos=("normal",), reservations=("mine",), licenses=("foo",)
    )
    policy = attrs.evolve(context.policy, classes=(weak, phi, *others), roles={**context.policy.roles, "phi-eu": role})
    return context._replace(policy=policy)


@pytest.fixture
def usual(stored: Fields) -> Fields:
    """The stored job, as the limited policy had accepted it."""
    given = {
        "account": b"lab",
        "qos": b"normal",
        "work_dir": b"/data/phi/alice",
        "std_out": b"out-%x",
        "name": b"job",
        "time_limit": b"20",
        "min_nodes": b"1",
        "max_nodes": b"2",
        "tres_per_node": b"gres/gpu:1",
        "resv_name": b"mine",
        "licenses": b"foo:2",
    }
    return {**stored, **{f"rec.{name}": value for name, value in given.items()}}


MERGED_REFUSED: list[tuple[str, Changes]] = [
    ("limit.nodes", {"max_nodes": b"4"}),
    ("limit.nodes", {"min_nodes": b"4", **ROOT}),
    ("limit.nodes", {"partition": b"open", "rec__max_nodes": b"0"}),
    ("limit.time", {"time_limit": b"31"}),
    ("limit.time", {"time_limit": b"31", **OPERATOR}),
    ("limit.time", {"time_limit": b"4294967295", **ROOT}),
    ("limit.time", {"partition": b"open", "rec__time_limit": b"4294967294"}),
    # two and two: what is stored counts with what is asked
    ("limit.gpus", {"max_nodes": b"3", "tres_per_node": b"gres/gpu:2"}),
    ("limit.gpus", {"tres_per_job": b"gres/gpu:5"}),
    ("limit.gpus", {"tres_per_task": b"gres/gpu:1"}),
    ("limit.gpus", {"num_tasks": b"5", "rec__tres_per_task": b"gres/gpu:1"}),
    ("limit.gpus", {"max_nodes": b"2", "rec__tres_per_task": b"gres/gpu:1"}),
    ("limit.gres", {"tres_per_node": b"gres/nvme:1"}),
    ("path.work-dir", {"work_dir": b"/tmp"}),
    ("path.work-dir", {"work_dir": b"", **ROOT}),
    ("path.output", {"std_out": b"/tmp/o"}),
    ("path.output", {"std_err": b"../../open"}),
    ("path.output", {"name": b"../../../tmp/x"}),
    ("route.mail", {"mail_user": b"bob"}),
    ("role.account", {"account": b"other"}),
    ("role.qos", {"qos": b"high", **ROOT}),
    ("role.reservation", {"reservation": b"theirs"}),
    ("role.license", {"licenses": b"bar"}),
    ("role.license", {"licenses": b"foo,bar:1", **ROOT}),
    # what the role does not cover any more stops every change that has to be judged
    ("role.account", {"features": b"a", "rec__account": b"other"}),
    ("role.account", {"features": b"a", "rec__account": None, "default_account": b"other"}),
    ("input.too-long", {"features": b"a", "rec__licenses__cut": b"1"}),
    ("input.control-characters", {"features": b"a", "std_in": b"a\nb"}),
]


@pytest.mark.parametrize(("rule", "changed"), MERGED_REFUSED)
def test_refused_for_what_the_job_would_be(
    modify: Decide, usual: Fields, limited: Context, rule: str, changed: Changes
) -> None:
    decision = modify(usual, given=limited, **changed)

    assert (decision.allowed, decision.rule) == (False, rule), decision
    assert decision.advice


@pytest.mark.parametrize(
    "changed",
    [
        {"max_nodes": b"3"},
        {"time_limit": b"30"},
        {"time_limit": b"30", "rec__job_state": b"1", **OPERATOR},
        {"max_nodes": b"1", "tres_per_node": b"gres/gpu:4"},
        {"work_dir": b"/data/phi/bob", "std_err": b"e"},
        {"std_out": b"/dev/null"},
        {"name": b"job2"},
        {"name": b"a/b", "std_out": b"/data/phi/o"},
        {"account": b"lab", "qos": b"normal", "reservation": b"", "licenses": b"foo:1"},
        {"mail_type": b"2", "mail_user": b"alice"},
        {"features": b"a", "rec__account": None, "default_account": b"lab"},
        {"priority": b"0", "rec__account": b"other"},
        {"comment": b"x", "rec__time_limit": b"9999"},
        {"features": b"a", "rec__tres_per_task": b"gres/gpu:1"},
        {"num_tasks": b"4", "rec__tres_per_task": b"gres/gpu:1"},
    ],
)
def test_allowed_for_what_the_job_would_be(modify: Decide, usual: Fields, limited: Context, changed: Changes) -> None:
    decision = modify(usual, given=limited, **changed)

    assert decision.allowed, decision


@pytest.mark.parametrize("name", sorted(change.PLAIN | change.JUDGED))
def test_a_field_is_plain_or_judged_and_never_a_strangers(modify: Decide, stored: Fields, name: str) -> None:
    assert not change.PLAIN & change.JUDGED
    decision = modify(stored, **{name: b"1", "modify_uid": b"1002"})

    assert decision.allowed is (name in change.OPERATOR), decision


@pytest.mark.parametrize("who", [ROOT, SLURM])
def test_a_reason_may_be_added_behind_the_record(modify: Decide, stored: Fields, who: Changes) -> None:
    text = stored["rec.admin_comment"]

    assert modify(stored, admin_comment=text, **who).allowed
    assert modify(stored, admin_comment=text + b" | no key: Vault is sealed", **who).allowed
    again = {**stored, "rec.admin_comment": text + b" | first"}
    assert modify(again, admin_comment=text + b" | second", **who).allowed
    assert modify(again, admin_comment=text, **who).allowed


@pytest.mark.parametrize("tail", [b" ", b" x", b"x", b" |", b"| x", b" | a\nb", b" | \xff", b" | " + b"x" * 5000])
def test_nothing_else_may_be_added_to_the_record(modify: Decide, stored: Fields, tail: bytes) -> None:
    decision = modify(stored, admin_comment=stored["rec.admin_comment"] + tail, **ROOT)

    assert decision.rule == "modify.record"


def test_a_cut_admin_comment_is_not_compared(modify: Decide, stored: Fields) -> None:
    text = stored["rec.admin_comment"]

    assert modify(stored, admin_comment=text, admin_comment__cut=b"1", **ROOT).rule == "modify.record"


def test_a_long_reason_behind_the_stored_record_does_not_hide_it(modify: Decide, stored: Fields) -> None:
    text = (stored["rec.admin_comment"] + b" | " + b"x" * 9000)[:8192]

    decision = modify({**stored, "rec.admin_comment": text}, name=b"n", **{"rec__admin_comment__cut": b"1"})

    assert decision.rule == "allow.tagged"


def test_a_plain_change_needs_no_group_members(modify: Decide, stored: Fields, policy: Policy) -> None:
    """The lifecycle daemon writes its reasons and an owner holds his job, whatever LDAP does."""
    unknown = Context(policy, None, "stale", "wait")

    assert modify(stored, given=unknown, priority=b"0").allowed
    assert modify(stored, given=unknown, partition=b"open").rule == "rbac.snapshot"


@pytest.fixture
def weak(stored: Fields, signer: engine.Signer) -> Callable[[str | None], Fields]:
    """A stored job of alice's with the weakest class."""

    def make(residency: str | None) -> Fields:
        made = record.Record(
            "test", 1001, "alice", "internal", residency, None, "ab" * 8, record.new_nonce(), record.now()
        )
        extra = "secure-slurm:class=internal" + (f";residency={residency}" if residency else "")
        signed = record.sign(made, signer.key)
        return {
            **stored,
            "rec.extra": extra.encode(),
            "rec.admin_comment": signed.encode(),
            "rec.partition": b"open",
            "rec.features": (residency or "").encode(),
        }

    return make


def test_a_weak_job_is_not_moved_to_a_partition_for_strong_ones(
    modify: Decide, weak: Callable[[str | None], Fields]
) -> None:
    assert modify(weak("eu"), partition=b"phi").rule == "partition.class"
    assert modify(weak("eu"), partition=b"lab,phi", **ROOT).rule == "partition.class"
    assert modify(weak(None), partition=b"lab").rule == "residency.partition"
    assert modify(weak("us"), partition=b"lab", **ROOT).rule == "residency.partition"
    assert modify(weak("eu"), partition=b"lab").allowed


def test_a_move_is_judged_by_the_owners_roles(modify: Decide, stored: Fields, context: Context) -> None:
    lost = attrs.evolve(context.policy, roles={"all": context.policy.roles["all"]})

    assert modify(stored, given=context._replace(policy=lost), partition=b"open", **ROOT).rule == "rbac.role"


def test_a_record_of_another_key_or_cluster_is_not_ours(
    stored: Fields, context: Context, signer: engine.Signer
) -> None:
    other_key = signer._replace(key=Secret(b"x" * 32))
    other_cluster = signer._replace(cluster="prod")

    assert engine.decide_modify(stored, context, other_key).rule == "record.mac"
    assert engine.decide_modify(stored, context, other_cluster).rule == "record.mismatch"


UNTAGGED: Fields = {
    "verb": b"modify",
    "modify_uid": b"1002",
    "rec.user_id": b"1002",
    "rec.user_name": b"bob",
    "rec.job_id": b"8",
    "rec.partition": b"open",
}


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("modify.tag", {"extra": b"secure-slurm:class=phi"}),
        ("modify.tag", {"extra": b"Secure-Slurm", **ROOT}),
        ("record.foreign", {"admin_comment": b"secure-slurm/1 cluster=test", **ROOT}),
        ("tag.missing", {"partition": b"phi"}),
        ("tag.missing", {"partition": b"open,phi", **ROOT}),
        ("route.dependency-expand", {"dependency": b"expand:7"}),
        ("route.dependency-expand", {"dependency": b"afterok:1,Expand:7", **ROOT}),
        ("input.too-long", {"partition": b"open", "partition__cut": b"1"}),
        ("input.too-long", {"extra": b"x", "extra__cut": b"1"}),
        ("input.too-long", {"admin_comment": b"x", "admin_comment__cut": b"1", **ROOT}),
        ("input.too-long", {"dependency": b"afterok:1", "dependency__cut": b"1"}),
    ],
)
def test_refused_for_an_untagged_job(modify: Decide, rule: str, changed: Changes) -> None:
    decision = modify(UNTAGGED, **changed)

    assert (decision.allowed, decision.rule) == (False, rule), decision
    assert decision.advice


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"partition": b"us"},
        {"partition": b"us", "forced_sharing": b"us"},
        {"extra": b"note"},
        {"extra": b""},
        {"features": b"a*2"},
        {"requeue": b"0"},
        {"dependency": b"afterok:7"},
        {"dependency": b""},
        {"account": b"x", "qos": b"y", "req_nodes": b"n1"},
        {"admin_comment": b"note", **ROOT},
        {"comment": b"\xff\n", "comment__cut": b"1"},
        {"rec__admin_comment": b"a note of root's"},
        {"rec__extra": b"note", **OPERATOR},
    ],
)
def test_allowed_for_an_untagged_job(modify: Decide, changed: Changes) -> None:
    decision = modify(UNTAGGED, **changed)

    assert (decision.allowed, decision.rule, dict(decision.changes)) == (True, "allow.untagged", {}), decision


def test_a_stored_record_is_never_written_again(modify: Decide, stored: Fields) -> None:
    """The plugin could not write it during a user's change, so an attempt would refuse everything."""
    assert "admin_comment" not in modify(stored, features=b"a").changes


def test_an_exception_is_a_refusal(modify: Decide, stored: Fields, mocker: MockerFixture) -> None:
    mocker.patch.object(change, "tagged", side_effect=RuntimeError("canary"))

    decision = modify(stored, name=b"x")

    assert decision.rule == "engine.error"
    assert "canary" not in str(decision)


def test_what_the_trail_says(modify: Decide, stored: Fields) -> None:
    decision = modify(stored, partition=b"open", **ROOT)

    assert (decision.verb, decision.uid, decision.actor, decision.job) == ("modify", 1001, 0, 7)
    assert decision.partition == "open"
    assert decision.nonce == record.verify(stored["rec.admin_comment"].decode(), Secret(b"k" * 32)).nonce


def test_the_pages_table_is_that_of_the_test_on_a_real_cluster() -> None:
    text = (Path(__file__).parents[3] / "docs/admin.md").read_text()

    assert "\n".join(documented()) in text, "put this table there:\n" + "\n".join(documented())
