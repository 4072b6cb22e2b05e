"""The forced feature, against a model of how slurmctld reads a constraint: strictly from left to right."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from slurm_hooks import constraint

FEATURES = ("a", "b", "c", "eu")


def precedence(expression: str, node: frozenset[str]) -> bool:
    """The reading where a feature is changeable: & and , before |."""
    flat = re.sub(r"[(\[]([^)\]]*)[)\]]", lambda group: "+" if precedence(group[1], node) else "-", expression)
    terms = [re.split("[&,]", term) for term in flat.split("|")]
    return any(all(name == "+" or name in node for name in term) for term in terms)


def holds(expression: str, node: frozenset[str]) -> bool:
    """What slurmctld makes of an expression for one node: no precedence, one level of brackets."""
    tokens = re.findall(r"[A-Za-z0-9_.:=+-]+|[&|,()\[\]]", expression)
    value, operator = True, "&"
    while tokens:
        token = tokens.pop(0)
        if token in "([":
            close = tokens.index(")" if token == "(" else "]")
            term = holds("".join(tokens[:close]), node)
            del tokens[: close + 1]
        else:
            term = token in node
        value = (value or term) if operator == "|" else (value and term)
        if tokens:
            operator = tokens.pop(0)
    return value


operators = st.sampled_from("&|,")
names = st.sampled_from(FEATURES)


def chain_of(operand: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    more = st.lists(st.tuples(operators, operand).map("".join), max_size=4)
    return st.tuples(operand, more).map(lambda parts: parts[0] + "".join(parts[1]))


groups = chain_of(names).map(lambda inner: f"({inner})")
either = st.lists(names, min_size=1, max_size=4).map(lambda parts: f"[{'|'.join(parts)}]")
all_of = st.lists(names | groups, min_size=1, max_size=5).flatmap(
    lambda parts: st.sampled_from("&,").map(lambda operator: operator.join(parts))
)
expressions = chain_of(names) | all_of | either
nodes = st.frozensets(st.sampled_from(FEATURES))


@given(expressions, nodes)
def test_no_node_without_the_feature_and_no_node_lost(expression: str, node: frozenset[str]) -> None:
    forced = constraint.force(expression, "eu")

    assert holds(forced, node) == (holds(expression, node) and "eu" in node)
    assert not precedence(forced, node - {"eu"})
    assert constraint.is_forced(forced, "eu")


@given(st.text(alphabet="ab&|,()[]*eu1 ", max_size=30) | st.text(max_size=30), nodes)
def test_whatever_is_not_refused_is_bound(expression: str, node: frozenset[str]) -> None:
    try:
        forced = constraint.force(expression, "eu")
    except Refused as error:
        assert error.rule == "residency.constraint"
        assert error.advice
        return
    assert forced == "eu" or forced.endswith("&eu")
    assert "*" not in forced
    assert not holds(forced, node - {"eu"})
    assert not precedence(forced, node - {"eu"})


@given(expressions)
def test_forcing_twice_changes_nothing(expression: str) -> None:
    forced = constraint.force(expression, "eu")

    assert constraint.force(forced, "eu") == forced


@pytest.mark.parametrize(
    ("expression", "forced"),
    [
        (None, "eu"),
        ("", "eu"),
        ("eu", "eu"),
        ("a", "a&eu"),
        ("a|b", "(a|b)&eu"),
        ("a,eu", "a,eu&eu"),
        ("a&neu", "a&neu&eu"),
        ("eu|a", "(eu|a)&eu"),
        ("a|b&eu", "(a|b&eu)&eu"),
        ("(a|b)&c,(b|c)", "(a|b)&c,(b|c)&eu"),
        ("(a&eu)", "(a&eu)&eu"),
        ("[a|b]", "[a|b]&eu"),
        ("[a|b]&eu", "[a|b]&eu"),
        ("t3.micro", "t3.micro&eu"),
    ],
)
def test_forced(expression: str | None, forced: str) -> None:
    assert constraint.force(expression, "eu") == forced


@pytest.mark.parametrize(
    "expression",
    [
        *("a*2", "a*2&eu", "[a*1&b*1]", "(a|b)*2", "[a&b]", "[(a|b)]", "((a))", "(a", "a)", "[a|b]&c", "c&[a|b]"),
        *("[a|b]&[c|d]", "a&&b", "a&", "&a", "|", "()", "[]", "a b", "a\n", "!a", "a;b", "a'", "ä", "\x00", "a,,b"),
        # & before | where a feature is changeable: the end would bind the last group only
        *("a|(b&c)", "(a)|b", "(a|b)&c|d", "(a&b)|(c&d)", "a|(b)&eu"),
        *("x" * 1024, "&".join(["abc"] * 300), "[a]eu", "a(b)"),
    ],
)
def test_refused(expression: str) -> None:
    with pytest.raises(Refused) as caught:
        constraint.force(expression, "eu")
    assert caught.value.rule == "residency.constraint"
    assert caught.value.advice


@pytest.mark.parametrize("expression", ["a|b&eu", "a|(b&c)&eu", "(a)|b&eu", "[a|b]|c&eu", "a*2&eu"])
def test_what_escapes_in_one_reading_is_not_forced(expression: str) -> None:
    assert not constraint.is_forced(expression, "eu")


def test_the_longest() -> None:
    assert len(constraint.force("x" * 1021, "eu")) == 1024


def test_a_count_is_told_what_works_instead() -> None:
    with pytest.raises(Refused) as caught:
        constraint.check("a*2")
    assert "--nodes" in caught.value.advice


def test_names() -> None:
    assert constraint.names("[(a|b)*2&us*1]") >= {"a", "b", "us"}
    assert constraint.names(None) == frozenset()
