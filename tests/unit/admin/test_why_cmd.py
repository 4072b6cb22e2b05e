"""secure-slurm why: two forms of Slurm's JSON, one answer in words. Slurm itself is a script that prints JSON here."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from admin import why_cmd
from admin.main import main
from admin.why_cmd import parse_comment
from conf.errors import BackendUnavailable

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
    monkeypatch.setattr(why_cmd, "_revocations", list)
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


@pytest.mark.parametrize(
    ("mark", "state", "words"),
    [
        ("waiting try=0 restart=0", "RUNNING,CONFIGURING None", "waits for a service before it starts"),
        ("requeued try=1 restart=0", "PENDING BeginTime", "back in the queue after its start failed once"),
        ("waits try=0 restart=0", "PENDING JobHeldUser", "held while a service is away (it was not tried)"),
        ("waits try=2 restart=1", "PENDING JobHeldUser", "(it failed 2 times): nothing to do"),
        ("twice try=2 restart=1", "PENDING JobHeldUser", "held after it failed 2 times"),
        ("twice try=2 restart=1", "PENDING JobHeldAdmin", "held after it failed 2 times"),
    ],
)
def test_what_became_of_a_job_that_is_not_to_blame(
    slurm: Path, capsys: pytest.CaptureFixture[str], mark: str, state: str, words: str
) -> None:
    comment = f"{RECORD} | {mark}: [backend.unavailable] Vault is away"
    states, _, reason = state.partition(" ")
    told = {"job_state": states.split(","), "state_reason": reason, "admin_comment": comment}
    prints(slurm, "scontrol", [{**HELD, **told}])
    assert main(["why", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert words in lines[1]
    assert lines[-1] == "  reason:   [backend.unavailable] Vault is away"


@pytest.mark.parametrize(
    ("mark", "state", "reason"),
    [
        ("requeued try=1 restart=0", ["RUNNING"], "None"),
        ("waiting try=1 restart=0", ["COMPLETED"], "None"),
        ("waits try=2 restart=1", ["PENDING"], "Priority"),
    ],
)
def test_what_is_past_is_called_earlier(
    slurm: Path, capsys: pytest.CaptureFixture[str], mark: str, state: list[str], reason: str
) -> None:
    comment = f"{RECORD} | {mark}: [backend.unavailable] Vault is away"
    prints(slurm, "scontrol", [{**HELD, "job_state": state, "state_reason": reason, "admin_comment": comment}])
    assert main(["why", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  earlier:  [backend.unavailable] Vault is away"


def test_what_a_hook_has_held_is_not_called_its_users(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comment = f"{RECORD} | [rbac.role] no role"
    prints(slurm, "scontrol", [{**HELD, "state_reason": "JobHeldUser", "admin_comment": comment}])
    assert main(["why", "7"]) == 0
    assert "correct what the reason says" in capsys.readouterr().out


def revocation(mode: str, name: str, *jobs: str) -> dict[str, object]:
    return {"id": name, "kind": "user", "value": "alice", "mode": mode, "jobs": {job: {} for job in jobs}}


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([revocation("freeze", "aa", "7")], "secure-slurm resume --id aa"),
        ([revocation("resume", "aa", "7")], "told to go on"),
        ([revocation("stop", "aa", "7")], "scancel 7"),
        ([revocation("resume", "aa", "7"), revocation("freeze", "bb", "7", "8")], "secure-slurm resume --id bb"),
        ([revocation("freeze", "aa", "7"), revocation("stop", "bb", "7")], "revoked for good"),
    ],
)
def test_a_running_job_that_stands_still(
    slurm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    reports: list[dict[str, object]],
    words: str,
) -> None:
    monkeypatch.setattr(why_cmd, "_revocations", lambda: reports)
    comment = f"{RECORD} | waiting try=0 restart=0: [backend.unavailable] Vault is away"
    prints(slurm, "scontrol", [{**HELD, "job_state": ["RUNNING"], "state_reason": "None", "admin_comment": comment}])
    assert main(["why", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("  state:    ")
    assert words in lines[1]
    assert not any("waits for a service" in line for line in lines)
    assert lines[-1] == "  earlier:  [backend.unavailable] Vault is away"


@pytest.mark.parametrize("reports", [[], [revocation("freeze", "aa", "70")]])
def test_a_running_job_of_which_no_revocation_tells(
    slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, reports: list[dict[str, object]]
) -> None:
    monkeypatch.setattr(why_cmd, "_revocations", lambda: reports)
    prints(slurm, "scontrol", [{**HELD, "job_state": ["RUNNING"], "state_reason": "None", "admin_comment": RECORD}])
    assert main(["why", "7"]) == 0
    assert "state:" not in capsys.readouterr().out


def test_no_answer_about_revocations_is_not_taken_for_none(
    slurm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> list[dict[str, object]]:
        raise BackendUnavailable("the lifecycle daemon does not answer")

    monkeypatch.setattr(why_cmd, "_revocations", away)
    comment = f"{RECORD} | waiting try=0 restart=0: [backend.unavailable] Vault is away"
    prints(slurm, "scontrol", [{**HELD, "job_state": ["RUNNING"], "state_reason": "None", "admin_comment": comment}])
    assert main(["why", "7"]) == 0
    told = capsys.readouterr().out
    assert "is not known here (the lifecycle daemon does not answer)" in told
    assert "waits for a service" in told


def test_revocations_are_asked_about_neither_waiting_nor_untagged_jobs(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> list[dict[str, object]]:
        raise AssertionError

    monkeypatch.setattr(why_cmd, "_revocations", asked)
    prints(slurm, "scontrol", [HELD, {**HELD, "job_state": ["RUNNING"], "admin_comment": ""}])
    assert main(["why", "7"]) == 0


def test_only_root_asks_the_lifecycle_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, bytes | str]] = []

    def ask(_config: object, fields: dict[str, bytes | str], _patience: float) -> dict[str, bytes]:
        asked.append(fields)
        return {"report": json.dumps([revocation("freeze", "aa", "7")]).encode()}

    linked = {"revocation": {"linked": True}}
    monkeypatch.setattr(why_cmd, "read_hook_config", lambda **_: linked)
    monkeypatch.setattr(why_cmd.revoke_cmd, "ask", ask)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert why_cmd._revocations() == []
    assert asked == []
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert [one["id"] for one in why_cmd._revocations()] == ["aa"]
    assert asked == [{"verb": "revocations"}]
    linked["revocation"]["linked"] = False
    assert why_cmd._revocations() == []
