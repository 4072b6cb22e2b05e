"""Whether lines that a node has sent go on where its chain was left: asked before the head node keeps them. Pure.

A node may add to its chain, and nothing else. A line of another host or writer, one that was changed, that no version
of ours writes, or that claims a place which is taken already is refused, and everything that was sent with it. Two
things are let in and told: numbers that are missing (what a node has lost it cannot send, and what comes after must not
be lost as well), and a chain that begins anew in another boot: a machine that was terminated, and its successor of the
same name.
"""

from __future__ import annotations

from typing import NamedTuple

from audit import events
from audit.line import FRAME, GENESIS, ZERO_HASH, Link, canonical, line_hash, parse_line
from conf.errors import Refused

WRITERS = ("node", "hand")
"""Who writes a trail on a node."""
MOST_BYTES = 128 * 1024
"""Bytes that are sent at once."""
LINE_LIMIT = 16384
"""Bytes of one line; the limits in events.FIELDS leave half of that."""


class Held(NamedTuple):
    """The end of a chain: its last line, and the boot that wrote it."""

    link: Link = GENESIS
    boot: str = ""


class Batch(NamedTuple):
    """Lines that may be kept. ``begun``: they are a chain of their own, from its first line. ``lost``: how many numbers
    are missing before or among them.
    """

    held: Held
    number: int
    begun: bool
    lost: int


def check(raw: bytes, node: str, writer: str, held: Held) -> Batch:
    """What becomes of a chain by these lines. Refused ``segment.*``: none of them is kept, and why."""
    if writer not in WRITERS:
        raise Refused("segment.foreign", "there is no such writer on a node")
    if len(raw) > MOST_BYTES or not raw.endswith(b"\n"):
        raise Refused("segment.form", "too much was sent at once, or no whole lines")
    begun, lost, count = False, 0, 0
    for one in raw.splitlines(keepends=True):
        line = _line(one, node, writer)
        link, boot = Link(int(str(line["seq"])), str(line["hash"])), str(line["boot"])
        if link.seq == 1 and line["prev"] == ZERO_HASH and held.link.seq:
            if count or boot == held.boot:
                raise Refused("segment.fork", f"the chain begins anew after line {held.link.seq}, in the same boot")
            begun = True
        elif link.seq <= held.link.seq:
            raise Refused("segment.fork", f"line {link.seq} is sent a second time, {held.link.seq} are held")
        elif link.seq > held.link.seq + 1:
            lost += link.seq - held.link.seq - 1
        elif line["prev"] != held.link.hash:
            raise Refused("segment.fork", f"line {link.seq} follows another line {held.link.seq} than the one held")
        held, count = Held(link, boot), count + 1
    return Batch(held, count, begun, lost)


def _line(raw: bytes, node: str, writer: str) -> dict[str, object]:
    line = parse_line(raw) if len(raw) <= LINE_LIMIT else None
    if line is None:
        raise Refused("segment.form", "what was sent is no audit line")
    if (line["host"], line["writer"]) != (node, writer):
        raise Refused("segment.foreign", "a line is of another host or writer")
    try:
        if canonical(line).encode("ascii") + b"\n" != raw or line_hash(line) != line["hash"]:
            raise Refused("segment.changed", f"line {line['seq']} is not what was written (its hash differs)")
        events.check(str(line["event"]), {name: value for name, value in line.items() if name not in FRAME})
    except (ValueError, RecursionError):
        raise Refused("segment.schema", f"line {line['seq']} has an event or a field that is not known here") from None
    return line
