"""The schema is closed: the deny path of every kind of field."""

from __future__ import annotations

import pytest

from audit.events import EVENTS, FIELDS, check


def decision(**changes: object) -> dict[str, object]:
    return {"verdict": "allow", "rule": "role.match", "verb": "submit", "uid": 1001, **changes}


def test_unknown_event_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown audit event 'job\\.started'"):
        check("job.started", {})


def test_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="field missing: uid"):
        check("decision", decision(uid=None))


@pytest.mark.parametrize("name", ["user", "environment", "script", "path", "password", "data_key"])
def test_no_field_for_names_paths_or_secrets(name: str) -> None:
    with pytest.raises(ValueError, match="field not allowed"):
        check("decision", decision(**{name: "alice"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uid", -1),
        ("uid", 2**32),
        ("uid", "1001"),
        ("uid", True),
        ("job", 1.0),
        ("job", 2**63),
        ("verdict", "perhaps"),
        ("rule", "a rule\n"),
        ("rule", "r" * 65),
        ("class", "PHI"),
        ("nonce", "xyz"),
        ("seconds", float("nan")),
        ("seconds", -0.5),
        ("seconds", True),
        ("partition", b"phi"),
    ],
)
def test_value_of_the_wrong_kind_is_refused_and_not_repeated(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"field {name} is not a valid") as caught:
        check("decision", decision(**{name: value}))
    assert repr(value) not in str(caught.value)


def test_text_is_cut_not_refused() -> None:
    long = check("decision", decision(partition="p" * 5000))["partition"]
    assert isinstance(long, str)
    assert len(long) == 256
    assert long.endswith("...")


def test_none_is_left_out_klass_is_class_and_the_order_is_ours() -> None:
    checked = check("decision", {"klass": "phi", "job": None, **decision()})
    assert list(checked) == ["verdict", "rule", "verb", "uid", "class"]


def test_every_field_of_every_event_is_declared() -> None:
    for event in EVENTS.values():
        assert event.required | event.optional <= FIELDS.keys()
