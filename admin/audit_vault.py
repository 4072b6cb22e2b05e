"""The audit trails against Vault's own audit log: the same keys, made and deleted at the same times, and used by whom.

The log is the file audit device's, JSON lines (OpenBao 2.x, Vault 1.x). Texts in the data of requests and answers are
HMACs there and cannot be compared; paths, operations, times, numbers and truth values, the names of policies and what a
login tells of itself (a node's common name) are plain. A line ``response`` repeats its request and says by ``error``
whether it failed; a read of what is not there is answered without data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from audit.facts import Facts, Key, seconds
from audit.gaps import SKEW, Gap
from conf.errors import ConfigError, Refused
from keys.names import parse_key_name

SOON = 120.0
"""Seconds between the announcement of an act in the trail and the act: a start waits for Vault that long."""
LINE_LIMIT = 16 * 1024 * 1024

_KEY_PATH = re.compile(r"(?:(?P<verb>[a-z-]+)/(?:[a-z0-9-]+/)?)?(?P<key>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<rest>/[a-z]+)?")
_USES = ("datakey", "decrypt")
_LEAKS = ("export", "backup")


class Act(NamedTuple):
    """One answered request about one of the cluster's keys. ``verb``: ``read``, ``create``, ``delete``, ``config``,
    ``datakey``, ``decrypt`` ..; ``who``: the node's name in a login by certificate, else the login's display name.
    """

    line: int
    at: float
    verb: str
    key: str
    done: bool
    found: bool
    exportable: bool
    who: str


class VaultLog:
    """What is in the log. ``first`` and ``last``: of all lines."""

    def __init__(self) -> None:
        self.acts: dict[str, list[Act]] = {}
        self.first = self.last = 0.0
        self.damaged = 0
        self.lines = 0


def read_log(paths: Iterable[Path], mount: str, cluster: str) -> VaultLog:
    """The acts on keys of ``cluster`` in the transit engine at ``mount``. ConfigError: a file is none."""
    log = VaultLog()
    for path in paths:
        good = 0
        for number, raw in _lines(path):
            log.lines += 1
            entry = _entry(raw)
            if entry is None:
                log.damaged += 1
                continue
            good += 1
            at = seconds(_text(entry, "time"))
            log.first, log.last = min(log.first or at, at), max(log.last, at)
            act = _act(entry, number, at, mount.strip("/") + "/", cluster)
            if act is not None:
                log.acts.setdefault(act.key, []).append(act)
        if not good:
            raise ConfigError(
                f"{path} is not an audit log of Vault",
                advice="name the file of its file audit device, without prefix, in the form json",
            )
    return log


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LINE_LIMIT):
                number += 1
                yield number, raw
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", advice="name Vault's audit log") from None


def _entry(raw: bytes) -> Mapping[str, object] | None:
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    good = isinstance(entry, dict) and entry.get("type") in ("request", "response") and seconds(_text(entry, "time"))
    return entry if good else None


def _act(entry: Mapping[str, object], number: int, at: float, mount: str, cluster: str) -> Act | None:
    path, operation = _text(entry, "request", "path"), _text(entry, "request", "operation")
    if entry["type"] != "response" or not path.startswith(mount):
        return None
    found = _KEY_PATH.fullmatch(path[len(mount) :])
    if found is None or not _is_ours(found["key"], cluster):
        return None
    verb = str(found["verb"])
    if verb == "keys":
        rest = str(found["rest"] or "").lstrip("/")
        verb = rest or {"update": "create", "create": "create"}.get(operation, operation)
    data = _value(entry, "response", "data")
    done = not entry.get("error") and not (isinstance(data, Mapping) and "error" in data)
    return Act(
        line=number,
        at=at,
        verb=verb,
        key=found["key"],
        done=done,
        found=done and isinstance(data, Mapping) and bool(data),
        exportable=any(
            _value(entry, part, "data", name) is True
            for part in ("request", "response")
            for name in ("exportable", "allow_plaintext_backup")
        ),
        who=_text(entry, "auth", "metadata", "common_name") or _text(entry, "auth", "display_name"),
    )


def _is_ours(name: str, cluster: str) -> bool:
    try:
        return parse_key_name(name).cluster == cluster
    except Refused:
        return False


def compare(facts: Facts, log: VaultLog) -> list[Gap]:
    """What one of them says and the other does not, where both cover the time."""
    found: list[Gap] = []
    if log.damaged:
        what = f"{log.damaged} of {log.lines} lines of Vault's log cannot be read"
        found.append(Gap("vault-damaged", 0, what, "the audit device's file: is it whole, and in the form json?"))
    asked = (key for key in facts.keys.values() if not key.unmade)
    if not log.acts and any(log.first < key.made < log.last - SOON for key in asked):
        what = "Vault's log has nothing about any key of this cluster"
        found.append(Gap("vault-other", 0, what, "is it the log of this Vault's active server? vault.transit_mount?"))
        return found
    for name, acts in log.acts.items():
        key = facts.keys.get(name)
        found += _only_in_vault(name, acts, facts) if key is None else [*_both(key, acts, log), *_untold(key, acts)]
        found += _by_whom(name, acts)
    for name, key in facts.keys.items():
        if name not in log.acts:
            found += _both(key, [], log)
    return sorted(found, key=lambda gap: (gap.kind, gap.job, gap.what))


def _only_in_vault(name: str, acts: list[Act], facts: Facts) -> Iterator[Gap]:
    first = next((act for act in acts if act.done and act.verb != "read"), None)
    if first is not None and facts.first < first.at < facts.last:
        yield Gap(
            "vault-key-untold",
            int(parse_key_name(name).job),
            f"Vault has a {first.verb} of the key {name}, of which no trail tells",
            f"line {first.line} of Vault's log ({first.who}); the lifecycle trail of every SlurmctldHost",
        )


def _both(key: Key, acts: list[Act], log: VaultLog) -> Iterator[Gap]:
    lifecycle = "the lifecycle trail and the log of Vault's active server at that time, a rotated one too"
    made = [act for act in acts if act.verb == "create" and act.done]
    if log.first + SKEW < key.made < log.last - SOON:
        if not made and (key.uses or key.ready):
            yield Gap("vault-no-creation", key.job, f"Vault's log has no making of the key {key.name}", lifecycle)
        elif made and not -SKEW <= made[0].at - key.made <= SOON:
            apart = made[0].at - key.made
            yield Gap(
                "clock",
                key.job,
                f"Vault made the key {key.name} {apart:.0f} s after it was announced",
                f"line {made[0].line} of Vault's log; the time services of head node and Vault",
            )
    if log.first + SKEW < key.deleted < log.last - SKEW:
        # the word that it is gone is an answer to a read; who deleted it may have been a reaper, or an earlier try
        absent = [act for act in acts if act.verb == "read" and not act.found and act.at <= key.deleted + SKEW]
        if not absent and not any(act.verb == "delete" and act.done for act in acts):
            what = f"the key {key.name} is told as gone, and Vault's log has neither a deletion nor such an answer"
            yield Gap("vault-no-deletion", key.job, what, lifecycle)
        yield from _after(key, acts)
    elif not key.deleted:
        for act in acts:
            if act.verb == "delete" and act.done:
                what = f"Vault deleted the key {key.name}, and no trail tells of its end"
                yield Gap("vault-deletion-untold", key.job, what, f"line {act.line} of Vault's log ({act.who})")
    given = [act for act in acts if act.verb in _USES and act.done]
    if len(given) > key.uses and given[-1].at < log.last - SKEW:
        last = given[-1]
        what = f"Vault gave a key out under {key.name} {len(given)} times, the node's trail tells of {key.uses}"
        where = f"line {last.line} of Vault's log ({last.who}); the trail of node {key.node}, as far as it is here"
        yield Gap("vault-use-untold", key.job, what, where)


def _untold(key: Key, acts: list[Act]) -> Iterator[Gap]:
    for act in (act for act in acts if key.unmade and act.verb == "create" and act.done):
        what = f"the key {key.name} is told as never asked for, and Vault's log has its making"
        yield Gap("vault-key-untold", key.job, what, f"line {act.line} of Vault's log ({act.who})")


def _after(key: Key, acts: list[Act]) -> Iterator[Gap]:
    for act in acts:
        if act.at > key.deleted + SKEW and act.done and (act.verb in _USES or (act.verb == "read" and act.found)):
            what = f"the trail says that the key {key.name} is gone, and Vault's log has a {act.verb} of it later"
            yield Gap("vault-not-gone", key.job, what, f"line {act.line} of Vault's log ({act.who})")


def _by_whom(name: str, acts: list[Act]) -> Iterator[Gap]:
    parsed = parse_key_name(name)
    job = int(parsed.job)
    for act in acts:
        where = f"line {act.line} of Vault's log ({act.who})"
        if act.done and act.verb in _USES and act.who != parsed.node:
            what = f"a {act.verb} under {name}, node {parsed.node}'s, was answered to {act.who or 'nobody named'}"
            yield Gap("vault-use-by-another", job, what, where)
        if act.done and (act.verb in _LEAKS or act.exportable):
            yield Gap("vault-exportable", job, f"the key {name} was exported or backed up, or may be", where)


def _value(entry: object, *path: str) -> object:
    for name in path:
        entry = entry.get(name) if isinstance(entry, Mapping) else None
    return entry


def _text(entry: object, *path: str) -> str:
    value = _value(entry, *path)
    return value if isinstance(value, str) else ""
