"""The text of the members file: one JSON document in which each group stands on a line of its own.

Pure. What :func:`dump` writes, :func:`parse` reads; :func:`parse_like` reads it again after a change without reading
the groups that did not change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from conf.errors import ConfigError, Refused
from slurm_hooks.accounts import valid_user_name
from slurm_hooks.membership import Group

VERSION = 1
MAX_BYTES = 128 * 1024 * 1024
ADVICE = "ask an administrator to look at the secure-slurm-ldapd service"
_START, _END = b'"groups":{\n', b"\n}}"  # around the lines


class Content(NamedTuple):
    """What the file says: when the reading began (Unix seconds), which server gave it, and the groups by name."""

    loaded_at: float
    source: str
    groups: dict[str, Group]


class Lines(NamedTuple):
    """A file that was read, and what each of its lines said, in their order. No lines: it was written otherwise."""

    content: Content
    groups: dict[bytes, tuple[str, Group]]


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged("not JSON") from None


def _check_names(names: Iterable[str]) -> None:
    if not all(map(valid_user_name, names)):
        raise _damaged("a member is no login name")


def parse(data: bytes) -> Content:
    """The members in the bytes of a members file. Raises :class:`Refused`; the age is not looked at."""
    document = _json(data)
    if not isinstance(document, dict):
        raise _damaged("not an object")
    if document.get("version") != VERSION or isinstance(document.get("version"), bool):
        raise Refused(
            "directory.version",
            f"the members file has version {document.get('version')!r}, this program reads {VERSION}",
            advice="restart secure-slurm-ldapd and secure-slurm-decisiond from the same release",
        )
    loaded_at, source, groups = document.get("loaded_at"), document.get("source"), document.get("groups")
    # NaN compares false with everything: as a date it would never be too old
    if isinstance(loaded_at, bool) or not isinstance(loaded_at, int | float) or not 0 < loaded_at < 1e11:
        raise _damaged("loaded_at is not a time")
    if not isinstance(source, str) or not isinstance(groups, dict):
        raise _damaged("source or groups missing")
    if not groups:
        raise Refused("directory.empty", "the members file names no group", advice=ADVICE)
    parsed = {dn: _parse_group(dn, value) for dn, value in groups.items()}
    # each name once, however many groups it is in
    _check_names(frozenset().union(*(group.members for group in parsed.values())))
    return Content(float(loaded_at), source, parsed)


def _parse_group(dn: str, value: object) -> Group:
    if not isinstance(value, dict):
        raise _damaged(f"group {dn[:80]!a} is not an object")
    name, members, missing = value.get("name"), value.get("members"), value.get("missing", False)
    if not isinstance(name, str) or not isinstance(members, list) or not isinstance(missing, bool):
        raise _damaged(f"group {dn[:80]!a} lacks its name or members")
    if not all(isinstance(member, str) for member in members):
        raise _damaged(f"group {dn[:80]!a} holds something that is no name")
    if missing and members:
        raise _damaged(f"group {dn[:80]!a} is missing and has members")
    return Group(name, frozenset(members), missing)


def parse_like(data: bytes, last: Lines | None) -> Lines:
    """As :func:`parse`, but a group whose line was there last time is not read again.

    When no line is new, ``content.groups`` is the very object of last time.
    Reading 50,000 people takes a quarter of a second, for which a decision competes; and json alone would hold the
    interpreter for the whole of a large file, but lets go between two lines.
    """
    before, start, rest = data.partition(_START)
    lines, end, after = rest.rpartition(_END)
    if not start or not end or after:
        return Lines(parse(data), {})
    # one small group in the place of all: date and version go through the same checks
    frame = parse(before + start + b'"-":{"name":"","members":[]}' + end)
    known = last.groups if last is not None else {}
    groups = {line: known.get(line) or _parse_line(line) for line in lines.split(b",\n")}
    if last is not None and list(groups) == list(known):
        return Lines(frame._replace(groups=last.content.groups), groups)
    by_dn = dict(groups.values())
    if len(by_dn) != len(groups):
        raise _damaged("a group is there twice")
    return Lines(frame._replace(groups=by_dn), groups)


def _parse_line(line: bytes) -> tuple[str, Group]:
    document = _json(b"{" + line + b"}")
    if not isinstance(document, dict) or len(document) != 1:
        raise _damaged("a line is not one group")
    ((dn, value),) = document.items()
    group = _parse_group(dn, value)
    _check_names(group.members)
    return dn, group


def dump(loaded_at: float, source: str, groups: Mapping[str, Group]) -> bytes:
    """The bytes of a members file. Raises :class:`ConfigError` when they would be more than :data:`MAX_BYTES`."""
    lines = []
    for dn, group in groups.items():
        value: dict[str, Any] = {"name": group.name, "members": sorted(group.members)}
        if group.missing:
            value["missing"] = True
        lines.append(f"{_dump(dn)}:{_dump(value)}".encode())
    document = {"version": VERSION, "loaded_at": loaded_at, "source": source}
    data = _dump(document)[:-1].encode() + b"," + _START + b",\n".join(lines) + _END
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"the members file would have {len(data)} bytes, more than {MAX_BYTES}",
            advice="name smaller groups in the policy",
        )
    return data


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _damaged(what: str) -> Refused:
    return Refused("directory.damaged", f"the members file is damaged: {what}", advice=ADVICE)
