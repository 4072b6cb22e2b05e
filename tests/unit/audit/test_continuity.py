"""What a node may add to its chain on the head node, and what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from audit.continuity import MOST_BYTES, Held, check
from audit.line import GENESIS, ZERO_HASH, Link, sealed
from conf.errors import Refused

BOOT = "11111111-1111-4111-8111-111111111111"
OTHER_BOOT = "22222222-2222-4222-8222-222222222222"


def line(seq: int, prev: str, **changes: Any) -> tuple[Link, bytes]:
    content: dict[str, Any] = {
        "v": 1,
        "seq": seq,
        "time": "2026-11-21T19:00:00.123456Z",
        "host": "n1",
        "writer": "node",
        "boot": BOOT,
        "event": "scratch.gone",
        "job": 17,
        "node": "n1",
        "evidence": "nothing is there",
        "prev": prev,
    }
    digest, raw = sealed({**content, **changes})
    return Link(seq, digest), raw


def chain(count: int, after: Link = GENESIS, **changes: Any) -> tuple[Link, bytes]:
    text = b""
    for _ in range(count):
        after, raw = line(after.seq + 1, after.hash, **changes)
        text += raw
    return after, text


END, LINES = chain(3)
HELD = Held(END, BOOT)


def refused(raw: bytes, held: Held = HELD, node: str = "n1", writer: str = "node") -> str:
    with pytest.raises(Refused) as caught:
        check(raw, node, writer, held)
    return caught.value.rule


def test_a_chain_from_its_beginning_and_on() -> None:
    first = check(LINES, "n1", "node", Held())
    assert (first.held, first.number, first.begun, first.lost) == (HELD, 3, False, 0)
    end, more = chain(2, END)
    assert check(more, "n1", "node", first.held).held == Held(end, BOOT)


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"x\n", b"{}\n", LINES[:-1], b"\xff\xfe\n", b"[" * 5000 + b"\n", b"x" * 20000 + b"\n", b'{"seq":4}\n'],
)
def test_what_is_no_line(raw: bytes) -> None:
    assert refused(raw) == "segment.form"


def test_too_much_at_once() -> None:
    assert refused(LINES * (MOST_BYTES // len(LINES) + 1)) == "segment.form"


@pytest.mark.parametrize(("node", "writer"), [("n2", "node"), ("n1", "hand")])
def test_another_nodes_or_writers_line(node: str, writer: str) -> None:
    assert refused(chain(1, END)[1], HELD, node, writer) == "segment.foreign"


@pytest.mark.parametrize("writer", ["lifecycle", "decision", "", "../node"])
def test_a_writer_that_is_on_no_node(writer: str) -> None:
    assert refused(chain(1, END, writer=writer)[1], HELD, "n1", writer) == "segment.foreign"


def test_a_line_that_was_changed() -> None:
    assert refused(chain(1, END)[1].replace(b"nothing", b"nobody!")) == "segment.changed"
    # the same content in another form: what is kept is what was written, byte for byte
    assert refused(chain(1, END)[1].replace(b'"job":17', b'"job": 17')) == "segment.changed"


@pytest.mark.parametrize("changes", [{"event": "made.up"}, {"script": "#!/bin/sh"}, {"job": "17"}, {"evidence": None}])
def test_an_event_that_there_is_not(changes: dict[str, Any]) -> None:
    assert refused(chain(1, END, **changes)[1]) == "segment.schema"


def test_a_line_that_is_held_is_not_written_again() -> None:
    _, other = line(3, chain(2)[0].hash, evidence="another story")
    assert refused(other) == "segment.fork"
    assert refused(LINES) == "segment.fork"


def test_a_line_after_another_one() -> None:
    assert refused(line(4, "ab" * 32)[1]) == "segment.fork"


def test_a_chain_that_begins_anew_in_the_same_boot() -> None:
    assert refused(line(1, ZERO_HASH, evidence="I know nothing")[1]) == "segment.fork"


def test_nothing_of_a_batch_with_one_bad_line_counts() -> None:
    end, good = chain(1, END)
    assert refused(good + line(5, "ab" * 32)[1]) == "segment.fork"
    # two chains at once
    assert refused(good + line(1, ZERO_HASH, boot=OTHER_BOOT)[1]) == "segment.fork"
    assert check(good, "n1", "node", HELD).held.link == end


def test_missing_numbers_are_counted() -> None:
    _, early = chain(2, Link(9, "ab" * 32))
    batch = check(early, "n1", "node", HELD)
    assert (batch.lost, batch.held.link.seq, batch.begun) == (6, 11, False)


def test_the_successor_of_a_machine() -> None:
    end, lines = chain(2, GENESIS, boot=OTHER_BOOT)
    batch = check(lines, "n1", "node", HELD)
    assert (batch.begun, batch.held, batch.lost) == (True, Held(end, OTHER_BOOT), 0)
