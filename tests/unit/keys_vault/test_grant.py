import dataclasses
from typing import Any

import pytest

from conf.errors import Refused
from keys.grant import Grant

SOUND = {
    "v": "1",
    "incarnation": "ab" * 16,
    "key": "n1_test-17-0123456789abcdef",
    "cluster": "test",
    "job": "17",
    "uid": "1001",
    "user": "alice",
    "nodes": "n1,n2",
    "restarts": "0",
    "scratch": "209715200",
    "class": "phi",
    "residency": "eu",
    "datasets": "",
    "created": "1790000000",
}
START: dict[str, Any] = {"job": "17", "uid": "1001", "cluster": "test", "restarts": "0", "nodes": ["n2", "n1"]}


@pytest.mark.parametrize("name", SOUND)
def test_a_missing_field_is_refused(name: str) -> None:
    data = {key: value for key, value in SOUND.items() if key != name}
    with pytest.raises(Refused) as refused:
        Grant.from_dict(data)
    assert refused.value.rule == "grant.field"
    assert repr(name) in str(refused.value)


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(Refused, match="'root'"):
        Grant.from_dict({**SOUND, "root": "yes"})


@pytest.mark.parametrize("value", [None, 1, True, ["x"], {"a": "b"}, b"x"])
@pytest.mark.parametrize("name", SOUND)
def test_what_is_not_text_is_refused(name: str, value: object) -> None:
    with pytest.raises(Refused):
        Grant.from_dict({**SOUND, name: value})


@pytest.mark.parametrize("name", [name for name in SOUND if name not in {"residency", "datasets"}])
def test_an_empty_field_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        Grant.from_dict({**SOUND, name: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", "2"),
        ("incarnation", "AB" * 16),
        ("incarnation", "ab" * 15),
        ("key", "n3_test-17-0123456789abcdef"),
        ("key", "n1_test-18-0123456789abcdef"),
        ("key", "n1_other-17-0123456789abcdef"),
        ("cluster", "Test"),
        ("job", "017"),
        ("uid", "-1"),
        ("uid", "01"),
        ("uid", "4294967295"),
        ("user", "a b"),
        ("user", "a\nb"),
        ("nodes", "n1,,n2"),
        ("nodes", "n1,n1"),
        ("nodes", "n1,N1"),
        ("nodes", "n[1-2]"),
        ("restarts", "-1"),
        ("scratch", "1.5"),
        ("scratch", "200M"),
        ("class", "PHI"),
        ("residency", "e u"),
        ("datasets", "A"),
        ("datasets", "a,,b"),
        ("created", "now"),
    ],
)
def test_a_field_that_is_not_of_its_form_is_refused(name: str, value: str) -> None:
    with pytest.raises(Refused) as refused:
        Grant.from_dict({**SOUND, name: value})
    assert refused.value.rule == "grant.field"


@pytest.mark.parametrize(
    ("what", "value"),
    [("job", "18"), ("uid", "1002"), ("cluster", "other"), ("restarts", "1"), ("restarts", ""), ("uid", "")],
)
def test_a_grant_of_another_start_does_not_match(what: str, value: str) -> None:
    with pytest.raises(Refused) as refused:
        Grant.from_dict(SOUND).matches(**{**START, what: value})
    assert refused.value.rule == f"grant.{what}"


@pytest.mark.parametrize("nodes", [[], ["n1"], ["n1", "n2", "n3"], ["n1", "n3"], ["n1", "n1", "n2"]])
def test_other_nodes_do_not_match(nodes: list[str]) -> None:
    with pytest.raises(Refused) as refused:
        Grant.from_dict(SOUND).matches(**{**START, "nodes": nodes})
    assert refused.value.rule == "grant.nodes"


@pytest.mark.parametrize("node", ["n2", "", "n3"])
def test_the_grant_of_another_node_does_not_match(node: str) -> None:
    with pytest.raises(Refused) as refused:
        Grant.from_dict(SOUND).matches(**START, node=node)
    assert refused.value.rule == "grant.node"


def test_the_grant_of_this_start_matches() -> None:
    grant = Grant.from_dict(SOUND)
    grant.matches(**START)
    grant.matches(**START, node="n1")
    assert grant.node == "n1"
    assert grant.to_dict() == SOUND
    assert Grant.from_dict({**SOUND, "residency": ""}).residency == ""


def test_a_grant_cannot_be_changed_into_an_unsound_one() -> None:
    grant = Grant.from_dict(SOUND)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grant.uid = "0"  # type: ignore[misc]
    with pytest.raises(Refused):
        dataclasses.replace(grant, uid="root")
