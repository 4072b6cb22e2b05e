"""``private_tmp`` of a class: its default, what cannot be, and what reaches the hooks."""

from __future__ import annotations

import attrs
import pytest

from conf import surroundings
from conf.policy import DataClass, Jurisdiction, Policy
from conf.policy_checks import check_policy


def klass(name: str, scratch: str, private_tmp: str | None = None) -> DataClass:
    made = DataClass(name=name, residency="optional", scratch="optional")
    return attrs.evolve(made, scratch=scratch, private_tmp=private_tmp)


@pytest.mark.parametrize(
    ("scratch", "private_tmp", "tmp"),
    [
        ("required", None, "scratch"),
        ("required", "none", "none"),
        ("required", "encrypted", "encrypted"),
        ("optional", None, "none"),
        ("optional", "encrypted", "encrypted"),
    ],
)
def test_it_is_wanted_where_scratch_is(scratch: str, private_tmp: str | None, tmp: str) -> None:
    assert klass("x", scratch, private_tmp).tmp == tmp


@pytest.mark.parametrize(("scratch", "wrong"), [("required", False), ("optional", True)])
def test_on_the_scratch_without_scratch_is_a_mistake(scratch: str, wrong: bool) -> None:
    one = {"name": "x", "residency": "optional", "scratch": scratch, "max_scratch": "1G", "private_tmp": "scratch"}
    found = [where for where, _ in check_policy({"classes": [one]})]
    assert (("classes", 0, "private_tmp") in found) is wrong


def test_what_the_hooks_are_told() -> None:
    classes = (klass("low", "optional"), klass("mid", "optional", "encrypted"), klass("phi", "required"))
    places = {"eu": Jurisdiction(feature="eu", regions=("eu-1",))}
    policy = Policy(version=1, jurisdictions=places, classes=classes, roles={})
    assert surroundings.private_tmp(policy) == {"low": "none", "mid": "encrypted", "phi": "scratch"}
    assert surroundings.for_tasks(policy) == {"PRIVATE_TMP": "|phi|"}
    assert surroundings.for_tasks(attrs.evolve(policy, classes=classes[:2])) == {"PRIVATE_TMP": ""}
