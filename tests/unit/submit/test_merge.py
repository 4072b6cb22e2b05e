"""Three sources, one tag: never weaker than any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UsageError
from conf.tag import Tag
from conf.units import parse_size
from submit.merge import COMMAND_LINE, Source, from_environment, merge


def sources(line: dict[str, str], script: dict[str, str], environ: dict[str, str]) -> list[Source]:
    return [Source(COMMAND_LINE, line), Source("the script", script), from_environment(environ)]


@pytest.mark.parametrize(
    ("line", "script", "environ", "message"),
    [
        ({"residency": "eu"}, {}, {}, "the tag names no data class"),
        ({"class": "phi", "residency": "us"}, {"residency": "eu"}, {}, "command line says residency 'us', the script"),
        ({}, {"class": "phi", "residency": "eu"}, {"SECURE_RESIDENCY": "us"}, "the script says residency 'eu'"),
        ({}, {"class": "internal"}, {"SECURE_CLASS": "phi"}, "the script says class 'internal', the environment"),
        ({"class": "phi", "scratch": "1G"}, {"scratch": "2G"}, {}, "asks for 1G of scratch, the script for 2G"),
        ({"class": "phi", "scratch": "200"}, {}, {}, "the command line: the scratch size '200' has no unit"),
        ({"class": "phi", "scratch": "0G"}, {}, {}, "cannot be made"),
        ({"class": "phi"}, {}, {"SECURE_SCRATCH_SIZE": "0"}, "the environment: the scratch size"),
        ({"class": "PHI"}, {}, {}, "the command line: the class 'PHI' is not a name"),
        ({"class": "phi\n"}, {}, {}, r"the class 'phi\\n' is not a name"),
        ({"class": "phi;residency=us"}, {}, {}, "is not a name"),
        ({"class": "ph\u00ef"}, {}, {}, "is not a name"),
        ({"class": "\udcff"}, {}, {}, "is not a name"),
        ({"class": "phi"}, {}, {"SECURE_RESIDENCY": "\x1b[31m"}, r"the environment: the residency '\\x1b"),
    ],
)
def test_refused(line: dict[str, str], script: dict[str, str], environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        merge(sources(line, script, environ))
    assert caught.value.advice


def test_a_variable_that_is_set_but_empty_is_refused() -> None:
    with pytest.raises(UsageError, match="SECURE_CLASS is set but empty"):
        from_environment({"SECURE_CLASS": ""})


def test_nothing_said_is_no_tag() -> None:
    assert merge(sources({}, {}, {"SECURE_SCRATCH": "/secure-scratch/7"})) is None


def test_the_command_line_adds_and_its_class_is_sent() -> None:
    line = {"class": "phi", "scratch": "2G"}
    merged = merge(sources(line, {"class": "internal", "residency": "eu"}, {"SECURE_SCRATCH_SIZE": "1073741824"}))
    assert merged == Tag("phi", "eu", 2**31)


SIZES = st.sampled_from(["1M", "2M", "1G"])
VALUES = st.fixed_dictionaries(
    {}, optional={"class": st.just("phi"), "residency": st.sampled_from(["eu", "us"]), "scratch": SIZES}
)


@given(VALUES, VALUES, VALUES)
def test_no_source_is_ever_weakened(line: dict[str, str], script: dict[str, str], other: dict[str, str]) -> None:
    given_sources = [Source(COMMAND_LINE, line), Source("the script", script), Source("the environment", other)]
    try:
        tag = merge(given_sources)
    except UsageError:
        return
    for source in given_sources:
        for key, value in source.values.items():
            assert tag is not None
            if key == "residency":
                assert tag.residency == value
            if key == "scratch":
                assert tag.scratch is not None
                assert tag.scratch >= parse_size(value)
