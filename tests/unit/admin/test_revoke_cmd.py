"""secure-slurm revoke: what it asks the daemon, what it asks Slurm, and what it says. Both are stand-ins here."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from admin import revoke_cmd
from admin.main import main
from slurm_hooks import wire

REPORT = {
    "id": "ab" * 8, "kind": "user", "value": "alice", "at": 1790000000, "reason": "", "confirmed": True, "mode": "stop",
    "jobs": {"17": {"keys": "deleted", "nodes": {"n1": "stopped", "n2": "gone"}}},
}  # fmt: skip
WAITING = [
    {"job_id": 20, "user_id": 1001, "user_name": "alice", "extra": "secure-slurm:class=phi", "priority": {"number": 9}},
    {"job_id": 21, "user_id": 1001, "user_name": "alice", "extra": "secure-slurm:class=phi", "priority": {"number": 0}},
    {"job_id": 22, "user_id": 1001, "user_name": "alice", "extra": "", "priority": {"number": 9}},
]


class Daemon:
    """The lifecycle daemon's socket."""

    def __init__(self, path: Path) -> None:
        self.asked: list[dict[str, str]] = []
        self.report: dict[str, Any] = dict(REPORT)
        self.refuses: dict[str, str] = {}
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        # shut down before it is closed: the number of a closed descriptor may be the next test's socket
        self.socket.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                fields = wire.receive(connection, 10)
                said = {name: value.decode() for name, value in fields.items()}
                nonce = said.pop("nonce")
                self.asked.append(said)
                connection.sendall(wire.encode({"nonce": nonce, **self._answer(said)}))

    def _answer(self, said: dict[str, str]) -> dict[str, str]:
        if self.refuses:
            return {"verdict": "refuse", **self.refuses}
        return {
            "revoke": lambda: {"report": json.dumps(self.report)},
            "matching": lambda: {"jobs": json.dumps([one["job"] for one in json.loads(said["jobs"])])},
            "revocations": lambda: {"report": json.dumps([self.report]), "nodes": '{"n1": 1}'},
            "lift": lambda: {"words": "user alice"},
            "resume": lambda: {"report": json.dumps(self.report)},
        }[said["verb"]]() | {"verdict": "allow"}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tmp_path.chmod(0o755)
    config = {
        "lifecycle": {"socket": f"{tmp_path}/life.sock", "start_deadline": 5.0},
        "cluster": {"slurm_bin": str(tmp_path)},
        "revocation": {"linked": True},
    }
    monkeypatch.setattr(revoke_cmd, "read_hook_config", lambda *_, **__: config)
    monkeypatch.setattr(revoke_cmd.os, "geteuid", lambda: 0)
    (tmp_path / "waiting.json").write_text(json.dumps({"jobs": WAITING}))
    tool(tmp_path, "squeue", f"cat {tmp_path}/waiting.json")
    tool(tmp_path, "scancel", f'echo scancel "$@" >> {tmp_path}/called')
    knows(tmp_path, {"job_id": 17, "job_state": ["RUNNING"], "extra": "secure-slurm:class=phi"})
    return tmp_path


