"""The certificate of destruction: which keys a job had, and what proves of each that it is gone. Pure.

One JSON document: ``certificate``, and an Ed25519 ``signature`` over its canonical JSON (ASCII, sorted keys, no spaces)
behind a prefix that no other use of the key has. What Vault answered to the lifecycle daemon stands beside what a node
said of its mapping; what nobody has said is called that.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from conf.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from audit.story import Line

VERSION = 1
KIND = "secure-slurm certificate of destruction"
MAX_BYTES = 16 * 1024 * 1024
PREFIX = b"secure-slurm certificate of destruction 1\n"

ABSENT = "absent"
NONE_MADE = "none was made"
UNCONFIRMED = "not confirmed by the node"
LOST = "node lost, not confirmed"
BACKUPS = (
    "Backups and snapshots of Vault's storage that were made before a key was deleted may hold it until they are "
    "destroyed themselves; this certificate says nothing about them."
)

_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z"
_NODE = r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}"
_OPTIONAL_TIME = f"({_TIME})?"
_FRAME: dict[str, type | str] = {
    "v": int,
    "kind": re.escape(KIND),
    "cluster": r"[a-z0-9][a-z0-9_-]{0,39}",
    "job": int,
    "issuer": _NODE,
    "issued": _TIME,
    "keys": list,
    "backups": r"[\x20-\x7e]{1,1000}",
}
_KEY: dict[str, type | str] = {
    "incarnation": r"([0-9a-f]{32})?",
    "node": _NODE,
    "key": r"[A-Za-z0-9][A-Za-z0-9._-]{0,255}",
    "made": _OPTIONAL_TIME,
    "deleted": _OPTIONAL_TIME,
    "vault": dict,
    "mapping": dict,
    "trail": dict,
}
_VAULT: dict[str, type | str] = {"answer": int, "at": _TIME}
_MAPPING: dict[str, type | str] = {
    "state": "|".join(map(re.escape, (ABSENT, NONE_MADE, UNCONFIRMED, LOST))),
    "at": _OPTIONAL_TIME,
    "cipher": r"([A-Za-z0-9][A-Za-z0-9._+:/-]{0,63})?",
    "key_bits": int,
    "line": r"([0-9a-f]{64})?",
}
_TRAIL: dict[str, type | str] = {"arrived": bool, "seq": int, "hash": r"([0-9a-f]{64})?"}


def unconfirmed() -> dict[str, object]:
    """The ``mapping`` of a node that has said nothing (yet)."""
    return {"state": UNCONFIRMED, "at": "", "cipher": "", "key_bits": 0, "line": ""}


def no_trail() -> dict[str, object]:
    """The ``trail`` of a node of whose audit lines the head node holds none."""
    return {"arrived": False, "seq": 0, "hash": ""}


def draft(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The keys of one job by its story (oldest line first), each without ``vault`` and
    ``trail``, which only the lifecycle daemon can fill.

    A key whose making was announced is here, even if it was never made. ``at``: when the node saw the mapping gone;
    ``line``: the hash of the audit line that says so.
    """
    keys: dict[str, dict[str, Any]] = {}
    without_scratch: set[object] = set()
    for line in lines:
        event = line["event"]
        if event == "start.judged" and not line.get("scratch"):
            without_scratch.add(line.get("incarnation"))
        elif event == "key.create":
            keys[str(line["key"])] = {
                "incarnation": str(line["incarnation"]),
                "node": str(line["node"]),
                "key": str(line["key"]),
                "made": str(line["time"]),
                "deleted": "",
                "mapping": unconfirmed(),
            }
        elif event == "key.delete" and line["key"] in keys:
            keys[str(line["key"])]["deleted"] = str(line["time"])
        elif event in ("scratch.ready", "scratch.gone") and line["writer"] == "node":
            for key in keys.values():
                hear([line], key)
    for key in keys.values():
        if key["incarnation"] in without_scratch and key["mapping"]["state"] == UNCONFIRMED:
            key["mapping"]["state"] = NONE_MADE
    return list(keys.values())


def hear(lines: Iterable[Line], key: dict[str, Any]) -> None:
    """Put into one key what its node's own trail says of it."""
    for line in lines:
        if line["event"] in ("scratch.ready", "scratch.gone") and line["writer"] == "node" and _is_about(line, key):
            _hear(line, key["mapping"])


def _is_about(line: Line, key: Mapping[str, Any]) -> bool:
    """An Epilog that found no journal knows no incarnation: what it says is true of every start before it."""
    same = line.get("incarnation", key["incarnation"]) == key["incarnation"]
    return bool(same and line.get("node") == key["node"] and str(line["time"]) >= key["made"])


def _hear(line: Line, mapping: dict[str, Any]) -> None:
    if line["event"] == "scratch.ready":
        # what was said before it was about an earlier start, of which the node did not know which
        mapping |= unconfirmed() | {"cipher": line["cipher"], "key_bits": line["key_bits"]}
    elif mapping["state"] != ABSENT:
        mapping |= {"state": ABSENT, "at": line["time"], "line": line["hash"]}


def signed_bytes(certificate: Mapping[str, object]) -> bytes:
    """What the signature is over."""
    text = json.dumps(certificate, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return PREFIX + text.encode("ascii")


def check(certificate: object) -> dict[str, Any]:
    """The certificate, if it has its form; Refused ``certificate.form`` for every other."""
    found = _checked(certificate, _FRAME, "")
    if found["v"] != VERSION or found["job"] < 1 or not found["keys"]:
        raise _bad("its version, its job or its list of keys")
    names = set()
    for entry in found["keys"]:
        key = _checked(entry, _KEY, "key ")
        _checked(key["vault"], _VAULT, "vault ")
        mapping = _checked(key["mapping"], _MAPPING, "mapping ")
        trail = _checked(key["trail"], _TRAIL, "trail ")
        if trail["seq"] < 0 or bool(trail["seq"]) != bool(trail["hash"]) or (trail["arrived"] and not trail["seq"]):
            raise _bad("trail")
        if key["vault"]["answer"] != 404 or (mapping["state"] == ABSENT) != bool(mapping["at"]) or key["key"] in names:
            raise _bad(f"the key {key['key']}")
        names.add(key["key"])
    return found


def _checked(value: object, form: Mapping[str, type | str], where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != form.keys():
        raise _bad(f"{where}the fields")
    for name, kind in form.items():
        if isinstance(kind, str):
            good = isinstance(value[name], str) and re.fullmatch(kind, value[name], re.ASCII) is not None
        else:
            good = type(value[name]) is kind
        if not good:
            raise _bad(f"{where}{name}")
    return value


def parse(data: bytes) -> dict[str, Any]:
    """JSON in which no name stands twice; Refused ``certificate.form``."""
    try:
        found = json.loads(data.decode("ascii"), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise _bad("it is no JSON") from None
    if not isinstance(found, dict):
        raise _bad("it is no object")
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("twice")
    return found


def _bad(what: str) -> Refused:
    return Refused(
        "certificate.form",
        f"this is no certificate of destruction: {what} is not as it should be",
        advice="ask for it anew: secure-slurm audit certificate JOB",
    )
