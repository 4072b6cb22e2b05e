"""The closed set of audit events, their fields, and what each field may hold.

An audit line outlives the job, its user and this version, and more people read it than any other file of ours.
So nothing gets in by accident: an unknown event, an unknown field, a missing one or a value of the wrong kind is a
``ValueError``. People appear as numbers (uid), never by name; there is no field for an environment, a script, a
command line or a path of a user's.

Standard library only: root hooks import this.
"""

from __future__ import annotations

import re
from typing import NamedTuple

INTEGER_LIMIT = 2**63 - 1
UID_LIMIT = 2**32 - 1
SECONDS_DIGITS = 6

Value = str | int | float | bool


class Kind(NamedTuple):
    """What one field may hold: ``type`` is ``int``, ``float``, ``bool``, ``name`` or ``text``.

    ``limit`` is the greatest number, or the greatest count of characters. A ``name`` must match ``pattern`` whole and
    is refused when too long; a ``text`` is cut, for a long reason must never stop a key from being destroyed. In a text
    with a ``pattern`` whatever is none of its characters becomes ``?``: what a user typed is no place for a message.
    """

    type: str
    limit: int = INTEGER_LIMIT
    pattern: str = r"[\x21-\x7e]+"


class Event(NamedTuple):
    """The fields that an event must have and those that it may have besides :data:`COMMON`."""

    required: frozenset[str]
    optional: frozenset[str]


_HEX = r"[0-9a-f]+"
_TAG = r"[a-z0-9][a-z0-9-]*"
_WORD = r"[A-Za-z0-9][A-Za-z0-9._+:/-]*"
_NODE = r"[A-Za-z0-9][A-Za-z0-9.-]*"

_LIST = r"[A-Za-z0-9._,\[\]+:/-]"

# The order is the order in the line.
FIELDS: dict[str, Kind] = {
    "verdict": Kind("name", 8, "allow|refuse"),
    "rule": Kind("name", 64, r"[a-z0-9][a-z0-9._-]*"),
    "verb": Kind("name", 32, r"[a-z][a-z0-9._-]*"),
    "hook": Kind("name", 32, r"[A-Za-z][A-Za-z0-9._-]*"),
    "cluster": Kind("name", 64, _WORD),
    "job": Kind("int"),
    "restarts": Kind("int"),
    "node": Kind("name", 63, _NODE),
    "nodes": Kind("text", 4096, _LIST),
    "uid": Kind("int", UID_LIMIT),
    "submit_uid": Kind("int", UID_LIMIT),
    "class": Kind("name", 32, _TAG),
    "residency": Kind("name", 32, _TAG),
    "region": Kind("name", 64, _WORD),
    "scratch": Kind("int"),
    "datasets": Kind("text", 640, _LIST),
    "shadowed": Kind("text", 512, _LIST),
    "partition": Kind("text", 256, _LIST),
    "exemption": Kind("name", 400, r"[a-z0-9][a-z0-9,-]*"),
    "role": Kind("name", 32, _TAG),
    "until": Kind("int"),
    "policy": Kind("name", 64, _HEX),
    "nonce": Kind("name", 64, _HEX),
    "incarnation": Kind("name", 64, _HEX),
    "key": Kind("name", 256, r"[A-Za-z0-9][A-Za-z0-9._-]*"),
    "method": Kind("name", 16, r"[a-z][a-z0-9]*"),
    "verified": Kind("bool"),
    "identity": Kind("name", 64, r"[a-z0-9][a-z0-9-]*"),
    "digest": Kind("name", 64, _HEX),
    "binding": Kind("name", 32, r"[a-z][a-z-]*"),
    "mapper": Kind("name", 128, r"[A-Za-z0-9][A-Za-z0-9._-]*"),
    "cipher": Kind("name", 64, _WORD),
    "key_bits": Kind("int"),
    "bytes": Kind("int"),
    "filesystem": Kind("name", 16, r"[a-z0-9]+"),
    "backing": Kind("name", 16, r"[a-z]+"),
    "state": Kind("name", 32, r"[a-z][a-z0-9._-]*"),
    "result": Kind("name", 32, r"[a-z][a-z0-9._-]*"),
    "count": Kind("int"),
    "lost": Kind("int"),
    "version": Kind("name", 32, _WORD),
    "error": Kind("name", 64, r"[A-Za-z_][A-Za-z0-9_.]*"),
    "reason": Kind("text", 256),
    "evidence": Kind("text", 512),
    "wiped": Kind("bool"),
    "trail": Kind("name", 32, r"[a-z][a-z0-9-]*"),
    "seconds": Kind("float"),
}

