"""No line of the trail has a person's name, an environment, a script or a path of a user's: over the whole closed set.

What could hold one is every field whose values are not bound by a pattern; they are named here one by one, with whose
words they are. Who adds another has to say so here and in docs/audit.md.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from audit.chain import Chain
from audit.events import COMMON, EVENTS, FIELDS, check

TOP = Path(__file__).resolve().parents[3]
FREE = {
    "reason": "ours, or what an admin or an approver of break-glass gave as the reason",
    "evidence": "ours: device and mapper names, an answer of Vault or Slurm",
}
LISTS = {"nodes", "datasets", "shadowed", "partition"}
HOSTILE = "PATH=/home/alice LD_PRELOAD='x' alice@example.org\n\x1b[31mé"


def test_free_text_is_in_two_fields_and_bound_in_all_others() -> None:
    texts = {name for name, kind in FIELDS.items() if kind.type == "text"}
    assert texts == FREE.keys() | LISTS
    assert all(FIELDS[name].limit <= 512 for name in FREE)


@pytest.mark.parametrize(
    "name", ["user", "login", "mail", "home", "env", "script", "command", "argv", "path", "work_dir", "name", "comment"]
)
def test_there_is_no_such_field(name: str) -> None:
    assert name not in FIELDS
    assert not any(name in event.required | event.optional | COMMON for event in EVENTS.values())


def sample(name: str) -> object:
    kind = FIELDS[name]
    return {"int": 1, "float": 1.0, "bool": True}.get(kind.type, HOSTILE)


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_what_is_hostile_is_refused_or_loses_its_teeth(event: str) -> None:
    known = EVENTS[event]
    for name in sorted(known.required | known.optional | COMMON):
        if FIELDS[name].type not in ("name", "text"):
            continue
        fields = {one: good(one) for one in known.required} | {name: HOSTILE}
        if FIELDS[name].type == "name":
            with pytest.raises(ValueError, match="is not a valid name") as caught:
                check(event, fields)
            assert "alice" not in str(caught.value)
        elif name in LISTS:
            value = str(check(event, fields)[name])
            assert not set(value) & set("=' @\n\x1bé")


def good(name: str) -> object:
    examples = {
        **{"verdict": "allow", "policy": "ab", "nonce": "ab", "incarnation": "ab", "digest": "ab"},
        **{"cluster": "test", "node": "n1", "class": "phi", "residency": "eu", "role": "phi-eu", "verb": "submit"},
        **{"filesystem": "ext4", "backing": "file", "method": "file", "binding": "none", "hook": "Prolog"},
    }
    kind = FIELDS[name]
    return {"int": 1, "float": 1.0, "bool": True}.get(kind.type, examples.get(name, "x"))


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_a_line_of_every_event_is_one_line_of_ascii(event: str, tmp_path: Path) -> None:
    known = EVENTS[event]
    fields = {name: good(name) for name in known.required | known.optional}
    fields |= {name: HOSTILE for name in fields if FIELDS[name].type == "text"}
    Chain(tmp_path, "node", "n1").append(event, durable=False, **fields)
    (text,) = (tmp_path / "n1-node.jsonl").read_bytes().splitlines()
    assert text.isascii()
    assert b"\x1b" not in text
    assert json.loads(text)["event"] == event


def test_nobody_writes_a_login_name_into_a_reason() -> None:
    """Every ``reason=`` and ``evidence=`` that is put together from parts, by the names of these parts."""
    parts: set[str] = set()
    for room in ("slurm_hooks", "keys", "admin"):
        for path in (TOP / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.keyword) and node.arg in ("reason", "evidence"):
                    parts |= {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
                    parts |= {name.attr for name in ast.walk(node.value) if isinstance(name, ast.Attribute)}
    assert parts
    assert not {part for part in parts if re.search(r"user|login|environ|script|argv|home|words", part)}
