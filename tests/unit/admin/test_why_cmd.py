"""secure-slurm why: two forms of Slurm's JSON, one answer in words. Slurm itself is a script that prints JSON here."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from admin import why_cmd
from admin.main import main
from admin.why_cmd import parse_comment

RECORD = (
    "secure-slurm/1 cluster=test uid=1001 user=alice class=phi residency=eu scratch=209715200"
    f" policy={'0' * 16} nonce={'ab' * 16} time=1795287600 mac={'c' * 64}"
)
HELD = {
    "job_id": 7,
    "user_name": "alice",
    "job_state": ["PENDING"],
    "state_reason": "JobHeldAdmin",
    "admin_comment": f"{RECORD} | vault.denied: node n1 may not read its grant",
}
ENDED = {
    "job_id": 7,
    "user": "alice",
    "state": {"current": ["COMPLETED"], "reason": "None"},
    "comment": {"administrator": RECORD, "job": "", "system": ""},
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(why_cmd, "find_tool", lambda tool: str(tmp_path / tool))
    return tmp_path


def answers(slurm: Path, tool: str, body: str) -> None:
    path = slurm / tool
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def prints(slurm: Path, tool: str, jobs: list[dict[str, object]]) -> None:
    (slurm / f"{tool}.json").write_text(json.dumps({"jobs": jobs}))
    answers(slurm, tool, f"cat {slurm}/{tool}.json")


def test_nobody_answers_is_exit_4(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tool in ("scontrol", "sacct"):
        answers(slurm, tool, "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert main(["why", "7"]) == 4
    assert "Unable to contact slurm controller" in capsys.readouterr().err


def test_an_unknown_job_is_exit_2(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers(slurm, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    prints(slurm, "sacct", [])
    assert main(["why", "7"]) == 2
    assert "neither slurmctld nor the accounting knows job 7" in capsys.readouterr().err


def test_an_answer_that_is_no_json_is_an_error(slurm: Path) -> None:
    answers(slurm, "scontrol", "echo JobId=7")
    assert main(["why", "7"]) == 5


def test_a_large_array_is_asked_for_by_task(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers(slurm, "scontrol", "yes | head -c 100000000")
    assert main(["why", "7"]) == 2
    assert "7_1" in capsys.readouterr().err


def test_a_held_job_in_words(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prints(slurm, "scontrol", [HELD])
    assert main(["why", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job 7 of alice: PENDING (JobHeldAdmin)",
        "  state:    held: correct what the reason says, then 'scontrol release' or submit again",
        "  tag:      class phi, residency eu, 200M of encrypted scratch on each node",
        f"  decided:  2026-11-21 19:00:00 UTC, for alice (uid 1001) under policy {'0' * 16}",
        f"  audit:    nonce {'ab' * 16}",
        "  reason:   vault.denied: node n1 may not read its grant",
    ]


def test_a_job_that_slurmctld_forgot(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers(slurm, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    prints(slurm, "sacct", [ENDED])
    assert main(["why", "--json", "7"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["state"] == "COMPLETED"
    assert answer["state_reason"] == ""
    assert answer["record"]["class"] == "phi"
    assert "mac" not in answer["record"]


def test_hostile_text_is_escaped(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prints(slurm, "scontrol", [{"job_id": 7, "admin_comment": "\x1b[2J", "job_state": ["RUNNING"]}])
    assert main(["why", "7"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "job 7 of unknown: RUNNING",
        "  tag:      none: the job has no decision record",
        r"  reason:   \x1b[2J",
    ]


@pytest.mark.parametrize("comment", ["", "free text", "secure-slurm/2 class=phi", " secure-slurm/1 class=phi"])
def test_what_is_no_record_is_a_reason(comment: str) -> None:
    assert parse_comment(comment) == ({}, comment)


@pytest.mark.parametrize("text", ["secure-slurm/1 ", "secure-slurm/1 time=x scratch=y", "secure-slurm/1 =", RECORD])
def test_a_broken_record_is_still_shown(text: str) -> None:
    record, reason = parse_comment(text)
    lines = why_cmd.words(why_cmd.Answer("7", "", "PENDING", "", record, reason))
    assert lines[0] == "job 7 of unknown: PENDING"