COMMON = frozenset({"cluster", "job", "node", "incarnation", "nonce", "rule", "seconds"})
"""What any event may carry: the ids that join a job's story, the rule that spoke, and how long it took."""


def _event(required: str = "", optional: str = "") -> Event:
    return Event(frozenset(required.split()), frozenset(optional.split()))


EVENTS: dict[str, Event] = {
    # the trail itself: `bytes` of a torn line were found, `lost` durable lines were not
    "audit.recovered": _event("bytes lost"),
    # root's: `digest` is the SHA-256 of an export's manifest, `state` `signed` or `unsigned`, `count` its files
    "audit.exported": _event("digest count state"),
    # about to be deleted: `count` files that the export `digest` has
    "audit.pruned": _event("digest count"),
    "daemon.start": _event("", "version policy hook"),
    "daemon.stop": _event("", "version reason hook"),
    # of several head nodes: whether the slurmctld of this one acts, by its own word (`result`: acts, standby)
    "head.part": _event("result"),
    # deciding
    "decision": _event(
        "verdict rule verb uid",
        "submit_uid class residency scratch datasets shadowed exemption partition policy reason",
    ),
    # refusals without a line of their own: `state` is `begun` or `counted`; without a uid: of several users
    "decision.folded": _event("rule verb count state", "uid"),
    # a job that was let pass by job_submit.lua itself, and that the daemon would have refused
    "decision.differs": _event("verdict rule verb uid", "submit_uid partition policy reason"),
    "start.judged": _event(
        "job verdict rule",
        "uid class residency scratch datasets shadowed exemption partition policy nodes restarts reason count",
    ),
    "start.refused": _event("job rule", "uid verb reason result hook restarts"),
    # services that are away: starts are held back (`count`: jobs that failed), tried again, go on (`count`: held back)
    "breaker.opened": _event("reason", "count"),
    "breaker.probing": _event("", "reason count"),
    "breaker.closed": _event("", "count"),
    "start.released": _event("job"),
    # break-glass: `submit_uid` is who said it, `uid` who gets it, `digest` the request's
    "glass.requested": _event("exemption digest", "uid submit_uid role until reason"),
    "glass.approved": _event("exemption digest", "uid submit_uid role until reason"),
    "glass.ended": _event("exemption digest", "uid submit_uid role until reason"),
    "glass.refused": _event("rule reason", "exemption digest uid submit_uid role until"),
    "snapshot.loaded": _event("count", "bytes"),
    "snapshot.stale": _event("", "reason"),
    # keys and grants
    "vault.login": _event("result", "reason error"),
    "grant.write": _event("job node incarnation", "key uid restarts"),
    "grant.delete": _event("job node", "result evidence"),
    "key.create": _event("job node incarnation key"),
    "key.allow-deletion": _event("key"),
    "key.unlock": _event("job node incarnation key"),
    "key.delete": _event("key evidence", "result"),
    # announced, and then Vault was never asked to make it: its start failed before
    "key.unmade": _event("key"),
    "node.grant-read": _event("job node", "result key region shadowed"),
    # a node is about to be given a certificate: `identity` its instance; `result` as in keys/enrol.py, or renewed
    "node.enrolled": _event("node identity result", "digest"),
    "enrol.refused": _event("rule reason", ""),
    "place.verdict": _event("node method verified", "region identity digest binding reason"),
    "node.datakey": _event("job node incarnation key"),
    "node.unwrap": _event("job node incarnation key"),
    "node.lost": _event("node", "reason"),
    "node.ready": _event("node", "version"),
    # scratch
    # `reason`: why this backing, where the site left the choice to the node
    "scratch.open": _event("job node incarnation", "mapper bytes backing reason"),
    "scratch.ready": _event("job node incarnation mapper cipher key_bits bytes filesystem", "backing"),
    # what scratch lies on: `result` is begun, taken, released, chosen or failed, `bytes` what the store can give
    "node.store": _event("node result", "backing bytes reason evidence"),
    "scratch.close": _event("node", "mapper wiped reason"),
    "scratch.gone": _event("node evidence", "mapper wiped"),
    # revocation and the end
    "revocation.pending": _event("reason", "count uid class"),
    "revocation.node": _event("job node result"),
    "revocation.lifted": _event("reason", "uid"),
    "revocation.done": _event("", "count evidence uid class result"),
    # node's lines on the head node: `trail` is the writer on the node
    "segment.begun": _event("node trail", "count"),
    "segment.gap": _event("node trail lost", "count"),
    "segment.refused": _event("node trail rule", "reason"),
    "revocation.resumed": _event("reason", "count uid"),
    "role.lost": _event("job uid result reason"),
    "job.frozen": _event("job node result reason", "evidence wiped"),
    "job.thawed": _event("job node result", "reason"),
    "job.stopped": _event("job node result reason", "evidence wiped"),
    "lease.expired": _event("job node", "reason"),
    "destruction.certificate": _event("job evidence", "nodes count lost"),
    "reaper.healed": _event("", "key mapper reason result count evidence"),
    "hook.error": _event("hook", "error reason state"),
}


