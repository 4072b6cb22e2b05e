from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import ConfigError, Refused
from keys.secret import Secret
from slurm_hooks import record
from slurm_hooks.record import Record

KEY = Secret(b"k" * 32)
RECORD = Record("test", 1001, "alice", "phi", "eu", 209715200, "0123456789abcdef", "ab" * 16, 1795288887)


def rule_of(text: str, key: Secret = KEY) -> str:
    with pytest.raises(Refused) as caught:
        record.verify(text, key)
    return caught.value.rule


def test_the_text() -> None:
    assert record.sign(RECORD, KEY).startswith(
        "secure-slurm/1 cluster=test uid=1001 user=alice class=phi residency=eu scratch=209715200"
        " policy=0123456789abcdef nonce=abababababababababababababababab time=1795288887 mac="
    )


def test_absent_parts_are_left_out() -> None:
    text = record.sign(attrs.evolve(RECORD, residency=None, scratch=None), KEY)

    assert "residency" not in text
    assert "scratch" not in text
    assert record.verify(text, KEY).residency is None


name = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
number = st.integers(min_value=0, max_value=10**18)
records = st.builds(
    Record,
    cluster=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True),
    uid=number,
    user=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", fullmatch=True),
    klass=name,
    residency=st.none() | name,
    scratch=st.none() | number,
    policy=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    nonce=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    time=number,
)


@given(records, st.text())
def test_what_is_signed_is_read_back(made: Record, note: str) -> None:
    text = record.sign(made, KEY)

    assert record.verify(text, KEY) == made
    assert record.verify(f"{text} | {note}", KEY) == made


@given(records, st.data())
def test_any_changed_character_is_found(made: Record, data: st.DataObject) -> None:
    text = record.sign(made, KEY)
    at = data.draw(st.integers(min_value=0, max_value=len(text) - 1))
    other = data.draw(st.characters().filter(lambda char: char != text[at]))

    with pytest.raises(Refused) as caught:
        record.verify(text[:at] + other + text[at + 1 :], KEY)
    assert caught.value.rule.startswith("record.")


@given(st.text())
def test_hostile_text_is_only_ever_refused(text: str) -> None:
    assert rule_of(text).startswith("record.")
    assert rule_of("secure-slurm/1 " + text).startswith("record.")


def test_another_key() -> None:
    assert rule_of(record.sign(RECORD, KEY), Secret(b"x" * 32)) == "record.mac"


@pytest.mark.parametrize("text", ["", "note", " secure-slurm/1 x", "secure-slurm/2 cluster=test"])
def test_no_record(text: str) -> None:
    assert rule_of(text) == "record.missing"


def test_a_signed_text_of_another_shape_is_no_record() -> None:
    """A MAC alone is not enough: an older key holder's text with fields in another order is refused."""
    text = "secure-slurm/1 uid=0 cluster=test"

    assert rule_of(f"{text} mac={record._mac(text, KEY)}") == "record.syntax"


@pytest.mark.parametrize(
    "changed",
    [
        {"user": "al ice"},
        {"user": "alice\n"},
        {"user": ""},
        {"klass": "phi residency=us"},
        {"cluster": "a|b"},
        {"uid": -1},
        {"residency": ""},
        {"nonce": "ab"},
        {"policy": "AB" * 8},
        {"scratch": -1},
    ],
)
def test_what_cannot_be_written(changed: dict[str, object]) -> None:
    with pytest.raises(Refused) as caught:
        record.sign(attrs.evolve(RECORD, **changed), KEY)
    assert caught.value.rule == "record.field"


def test_split() -> None:
    assert record.split("a | b | c") == ("a", "b | c")
    assert record.split("a |b") == ("a |b", "")


def test_a_wiped_key_signs_nothing() -> None:
    key = Secret(b"k" * 32)
    key.wipe()

    with pytest.raises(ConfigError):
        record.sign(RECORD, key)


def test_load_key(tmp_path: Path) -> None:
    path = tmp_path / "record.key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o640)

    assert bytes(record.load_key(str(path)).reveal()) == b"k" * 32


def test_a_key_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.key"
    with pytest.raises(ConfigError):
        record.load_key(str(path))
    path.write_bytes(b"k" * 31)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="31 bytes"):
        record.load_key(str(path))
    path.write_bytes(b"k" * 32)
    path.chmod(0o644)
    with pytest.raises(ConfigError):
        record.load_key(str(path))
    path.chmod(0o620)
    with pytest.raises(ConfigError):
        record.load_key(str(path))
    link = tmp_path / "link"
    path.chmod(0o600)
    link.symlink_to(path)
    with pytest.raises(ConfigError):
        record.load_key(str(link))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    with pytest.raises(ConfigError):
        record.load_key(str(pipe))
