"""secure-slurm audit verify and show, from the command line to the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from admin.main import main
from audit.chain import Chain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "audit"
    folder.mkdir(mode=0o750)
    chain = Chain(folder, "node", "n1")
    chain.append("daemon.start", durable=True)
    chain.append("scratch.gone", durable=True, job=7, node="n1", evidence="no mapping \x1b[31m")
    return folder


def test_findings_are_exit_1_and_name_file_and_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "n1-node.jsonl"
    path.write_text(path.read_text().replace("scratch.gone", "scratch.open"))
    assert main(["audit", "verify", str(folder)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}:2: changed: ")
    assert last == "2 events of 1 writer in 1 file: 1 finding"
    assert main(["audit", "verify", "--json", str(path)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["whole"] is False
    assert [(finding["kind"], finding["line"]) for finding in told["findings"]] == [("changed", 2)]


def test_whole_is_exit_0(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(folder)]) == 0
    assert capsys.readouterr().out == "2 events of 1 writer in 1 file: whole\n"


def test_unreadable_is_exit_3(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(folder / "none.jsonl")]) == 3
    (tmp_path / "empty").mkdir()
    assert main(["audit", "verify", str(tmp_path / "empty")]) == 3
    assert main(["--config", str(tmp_path / "none.yaml"), "audit", "verify"]) == 3
    assert "cannot read" in capsys.readouterr().err


def test_show_tells_a_job_and_escapes_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "show", "--job", "7", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "scratch.gone" in shown
    assert "daemon.start" not in shown
    assert "\x1b" not in shown
    assert main(["audit", "show", "--job", "7", "--json", str(folder)]) == 0
    assert [line["event"] for line in json.loads(capsys.readouterr().out)] == ["scratch.gone"]


def test_show_of_an_unknown_job(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "show", "--job", "8", str(folder)]) == 0
    assert capsys.readouterr().out == "the audit trail has nothing about job 8\n"
    with pytest.raises(SystemExit):
        main(["audit", "show", "--job", "x", str(folder)])


def run(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["--config", str(folder / "none.yaml"), "audit", "verify", "--json", *words, str(folder)])
    out = capsys.readouterr().out
    return code, json.loads(out) if out else {}


def test_gaps_are_looked_for_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = "ab" * 16
    chain = Chain(tmp_path, "lifecycle", "head")
    chain.append("key.delete", durable=True, job=17, node="n1", key="n1_test-17-0000000000000001", evidence="404")
    chain.append("key.create", durable=True, job=18, node="n1", key="n1_test-18-0000000000000001", incarnation=start)
    code, found = run(tmp_path, capsys)
    assert (code, found["whole"], found["gaps"]) == (0, True, [])
    code, found = run(tmp_path, capsys, "--gaps")
    (gap,) = found["gaps"]
    assert (code, found["whole"], gap["kind"], gap["job"]) == (1, True, "key-without-creation", 17)
    assert gap["what"]
    assert gap["where"]
    assert found["open_keys"] == ["n1_test-18-0000000000000001"]
    assert main(["audit", "verify", "--gaps", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "key-without-creation: job 17: " in out
    assert "note: 1 key without an end" in out
    assert "1 gap" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--sacct", "--sacct-file=x"], 2),
        (["--cluster=test", "--sacct-file=/nowhere/x"], 3),
        (["--cluster=test", "--vault-audit=/nowhere/x"], 3),
        # whose keys and jobs? neither a cluster nor a site file says it
        (["--sacct-file=/nowhere/x"], 3),
    ],
)
def test_comparisons_that_cannot_be_made(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int
) -> None:
    assert run(folder, capsys, *words)[0] == code


@pytest.mark.parametrize("days", ["0", "-1", "x", "99999"])
def test_days_that_are_none(folder: Path, days: str) -> None:
    with pytest.raises(SystemExit):
        main(["audit", "verify", "--sacct", f"--days={days}", str(folder)])
