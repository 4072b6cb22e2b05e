"""The form of a certificate of destruction, and what is made of a job's story."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from audit import certificate as form
from conf.errors import Refused

A, B = "a" * 32, "b" * 32
K1, K2, K3 = (f"{node}_test-17-{number:016x}" for node, number in (("n1", 1), ("n2", 2), ("n1", 3)))


def line(event: str, second: int, **fields: object) -> dict[str, object]:
    writer = "node" if event.startswith("scratch.") else "lifecycle"
    return {
        "event": event,
        "time": f"2026-11-21T20:41:{second:02}.000000Z",
        "hash": f"{second:064x}",
        "writer": writer,
        "job": 17,
        **fields,
    }


READY = {"cipher": "aes-xts-plain64", "key_bits": 512}
STORY = [
    line("start.judged", 1, incarnation=A, scratch=2**20),
    line("key.create", 2, incarnation=A, node="n1", key=K1),
    line("key.create", 3, incarnation=A, node="n2", key=K2),
    line("scratch.ready", 4, incarnation=A, node="n1", **READY),
    line("scratch.ready", 5, incarnation=A, node="n2", **READY),
    line("key.delete", 6, node="n1", key=K1),
    line("scratch.gone", 7, incarnation=A, node="n1"),
]


def by_key(story: list[dict[str, object]]) -> dict[str, dict[str, Any]]:
    return {key["key"]: key for key in form.draft(story)}


def test_a_story() -> None:
    found = by_key(STORY)
    assert found[K1] == {
        "incarnation": A,
        "node": "n1",
        "key": K1,
        "made": "2026-11-21T20:41:02.000000Z",
        "deleted": "2026-11-21T20:41:06.000000Z",
        "mapping": {"state": "absent", "at": "2026-11-21T20:41:07.000000Z", "line": f"{7:064x}", **READY},
    }
    assert found[K2]["deleted"] == ""
    assert found[K2]["mapping"] == {"state": "not confirmed by the node", "at": "", "line": "", **READY}


def test_nothing_is_made_of_nothing() -> None:
    assert form.draft([]) == []
    assert form.draft([line("decision", 1), line("scratch.gone", 2, node="n1")]) == []


def test_what_a_node_says_counts_for_its_own_and_for_no_later_start() -> None:
    later = [*STORY, line("key.create", 8, incarnation=B, node="n1", key=K3)]
    assert by_key(later)[K3]["mapping"]["state"] == form.UNCONFIRMED
    # the next Epilog found no journal, so it names no start
    later.append(line("scratch.gone", 9, node="n1"))
    assert by_key(later)[K3]["mapping"]["at"].startswith("2026-11-21T20:41:09")
    assert by_key(later)[K1]["mapping"]["at"].startswith("2026-11-21T20:41:07")
    assert by_key(later)[K2]["mapping"]["state"] == form.UNCONFIRMED


def test_what_was_gone_before_a_start_had_its_scratch_is_not_the_end_of_it() -> None:
    """The reaper took away what an earlier start had left, and its record did not say which."""
    later = [*STORY, line("key.create", 8, incarnation=B, node="n1", key=K3), line("scratch.gone", 9, node="n1")]
    later.append(line("scratch.ready", 10, incarnation=B, node="n1", **READY))
    assert by_key(later)[K3]["mapping"] == form.unconfirmed() | READY
    later.append(line("scratch.gone", 11, incarnation=B, node="n1"))
    assert by_key(later)[K3]["mapping"]["at"].startswith("2026-11-21T20:41:11")
    assert by_key(later)[K1]["mapping"]["at"].startswith("2026-11-21T20:41:07")


def test_only_a_nodes_own_trail_speaks_of_its_mapping() -> None:
    told = [*STORY[:-1], line("scratch.gone", 7, incarnation=A, node="n1", writer="lifecycle")]
    assert by_key(told)[K1]["mapping"]["state"] == form.UNCONFIRMED


def test_a_job_without_scratch_has_no_mapping() -> None:
    told = [line("start.judged", 1, incarnation=A, scratch=0), *STORY[1:3]]
    assert {key["mapping"]["state"] for key in form.draft(told)} == {form.NONE_MADE}


def good() -> dict[str, Any]:
    vault = {"answer": 404, "at": "2026-11-21T20:42:00.000Z"}
    keys = [{**key, "vault": vault, "trail": form.no_trail()} for key in form.draft(STORY)]
    return {
        "v": 1,
        "kind": form.KIND,
        "cluster": "test",
        "job": 17,
        "issuer": "head",
        "issued": "2026-11-21T20:42:00.000Z",
        "keys": keys,
        "backups": form.BACKUPS,
    }


def test_the_form() -> None:
    assert form.check(good()) == good()
    assert form.check(form.parse(json.dumps(good()).encode())) == good()


def changed(path: str, value: object) -> dict[str, Any]:
    made = copy.deepcopy(good())
    where: Any = made
    *first, last = path.split(".")
    for step in first:
        where = where[int(step) if step.isdigit() else step]
    where[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("v", 2),
        ("v", True),
        ("kind", "a birthday card"),
        ("cluster", "Test\n"),
        ("job", 0),
        ("job", "17"),
        ("job", True),
        ("issued", "yesterday"),
        ("issuer", ""),
        ("backups", ""),
        ("keys", []),
        ("keys", {}),
        ("keys", ["x"]),
        ("more", 1),
        ("keys.0.more", 1),
        ("keys.0.key", "../x"),
        ("keys.0.key", K2),
        ("keys.0.node", "n_1"),
        ("keys.0.incarnation", "A" * 32),
        ("keys.0.made", "2026"),
        ("keys.0.vault", None),
        ("keys.0.vault", {}),
        ("keys.0.vault.answer", 200),
        ("keys.0.vault.at", ""),
        ("keys.0.mapping.state", "fine"),
        ("keys.0.mapping.state", form.UNCONFIRMED),
        ("keys.1.mapping.state", form.ABSENT),
        ("keys.0.mapping.cipher", "a b"),
        ("keys.0.mapping.key_bits", "512"),
        ("keys.0.mapping.line", "0"),
    ],
)
def test_another_form_is_none(path: str, value: object) -> None:
    with pytest.raises(Refused) as refused:
        form.check(changed(path, value))
    assert refused.value.rule == "certificate.form"


@pytest.mark.parametrize("name", list(good()))
def test_nothing_may_be_missing(name: str) -> None:
    made = good()
    del made[name]
    with pytest.raises(Refused):
        form.check(made)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"1", b'{"a":1,"a":2}', b'{"a":{"b":1,"b":2}}', b"\xff", b"[" * 9000]
)
def test_what_is_no_json_object(data: bytes) -> None:
    with pytest.raises(Refused) as refused:
        form.parse(data)
    assert refused.value.rule == "certificate.form"


def test_every_byte_counts() -> None:
    before = form.signed_bytes(good())
    assert before.startswith(form.PREFIX)
    assert form.signed_bytes(changed("keys.0.vault.at", "2026-11-21T20:42:01.000Z")) != before
