"""Only the front is ours: the words that other wrappers steal from sbatch stay sbatch's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UsageError
from submit.options import parse_own, split_argv

WORDS = st.sampled_from(
    [
        "--secure-class",
        "--secure-class=phi",
        "--secure-residency",
        "--secure-help",
        "--secure-",
        "--secure-clas=x",
        "--",
        "-N",
        "2",
        "phi",
        "job.sh",
        "--export=ALL",
        ":",
        "",
    ]
)


@given(st.lists(WORDS | st.text(max_size=6), max_size=10))
def test_nothing_is_lost_added_or_moved(argv: list[str]) -> None:
    own, rest = split_argv(argv)
    assert own + rest == argv
    assert not rest or not rest[0].startswith("--secure-")


@pytest.mark.parametrize(
    "rest",
    [
        ["--export=ALL", "j.sh"],
        ["j.sh", "--secure-class=phi"],
        ["-J", "--secure-class=phi", "j.sh"],
        ["--", "j.sh", "-s"],
        ["-sn4", "j.sh"],
        [],
    ],
)
def test_the_schedulers_words_are_not_looked_at(rest: list[str]) -> None:
    assert split_argv(["--secure-class", "phi", *rest]) == (["--secure-class", "phi"], rest)


def test_values_by_equals_and_by_next_word() -> None:
    own = parse_own(["--secure-class=phi", "--secure-residency", "eu", "--secure-scratch=1G", "--secure-dry-run"])
    assert own.values == {"class": "phi", "residency": "eu", "scratch": "1G"}
    assert own.flags == {"dry-run"}


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--secure-class=phi", "--secure-class", "internal"], "--secure-class is given twice: 'phi' and 'internal'"),
        (["--secure-class"], "--secure-class has no value"),
        (["--secure-class="], "--secure-class has no value"),
        (["--secure-clas=phi"], r"unknown option '--secure-clas' \(did you mean '--secure-class'\?\)"),
        (["--secure-"], "unknown option '--secure-'"),
        (["--secure-dry-run=yes"], "takes no value"),
        (["--secure-\x1b[31m=x"], r"unknown option '--secure-\\x1b"),
    ],
)
def test_a_wrong_front_is_a_usage_error(own: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_own(own)
    assert caught.value.exit_code == 2
    assert caught.value.advice


def test_the_same_twice_is_once() -> None:
    assert parse_own(["--secure-class=phi", "--secure-class", "phi"]).values == {"class": "phi"}
