"""Explaining is deciding, with the steps shown: the same verdict for every request, and a nearest one that is true."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.policy import Dataset, Partition
from conf.tag import Tag
from keys.secret import Secret
from slurm_hooks import engine
from slurm_hooks.explain import KNOWN, MAX_SECTIONS, WITHOUT_POLICY, explain
from slurm_hooks.filters import chain
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import ALLOW, Context, Deny, Exemption, Verdict

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


def test_every_step_of_the_chain_is_known_to_stand_on_something() -> None:
    """A new step: say in slurm_hooks/explain.py which key of the policy it looks at, or that it looks at none."""
    assert set(STEPS) == KNOWN


def test_every_step_that_looks_at_the_policy_says_where(fields: Fields, context: Context) -> None:
    silent = {step.name for step in explain(fields, context).steps if not step.sections}
    assert silent - {"derive_tag"} == WITHOUT_POLICY


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


def test_datasets_and_what_is_in_shadow_are_told(fields: Fields, context: Context) -> None:
    data = {
        "ukb": Dataset(klass="phi", residency=("eu",), roles=("phi-eu",)),
        "other": Dataset(klass="phi", residency=("eu",), roles=("all",)),
    }
    classes = tuple(attrs.evolve(each, max_nodes=2) for each in context.policy.classes)
    day = datetime.date(2100, 1, 1)
    policy = attrs.evolve(context.policy, datasets=data, classes=classes, shadow={"limit.nodes": day})
    shadowing = context._replace(policy=policy, now=1.8e9)
    asked = {
        **fields,
        "extra": b"secure-slurm:residency=eu;scratch=1;datasets=ukb",
        "min_nodes": b"9",
        "max_nodes": b"9",
    }
    same(asked, shadowing)
    told = {step.name: step for step in explain(asked, shadowing).steps}
    assert told["derive_tag"].sections == (("datasets", "ukb"),)
    assert told["nodes"].verdict == "allow"
    assert [each.rule for each in told["nodes"].shadowed] == ["limit.nodes"]
    assert told["nodes"].sections == (("classes", 1, "max_nodes"),)
    refused = explain({**asked, "extra": b"secure-slurm:datasets=other,ukb"}, shadowing)
    assert refused.rule == "dataset.role"
    assert refused.steps[-1].sections == (("datasets", "other"), ("datasets", "ukb"))


def test_a_break_glass_grant_is_told_where_it_was_needed(fields: Fields, context: Context) -> None:
    grant = Exemption(id="glass-7", user="bob", until=context.now + 1, role="phi-eu")
    asked = {**fields, "user_name": b"bob"}
    assert not explain(asked, context).allowed
    exempt = context._replace(exemptions=(grant,))
    same(asked, exempt)
    told = {step.name: step for step in explain(asked, exempt).steps}
    assert told["role"].exemptions == ("glass-7",)
    assert told["role"].sections == (("roles", "phi-eu"),)


def test_one_step_names_a_few_places_of_many(fields: Fields, context: Context) -> None:
    partitions = {f"p{number}": Partition() for number in range(100)}
    large = context._replace(policy=attrs.evolve(context.policy, partitions=partitions))
    found = explain({**fields, "partition": ",".join(partitions).encode()}, large)
    assert max(len(step.sections) for step in found.steps) == MAX_SECTIONS


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
