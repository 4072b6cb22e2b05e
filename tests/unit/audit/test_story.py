"""A job's story is joined over ids, hosts and writers."""

from __future__ import annotations

from pathlib import Path

from audit.chain import Chain
from audit.story import own_fields, read_events, story

NONCE = "ab" * 16
INCARNATION = "cd" * 16
KEY = "n1_test-7-00112233aabbccdd"


def test_decision_without_a_job_id_and_end_without_one_are_joined(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    decide = Chain(tmp_path, "decision", "head")
    life = Chain(tmp_path, "lifecycle", "head")
    node = Chain(tmp_path, "node", "n1")
    submit = {"verdict": "allow", "rule": "role.match", "verb": "submit", "uid": 1001}
    decide.append("decision", durable=True, nonce=NONCE, klass="phi", **submit)
    decide.append("decision", durable=True, nonce="ef" * 16, **submit)
    life.append("start.judged", durable=True, job=7, nonce=NONCE, incarnation=INCARNATION, verdict="allow", rule="r")
    life.append("start.judged", durable=True, job=8, nonce="ef" * 16, verdict="allow", rule="r")
    life.append("key.create", durable=True, job=7, node="n1", incarnation=INCARNATION, key=KEY)
    node.append("scratch.gone", durable=True, node="n1", incarnation=INCARNATION, evidence="no mapping")
    life.append("key.delete", durable=True, key=KEY, evidence="read answers 404")

    told = story(read_events([tmp_path]), 7)

    expected = ["decision", "start.judged", "key.create", "scratch.gone", "key.delete"]
    assert [line["event"] for line in told] == expected
    assert own_fields(told[-1]) == {"key": KEY, "evidence": "read answers 404"}
    assert len(story(read_events([tmp_path]), None)) == 7
    assert story(read_events([tmp_path]), 9) == []


def test_the_grants_that_a_job_stood_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    decide, glass = Chain(tmp_path, "decision", "head"), Chain(tmp_path, "break-glass", "head")
    submit = {"verdict": "allow", "rule": "allow.tagged", "verb": "submit", "uid": 1001}
    for name in ("g1", "g2", "g3"):
        glass.append("glass.requested", durable=True, exemption=name, digest="ab" * 32, role="phi-eu")
    decide.append("decision", durable=True, nonce=NONCE, exemption="g1,g3", **submit)
    decide.append("decision", durable=True, nonce="ef" * 16, exemption="g1", **submit)
    decide.append("start.judged", durable=True, job=7, nonce=NONCE, verdict="allow", rule="r", exemption="g1,g3")
    glass.append("glass.ended", durable=True, exemption="g1", digest="ab" * 32)

    told = story(read_events([tmp_path]), 7)
    assert [(line["event"], line["exemption"]) for line in told] == [
        ("glass.requested", "g1"),
        ("glass.requested", "g3"),
        ("decision", "g1,g3"),
        ("start.judged", "g1,g3"),
        ("glass.ended", "g1"),
    ]
