"""The three kinds of papers that make a break-glass grant, in their one canonical form. Pure.

``by`` in each is the uid of who said it, as the kernel told secure-slurm-glassd, which alone writes them. Whatever is
not exactly what it writes is refused: nobody shall approve bytes that two readers could understand in two ways.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import attrs

from conf.errors import Refused
from conf.tag import is_name
from slurm_hooks.record import safe_user

KINDS = ("request", "approval", "end")
MAX_BYTES = 2048
MAX_REASON = 200

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_JOB = 0xFFFFFFFD  # slurm.h: below NO_VAL
_MAX_TIME = 2**40
_MAX_UID = 2**32 - 2  # (uid_t)-1 means none (chown(2))


class Paper(NamedTuple):
    """A file as it was found: who said it (uid), its bytes, and when it was last changed (ctime, Unix seconds).

    ``by`` None: that cannot be read in it.
    """

    by: int | None
    data: bytes
    changed: float


@attrs.frozen(kw_only=True)
class Request:
    """What ``by`` asks for: that ``user`` holds ``role``, or may change the tag of ``job``, from ``time`` to ``until``.

    Times in Unix seconds; exactly one of ``role`` and ``job`` is set.
    """

    id: str
    by: int
    user: str
    role: str | None = None
    job: int | None = None
    time: int
    until: int
    reason: str


class Note(NamedTuple):
    """An approval (``digest``: SHA-256 of the request's bytes) or an end (no digest): who says so, and why."""

    id: str
    by: int
    digest: str
    reason: str


def is_id(text: str) -> bool:
    """Whether a text can be a grant's id: it becomes a file name and a word of the audit trail."""
    return _ID.fullmatch(text) is not None


def is_reason(text: str) -> bool:
    """Whether a text can be a reason: something printable on one line, and short enough to be read."""
    return bool(text.strip()) and len(text) <= MAX_REASON and text.isprintable()


def digest(data: bytes) -> str:
    """SHA-256, in hex, by which an approval names its request."""
    return hashlib.sha256(data).hexdigest()


def dump_request(request: Request) -> bytes:
    """The bytes of a request's file."""
    return _dump({name: value for name, value in attrs.asdict(request).items() if value is not None})


def dump_note(note: Note) -> bytes:
    """The bytes of an approval's file, or without a digest of an end's."""
    return _dump(
        {"id": note.id, "by": note.by, "reason": note.reason, **({"sha256": note.digest} if note.digest else {})}
    )


def parse_request(name: str, data: bytes) -> Request:
    """The request in a file called ``<name>.request``. Refused ``glass.syntax`` for anything but what we write."""
    fields = _Fields("request", name, data, {"id", "by", "user", "time", "until", "reason"}, {"role", "job"})
    role, job = fields.text("role"), fields.number("job", _MAX_JOB)
    user, time, until = fields.text("user"), fields.number("time", _MAX_TIME), fields.number("until", _MAX_TIME)
    if (role is None) == (job is None) or (role is not None and not is_name(role)):
        raise fields.malformed("it must ask for one role or one job")
    if user is None or not safe_user(user):
        raise fields.malformed("its user is no login name")
    if time is None or until is None or until <= time:
        raise fields.malformed("it must say from when to when")
    return Request(
        id=name, by=fields.by(), user=user, role=role, job=job, time=time, until=until, reason=fields.reason()
    )


def parse_approval(name: str, data: bytes) -> Note:
    """The approval in a file called ``<name>.approval``. Refused ``glass.syntax``."""
    fields = _Fields("approval", name, data, {"id", "by", "reason", "sha256"}, set())
    found = fields.text("sha256")
    if found is None or not _DIGEST.fullmatch(found):
        raise fields.malformed("its sha256 is none")
    return Note(name, fields.by(), found, fields.reason())


def parse_end(name: str, data: bytes) -> Note:
    """The end in a file called ``<name>.end``. Refused ``glass.syntax``; it ends the grant all the same."""
    fields = _Fields("end", name, data, {"id", "by", "reason"}, set())
    return Note(name, fields.by(), "", fields.reason())


def said_by(data: bytes) -> int | None:
    """Whose paper it is, also of one that is not in the canonical form; None when it does not say."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    by = found.get("by") if isinstance(found, dict) else None
    return by if isinstance(by, int) and not isinstance(by, bool) and 0 <= by <= _MAX_UID else None


class _Fields:
    """The fields of one file, each a text or a whole number. Refused ``glass.syntax``."""

    def __init__(self, kind: str, name: str, data: bytes, needed: set[str], either: set[str]) -> None:
        self._kind = kind
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise self.malformed("it is not JSON") from None
        if not isinstance(found, dict) or found.keys() - needed - either or needed - found.keys():
            raise self.malformed("it has other fields than it must have")
        if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in found.values()):
            raise self.malformed("a field of it is neither a text nor a whole number")
        if _dump(found) != data:
            raise self.malformed("it is not in the canonical form")
        self._found: dict[str, str | int] = found
        if self.text("id") != name or not is_id(name):
            raise self.malformed("its id is not that of its file's name")

    def text(self, name: str) -> str | None:
        """A text; None when it is not there."""
        value = self._found.get(name)
        if isinstance(value, int):
            raise self.malformed(f"its {name} is a number")
        return value

    def number(self, name: str, most: int, least: int = 1) -> int | None:
        """A whole number; None when it is not there."""
        value = self._found.get(name)
        if value is None:
            return None
        if isinstance(value, str) or not least <= value <= most:
            raise self.malformed(f"its {name} is no number that it can be")
        return value

    def by(self) -> int:
        """Whose paper it is."""
        uid = self.number("by", _MAX_UID, 0)
        if uid is None:
            raise self.malformed("it does not say whose it is")
        return uid

    def reason(self) -> str:
        """Why, in words that can be shown."""
        text = self.text("reason") or ""
        if not is_reason(text):
            raise self.malformed(f"its reason is empty, longer than {MAX_REASON} characters, or cannot be printed")
        return text

    def malformed(self, what: str) -> Refused:
        """The refusal."""
        return Refused(
            "glass.syntax",
            f"the {self._kind} cannot be read: {what}",
            advice="papers are written by secure-slurm-glassd alone",
        )


def _dump(fields: Mapping[str, str | int]) -> bytes:
    """One line of canonical JSON: sorted, ASCII, no spaces, one line feed."""
    return (json.dumps(dict(fields), sort_keys=True, separators=(",", ":")) + "\n").encode("ascii")