def knows(room: Path, *jobs: dict[str, Any]) -> None:
    """What slurmctld says of a job."""
    (room / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    body = f'case "$1" in --json) cat {room}/jobs.json ;; *) echo scontrol "$@" >> {room}/called ;; esac'
    tool(room, "scontrol", body)


def tool(room: Path, name: str, body: str) -> None:
    (room / name).write_text(f"#!/bin/sh\n{body}\n")
    (room / name).chmod(0o755)


@pytest.fixture
def daemon(room: Path) -> Iterator[Daemon]:
    made = Daemon(room / "life.sock")
    yield made
    made.close()


def called(room: Path) -> list[str]:
    path = room / "called"
    return path.read_text().splitlines() if path.exists() else []


def test_nobody_but_root(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(revoke_cmd.os, "geteuid", lambda: 1001)
    assert main(["revoke", "--user", "alice"]) == 2
    assert "only root" in capsys.readouterr().err
    assert daemon.asked == []


def test_without_a_link_there_is_nothing_to_revoke_with(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(revoke_cmd, "read_hook_config", lambda *_, **__: {"revocation": {"linked": False}})
    assert main(["revoke", "--user", "alice"]) == 2
    assert "link.listen" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--user", "a", "--job", "1"], ["alice"], ["--us", "alice"]])
def test_usage(room: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["revoke", *words])
    assert caught.value.code == 2


def test_the_daemon_is_away(room: Path) -> None:
    assert main(["revoke", "--user", "alice"]) == 4
    assert called(room) == []


def test_it_refuses(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.refuses = {"rule": "revocation.unknown", "message": "no such role", "advice": "look"}
    assert main(["revoke", "--role", "x"]) == 1
    assert "no such role" in capsys.readouterr().err
    daemon.refuses = {"rule": "backend.unavailable", "message": "no disk"}
    assert main(["revoke", "--role", "x"]) == 4
    assert called(room) == []


def test_a_user(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["revoke", "--user", "alice", "--reason", "left"]) == 0
    assert daemon.asked[0] == {"verb": "revoke", "kind": "user", "value": "alice", "reason": "left", "mode": "stop"}
    # what is held already, and what carries no tag, is not asked about
    assert [one["job"] for one in json.loads(daemon.asked[1]["jobs"])] == [20]
    assert called(room) == ["scontrol hold 20"]
    said = capsys.readouterr().out
    assert "every node and Vault have confirmed" in said
    assert "held: 20" in said


def test_kill(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["revoke", "--job", "17", "--kill", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["killed"], said["held"], said["problems"]) == ([17], [20], [])
    assert called(room) == ["scancel 17", "scontrol hold 20"]


@pytest.mark.parametrize(
    ("facts", "cancelled"),
    [
        # by the number alone scancel would mean every task of the array
        pytest.param({"array_job_id": 17, "array_task_id": 3}, ["scancel 17_3"], id="a task of an array"),
        pytest.param({"job_state": ["COMPLETED"]}, [], id="it is over"),
        pytest.param({"job_state": ["PENDING"]}, [], id="it was requeued, and is held"),
        pytest.param({"extra": ""}, [], id="the number is another job's by now"),
    ],
)
def test_kill_means_the_revoked_job_alone(
    daemon: Daemon, room: Path, facts: dict[str, Any], cancelled: list[str]
) -> None:
    known = {"job_id": 17, "job_state": ["RUNNING"], "extra": "secure-slurm:class=phi"}
    knows(room, known | facts)
    assert main(["revoke", "--job", "17", "--kill"]) == 0
    assert called(room) == [*cancelled, "scontrol hold 20"]


def test_not_all_have_confirmed(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.report |= {"confirmed": False, "jobs": {"17": {"keys": "waiting", "nodes": {"n1": "waiting"}}}}
    assert main(["revoke", "--node", "n1"]) == 4
    assert "not all have confirmed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "body", ["exit 1", "echo '{'", "echo '[]'", """echo '{"jobs": [{"extra": "secure-slurm:"}]}'"""]
)
def test_slurm_does_not_answer(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str], body: str) -> None:
    tool(room, "squeue", body)
    assert main(["revoke", "--user", "alice"]) == 4
    assert "they will be refused when they start" in capsys.readouterr().out


def test_list_and_lift(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["revoke", "--list"]) == 0
    said = capsys.readouterr().out
    assert "connected nodes: n1" in said
    assert f"{REPORT['id']}  user alice" in said
    assert main(["revoke", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"revocations": [REPORT], "nodes": {"n1": 1}}
    assert main(["revoke", "--lift", "ab" * 8]) == 0
    assert "user alice may submit again" in capsys.readouterr().out
    assert called(room) == []


def test_resume_refuses_first(daemon: Daemon, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.refuses = {"rule": "resume.revoked", "message": "for good", "advice": ""}
    assert main(["resume", "--job", "17"]) == 1
    assert main(["resume", "--id", "x"]) == 2
    for words in (
        ["resume"],
        ["resume", "--job", "17", "--user", "alice"],
        ["revoke", "--job", "1", "--kill", "--freeze"],
    ):
        with pytest.raises(SystemExit):
            main(words)
    monkeypatch.setattr("os.geteuid", lambda: 1001)
    count = len(daemon.asked)
    assert main(["resume", "--job", "17"]) == 2
    assert (len(daemon.asked), called(room)) == (count, [])


def test_freeze_and_resume(daemon: Daemon, room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.report |= {"mode": "freeze", "jobs": {"17": {"keys": "locked", "nodes": {"n1": "frozen"}}}}
    assert main(["revoke", "--user", "alice", "--freeze"]) == 0
    assert daemon.asked[0]["mode"] == "freeze"
    said = capsys.readouterr().out
    assert ("frozen: user alice" in said, "locked" in said, "cancelled" in said) == (True, True, False)
    daemon.report |= {"mode": "resume", "confirmed": False}
    assert main(["resume", "--user", "alice", "--reason", "found"]) == 4
    assert daemon.asked[-1] == {"verb": "resume", "kind": "user", "value": "alice", "reason": "found"}
    assert "not all have confirmed" in capsys.readouterr().out
    daemon.report |= {"confirmed": True}
    assert main(["resume", "--id", "ab" * 8, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == daemon.report
    assert called(room) == ["scontrol hold 20"]
