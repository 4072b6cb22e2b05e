"""The files have one form; everything else is refused."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from slurm_hooks import breakglass_papers as papers
from tests.unit.glass.conftest import REQUEST

GOOD = json.loads(papers.dump_request(REQUEST))
WITHOUT = object()


def changed(**changes: object) -> bytes:
    found = {name: value for name, value in {**GOOD, **changes}.items() if value is not WITHOUT}
    return (json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n").encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 2000,
        papers.dump_request(REQUEST) + b"\n",
        papers.dump_request(REQUEST).replace(b":", b": "),
        papers.dump_request(REQUEST).replace(b'"id":"g1",', b'"id":"g2","id":"g1",'),
        changed(extra="x"),
        changed(approver="ben"),
        changed(role=WITHOUT),
        changed(job=7),
        changed(role=WITHOUT, job=0),
        changed(role=WITHOUT, job=-1),
        changed(role=WITHOUT, job=2**32),
        changed(role=WITHOUT, job="7"),
        changed(role=WITHOUT, job=7.0),
        changed(role=WITHOUT, job=True),
        changed(role="Phi EU"),
        changed(role=5),
        changed(role=None),
        changed(user=""),
        changed(user="bob\n"),
        changed(user="b b"),
        changed(user=13),
        changed(id="g2"),
        changed(id=WITHOUT),
        changed(by=WITHOUT),
        changed(by=-1),
        changed(by=2**32 - 1),
        changed(by="11"),
        changed(by=True),
        changed(by=None),
        changed(time=0),
        changed(time="1"),
        changed(until=GOOD["time"]),
        changed(until=GOOD["time"] - 1),
        changed(until=2**41),
        changed(until=WITHOUT),
        changed(until=1e300),
        changed(reason=""),
        changed(reason="  "),
        changed(reason="x" * 201),
        changed(reason="a\nb"),
        changed(reason="\x1b[2J"),
        changed(reason="\u202e"),
        changed(reason="\ud800"),
        changed(reason=["x"]),
        changed(reason=WITHOUT),
    ],
)
def test_a_request_that_is_not_one(data: bytes) -> None:
    with pytest.raises(Refused) as caught:
        papers.parse_request("g1", data)

    assert caught.value.rule == "glass.syntax"
    assert caught.value.advice


@pytest.mark.parametrize("name", ["", "G1", "g_1", "-g", "../g", "g" * 33, "g.1", "g\n"])
def test_names_that_are_none(name: str) -> None:
    assert not papers.is_id(name)
    with pytest.raises(Refused):
        papers.parse_request(name, papers.dump_request(attrs.evolve(REQUEST, id=name)))


@pytest.mark.parametrize("asked", [REQUEST, attrs.evolve(REQUEST, role=None, job=7, reason="für Zürich")])
def test_what_is_written_is_read(asked: papers.Request) -> None:
    assert papers.parse_request("g1", papers.dump_request(asked)) == asked


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        papers.dump_note(papers.Note("g1", 12, "", "why")),
        papers.dump_note(papers.Note("g1", 12, "ab" * 31, "why")),
        papers.dump_note(papers.Note("g1", 12, "AB" * 32, "why")),
        papers.dump_note(papers.Note("g2", 12, "ab" * 32, "why")),
        papers.dump_note(papers.Note("g1", 12, "ab" * 32, "")),
    ],
)
def test_an_approval_that_is_not_one(data: bytes) -> None:
    with pytest.raises(Refused, match="approval"):
        papers.parse_approval("g1", data)


def test_notes() -> None:
    approval = papers.Note("g1", 12, "ab" * 32, "why")
    assert papers.parse_approval("g1", papers.dump_note(approval)) == approval
    end = papers.Note("g1", 12, "", "why")
    assert papers.parse_end("g1", papers.dump_note(end)) == end
    with pytest.raises(Refused):
        papers.parse_end("g1", papers.dump_note(approval))


@pytest.mark.parametrize(
    ("data", "by"),
    [
        (papers.dump_request(REQUEST), 11),
        (b'{"by":0}', 0),
        (b'{"by":-1}', None),
        (b'{"by":4294967295}', None),
        (b'{"by":"11"}', None),
        (b'{"by":true}', None),
        (b"[11]", None),
        (b"", None),
        (b"[" * 2000, None),
    ],
)
def test_who_says_it(data: bytes, by: int | None) -> None:
    assert papers.said_by(data) == by


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(data: bytes) -> None:
    for parse in (papers.parse_request, papers.parse_approval, papers.parse_end):
        with pytest.raises(Refused):
            parse("g1", data)