# looked up for each line, and a busy head node writes hundreds a second
_ORDER = {name: place for place, name in enumerate(FIELDS)}
_PATTERNS = {name: re.compile(kind.pattern) for name, kind in FIELDS.items() if kind.type == "name"}
_REST = {
    name: re.compile(f"[^{kind.pattern[1:]}")
    for name, kind in FIELDS.items()
    if kind.type == "text" and kind.pattern == _LIST
}
_ALLOWED = {event: known.required | known.optional | COMMON for event, known in EVENTS.items()}


def check(event: str, fields: dict[str, object]) -> dict[str, Value]:
    """The fields of ``event`` in the order of the line, each checked; a field that is None is left out.

    ``klass`` is read as ``class``, which Python keeps for itself. Raises ValueError naming the event and the field.
    """
    known = EVENTS.get(event)
    if known is None:
        raise ValueError(f"unknown audit event {event!r}")
    given = {"class" if name == "klass" else name: value for name, value in fields.items() if value is not None}
    if not known.required <= given.keys():
        missing = ", ".join(sorted(known.required - given.keys()))
        raise ValueError(f"audit event {event}: field missing: {missing}")
    if not given.keys() <= _ALLOWED[event]:
        unknown = ", ".join(sorted(map(repr, given.keys() - _ALLOWED[event])))
        raise ValueError(f"audit event {event}: field not allowed: {unknown}")
    return {name: _checked(event, name, given[name]) for name in sorted(given, key=_ORDER.__getitem__)}


def _checked(event: str, name: str, value: object) -> Value:
    kind = FIELDS[name]
    if kind.type == "bool":
        fits: Value | None = value if isinstance(value, bool) else None
    elif kind.type == "int":
        fits = _integer(kind, value)
    elif kind.type == "float":
        fits = _seconds(kind, value)
    else:
        fits = _string(name, kind, value)
    if fits is None:
        # the value is not in the message: it may be what someone tried to smuggle in
        raise ValueError(f"audit event {event}: field {name} is not a valid {kind.type}")
    return fits


def _integer(kind: Kind, value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= kind.limit else None


def _seconds(kind: Kind, value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(float(value), SECONDS_DIGITS) if 0 <= value <= kind.limit else None


def _string(name: str, kind: Kind, value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if kind.type == "text":
        value = _REST[name].sub("?", value) if name in _REST else value
        return value if len(value) <= kind.limit else value[: kind.limit - 3] + "..."
    return value if len(value) <= kind.limit and _PATTERNS[name].fullmatch(value) else None
