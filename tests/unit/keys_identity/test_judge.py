"""The rule of enrolment: what is remembered, and who may still have a certificate then."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from keys.enrol import AGAIN, FIRST, RELAUNCHED, REPLACED, Binding, Issued, Known, judge

NOW = 1_790_000_000
ME = Binding("n1", "i-0123456789abcdef0", NOW - 60, "a" * 64, "10.0.0.10")
OTHER = ME._replace(instance="i-0123456789abcdef1", key="b" * 64)


def verdict(
    of_node: Binding | None, of_instance: Binding | None = None, asked: Binding = ME, oldest: float = 3600
) -> str:
    return judge(asked, Known(of_node, of_instance), oldest=oldest, now=NOW)


REFUSED = [
    ("another key", ME._replace(key="b" * 64), None, "enrol.replayed", "another key"),
    ("another key, the name forgotten", None, ME._replace(key="b" * 64), "enrol.replayed", "another key"),
    ("another name", None, ME._replace(node="n2"), "enrol.replayed", "the node name n2"),
    ("another name, mine is free again", OTHER._replace(launched=1), ME._replace(node="n2"), "enrol.replayed", "n2"),
    ("another name and another key", None, ME._replace(node="n2", key="b" * 64), "enrol.replayed", "the node name n2"),
    ("an earlier launch of mine", ME._replace(launched=NOW - 30), None, "enrol.superseded", "launched again"),
    ("an earlier launch, elsewhere", None, ME._replace(node="n2", launched=NOW), "enrol.superseded", "launched again"),
    ("the name is a later instance's", OTHER._replace(launched=NOW - 30), None, "enrol.superseded", OTHER.instance),
    ("both in the same second", OTHER, None, "enrol.superseded", "or with it"),
    ("the name is a later one's, I was known", OTHER._replace(launched=NOW), ME, "enrol.superseded", OTHER.instance),
]  # fmt: skip


@pytest.mark.parametrize(
    ("of_node", "of_instance", "rule", "words"), [each[1:] for each in REFUSED], ids=[each[0] for each in REFUSED]
)
def test_refused(of_node: Binding | None, of_instance: Binding | None, rule: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        verdict(of_node, of_instance)
    assert caught.value.rule == rule
    assert caught.value.advice


@pytest.mark.parametrize("of_node", [None, OTHER._replace(launched=1), ME._replace(launched=1)])
def test_the_first_use_of_a_launch_is_soon_after_it(of_node: Binding | None) -> None:
    asked = ME._replace(launched=NOW - 3601)
    with pytest.raises(Refused, match="1\\.0 hours ago") as caught:
        verdict(of_node, asked=asked)
    assert caught.value.rule == "enrol.old"
    verdict(of_node, asked=asked, oldest=3602)


def test_allowed() -> None:
    assert verdict(None) == FIRST
    # what was interrupted between the two writes
    assert verdict(None, ME) == FIRST
    assert verdict(ME, ME) == AGAIN
    # the address is for the daemon to compare
    assert verdict(ME._replace(address="10.0.0.11"), ME) == AGAIN
    assert verdict(ME._replace(launched=NOW - 90, key="b" * 64)) == RELAUNCHED
    assert verdict(OTHER._replace(launched=NOW - 90)) == REPLACED
    # an instance that was stopped, and started for another node
    assert verdict(None, ME._replace(node="n2", launched=NOW - 90)) == FIRST


def test_what_is_known_by_its_key_never_grows_old() -> None:
    old = ME._replace(launched=1)
    assert verdict(old, old, asked=old) == AGAIN
    assert verdict(None, old, asked=old) == FIRST


bindings = st.builds(
    Binding,
    st.sampled_from(["n1", "n2"]),
    st.sampled_from(["i-00000001", "i-00000002"]),
    st.sampled_from([NOW - 20, NOW - 10]),
    st.sampled_from(["a" * 64, "b" * 64]),
    st.just("10.0.0.10"),
)


@given(st.lists(bindings, max_size=12))
def test_whatever_comes_in_whatever_order(asked: list[Binding]) -> None:
    """One launch is one node with one key, for ever; and a name never goes back to an earlier launch."""
    nodes: dict[str, Binding] = {}
    instances: dict[str, Binding] = {}
    given_to: dict[tuple[str, int], tuple[str, str]] = {}
    for each in asked:
        before = nodes.get(each.node)
        try:
            judge(each, Known(before, instances.get(each.instance)), oldest=3600, now=NOW)
        except Refused:
            continue
        instances[each.instance] = nodes[each.node] = each
        assert given_to.setdefault((each.instance, each.launched), (each.node, each.key)) == (each.node, each.key)
        assert before is None or before.launched <= each.launched


def test_what_is_remembered_comes_back() -> None:
    issued = tuple(Issued(f"{number:x}", NOW + number) for number in range(5))
    for binding in (ME, ME._replace(issued=issued)):
        assert Binding.from_dict(binding.to_dict()) == binding


@pytest.mark.parametrize(
    "change",
    [
        {"v": "2"}, {"node": "a_b"}, {"node": ""}, {"instance": "i-x"}, {"launched": "-1"}, {"launched": "1.5"},
        {"key": "a"}, {"address": ""}, {"issued": "zz:1"}, {"issued": "ab:1,cd:2"}, {"more": "1"}, {"launched": 5},
        {"principal": "root"},
        {"key": None},
    ],
)  # fmt: skip
def test_what_somebody_else_wrote_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        Binding.from_dict({**ME.to_dict(), **change})
    assert caught.value.rule == "enrol.binding"


def test_a_missing_field_is_refused() -> None:
    whole = ME.to_dict()
    for name in whole:
        with pytest.raises(Refused):
            Binding.from_dict({key: value for key, value in whole.items() if key != name})


def test_certificates_that_have_ended_are_forgotten() -> None:
    kept = ME._replace(issued=(Issued("1", NOW - 1), Issued("2", NOW + 1))).with_issued(Issued("3", NOW + 9), NOW)
    assert [each.serial for each in kept.issued] == ["2", "3"]


def test_what_could_not_be_read_again_is_never_remembered() -> None:
    """Whoever has a node's key can renew without pause; the node's name must not be lost by that, for anybody."""
    kept = ME
    with pytest.raises(Refused) as caught:
        for number in range(1000):
            kept.check_room(NOW)
            kept = kept.with_issued(Issued(f"{number:x}", NOW + 86400), NOW)
    assert caught.value.rule == "enrol.often"
    assert Binding.from_dict(kept.to_dict()) == kept
    assert len(kept.issued) >= 100
    kept.check_room(NOW + 86400)
