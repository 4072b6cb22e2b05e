"""Rules in shadow: decided, recorded, not enforced; each by itself, each until its day is over, and never others."""

from __future__ import annotations

import datetime

import attrs
import pytest

from conf.policy import Policy
from conf.shadow import SHADOWABLE
from slurm_hooks.filters.verdict import Context
from tests.unit.policy.people import Changes, Decide
from tests.unit.policy.test_rules import PAIRS

TODAY = datetime.date(2026, 11, 21)
IN_SHADOW = [pair for pair in PAIRS if pair[0] in SHADOWABLE and "now" not in pair[2]]
NOT_IN_SHADOW = [pair for pair in PAIRS if pair[0] not in SHADOWABLE]


def shadowed(context: Context, *rules: str, until: datetime.date = TODAY) -> Context:
    return context._replace(policy=attrs.evolve(context.policy, shadow=dict.fromkeys(rules, until)))


@pytest.mark.parametrize(("rule", "job", "wrong", "_right"), IN_SHADOW)
def test_it_is_recorded_and_not_enforced(
    rule: str, job: str, wrong: Changes, _right: Changes, decide: Decide, context: Context
) -> None:
    decision = decide(job, given=shadowed(context, rule), **wrong)

    # what else is wrong with the job is still refused, by another rule
    assert decision.rule != rule
    assert rule in decision.shadowed or not decision.allowed


@pytest.mark.parametrize(("rule", "job", "wrong", "_right"), IN_SHADOW)
def test_the_day_after_it_is_enforced(
    rule: str, job: str, wrong: Changes, _right: Changes, decide: Decide, context: Context
) -> None:
    yesterday = TODAY - datetime.timedelta(days=1)

    assert decide(job, given=shadowed(context, rule, until=yesterday), **wrong).rule == rule


@pytest.mark.parametrize("rule", sorted({pair[0] for pair in NOT_IN_SHADOW}))
def test_some_rules_cannot_be_in_shadow(rule: str) -> None:
    assert rule.startswith(("dataset.", "tag."))


def test_all_of_them_at_once(decide: Decide, context: Context) -> None:
    wrong: Changes = {
        "max_nodes": b"9",
        "time_limit": None,
        "work_dir": b"/home/bea",
        "account": b"x",
        "mail_type": b"1",
    }
    decision = decide("phi", given=shadowed(context, *SHADOWABLE), **wrong)

    assert decision.rule == "allow.tagged"
    assert set(decision.shadowed) == {
        *("limit.nodes", "limit.time", "path.work-dir", "path.output", "role.account", "route.mail"),
    }


def test_one_in_shadow_does_not_hide_another(decide: Decide, context: Context) -> None:
    wrong: Changes = {"max_nodes": b"9", "time_limit": b"99999"}

    assert decide("phi", given=shadowed(context, "limit.nodes"), **wrong).rule == "limit.time"
    assert decide("phi", given=shadowed(context, "limit.time"), **wrong).rule == "limit.nodes"


def test_a_role_dimension_in_shadow_narrows_nothing(decide: Decide, context: Context) -> None:
    wrong: Changes = {"account": b"other", "qos": b"express"}

    assert decide("phi", given=shadowed(context, "role.account"), **wrong).rule == "role.qos"
    decision = decide("phi", given=shadowed(context, "role.account", "role.qos"), **wrong)
    assert (decision.rule, decision.shadowed) == ("allow.tagged", ("role.account", "role.qos"))


def test_a_dimension_in_shadow_does_not_choose_between_roles(site: Policy, decide: Decide, context: Context) -> None:
    base = site.roles["staff"]
    roles = {
        "a": attrs.evolve(base, partitions=("batch",), accounts=("y",)),
        "b": attrs.evolve(base, partitions=("other",), accounts=("x",)),
    }
    given = context._replace(policy=attrs.evolve(site, roles=roles, shadow={"role.partition": TODAY}))

    assert decide("internal", given=given, account=b"x").rule == "allow.tagged"
    assert decide("internal", given=given, account=b"z").rule == "role.account"


def test_a_dataset_needs_its_role_even_where_rbac_is_in_shadow(decide: Decide, context: Context) -> None:
    given = shadowed(context, "rbac.role")
    decision = decide("phi", given=given, user_name=b"ann", extra=b"secure-slurm:datasets=genomes")

    assert decision.rule == "dataset.role"
