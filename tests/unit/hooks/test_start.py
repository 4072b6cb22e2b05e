"""A job judged again at its start: every way in which it is not the job any more that was decided on."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from conf.policy import Dataset, Partition, Policy
from keys.secret import Secret
from slurm_hooks import constraint, record, wire
from slurm_hooks.filters.verdict import Context
from slurm_hooks.membership import Group
from slurm_hooks.record import Record
from slurm_hooks.snapshot import Snapshot
from slurm_hooks.start import StartRequest, judge_start, read_start

KEY = Secret(b"k" * 32)
PHI_EU = "cn=phi-eu,ou=groups,dc=example,dc=org"
DECIDED = Record("test", 1001, "alice", "phi", "eu", 2**30, "ab" * 8, "cd" * 16, 1790000000)
STRINGS = {
    "admin_comment": record.sign(DECIDED, KEY),
    "extra": "secure-slurm:class=phi;residency=eu;scratch=1073741824",
    "features": "big&eu",
    "partition": "phi",
    "user_name": "alice",
}
REQUEST = StartRequest(job=17, uid=1001, user_id=1001, restarts=2, het_job_id=0, nodes=("n1", "n2"), strings=STRINGS)


@pytest.fixture
def context(policy: Policy) -> Context:
    return Context(policy, Snapshot(time.time(), "test", {PHI_EU: Group("phi-eu", frozenset({"alice"}))}))


def request(**more: object) -> StartRequest:
    return attrs.evolve(REQUEST, **more)  # type: ignore[arg-type]


def with_strings(**more: str | None) -> StartRequest:
    merged: Mapping[str, str | None] = {**STRINGS, **more}
    return request(strings={name: value for name, value in merged.items() if value is not None})


def decided(**more: object) -> StartRequest:
    """The same job, decided otherwise: record and tag agree."""
    made = attrs.evolve(DECIDED, **more)  # type: ignore[arg-type]
    tag = f"secure-slurm:class={made.klass}"
    tag += f";residency={made.residency}" if made.residency else ""
    tag += f";scratch={made.scratch}" if made.scratch is not None else ""
    return with_strings(admin_comment=record.sign(made, KEY), extra=tag)


def rule_of(asked: StartRequest, context: Context, *, cluster: str = "test", key: Secret = KEY) -> str:
    with pytest.raises(Refused) as caught:
        judge_start(asked, cluster, key, context)
    assert str(caught.value)
    return caught.value.rule


def test_a_job_as_it_was_decided_may_start(context: Context) -> None:
    job = judge_start(REQUEST, "test", KEY, context)

    assert attrs.asdict(job) == {
        **{"job": 17, "uid": 1001, "user": "alice", "cluster": "test", "nodes": ("n1", "n2"), "restarts": 2},
        **{
            "klass": "phi",
            "residency": "eu",
            "scratch": 2**30,
            "nonce": "cd" * 16,
            "datasets": (),
            "shadowed": (),
            "exemptions": (),
        },
    }


def test_a_reason_behind_the_record_changes_nothing(context: Context) -> None:
    held = with_strings(admin_comment=f"{STRINGS['admin_comment']} | [backend.unavailable] Vault was away")

    assert judge_start(held, "test", KEY, context).job == 17


def test_a_class_that_needs_neither_place_nor_scratch(context: Context) -> None:
    free = decided(klass="internal", residency=None, scratch=None)
    free = attrs.evolve(free, strings={**free.strings, "features": "anything[*"})

    # where a tag is demanded and the partition has a place, the tag must say it
    assert rule_of(free, context) == "residency.partition"
    job = judge_start(free, "test", KEY, with_partition(context, Partition(jurisdiction="eu")))
    assert (job.residency, job.scratch) == ("", 0)


def with_partition(context: Context, phi: Partition) -> Context:
    """The same policy, but for the partition of the job."""
    policy = attrs.evolve(context.policy, partitions={**context.policy.partitions, "phi": phi})
    return context._replace(policy=policy)


def test_a_partition_that_takes_stronger_classes_only_by_now(context: Context) -> None:
    strict = with_partition(context, Partition(demand_tag=True, least_class="phi", jurisdiction="eu"))
    weak = decided(klass="internal", scratch=None)

    assert rule_of(weak, strict) == "partition.class"
    assert judge_start(weak, "test", KEY, context).klass == "internal"
    assert judge_start(REQUEST, "test", KEY, strict).klass == "phi"


@pytest.mark.parametrize(
    ("rule", "strings"),
    [
        ("record.missing", {"admin_comment": None}),
        ("record.missing", {"admin_comment": ""}),
        ("record.missing", {"admin_comment": "a note"}),
        ("record.missing", {"admin_comment": f" {STRINGS['admin_comment']}"}),
        ("record.mac", {"admin_comment": STRINGS["admin_comment"].replace("uid=1001", "uid=1002")}),
        ("record.mac", {"admin_comment": STRINGS["admin_comment"].replace("class=phi", "class=raw")}),
        ("record.mac", {"admin_comment": record.sign(DECIDED, Secret(b"x" * 32))}),
        ("record.syntax", {"admin_comment": STRINGS["admin_comment"][:-1]}),
        ("record.syntax", {"admin_comment": STRINGS["admin_comment"].split(" mac=")[0]}),
        ("start.tag", {"extra": None}),
        ("start.tag", {"extra": ""}),
        ("start.tag", {"extra": "a note"}),
        ("start.tag", {"extra": "secure-slurm:"}),
        ("start.tag", {"extra": "secure-slurm:class=phi;residency=eu"}),
        ("start.tag", {"extra": "secure-slurm:class=phi;residency=us;scratch=1073741824"}),
        ("start.tag", {"extra": "secure-slurm:class=internal;residency=eu;scratch=1073741824"}),
        ("start.tag", {"extra": "secure-slurm:class=phi;residency=eu;scratch=1073741825"}),
        ("start.constraint", {"features": None}),
        ("start.constraint", {"features": ""}),
        ("start.constraint", {"features": "big"}),
        ("start.constraint", {"features": "us"}),
        ("start.constraint", {"features": "eu|us"}),
        ("start.constraint", {"features": "eu&big"}),
        ("start.constraint", {"features": "eu&a|us"}),
        ("start.constraint", {"features": "&eu"}),
        ("start.constraint", {"features": "big&eux"}),
        ("start.constraint", {"features": "big&xeu"}),
        ("start.constraint", {"features": "big|eu"}),
        ("start.constraint", {"features": "us*1&eu"}),
        ("start.constraint", {"features": "[us*1&eu*1]&eu"}),
        ("start.constraint", {"features": "[a&b]&eu"}),
        ("start.constraint", {"features": "((us))&eu"}),
        ("start.constraint", {"features": "us||x&eu"}),
        ("start.constraint", {"features": "big & eu"}),
        ("start.constraint", {"features": "big&eu\n"}),
        ("start.constraint", {"features": "&".join(["abc"] * 300) + "&eu"}),
        ("start.constraint", {"prefer": "us"}),
        ("start.constraint", {"prefer": "fast"}),
        ("start.constraint", {"prefer": "fast|eu"}),
        ("residency.partition", {"partition": "us"}),
        ("residency.partition", {"partition": "phi,us"}),
        ("role.partition", {"partition": "open"}),
        ("role.partition", {"partition": None}),
        ("route.dependency-expand", {"dependency": "expand:16"}),
        ("route.clusters", {"clusters": "other"}),
    ],
    ids=str,
)
def test_refused_for_what_slurm_says_of_it(context: Context, rule: str, strings: dict[str, str | None]) -> None:
    assert rule_of(with_strings(**strings), context) == rule


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ("record.uid", {"uid": 1002}),
        ("record.uid", {"user_id": 1002}),
        ("record.uid", {"uid": 1002, "user_id": 1002}),
        ("record.uid", {"uid": 0, "user_id": 0}),
        ("record.uid", {"uid": -1}),
        ("record.uid", {"user_id": -1}),
        ("route.het", {"het_job_id": 17}),
        ("route.het", {"het_job_id": 16}),
        ("start.nodes", {"nodes": ()}),
        ("start.nodes", {"nodes": ("",)}),
        ("start.nodes", {"nodes": ("n1", "")}),
    ],
    ids=str,
)
def test_refused_for_its_numbers_and_nodes(context: Context, rule: str, more: dict[str, object]) -> None:
    assert rule_of(request(**more), context) == rule


def test_another_clusters_record(context: Context) -> None:
    assert rule_of(REQUEST, context, cluster="other") == "record.cluster"
    assert rule_of(decided(cluster="other"), context) == "record.cluster"


@pytest.mark.parametrize(
    ("rule", "more"),
    [
        ("residency.unknown", {"residency": "mars"}),
        ("residency.required", {"residency": None}),
        ("class.unknown", {"klass": "gone"}),
        ("rbac.role", {"user": "bob"}),
        ("scratch.required", {"scratch": None}),
        ("scratch.too-large", {"scratch": 2**41}),
    ],
    ids=str,
)
def test_refused_for_what_the_policy_says_today(context: Context, rule: str, more: dict[str, object]) -> None:
    assert rule_of(decided(**more), context) == rule


def test_a_dataset_that_got_stricter_since_the_job_was_accepted(context: Context) -> None:
    tagged = Record("test", 1001, "alice", "internal", "eu", None, "ab" * 8, "cd" * 16, 1790000000, ("ukb",))
    asked = with_strings(
        admin_comment=record.sign(tagged, KEY), extra="secure-slurm:class=internal;residency=eu;datasets=ukb"
    )

    def agreed(klass: str, residency: str) -> Context:
        role = attrs.evolve(context.policy.roles["phi-eu"], classes=("internal", "phi"))
        dataset = Dataset(klass=klass, residency=(residency,), roles=("phi-eu",))
        policy = attrs.evolve(context.policy, roles={"phi-eu": role}, datasets={"ukb": dataset})
        return context._replace(policy=policy, now=1.8e9)

    assert judge_start(asked, "test", KEY, agreed("internal", "eu")).klass == "internal"
    assert rule_of(asked, agreed("phi", "eu")) == "dataset.class"
    assert rule_of(asked, agreed("internal", "us")) == "dataset.residency"
    # who says no time gets nothing from what can end
    untimed = agreed("internal", "eu")._replace(now=Context._field_defaults["now"])
    ended = attrs.evolve(untimed.policy.datasets["ukb"], until=datetime.date(9999, 1, 1))
    policy = attrs.evolve(untimed.policy, datasets={"ukb": ended})
    assert rule_of(asked, untimed._replace(policy=policy)) == "dataset.expired"


def test_a_role_for_one_place_starts_nothing_that_might_run_anywhere(context: Context) -> None:
    free = decided(klass="internal", residency=None, scratch=None)

    assert rule_of(free, with_partition(context, Partition())) == "rbac.role"
    assert judge_start(free, "test", KEY, with_partition(context, Partition(jurisdiction="eu"))).klass == "internal"


def test_a_role_that_was_taken_away(context: Context) -> None:
    nobody = Snapshot(time.time(), "test", {PHI_EU: Group("phi-eu", frozenset())})

    assert rule_of(REQUEST, context._replace(members=nobody)) == "rbac.role"
    assert rule_of(REQUEST, context._replace(members=None)) == "rbac.snapshot"


@given(st.from_regex(r"[ab](?:[&|,][ab]){0,4}|\[[ab](?:\|[ab]){0,2}\]|[ab]|", fullmatch=True))
def test_whatever_was_forced_at_submission_is_still_forced_at_the_start(asked: str) -> None:
    from conf.policy import Jurisdiction
    from slurm_hooks.start import _still_forced

    policy = Policy(version=1, jurisdictions={"eu": Jurisdiction(feature="eu", regions=("x",))}, classes=(), roles={})
    forced = constraint.force(asked, "eu")

    _still_forced({"features": forced, "prefer": forced}, "eu", Context(policy))
    _still_forced({"features": constraint.force(forced, "eu")}, "eu", Context(policy))


FIELDS = {
    **{"job": b"17", "uid": b"1001", "user_id": b"1001", "restarts": b"0", "het_job_id": b"0", "nodes": b"n1,n2"},
    **{"job.extra": "é".encode(), "job.features": b"eu", "verb": b"start", "nonce": b"x"},
}


def test_the_request(context: Context) -> None:
    read = read_start(FIELDS)

    assert (read.job, read.uid, read.nodes) == (17, 1001, ("n1", "n2"))
    assert read.strings == {"extra": "é", "features": "eu"}
    assert read.since == 0
    assert read_start({**FIELDS, "since": b"12345678901234"}).since == 12345678901234
    with pytest.raises(wire.WireError):
        read_start({**FIELDS, "since": b"now"})


@pytest.mark.parametrize("name", ["job", "uid", "user_id", "restarts", "het_job_id", "nodes"])
def test_a_missing_field_is_malformed(name: str) -> None:
    with pytest.raises(wire.WireError, match=name):
        read_start({each: value for each, value in FIELDS.items() if each != name})


@pytest.mark.parametrize("value", [b"", b"x", b"1.0", b"0x1", b"\xff", b"9" * 5000, b"1 2"])
@pytest.mark.parametrize("name", ["job", "uid", "user_id", "restarts", "het_job_id"])
def test_a_number_that_is_none_is_malformed(name: str, value: bytes) -> None:
    with pytest.raises(wire.WireError):
        read_start({**FIELDS, name: value})


@pytest.mark.parametrize("value", [b"0", b"-1", b"4294967294", b"99999999999"])
def test_a_job_that_slurm_cannot_have_is_malformed(value: bytes) -> None:
    with pytest.raises(wire.WireError, match="job"):
        read_start({**FIELDS, "job": value})


def test_a_text_that_is_not_utf8_is_malformed() -> None:
    with pytest.raises(wire.WireError, match=r"job\.extra"):
        read_start({**FIELDS, "job.extra": b"\xff"})
