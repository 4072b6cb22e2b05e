"""secure-slurm explain: exit codes, what is printed, and who may be asked about."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from admin import explain_cmd
from admin.main import main
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot

GROUP = "cn=phi-eu,ou=groups,dc=example,dc=org"
POLICY = f"""\
version: 1
jurisdictions:
  eu: {{feature: eu, regions: [eu-central-1]}}
  us: {{feature: us, regions: [us-east-1]}}
classes:
  - {{name: internal, residency: optional, scratch: optional, max_scratch: 100G, exclusive_nodes: false}}
  - name: phi
    residency: required
    scratch: required
    default_scratch: 10G
    max_scratch: 1T
roles:
  phi-eu:
    groups: ["{GROUP}"]
    classes: [phi]
    jurisdictions: [eu]
    partitions: [phi]
partitions:
  phi: {{demand_tag: true, least_class: phi, jurisdiction: eu}}
"""
ALLOWED = ["--class=phi", "--residency=eu", "--partition=phi"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    snapshot(tmp_path, time.time())
    return tmp_path


def snapshot(place: Path, when: float) -> None:
    write_snapshot(place / "members.json", Snapshot(when, "test", {GROUP: Group("phi-eu", frozenset({"alice"}))}))


def ask(place: Path, *words: str) -> int:
    return main(["explain", f"--policy={place / 'policy.yaml'}", *words])


def ask_json(place: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = ask(place, "--json", *words)
    return code, json.loads(capsys.readouterr().out)


def test_refused_is_exit_1_with_the_line_and_what_would_be_accepted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(place, f"--group={GROUP}", "--class=phi", "--scratch=2T", "--residency=eu", "--partition=phi") == 1
    shown = capsys.readouterr().out
    assert "REFUSED (scratch.too-large)" in shown
    assert "policy.yaml:11 classes[1].max_scratch" in shown
    assert "What to do: ask for 1T or less" in shown
    accepted = "secure-sbatch --secure-class=phi --secure-residency=eu --secure-scratch=1T --partition=phi"
    assert f"Would be accepted: {accepted}\n  (say --secure-scratch=1T)" in shown
    assert "\x1b" not in shown


def test_allowed_is_exit_0(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(place, f"--group={GROUP}", *ALLOWED) == 0
    shown = capsys.readouterr().out
    assert "ALLOWED, with 10G of encrypted scratch on each node" in shown
    assert "policy.yaml:13 roles.phi-eu" in shown
    assert "Would be accepted" not in shown


@pytest.mark.parametrize("members", [["--group={group}"], ["--members={members}", "--user=alice"]])
def test_a_role_that_has_ended_gives_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], members: list[str]
) -> None:
    (place / "policy.yaml").write_text(
        POLICY.replace("    jurisdictions: [eu]\n", "    jurisdictions: [eu]\n    until: 2020-01-01\n")
    )
    whom = [word.format(group=GROUP, members=place / "members.json") for word in members]
    code, told = ask_json(place, capsys, *whom, *ALLOWED)
    assert code == 1
    assert told["rule"] == "role.expired"


def test_the_json_of_an_allowed_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ask_json(place, capsys, "--group", "CN=phi-eu, ou=Groups,dc=example,dc=org", *ALLOWED)
    assert code == 0
    assert set(told) == {
        "explanation", "allowed", "rule", "message", "advice", "user", "command", "policy", "tag", "steps", "set",
        "nearest", "notes",
    }  # fmt: skip
    assert told["allowed"] is True
    assert told["rule"] == "allow.tagged"
    assert told["nearest"] is None
    assert told["set"] == {
        "extra": "secure-slurm:class=phi;residency=eu;scratch=10737418240",
        "features": "eu",
        "shared": "0",
        "requeue": "1",
    }
    steps = {step["step"]: step for step in told["steps"]}
    assert set(steps["role"]) == {
        "step", "part", "verdict", "rule", "message", "advice", "policy", "set", "shadowed", "exemptions",
    }  # fmt: skip
    assert steps["force_constraint"]["policy"] == [{"section": "jurisdictions.eu.feature", "line": 3}]
    assert steps["partition"]["policy"] == [{"section": "partitions.phi.jurisdiction", "line": 19}]


def test_the_json_of_a_refused_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ask_json(place, capsys, f"--group={GROUP}", "--class=phi", "--partition=phi", "--constraint=us")
    assert code == 1
    assert (told["allowed"], told["rule"], told["set"]) == (False, "residency.required", {})
    assert told["steps"][-1]["verdict"] == "refuse"
    assert told["nearest"]["changes"] == [
        {"option": "--secure-residency", "value": "eu"},
        {"option": "--constraint", "value": None},
    ]
    assert told["nearest"]["command"] == "secure-sbatch --secure-class=phi --secure-residency=eu --partition=phi"


def test_no_similar_request(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(place, "--group=cn=other,dc=example,dc=org", *ALLOWED) == 1
    shown = capsys.readouterr().out
    assert "No similar request" in shown
    assert "Note: no role names the group cn=other,dc=example,dc=org" in shown


def test_members_of_any_age_and_a_user_whom_this_machine_does_not_know(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot(place, time.time() - 86400)
    members = f"--members={place / 'members.json'}"
    code, told = ask_json(place, capsys, members, "--user=alice-x", *ALLOWED)
    assert (code, told["rule"]) == (1, "rbac.role")
    assert any("knows no user" in note for note in told["notes"])
    assert any("its age is not judged" in note for note in told["notes"])
    assert ask(place, members, "--user=alice", *ALLOWED) == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--class"],
        ["--class=PHI"],
        ["--class=phi;residency=us"],
        ["--class=phi", "--residency=\x1b[2J"],
        ["--class=phi", "--scratch=10GB"],
        ["--class=phi", "--scratch=200"],
        ["--class=phi", "--scratch=0K"],
        ["--class=phi", "--user=a", f"--group={GROUP}"],
        ["--class=phi", f"--group={GROUP}", "--members=/x"],
        ["--class=phi", "--group=not a name"],
        ["--class=phi", f"--group={GROUP}", "job.sh", "--wrap=x"],
    ],
)
def test_usage_errors_are_exit_2(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: int | str | None = ask(place, *words)
    except SystemExit as error:
        code = error.code
    assert code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "\x1b" not in shown.err


def test_root_must_say_who(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(explain_cmd.os, "getuid", lambda: 0)
    assert ask(place, f"--members={place / 'members.json'}", *ALLOWED) == 2
    assert "--user" in capsys.readouterr().err


def test_files_that_cannot_be_used_are_exit_3(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(place, f"--members={place / 'none.json'}", "--user=alice", *ALLOWED) == 3
    (place / "members.json").write_text("{")
    assert ask(place, f"--members={place / 'members.json'}", "--user=alice", *ALLOWED) == 3
    assert main(["--config", str(place / "none.yaml"), "explain", f"--policy={place / 'policy.yaml'}", *ALLOWED]) == 3
    (place / "policy.yaml").write_text("version: 2\n")
    assert ask(place, f"--group={GROUP}", *ALLOWED) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "policy.yaml:1:" in shown.err


def test_the_members_file_in_use_is_judged_as_the_daemon_judges_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "members.json"
    site = SimpleNamespace(ldap=SimpleNamespace(snapshot=str(path), max_age=600.0))
    monkeypatch.setattr(explain_cmd, "load_site", lambda _: site)
    assert ask(place, "--user=alice", *ALLOWED) == 0
    snapshot(place, time.time() - 601)
    capsys.readouterr()
    assert ask_json(place, capsys, "--user=alice", *ALLOWED)[1]["rule"] == "rbac.snapshot"
    path.unlink()
    assert ask_json(place, capsys, "--user=alice", *ALLOWED)[1]["rule"] == "rbac.snapshot"
    # a file that only this process may not use says nothing about the daemon
    path.symlink_to(place / "elsewhere")
    assert ask(place, "--user=alice", *ALLOWED) == 3


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--partition=\x1b[2J", "input.control-characters"),
        ("--partition=x\ny", "input.control-characters"),
        ("--partition=\udcff", "input.control-characters"),
        ("--partition=" + "x" * 9000, "input.too-long"),
        ("--constraint=\x1b]0;x\x07", "residency.constraint"),
        ("--constraint=$(id)", "residency.constraint"),
        ("--prefer=" + "a&" * 5000, "residency.constraint"),
        ("--user=a b", "rbac.user"),
        ("--user=\x1b[2J", "rbac.user"),
    ],
)
def test_hostile_values_are_refused_and_shown_escaped(
    option: str, rule: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    who = [] if option.startswith("--user") else ["--user=alice"]
    words = [f"--members={place / 'members.json'}", *who, *ALLOWED, option]
    assert ask(place, *words) == 1
    shown = capsys.readouterr().out
    assert f"REFUSED ({rule})" in shown
    assert shown.replace("\n", "").isprintable()
    assert ask_json(place, capsys, *words)[1]["rule"] == rule


def test_a_whole_command_line_with_the_scripts_words(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = place / "job.sh"
    job.write_text("#!/bin/sh\n#SBATCH -p us -t 5\n#SECURE --class=phi --residency=eu\n#SBATCH --bbf=/x\ntrue\n")
    words = [f"--group={GROUP}", "--", "secure-sbatch", "-HN2", "--begin=now", "--site-tool=x", str(job), "-p", "y"]
    code, told = ask_json(place, capsys, *words)
    assert (code, told["rule"]) == (1, "route.burst-buffer")
    assert told["command"] == f"secure-sbatch -HN2 --begin=now --site-tool=x {job} -p y"
    assert told["notes"] == [
        "not judged here: --site-tool (the command line) is no option of sbatch (did you mean '--test-only'?); "
        "a plugin's is taken as one without a value",
        "not judged here: --bbf (line 4 of the script) names a file, which is not read",
    ]
    # with a plugin's option nobody can say where the options end
    assert "command" not in told["nearest"]
    words.remove("--site-tool=x")
    told = ask_json(place, capsys, *words)[1]
    assert told["nearest"]["changes"] == [
        {"option": "--bb", "value": None},
        {"option": "--partition", "value": "phi"},
    ]
    assert told["nearest"]["command"] == f"secure-sbatch --partition=phi -HN2 --begin=now {job} -p y"
    assert told["nearest"]["notes"] == ["and remove --bbf from line 4 of the script"]


def test_the_nearest_command_line_is_accepted_when_it_is_asked_about(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--secure-class=ph", "--secure-scratch", "2T", "-p", "us", "-Cus", "--mail-type=END", "--wrap=x y"]
    code, told = ask_json(place, capsys, f"--group={GROUP}", "--", *words)
    assert code == 1
    better = shlex.split(told["nearest"]["command"])
    assert better[-2:] == ["--partition=phi", "--wrap=x y"]
    assert ask(place, f"--group={GROUP}", "--", *better) == 0


def test_a_plain_sbatch_is_judged_as_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ask_json(place, capsys, f"--group={GROUP}", "--", "sbatch", "-p", "phi", "--wrap=true")
    assert (code, told["rule"]) == (1, "tag.missing")
    assert told["command"] == "sbatch -p phi --wrap=true"
    assert any("without a tag" in note for note in told["notes"])
    assert ask(place, f"--group={GROUP}", "--", "-p", "open", "--wrap=true") == 0


def test_the_environment_counts_for_who_calls_and_for_nobody_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "phi")
    monkeypatch.setenv("SECURE_CLASS", "phi")
    members = f"--members={place / 'members.json'}"
    monkeypatch.setattr(explain_cmd, "_person", lambda *_: explain_cmd.Person("alice", 1001))
    words = ["--", "--secure-residency=eu", "--wrap=true"]
    assert ask_json(place, capsys, members, *words)[1]["rule"] == "allow.tagged"
    assert ask(place, members, "--user=alice", *words) == 2
    code, told = ask_json(place, capsys, members, "--user=alice", "--", "--secure-class=phi", *words[1:])
    assert (code, told["rule"]) == (1, "role.partition")
    assert any("no partition is named" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--", "-t", "x", "--wrap=x"], "no value for sbatch's --time"),
        (["--", "-Z"], "no option '-Z'"),
        (["--", "--secure-class=phi", "-N2", ":", "-N3", "x"], "heterogeneous"),
        (["--", "--secure-class=phi", "--extra=x", "--wrap=x"], "--extra"),
        (["--", "/no/such/script"], "cannot read the script"),
        (["--", "--secure-clas=phi"], "unknown option"),
    ],
)
def test_command_lines_that_sbatch_would_refuse(
    place: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(place, f"--group={GROUP}", *words) == 2
    assert why in capsys.readouterr().err
