"""The form of one audit line, shared by who writes it and who checks it.

A line is canonical JSON: ASCII, no spaces, the keys in the order below, one line feed at the end::

    {"v":1,"seq":7,"time":"2026-11-21T19:00:00.123456Z","host":"n1","writer":"prolog","boot":"...","event":"...",
     <fields>,"prev":"<hash of line 6>","hash":"<sha256 of this line without its hash>"}

so that ``sed 's/,"hash":"[0-9a-f]*"}$/}/' | tr -d '\\n' | sha256sum`` checks a line without us.

Standard library only: root hooks import this.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

ZERO_HASH = "0" * 64
FORMAT = 1
FRAME = ("v", "seq", "time", "host", "writer", "boot", "event", "prev", "hash")
TRAIL_SUFFIX = ".jsonl"
BASE_SUFFIX = ".base"
HEAD_SUFFIX = ".head"


class Link(NamedTuple):
    """The place of a line in its chain."""

    seq: int
    hash: str


GENESIS = Link(0, ZERO_HASH)
"""What stands before the first line of all."""


# made once: json.dumps() makes a new one for each call with options
_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(line: dict[str, object]) -> str:
    """The one text that a line's hash is taken of."""
    return _ENCODER.encode(line)


def sealed(line: dict[str, object]) -> tuple[str, bytes]:
    """The hash of a line that has none yet, and the whole line with it, as it is written."""
    bare = canonical(line)
    digest = hashlib.sha256(bare.encode("ascii")).hexdigest()
    return digest, f'{bare[:-1]},"hash":"{digest}"}}\n'.encode("ascii")


def line_hash(line: dict[str, object]) -> str:
    """SHA-256, in hex, of the line without its ``hash``."""
    bare = {name: value for name, value in line.items() if name != "hash"}
    return hashlib.sha256(canonical(bare).encode("ascii")).hexdigest()


def parse_link(raw: bytes) -> Link | None:
    """The link of one line of a chain or of a head file; None for what is not one."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict):
        return None
    seq, digest = line.get("seq"), line.get("hash")
    if type(seq) is not int or seq < 1 or not isinstance(digest, str) or len(digest) != len(ZERO_HASH):
        return None
    return Link(seq, digest)


def parse_line(raw: bytes) -> dict[str, object] | None:
    """The line as an object when it has the frame of an audit line, else None; its hash is not checked here."""
    if not raw.endswith(b"\n"):
        return None
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or parse_link(raw) is None or any(name not in line for name in FRAME):
        return None
    texts = (line["time"], line["host"], line["writer"], line["boot"], line["event"], line["prev"])
    return (
        line if line["v"] is not True and line["v"] == FORMAT and all(isinstance(text, str) for text in texts) else None
    )
