"""secure-slurm node: what is found by name, what is refused, what is taken down; all of it without device-mapper."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from admin import imds_cmd, node_cmd
from admin.main import main
from admin.node_look import Node
from keys.journal import Journal, Record
from keys.scratch import crypt, loop, present
from slurm_hooks import reaper, steps, wire

NODE = "tn1"
CLEAN = ["node", "clean", "--node", NODE]
STATUS = ["node", "status", "--node", NODE]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    """A node whose journal is empty, whose slurmctld knows no job, and whose daemon does not run."""
    scratch = {"backing": "file", "directory": f"{tmp_path}/scratch", "mount_root": f"{tmp_path}/mnt"}
    config = {
        "format": 1,
        "cluster": {"slurm_bin": str(tmp_path)},
        "lifecycle": {"socket": "/none"},
        "node": {"run_dir": f"{tmp_path}/node-%n", "state_dir": f"{tmp_path}/state-%n", "prolog_deadline": 45.0},
        "scratch": {**scratch, "volume_group": "", "device": ""},
        "audit": {"directory": f"{tmp_path}/log"},
        "regions": {"here": "eu"},
        "sources": {"/none": "0"},
    }
    for folder, mode in (
        ("sys", 0o755),
        ("scratch", 0o700),
        ("mnt", 0o755),
        (f"node-{NODE}", 0o755),
        (f"log/node-{NODE}", 0o755),
    ):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder).chmod(mode)
    hooks = tmp_path / "hooks.json"
    hooks.write_text(json.dumps(config))
    hooks.chmod(0o644)
    monkeypatch.setattr(node_cmd, "HOOKS_JSON", str(hooks))
    monkeypatch.setattr(node_cmd, "_is_root", lambda: True)
    monkeypatch.setattr(imds_cmd, "state", lambda: imds_cmd.State(True, ()))
    monkeypatch.setattr(steps, "ROOT", str(os.geteuid()))
    # the tests' root has no sysfs, and a developer's machine must not be looked at
    monkeypatch.setattr(present, "SYSFS", str(tmp_path / "sys"))
    monkeypatch.setattr(crypt, "find", lambda _: None)
    monkeypatch.setattr(loop, "find", lambda _: [])
    node = Node(NODE, f"{tmp_path}/node-{NODE}", config)
    queue(tmp_path, "")
    return node


def queue(tmp_path: Path, answer: str, code: int = 0) -> None:
    """What slurmctld says of the jobs on this node."""
    path = tmp_path / "squeue"
    path.write_text(f"#!/bin/sh\nprintf '{answer}' ; [ {code} = 0 ] || echo 'no controller' >&2; exit {code}\n")
    path.chmod(0o755)


def left_over(node: Node, job: int) -> Path:
    """A backing file that nobody wrote a journal of."""
    path = Path(node.names(job).path)
    path.write_bytes(b"ciphertext")
    return path


@pytest.fixture
def process() -> Iterator[Callable[..., int]]:
    """Starts a process under any name."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> int:
        child = subprocess.Popen(argv, executable="/bin/cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        started.append(child)
        assert child.stdin
        assert child.stdout
        # an answer, for Popen returns a moment before the kernel shows the new command line
        child.stdin.write(b"here\n")
        assert child.stdout.readline() == b"here\n"
        return child.pid

    yield start
    for each in started:
        each.communicate(timeout=20)


class TestClean:
    def test_only_root(self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        file = left_over(node, 7)
        monkeypatch.setattr(node_cmd, "_is_root", lambda: False)
        assert main([*CLEAN, "7"]) == 1
        assert main(STATUS) == 1
        assert capsys.readouterr().err.count("only root") == 2
        assert file.exists()

    @pytest.mark.parametrize("job", ["0", "-7", "7_1", "7;", "\u0667", ""])
    def test_what_is_no_job_id(self, node: Node, job: str) -> None:
        with pytest.raises(SystemExit) as caught:
            main([*CLEAN, "--", job])
        assert caught.value.code == 2

    def test_another_node_is_exit_2(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["node", "clean", "--node", "other", "7"]) == 2
        assert "not set up as the node other" in capsys.readouterr().err
        assert main(["node", "clean", "--node", "../x", "7"]) == 3

    @pytest.mark.parametrize("state", ["RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "NEVER_HEARD_OF"])
    def test_refused_while_slurmctld_has_it_here(
        self, node: Node, tmp_path: Path, state: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = left_over(node, 7)
        queue(tmp_path, f"17 RUNNING\\n7 {state}\\n")
        assert main([*CLEAN, "7"]) == 1
        assert state in capsys.readouterr().err
        assert file.exists()

    def test_no_answer_is_no_permission(self, node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = left_over(node, 7)
        queue(tmp_path, "", code=1)
        assert main([*CLEAN, "7"]) == 4
        assert "no controller" in capsys.readouterr().err
        assert file.exists()
        assert main([*CLEAN, "--without-slurm", "7"]) == 0
        assert not file.exists()

    @pytest.mark.parametrize("argv0", ["slurmstepd: [7.batch]", "slurmstepd: [7.0]", "slurmstepd: [7.extern]"])
    def test_refused_while_a_step_runs(
        self, node: Node, argv0: str, process: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = left_over(node, 7)
        pid = process(argv0)
        assert main([*CLEAN, "--without-slurm", "7"]) == 1
        assert str(pid) in capsys.readouterr().err
        assert file.exists()

    @pytest.mark.parametrize("argv0", ["slurmstepd: starting", "/usr/sbin/slurmstepd"])
    def test_refused_while_a_step_is_unknown(self, node: Node, argv0: str, process: Callable[..., int]) -> None:
        file = left_over(node, 7)
        process(argv0)
        assert main([*CLEAN, "7"]) == 1
        assert file.exists()

    def test_other_steps_are_no_hindrance(
        self, node: Node, process: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process("slurmstepd: [17.batch]")
        assert 17 in steps.running_steps().values()
        file = left_over(node, 7)
        assert main([*CLEAN, "7"]) == 0
        assert not file.exists()
        # a process that a user calls so
        monkeypatch.setattr(steps, "ROOT", "4294967294")
        assert steps.running_steps() == {}

    def test_takes_down_tells_and_may_be_repeated(
        self, node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = left_over(node, 7)
        Path(node.names(7).mount_point).mkdir()
        (Path(node.run_dir) / "task").mkdir()
        (Path(node.run_dir) / "task/7").touch()
        queue(tmp_path, "7 COMPLETED\\n")
        assert main([*CLEAN, "--json", "7"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["gone"] is True
        assert f"file: {file}" in told["removed"]
        assert not file.exists()
        assert not Path(node.names(7).mount_point).exists()
        assert not (Path(node.run_dir) / "task/7").exists()
        assert main([*CLEAN, "7"]) == 0
        assert "nothing was there" in capsys.readouterr().out
        trail = (tmp_path / f"log/node-{NODE}/{NODE}-node.jsonl").read_text().splitlines()
        assert [json.loads(line)["event"] for line in trail] == ["scratch.close", "scratch.gone"] * 2

    def test_a_log_that_cannot_be_written_stops_nothing(
        self, node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = left_over(node, 7)
        (tmp_path / f"log/node-{NODE}").rmdir()
        assert main([*CLEAN, "7"]) == 0
        assert not file.exists()
        assert "lacks scratch.gone" in capsys.readouterr().err

    def test_what_is_left_is_exit_5(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        Path(node.names(7).path).mkdir()
        assert main([*CLEAN, "--json", "7"]) == 5
        told = capsys.readouterr()
        assert json.loads(told.out)["left"] == [f"file: {node.names(7).path}"]
        assert "is not gone" in told.err


class TestStatus:
    def test_nothing_and_no_daemon(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(STATUS) == 1
        shown = capsys.readouterr().out
        assert "no scratch" in shown
        assert "does not answer" in shown

    def test_the_daemon_answers(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        answer = {"verdict": "allow", "region": "here", "jurisdiction": "eu", "proof": "file here not verified"}
        with Daemon(node, answer):
            assert main([*STATUS, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "node": NODE,
            "daemon": "in here (eu)",
            "proof": "file here not verified",
            "metadata": {"rules": True, "reached": []},
            "jobs": [],
            "problems": [],
        }
        with Daemon(node, {"verdict": "refuse", "message": "no \x1b place"}):
            assert main(STATUS) == 1
        shown = capsys.readouterr().out
        assert r"no \x1b place" in shown
        assert "\x1b" not in shown

    def test_what_has_a_journal_and_what_has_none(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        names = node.names(7)
        record = Record(7, NODE, 1001, "ready", key_name="tn1_test-7-00", wrapped_key="vault:v1:x")
        record = record._replace(backing="file", backing_path=names.path, mount_root=names.mount_root)
        record = record._replace(mapper=names.mapper, mount_point=names.mount_point)
        journal = Journal(node.run_dir, NODE)
        journal.write(record)
        left_over(node, 7)
        journal.write(record._replace(job=8, state="destroyed"))
        left_over(node, 9)
        Path(node.names(10).mount_point).mkdir()
        for other in ("scratch/tn2-11.img", "scratch/tn1-x.img", "scratch/tn1-12.img.bak", "mnt/x13", "mnt/014"):
            (Path(node.run_dir).parent / other).touch()
        assert main([*STATUS, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert {job["job"]: (job["journal"], job["there"]) for job in told["jobs"]} == {
            7: ("ready", [f"file: {names.path}"]),
            9: ("none", [f"file: {node.names(9).path}"]),
            10: ("none", [f"mount point: {node.names(10).mount_point}"]),
        }
        assert told["jobs"][0]["key"] == "tn1_test-7-00"
        assert "vault:v1" not in json.dumps(told)
        assert [problem for problem in told["problems"] if "node clean 9" in problem]
        assert not [problem for problem in told["problems"] if "job 7 " in problem]

    def test_devices_are_found_by_their_names(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = node.names(13)
        for entry, attribute, text in (
            ("dm-0", "dm/name", "secure-tn1-12"),
            ("dm-1", "dm/name", "secure-tn1-x-14"),
            ("dm-2", "dm/name", "root-tn1-15"),
            ("loop0", "loop/backing_file", f"{names.path} (deleted)"),
            ("loop1", "loop/backing_file", "/elsewhere/tn1-16.img"),
            ("sda", "size", "tn1-17"),
        ):
            path = Path(present.SYSFS) / entry / attribute
            path.parent.mkdir(parents=True)
            path.write_text(text + "\n")
        monkeypatch.setattr(loop, "find", lambda path: ["/dev/loop0"] * (path == names.path))
        assert main([*STATUS, "--json"]) == 1
        jobs = {job["job"]: job["there"] for job in json.loads(capsys.readouterr().out)["jobs"]}
        assert jobs == {12: [], 13: ["loop: /dev/loop0"]}

    def test_what_cannot_be_looked_at_is_a_problem(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(_: str) -> None:
            raise FileNotFoundError(2, "no sysfs")

        left_over(node, 7)
        Journal(node.run_dir, NODE).write(Record(7, NODE, 1001))
        Path(present.SYSFS).rmdir()
        monkeypatch.setattr(crypt, "find", broken)
        with Daemon(node, {"verdict": "allow", "region": "here", "jurisdiction": "eu"}):
            assert main([*STATUS, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["jobs"][0]["there"] == ["unknown"]
        assert len(told["problems"]) == 2
        assert main([*CLEAN, "7"]) == 5
        assert "is not known" in capsys.readouterr().err

    def test_what_lies_where_it_was_configured_before(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        before = Path(node.run_dir).parent / "before"
        before.mkdir(mode=0o700)
        (before / "tn1-7.img").touch()
        mapper, root = node.names(7).mapper, node.names(7).mount_root
        record = Record(7, NODE, 1001, "ready", backing="file", backing_path=f"{before}/tn1-7.img", mapper=mapper)
        Journal(node.run_dir, NODE).write(record._replace(mount_root=root, mount_point=f"{root}/7"))
        main([*STATUS, "--json"])
        assert json.loads(capsys.readouterr().out)["jobs"][0]["there"] == [f"file: {before}/tn1-7.img"]

    def test_a_damaged_journal_is_a_problem(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        Journal(node.run_dir, NODE).write(Record(7, NODE, 1001))
        (Path(node.run_dir) / "journal/7.json").write_text("{")
        assert main([*STATUS, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["jobs"][0]["journal"] == "damaged"
        assert any("garbled" in problem for problem in told["problems"])

    def test_lvm_that_does_not_answer_is_a_problem(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        config = {**node.config, "scratch": {**node.config["scratch"], "backing": "lvm", "volume_group": "no-such-vg"}}
        Path(node_cmd.HOOKS_JSON).write_text(json.dumps(config))
        assert main([*STATUS, "--json"]) == 1
        assert any("no-such-vg" in problem for problem in json.loads(capsys.readouterr().out)["problems"])


class Daemon:
    """Answers one request as the node daemon would."""

    def __init__(self, node: Node, answer: dict[str, str]) -> None:
        self._path = Path(node.run_dir) / node_cmd.SOCKET
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as file:
            fields = wire.decode_body(file.read(wire.decode_header(file.readline())))
            assert fields["verb"] == b"ping"
            connection.sendall(wire.encode({**self._answer, "nonce": fields["nonce"]}))

    def __enter__(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        self._socket.listen()
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._thread.join(20)
        self._socket.close()


class TestReap:
    def test_shows_what_it_saw_and_did(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        file = left_over(node, 7)
        # nobody to ask: nothing is destroyed, and that is no fault of the node's
        assert main(["node", "reap", "--node", NODE, "--once"]) == 0
        assert "silent" in capsys.readouterr().out
        assert file.exists()
        assert main(["node", "reap", "--node", NODE, "--once", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert [(job["job"], job["kind"]) for job in told["jobs"]] == [(7, "silent")]

    def test_an_admin_has_to_look(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        left_over(node, 7)
        monkeypatch.setattr(reaper, "foreign", lambda *_: "its UUID is another")
        assert main(["node", "reap", "--node", NODE, "--once"]) == 1
        assert "its UUID is another" in capsys.readouterr().out

    def test_nothing_to_see(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["node", "reap", "--node", NODE]) == 0
        assert "no scratch of any job" in capsys.readouterr().out
