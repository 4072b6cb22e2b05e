from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UsageError
from conf.tag import MAX_DATASETS, Tag, is_name, mentions_tag, parse_extra, parse_scratch
from conf.units import MAX_SIZE

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
DATASETS = st.sets(NAMES, max_size=MAX_DATASETS).map(lambda names: tuple(sorted(names)))
TAGS = st.builds(Tag, NAMES, st.none() | NAMES, st.none() | st.integers(1, MAX_SIZE), DATASETS)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not a tag"),
        ("class=phi", "is not a tag"),
        (" secure-slurm:class=phi", "is not a tag"),
        ("other secure-slurm:class=phi", "is not a tag"),
        ("Secure-Slurm:class=phi", "is not a tag"),
        ("secure-slurm:", "not key=value"),
        ("secure-slurm:class", "not key=value"),
        ("secure-slurm:class=phi;", "not key=value"),
        ("secure-slurm:class=phi,residency=eu", "is not a name"),
        ("secure-slurm:residency=eu", "neither a data class nor"),
        ("secure-slurm:class=", "is not a name"),
        ("secure-slurm:datasets=", "is not a name"),
        ("secure-slurm:datasets=a,", "is not a name"),
        ("secure-slurm:datasets=a b", "is not a name"),
        ("secure-slurm:class=phi;datasets=A", "is not a name"),
        ("secure-slurm:datasets=" + ",".join(f"d{n}" for n in range(17)), "17 datasets"),
        ("secure-slurm:scratch=1;residency=eu", "neither a data class nor"),
        ("secure-slurm:class=Phi", "is not a name"),
        ("secure-slurm:class=-phi", "is not a name"),
        ("secure-slurm:class=phi\n", "is not a name"),
        ("secure-slurm:class=ph\u0131", "is not a name"),
        ("secure-slurm:class=" + "a" * 33, "is not a name"),
        ("secure-slurm:class=phi;class=internal", "twice"),
        ("secure-slurm:class=phi;residancy=eu", "did you mean 'residency'"),
        ("secure-slurm:class=phi;CLASS=phi", "not part of a tag"),
        ("secure-slurm:class=phi;residency=", "is not a name"),
        ("secure-slurm:class=phi;scratch=0", "no unit"),
        ("secure-slurm:class=phi;scratch=0M", "cannot be made"),
        ("secure-slurm:class=phi;scratch=-1", "not a size"),
        ("secure-slurm:class=phi;scratch=01", "no unit"),
        ("secure-slurm:class=phi;scratch=9999999999999999999", "cannot be made"),
        ("secure-slurm:class=" + "a" * 1024, "longer than 1024"),
    ],
)
def test_refused_tags(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part) as caught:
        parse_extra(text)
    assert str(caught.value).isprintable()
    assert caught.value.advice


@pytest.mark.parametrize("tag", [Tag("Phi"), Tag("phi;scratch=1"), Tag("phi", "eu;x"), Tag("phi", None, 0), Tag("")])
def test_nothing_unreadable_is_written(tag: Tag) -> None:
    with pytest.raises(UsageError):
        tag.to_extra()


def test_canonical_text() -> None:
    assert parse_extra("secure-slurm:scratch=200M;residency=eu;class=phi").to_extra() == (
        "secure-slurm:class=phi;residency=eu;scratch=209715200"
    )
    assert Tag("phi").to_extra() == "secure-slurm:class=phi"
    assert parse_extra("secure-slurm:datasets=b,a,b").to_extra() == "secure-slurm:datasets=a,b"
    assert Tag("phi", datasets=("a",)).to_extra() == "secure-slurm:class=phi;datasets=a"


@given(TAGS)
def test_round_trip(tag: Tag) -> None:
    text = tag.to_extra()
    assert parse_extra(text) == tag
    assert mentions_tag(text)
    assert len(text) < 1024


@given(st.text(max_size=60))
def test_any_text_is_a_tag_or_a_usage_error(text: str) -> None:
    for each in (text, f"secure-slurm:{text}", f"secure-slurm:class=a;{text}"):
        try:
            tag = parse_extra(each)
            assert is_name(tag.klass) or (tag.klass == "" and tag.datasets)
        except UsageError as error:
            assert str(error).isprintable()


def test_pairs_may_be_a_mapping_or_a_list() -> None:
    assert Tag.from_pairs({"class": "phi", "scratch": "1G"}) == Tag("phi", None, 2**30)
    assert Tag.from_pairs([("class", "phi"), ("residency", "eu")]) == Tag("phi", "eu")
    with pytest.raises(UsageError, match="twice"):
        Tag.from_pairs([("class", "phi"), ("class", "phi")])
    with pytest.raises(UsageError, match="neither a data class nor"):
        Tag.from_pairs({})


def test_scratch_is_bytes_without_a_unit() -> None:
    assert parse_scratch("209715200") == parse_scratch("200M")


@pytest.mark.parametrize("text", ["secure-slurm:", "x SECURE-SLURM:class=phi", "secure-slurm"])
def test_a_broken_tag_still_counts_as_a_mark(text: str) -> None:
    assert mentions_tag(text)


@pytest.mark.parametrize("text", [None, "", "secure", "slurm"])
def test_other_extras_are_no_mark(text: str | None) -> None:
    assert not mentions_tag(text)
