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
