"""Every rule of a submission: what it refuses, and the nearest job that it lets pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from pytest_mock import MockerFixture

from conf.policy import Policy
from keys.secret import Secret
from slurm_hooks import engine, record
from slurm_hooks.filters import chain
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Judge

Fields = dict[str, bytes]
Changes = dict[str, bytes | None]
Decide = Callable[..., engine.Decision]


def extra(text: str) -> bytes:
    return f"secure-slurm:{text}".encode()


def lines(*script_lines: str) -> bytes:
    return "\n".join(script_lines).encode()


WEAK_EU = extra("class=internal;residency=eu")

REFUSED: list[tuple[str, Changes]] = [
    ("tag.syntax", {"extra": b"secure-slurm"}),
    ("tag.syntax", {"extra": b"my note about Secure-Slurm"}),
    ("tag.syntax", {"extra": extra("class=phi;class=phi")}),
    ("tag.syntax", {"extra": extra("class=phi;residency=eu;scratch=0")}),
    ("tag.syntax", {"extra": extra("class=phi;residency=eu") + b"\xff"}),
    ("tag.syntax", {"script_lines": lines("#SECURE --klass=phi")}),
    ("tag.syntax", {"script_lines": lines("#SECURE")}),
    ("tag.syntax", {"script_lines": lines("#SECURE--class=phi")}),
    ("tag.syntax", {"script_lines": lines("#SECURE_CLASS=phi")}),
    ("tag.syntax", {"script_lines": lines("#SECURE --class=phi --class=internal")}),
    ("tag.syntax", {"script_lines": lines("#SECURE --scratch=lots")}),
    ("tag.syntax", {"script_lines__overflow": b"1"}),
    ("tag.syntax", {"env__secure_class": b"P H I"}),
    ("tag.syntax", {"env__secure_scratch_size": b"10GB"}),
    ("tag.weaker-than-script", {"extra": extra("class=internal"), "script_lines": lines("#SECURE --class=phi")}),
    ("tag.weaker-than-script", {"script_lines": lines("#SECURE --class=unheard-of")}),
    ("tag.weaker-than-script", {"script_lines": lines("#SECURE --residency=us")}),
    ("tag.weaker-than-script", {"extra": extra("class=internal"), "script_lines": lines("#SECURE --scratch=1G")}),
    ("tag.weaker-than-script", {"script_lines": lines("#SECURE --class=phi", "#SECURE --residency=us")}),
    ("tag.weaker-than-environment", {"env__secure_residency": b"us"}),
    ("tag.weaker-than-environment", {"extra": extra("class=internal"), "env__secure_class": b"phi"}),
    ("tag.weaker-than-environment", {"extra": extra("class=internal"), "env__secure_scratch_size": b"1G"}),
    ("tag.missing", {"extra": None}),
    ("tag.missing", {"extra": b"something else"}),
    ("tag.missing", {"extra": None, "partition": b"open,phi"}),
    ("tag.missing", {"extra": None, "partition": None, "default_partition": b"phi"}),
    ("tag.missing", {"extra": None, "partition": None, "default_partition": None}),
    ("tag.missing", {"extra": None, "partition": b"open", "script_lines": lines("#SECURE --class=internal")}),
    ("tag.missing", {"extra": None, "partition": b"open", "env__secure_class": b"phi"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b"n2"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b"n2.cluster.example"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": None}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b""}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b"10.0.0.5"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b"fd00::5"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b"::ffff:10.0.0.5"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "alloc_node": b"fe80::1%eth0"}),
    ("tag.inherit", {"extra": extra("class=internal;residency=us"), "partition": b"us", "alloc_node": b"10.0.0.5"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "demand_nodes": b"phi=ALL"}),
    ("tag.inherit", {"extra": None, "partition": b"open", "demand_nodes": b"phi=n[1-"}),
    ("tag.inherit", {"extra": extra("class=internal"), "partition": b"open", "alloc_node": b"n1"}),
    ("class.unknown", {"extra": extra("class=secret")}),
    ("residency.unknown", {"extra": extra("class=phi;residency=mars")}),
    ("residency.required", {"extra": extra("class=phi")}),
    ("residency.constraint", {"features": b"a*2"}),
    ("residency.constraint", {"features": b"us"}),
    ("residency.constraint", {"features": b"big|us"}),
    ("residency.constraint", {"features": b"a b"}),
    ("residency.constraint", {"prefer": b"us"}),
    ("residency.constraint", {"prefer": b"[a&b]"}),
    ("residency.constraint", {"batch_features": b"us"}),
    ("residency.partition", {"partition": b"us"}),
    ("residency.partition", {"partition": b"phi,us"}),
    ("residency.partition", {"partition": None, "default_partition": b"us"}),
    ("residency.partition", {"extra": extra("class=internal"), "partition": b"lab"}),
    ("residency.partition", {"extra": extra("class=internal"), "partition": b"open,lab"}),
    ("residency.partition", {"extra": extra("class=internal"), "partition": None, "default_partition": b"lab"}),
    ("residency.partition", {"extra": extra("class=internal"), "partition": None, "default_partition": None}),
    ("residency.partition", {"extra": extra("class=internal;residency=us"), "partition": b"lab"}),
    ("partition.class", {"extra": WEAK_EU}),
    ("partition.class", {"extra": WEAK_EU, "partition": b"open,phi"}),
    ("partition.class", {"extra": WEAK_EU, "partition": None, "default_partition": b"phi"}),
    ("partition.class", {"extra": WEAK_EU, "partition": None, "default_partition": None}),
    ("tag.inherit", {"extra": WEAK_EU, "partition": b"open", "alloc_node": b"n1"}),
    ("partition.sharing", {"forced_sharing": b"phi"}),
    ("partition.sharing", {"partition": b"phi,open", "forced_sharing": b"open"}),
    ("partition.sharing", {"shared": b"0", "forced_sharing": b"phi"}),
    ("scratch.required", {"extra": extra("class=raw"), "partition": b"open"}),
    ("scratch.too-large", {"extra": extra("class=phi;residency=eu;scratch=2T")}),
    ("scratch.too-large", {"extra": extra("class=bare;scratch=1M"), "partition": b"open"}),
    ("rbac.user", {"user_name": None}),
    ("rbac.user", {"user_name": b""}),
    ("rbac.user", {"user_name": b"alice mac=00"}),
    ("rbac.user", {"user_name": b"al\xff"}),
    ("rbac.role", {"user_name": b"bob"}),
    ("rbac.role", {"user_name": b"nobody-known"}),
    ("rbac.role", {"extra": extra("class=phi;residency=us;scratch=1G"), "partition": b"open"}),
    ("role.partition", {"partition": b"gpu"}),
    ("role.partition", {"partition": b"phi,gpu"}),
    ("role.partition", {"partition": None, "default_partition": None}),
    ("identity.submit-uid", {"submit_uid": b"0"}),
    ("identity.submit-uid", {"user_id": None}),
    ("route.dependency-expand", {"dependency": b"expand:17"}),
    ("route.dependency-expand", {"dependency": b"afterok:1,Expand:17"}),
    # the job that is expanded may be the one with the tag
    ("route.dependency-expand", {"extra": None, "partition": b"open", "dependency": b"expand:17"}),
    ("input.too-long", {"extra": None, "partition": b"open", "dependency": b"afterok:1", "dependency__cut": b"1"}),
    ("route.clusters", {"clusters": b"other"}),
    ("route.clusters", {"clusters": b"test"}),
    ("route.het", {"het_job_offset": b"0"}),
    ("route.cron", {"cron_job": b"1", "het_job_offset": b"0"}),
    ("input.control-characters", {"name": b"a\nb"}),
    ("input.control-characters", {"std_out": b"\x1b[2J"}),
    ("input.control-characters", {"work_dir": b"/home/\xff"}),
    ("input.control-characters", {"comment": "a\u202eb".encode()}),
    ("input.too-long", {"comment": b"x" * 8192, "comment__cut": b"1"}),
    ("input.too-long", {"extra__cut": b"1"}),
    ("input.too-long", {"extra": b"x", "extra__cut": b"1"}),
    ("record.foreign", {"admin_comment": b"secure-slurm/1 cluster=test"}),
    ("record.foreign", {"extra": None, "partition": b"open", "admin_comment": b"see Secure-Slurm/1"}),
    ("engine.error", {"submit_uid": None}),
    ("engine.error", {"user_id": b"-1"}),
    ("engine.error", {"shared": b"x"}),
]


@pytest.mark.parametrize(("rule", "changed"), REFUSED)
def test_refused(submit: Decide, fields: Fields, rule: str, changed: Changes) -> None:
    decision = submit(fields, **changed)

    assert (decision.allowed, decision.rule) == (False, rule)
    assert decision.message
    assert decision.advice
    assert decision.answer()["verdict"] == "refuse"
    assert not any(name.startswith("set.") for name in decision.answer())


ALLOWED: list[Changes] = [
    {},
    {"partition": b"open"},
    {"partition": b"phi,open"},
    {"extra": extra("residency=eu;class=phi")},
    {"script_lines": lines("#SECURE --class=phi --residency=eu --scratch=5G # why", "#SECURE --secure-class=internal")},
    {"script_lines": lines("#SECURELY speaking", "#SECURE --class=phi\r")},
    {"env__secure_class": b"phi", "env__secure_residency": b"eu", "env__secure_scratch_size": b"200M"},
    {"env__secure_class": b""},
    {"alloc_node": b"n1"},
    {"alloc_node": b"10.0.0.5"},
    {"alloc_node": b"fd00::5"},
    {"alloc_node": None},
    {"dependency": b"afterok:17"},
    {"clusters": b""},
    {"features": b"big|small"},
    {"prefer": b"fast"},
    {"name": "Größe".encode()},
    {"extra": extra("class=internal"), "user_name": b"bob", "partition": b"open"},
    {"extra": extra("class=internal;residency=us"), "partition": b"us"},
    {"extra": extra("class=raw;scratch=1G"), "partition": b"gpu"},
    {"extra": WEAK_EU, "partition": b"lab"},
    # this class shares its nodes anyway
    {"extra": WEAK_EU, "partition": b"lab", "forced_sharing": b"lab"},
    {"forced_sharing": b""},
    # stronger than the partition asks for
    {"extra": extra("class=raw;residency=eu;scratch=1G"), "partition": b"phi"},
    {"extra": extra("class=raw;residency=eu;scratch=1G"), "partition": b"open", "alloc_node": b"n1"},
]


@pytest.mark.parametrize("changed", ALLOWED)
def test_allowed(submit: Decide, fields: Fields, changed: Changes) -> None:
    decision = submit(fields, **changed)

    assert (decision.allowed, decision.rule) == (True, "allow.tagged"), decision


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"partition": b"open"},
        {"extra": b"just a note"},
        {"submit_uid": b"0"},
        {"user_name": None},
        {"features": b"a*2&us"},
        {"comment": b"a\nb\xff", "comment__cut": b"1"},
        {"dependency": b"afterok:17"},
        {"het_job_offset": b"0"},
        {"cron_job": b"1", "het_job_offset": b"0"},
        {"clusters": b"other"},
        {"admin_comment": b"a note of root's"},
        {"script_lines": b"#SECURELY"},
        {"alloc_node": b"n3"},
        {"alloc_node": b"10-0-0-5.example"},
        {"alloc_node": None, "demand_nodes": None},
        {"alloc_node": b"10.0.0.5", "demand_nodes": None},
        {"forced_sharing": b"open"},
    ],
)
def test_a_job_that_demands_nothing_is_not_touched(submit: Decide, plain: Fields, changed: Changes) -> None:
    decision = submit(plain, **changed)

    assert (decision.allowed, decision.rule) == (True, "allow.untagged"), decision
    assert decision.answer() == {"verdict": "allow", "rule": "allow.untagged"}


@pytest.mark.parametrize("host", [b"10.0.0.5", b"fd00::5", None])
def test_a_host_without_a_name_is_told_what_to_correct(submit: Decide, plain: Fields, host: bytes | None) -> None:
    decision = submit(plain, alloc_node=host)

    assert decision.rule == "tag.inherit"
    assert "reverse DNS" in decision.advice
    assert (host or b"not known").decode() in decision.message


def test_what_is_set_for_a_batch_job(submit: Decide, fields: Fields, signer: engine.Signer) -> None:
    decision = submit(fields, extra=extra("residency=eu;class=phi"), features=b"a|b", prefer=b"c", batch_features=b"a")

    assert dict(decision.changes) == {
        "extra": "secure-slurm:class=phi;residency=eu;scratch=1073741824",
        "features": "(a|b)&eu",
        "prefer": "c&eu",
        "batch_features": "a&eu",
        "shared": "0",
        "requeue": "1",
        "admin_comment": decision.changes["admin_comment"],
    }
    kept = record.verify(decision.changes["admin_comment"], signer.key)
    assert (kept.uid, kept.user, kept.klass, kept.residency, kept.scratch) == (1001, "alice", "phi", "eu", 2**30)
    assert kept.policy == "ab" * 8
    assert kept.nonce == decision.nonce


def test_only_what_has_to_change_is_set(submit: Decide, fields: Fields) -> None:
    decision = submit(fields, features=b"a&eu", shared=b"0", requeue=b"1")

    assert set(decision.changes) == {"admin_comment"}


def test_an_interactive_job_is_not_requeued(submit: Decide, fields: Fields) -> None:
    assert "requeue" not in submit(fields, has_script=None).changes


def test_a_class_without_residency_forces_no_place(submit: Decide, fields: Fields) -> None:
    decision = submit(fields, extra=extra("class=internal"), partition=b"open")

    assert set(decision.changes) == {"admin_comment", "requeue"}


def test_the_place_of_the_partition_counts_for_a_job_without_residency(
    submit: Decide, fields: Fields, policy: Policy, context: Context
) -> None:
    roles = {**policy.roles, "all": attrs.evolve(policy.roles["all"], jurisdictions=("eu",))}
    narrow = context._replace(policy=attrs.evolve(policy, roles=roles))

    assert submit(fields, given=narrow, extra=extra("class=internal"), partition=b"us").rule == "rbac.role"
    assert submit(fields, extra=extra("class=internal"), partition=b"us").allowed


@pytest.mark.parametrize("partition", [b"open", b"gpu", b"open,gpu", b"us,open"])
def test_a_role_for_one_place_is_none_for_a_job_that_might_run_anywhere(
    submit: Decide, fields: Fields, policy: Policy, context: Context, partition: bytes
) -> None:
    """A partition that says no place has nodes in any; nothing is forced on a job without residency."""
    place = "us" if b"us" in partition else "eu"
    roles = {**policy.roles, "all": attrs.evolve(policy.roles["all"], jurisdictions=(place,))}
    narrow = context._replace(policy=attrs.evolve(policy, roles=roles))

    refused = submit(fields, given=narrow, extra=extra("class=internal"), partition=partition)

    assert (refused.rule, refused.advice) == ("rbac.role", f"add --secure-residency={place}")
    assert "'all'" in refused.message
    stated = extra(f"class=internal;residency={place}")
    assert submit(fields, given=narrow, extra=stated, partition=partition).allowed
    assert submit(fields, extra=extra("class=internal"), partition=partition).allowed


def test_a_residency_is_not_advised_to_who_has_no_role_for_it(
    submit: Decide, fields: Fields, policy: Policy, context: Context
) -> None:
    roles = {**policy.roles, "all": attrs.evolve(policy.roles["all"], jurisdictions=("eu",))}
    narrow = context._replace(policy=attrs.evolve(policy, roles=roles))

    for changed in ({"user_name": b"nobody", "partition": b"open"}, {"partition": b"us"}):
        refused = submit(fields, given=narrow, extra=extra("class=internal"), **changed)
        assert refused.rule == "rbac.role"
        assert "--secure-residency" not in refused.advice


def test_an_admins_note_stays_behind_the_record(submit: Decide, fields: Fields, signer: engine.Signer) -> None:
    decision = submit(fields, admin_comment=b"ticket 17")

    assert record.split(decision.changes["admin_comment"])[1] == "ticket 17"
    assert record.verify(decision.changes["admin_comment"], signer.key)


def test_every_decision_has_a_nonce_of_its_own(submit: Decide, fields: Fields) -> None:
    assert submit(fields).nonce != submit(fields).nonce


def test_the_role_message_names_class_place_role_and_group(submit: Decide, fields: Fields) -> None:
    decision = submit(fields, user_name=b"bob")

    for word in ("'phi'", "'eu'", "'phi-eu'"):
        assert word in decision.message
    assert "group 'phi-eu'" in decision.advice


def test_unknown_members_refuse_tagged_jobs_only(submit: Decide, fields: Fields, plain: Fields, policy: Policy) -> None:
    unknown = Context(policy, None, "the group members were read 700 s ago", "try again later")

    assert submit(fields, given=unknown).rule == "rbac.snapshot"
    assert "700 s" in submit(fields, given=unknown).message
    assert submit(plain, given=unknown).allowed


def test_an_empty_policy_gives_nothing(
    submit: Decide, fields: Fields, plain: Fields, policy: Policy, context: Context
) -> None:
    empty = attrs.evolve(policy, roles={})

    assert submit(fields, given=context._replace(policy=empty)).rule == "policy.empty"
    assert submit(plain, given=context._replace(policy=empty)).allowed


def test_an_exception_is_a_refusal_that_tells_nothing(
    submit: Decide, fields: Fields, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    mocker.patch.object(engine, "from_fields", side_effect=RuntimeError("canary"))

    decision = submit(fields)

    assert (decision.allowed, decision.rule) == (False, "engine.error")
    assert "canary" not in decision.message + decision.advice
    assert "canary" in caplog.text


def test_a_wiped_key_refuses(fields: Fields, context: Context) -> None:
    key = Secret(b"k" * 32)
    key.wipe()

    decision = engine.decide_submit(fields, context, engine.Signer("test", key, frozenset({0})))

    assert decision.rule == "engine.error"


def silent(_job: object, _context: object) -> None:
    return None


@pytest.mark.parametrize("judges", [(), (silent,), (lambda _job, _context: ALLOW, silent), (lambda _j, _c: True,)])
def test_a_chain_without_a_verdict_is_a_refusal(judges: tuple[Judge, ...], context: Context, fields: Fields) -> None:
    job = engine.from_fields(fields)

    verdict = chain.judge_job(job, context, judges)

    assert isinstance(verdict, Deny)
    assert verdict.rule == "engine.no-verdict"


def test_a_mutator_that_answers_nothing_is_a_refusal(context: Context, fields: Fields) -> None:
    verdict = chain.mutate_job(engine.from_fields(fields), context, (silent,))

    assert isinstance(verdict, Deny)
    assert verdict.rule == "engine.no-verdict"


def test_no_rule_is_left_untested() -> None:
    """Every rule id in the sources of the chain is in the tables of this package's tests."""
    here = Path(__file__).parent
    sources = [*(here.parents[2] / "slurm_hooks" / "filters").glob("*.py"), here.parents[2] / "slurm_hooks/engine.py"]
    found: set[str] = set()
    for source in sources:
        found |= set(re.findall(r'Deny\(\s*"([a-z.-]+)"', source.read_text()))
    tested = "".join(path.read_text() for folder in (here, here.parent / "policy") for path in folder.glob("test_*.py"))

    assert found
    assert [rule for rule in sorted(found) if f'"{rule}"' not in tested] == []
