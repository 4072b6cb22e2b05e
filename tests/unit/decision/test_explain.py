"""Explaining is deciding, with the steps shown: the same verdict for every request, and a nearest one that is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.policy import Policy
from conf.tag import Tag
from keys.secret import Secret
from slurm_hooks import engine
from slurm_hooks.explain import WITHOUT_POLICY, Request, explain, nearest
from slurm_hooks.filters import chain
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Verdict

from .conftest import make_policy, make_snapshot

Fields = dict[str, bytes]
CONTEXT = Context(make_policy(), make_snapshot())
SIGNER = engine.Signer("test", Secret(b"k" * 32), frozenset({0}))
STEPS = [step.__name__ for step in (*chain.MUTATORS, *chain.SUBMIT_JUDGES)]  # type: ignore[attr-defined]


def either(*values: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(values) | st.binary(max_size=12)


REQUESTS = st.fixed_dictionaries(
    {"verb": st.just(b"submit")},
    optional={
        "submit_uid": either(b"1001", b"0", b"99999999999999"),
        "user_id": either(b"1001", b"99999999999999"),
        "user_name": either(b"alice", b"bob", b"eve"),
        "extra": either(
            b"secure-slurm:class=phi;residency=eu",
            b"secure-slurm:class=phi;residency=us;scratch=1024",
            b"secure-slurm:class=internal",
            b"secure-slurm:class=raw;residency=eu;scratch=99999999999",
            b"secure-slurm:class=bare;scratch=1",
        ),
        "partition": either(b"phi", b"open", b"us", b"lab,phi", b""),
        "default_partition": either(b"open", b"phi"),
        "features": either(b"big", b"us|eu", b"a*2", b"[a|b]", b"(a&b)"),
        "prefer": either(b"fast", b"us"),
        "batch_features": either(b"big"),
        "dependency": either(b"expand:7", b"afterok:7"),
        "clusters": either(b"other"),
        "admin_comment": either(b"secure-slurm/1 x", b"hello"),
        "script_lines": either(b"#SECURE --class=phi", b"#SECURE --scratch=1G", b"#SECURE"),
        "env.secure_class": either(b"phi", b""),
        "alloc_node": either(b"login1", b"n1", b"10.0.0.1"),
        "demand_nodes": either(b"phi=n[1-2]", b"lab=ALL"),
        "forced_sharing": either(b"phi", b""),
        "has_script": st.just(b"1"),
        "shared": either(b"0", b"1"),
        "requeue": either(b"0", b"1"),
        "extra.cut": st.just(b"1"),
        "name.cut": st.just(b"1"),
        "cron_job": st.just(b"1"),
        "het_job_offset": either(b"0"),
        "name": either("ä".encode(), b"\x1b[2J"),
    },
)
# most random requests say nothing sensible; these are near an allowed one
NEAR_ALLOWED = REQUESTS.map(
    lambda fields: {
        "submit_uid": b"1001",
        "user_id": b"1001",
        "user_name": b"alice",
        "partition": b"phi",
        "extra": b"secure-slurm:class=phi;residency=eu",
        **dict(list(fields.items())[:3]),
    }
)


def same(fields: Fields, context: Context) -> None:
    found = explain(fields, context)
    decided = engine.decide_submit(fields, context, SIGNER)
    assert (found.allowed, found.rule, found.message, found.advice) == (
        decided.allowed,
        decided.rule,
        decided.message,
        decided.advice,
    )
    assert dict(found.changes) == {name: text for name, text in decided.changes.items() if name != "admin_comment"}
    if found.allowed:
        assert [step.name for step in found.steps] == STEPS
        assert found.tag == decided.tag


@settings(deadline=None, max_examples=400)
@given(REQUESTS | NEAR_ALLOWED, st.booleans())
def test_the_verdict_is_the_engines(fields: Fields, members_known: bool) -> None:
    same(fields, CONTEXT if members_known else CONTEXT._replace(members=None))


def test_the_fixtures_job_is_allowed_and_every_step_is_told(fields: Fields, context: Context) -> None:
    same(fields, context)
    found = explain(fields, context)
    assert found.allowed
    assert found.tag == Tag("phi", "eu", 2**30)
    told = {step.name: step for step in found.steps}
    assert dict(told["force_constraint"].changes) == {"features": "eu"}
    assert dict(told["whole_nodes"].changes) == {"shared": "0"}
    assert dict(told["allow_requeue"].changes) == {"requeue": "1"}
    assert told["role"].sections == (("roles", "phi-eu"),)
    assert told["least_class"].sections == (("partitions", "phi", "least_class"),)
    assert told["scratch"].sections == (("classes", 1, "max_scratch"),)
    assert [step.part for step in found.steps].count("set") == len(chain.MUTATORS)


def test_every_step_that_looks_at_the_policy_says_where(fields: Fields, context: Context) -> None:
    silent = {step.name for step in explain(fields, context).steps if not step.sections}
    assert silent == WITHOUT_POLICY


@pytest.mark.parametrize(
    ("more", "rule", "step", "section"),
    [
        ({"extra": b"secure-slurm:class=none"}, "class.unknown", "read_tag", ("classes",)),
        (
            {"extra": b"secure-slurm:class=phi;residency=fr"},
            "residency.unknown",
            "force_constraint",
            ("jurisdictions",),
        ),
        ({"features": b"us"}, "residency.constraint", "force_constraint", ("jurisdictions", "eu", "feature")),
        ({"partition": b"us"}, "residency.partition", "partition", ("partitions", "us", "jurisdiction")),
        ({"user_name": b"bob"}, "rbac.role", "role", ("roles", "phi-eu")),
        ({"partition": b"other"}, "role.partition", "role", ("roles", "phi-eu")),
        ({"clusters": b"x"}, "route.clusters", "routes", None),
    ],
)
def test_the_refusing_step_is_the_last(
    more: Fields, rule: str, step: str, section: tuple[str, ...] | None, request: pytest.FixtureRequest
) -> None:
    fields, context = request.getfixturevalue("fields"), request.getfixturevalue("context")
    found = explain({**fields, **more}, context)
    assert not found.allowed
    last = found.steps[-1]
    assert (found.rule, last.rule, last.name, last.verdict) == (rule, rule, step, "refuse")
    assert last.message
    assert [each.verdict for each in found.steps[:-1]] == ["allow"] * (len(found.steps) - 1)
    assert last.sections == (() if section is None else (section,))
    assert found.changes == {}


def test_an_empty_chain_allows_nothing(fields: Fields, context: Context) -> None:
    assert explain(fields, context, (), ()).rule == "engine.no-verdict"
    assert explain(fields, context, chain.MUTATORS, ()).rule == "engine.no-verdict"


def silent(_job: SubmitJob, _context: Context) -> Any:
    return None


def broken(_job: SubmitJob, _context: Context) -> Any:
    raise RuntimeError("secret")


@pytest.mark.parametrize(("step", "rule"), [(silent, "engine.no-verdict"), (broken, "engine.error")])
def test_a_step_that_says_nothing_or_raises_refuses(
    step: Callable[..., Verdict], rule: str, fields: Fields, context: Context
) -> None:
    for found in (
        explain(fields, context, (step,), chain.SUBMIT_JUDGES),  # type: ignore[arg-type]
        explain(fields, context, chain.MUTATORS, (lambda *_: ALLOW, step)),
    ):
        assert (found.allowed, found.rule, found.steps[-1].name) == (False, rule, step.__name__)
        assert "secret" not in found.message


def test_a_request_that_cannot_be_read_is_refused_as_the_engine_does(context: Context) -> None:
    assert explain({}, context).rule == "engine.error"
    same({}, context)
    # no record could hold this uid
    same(
        {"submit_uid": b"9" * 15, "user_id": b"9" * 15, "user_name": b"alice", "extra": b"secure-slurm:class=phi"},
        context,
    )


def test_a_judge_of_the_sites_own_is_told_by_its_name(fields: Fields, context: Context) -> None:
    def friday(_job: SubmitJob, _context: Context) -> Verdict:
        return Deny("site.friday", "not on a Friday")

    last = explain(fields, context, chain.MUTATORS, (friday,)).steps[-1]
    assert (last.name, last.rule, last.sections) == ("friday", "site.friday", ())


ASKED = Request(Tag("phi", "eu", 2**30), "phi")


@pytest.mark.parametrize(
    ("asked", "better"),
    [
        (ASKED._replace(tag=Tag("phi", None, 2**30)), ASKED),
        (ASKED._replace(tag=Tag("phi", "eu", 2**50)), ASKED._replace(tag=Tag("phi", "eu", 2**40))),
        (ASKED._replace(constraint="us"), ASKED),
        (ASKED._replace(constraint="big*2", prefer="us&x"), ASKED),
        (ASKED._replace(prefer="us"), ASKED),
        (ASKED._replace(partition="us"), ASKED),
        (ASKED._replace(partition="other,phi"), ASKED),
        (ASKED._replace(tag=Tag("ph", "eu", 2**30)), ASKED),
        (ASKED._replace(tag=Tag("internal", "eu", 2**30)), Request(Tag("internal", "eu", 2**30), "lab")),
        (Request(Tag("bare", "us", 5), "us"), Request(Tag("bare", "us", None), "us")),
        (Request(Tag("raw", "eu"), "open"), Request(Tag("raw", "eu", 2**30), "open")),
        # neither another place for the data, nor a weaker class
        (ASKED._replace(tag=Tag("phi", "us", 2**30)), None),
    ],
)
def test_the_nearest_request(asked: Request, better: Request | None, context: Context) -> None:
    assert not explain(asked.fields("alice", 1001), context).allowed
    assert nearest(asked, "alice", 1001, context) == better


def test_a_stronger_class_where_the_partition_demands_it(policy: Policy) -> None:
    only = attrs.evolve(policy, partitions={"phi": policy.partitions["phi"]})
    asked = ASKED._replace(tag=Tag("internal", "eu", 2**30))
    # neither of the partition's other names is in the policy any more
    only = attrs.evolve(
        only, roles={name: attrs.evolve(role, partitions=("phi",)) for name, role in only.roles.items()}
    )
    assert nearest(asked, "alice", 1001, Context(only, make_snapshot())) == ASKED


def test_nobody_is_told_of_a_request_that_is_refused(context: Context) -> None:
    assert nearest(ASKED, "eve", 1009, context) is None
    assert nearest(ASKED, "alice", 1001, context._replace(members=None)) is None


NAMES = st.sampled_from(["phi", "internal", "raw", "bare", "ph", "none"])
REQUEST = st.builds(
    Request,
    st.builds(
        Tag,
        NAMES,
        st.sampled_from([None, "eu", "us", "e", "fr"]),
        st.sampled_from([None, 1, 2**30, 2**45]),
    ),
    st.sampled_from([None, "phi", "us", "lab", "open", "us,phi", "x" * 9000, "\udcff"]),
    st.sampled_from([None, "us", "big", "a*2", "\x1b", "big&" * 3000]),
    st.sampled_from([None, "eu", "us"]),
)


@settings(deadline=None)
@given(REQUEST, st.sampled_from(["alice", "bob", "eve", "", "\x1b[2J", "a b"]))
def test_what_is_called_accepted_is_accepted_and_protects_as_much(asked: Request, user: str) -> None:
    same(asked.fields(user, 1001), CONTEXT)
    if explain(asked.fields(user, 1001), CONTEXT).allowed:
        return
    other = nearest(asked, user, 1001, CONTEXT)
    if other is None:
        return
    assert engine.decide_submit(other.fields(user, 1001), CONTEXT, SIGNER).allowed
    policy = CONTEXT.policy
    if policy.data_class(asked.tag.klass):
        assert policy.at_least(other.tag.klass, asked.tag.klass)
    if asked.tag.residency in policy.jurisdictions:
        assert other.tag.residency == asked.tag.residency


def test_the_search_ends_in_a_large_policy(policy: Policy) -> None:
    large = attrs.evolve(
        policy,
        partitions={f"p{number}": attrs.evolve(policy.partitions["phi"]) for number in range(500)},
        roles={"none": attrs.evolve(policy.roles["all"], groups=("cn=nobody",))},
    )
    assert nearest(ASKED._replace(tag=Tag("internal")), "alice", 1001, Context(large, make_snapshot())) is None
