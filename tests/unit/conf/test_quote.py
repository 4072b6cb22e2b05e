from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.quote import did_you_mean, one_of, quote

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07",
    "line\nsshd[1]: Accepted password for root",
    "\u202eyad",
    "a\u200bb",
    "\udcff\udc1b",
    "\x9b31m",
    "\u2028",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_stays_on_one_short_line(text: str) -> None:
    shown = quote(text)
    assert shown.isprintable()
    assert len(shown) < 1000


@given(st.text() | st.binary())
def test_everything_quoted_is_printable(value: str | bytes) -> None:
    assert quote(value).isprintable()


def test_utf8_stays_readable() -> None:
    assert quote("Größe") == "'Größe'"
    assert quote(b"Gr\xc3\xb6\xff") == r"'Grö\\xff'"


def test_did_you_mean() -> None:
    assert did_you_mean("Adress", ["address", "timeout"]) == " (did you mean 'address'?)"
    assert did_you_mean("zzz", ["address"]) == ""
    assert did_you_mean("a" * 100_000, ["address"]) == ""
    assert one_of(["a"]) == "'a'"
    assert one_of(["a", "b", 1]) == "'a', 'b' or 1"
