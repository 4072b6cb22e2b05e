from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf import units
from conf.errors import UsageError


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("200", "no unit"),
        ("10GB", "ambiguous"),
        ("10mb", "ambiguous"),
        ("", "not a size"),
        ("1.5G", "not a size"),
        ("-1G", "not a size"),
        ("+1G", "not a size"),
        (" 1G", "not a size"),
        ("1 G", "not a size"),
        ("1G\n", "not a size"),
        ("\u0661G", "not a size"),  # an Arabic digit one, which int() would take
        ("1E", "not a size"),
        ("1_0G", "not a size"),
        ("0x10G", "not a size"),
        ("8192P", "more than"),
        ("9999999999999999999B", "more than"),
        ("9" * 5000 + "G", "not a size"),
    ],
)
def test_refused_sizes(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        units.parse_size(text)
    assert caught.value.advice


@pytest.mark.parametrize(
    ("text", "size"),
    [("512B", 512), ("1k", 1024), ("200M", 209715200), ("10GiB", 10 * 2**30), ("1T", 2**40), ("8191P", 8191 * 2**50)],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@given(st.integers(min_value=0, max_value=units.MAX_SIZE))
def test_size_round_trip(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_a_usage_error(text: str) -> None:
    try:
        assert 0 <= units.parse_size(text) <= units.MAX_SIZE
    except UsageError as error:
        assert str(error).isprintable()


def test_format_size_refuses_a_negative_size() -> None:
    with pytest.raises(ValueError, match="negative"):
        units.format_size(-1)


@pytest.mark.parametrize(
    "text", ["", "5", "0s", "0ms", "1.5s", "-1s", "5 s", "5S", "1w", "3651d", "\u0665s", "5s\n", "1M"]
)
def test_refused_durations(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("1ms", 0.001), ("5s", 5.0), ("10m", 600.0), ("12h", 43200.0), ("30d", 2592000.0)],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@given(st.integers(min_value=1, max_value=3650 * 86_400_000))
def test_duration_round_trip(millis: int) -> None:
    assert units.parse_duration(units.format_duration(millis / 1000)) == millis / 1000
