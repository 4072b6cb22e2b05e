"""check: what it says where ParallelCluster's package is not there, does not work, or lies; and how it ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from admin import main as command
from admin.parallelcluster import theirs
from tests.testbed.pcluster_examples import ROOT, Example

Examples = Callable[[str], Example]
FOUND = {
    "level": "ERROR",
    "validator": "NameValidator",
    "message": "not a \x1b[31mname",
    "where": ["Scheduling", "SlurmQueues", 0],
    "about": {"name": "phi"},
}
CLEAN: dict[str, Any] = {"version": "3.16.1", "findings": [], "run": ["A", "B"], "not_run": ["C"]}


@pytest.fixture
def files(example: Examples) -> Example:
    return example("isolated")


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[[str], str]:
    """A program in the place of the other Python. What it must not do is ParallelCluster's own to show, elsewhere."""

    def write(body: str) -> str:
        path = tmp_path / "python3"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    return write


def check(files: Example, *more: str) -> int:
    words = ["--config", str(files.site), "parallelcluster", "check", str(files.cluster)]
    return command.main([*words, "--answers", str(files.answers), "--policy", str(files.policy), *more])


def says(answer: dict[str, Any]) -> str:
    return f"cat >/dev/null\ncat <<'END'\n{json.dumps(answer)}\nEND"


@pytest.mark.usefixtures("nowhere")
class TestNotInstalled:
    @pytest.fixture
    def nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_a_clean_file_ends_with_its_own_code(self, files: Example, capsys: pytest.CaptureFixture[str]) -> None:
        assert check(files) == 4
        told = capsys.readouterr().out
        assert "ParallelCluster's own rules were NOT run: there is no pcluster on the PATH" in told
        assert "--pcluster-python" in told
        assert "0 errors, 0 warnings" in told

    def test_an_error_of_ours_is_an_error(self, files: Example) -> None:
        files.edit("cluster", "Secured: true", "Secured: false")
        assert check(files) == 1

    def test_json_says_so(self, files: Example, capsys: pytest.CaptureFixture[str]) -> None:
        assert check(files, "--json") == 4
        answer = json.loads(capsys.readouterr().out)
        assert answer["parallelcluster"]["run"] is False
        assert "no pcluster" in answer["parallelcluster"]["why"]
        assert answer["findings"] == answer["not_compared"] == []

    def test_a_warning_is_none_but_with_strict(self, files: Example) -> None:
        files.edit("cluster", "^.*PrivateData: .*\n", "")
        assert check(files) == 4
        assert check(files, "--strict") == 1

    def test_each_finding_names_place_and_fix(self, files: Example, capsys: pytest.CaptureFixture[str]) -> None:
        files.edit("cluster", "Secured: true", "Secured: false")
        check(files)
        first, second, *_ = capsys.readouterr().out.splitlines()
        line = next(n for n, text in enumerate(files.cluster.read_text().splitlines(), 1) if "Secured: false" in text)
        assert first.startswith(f"{files.cluster}:{line}:5: error: ")
        assert first.endswith("(imds-open)")
        assert second == "    write Secured: true"

    def test_what_is_no_yaml_is_an_error(self, files: Example, capsys: pytest.CaptureFixture[str]) -> None:
        files.cluster.write_text("a: [\n")
        assert check(files) == 1
        assert "(yaml)" in capsys.readouterr().out

    def test_a_file_that_is_not_there(self, files: Example) -> None:
        files.cluster.unlink()
        assert check(files) == 3

    def test_without_the_sites_files_it_says_what_was_not_compared(
        self, files: Example, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("conf.site.DEFAULT_PATH", str(tmp_path / "none.yaml"))
        monkeypatch.setattr("conf.policy.DEFAULT_PATH", str(tmp_path / "nor.yaml"))
        words = ["--config", str(tmp_path / "none.yaml"), "parallelcluster", "check", str(files.cluster)]
        assert command.main([*words, "--policy", str(tmp_path / "nor.yaml"), "--json"]) == 4
        assert len(json.loads(capsys.readouterr().out)["not_compared"]) == 3

    def test_a_file_that_is_named_must_be_there(self, files: Example) -> None:
        files.policy.unlink()
        assert check(files) == 3


class TestOtherPython:
    def test_one_that_finds_nothing(
        self, files: Example, stand_in: Callable[[str], str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert check(files, "--pcluster-python", stand_in(says(CLEAN))) == 0
        assert (
            "ParallelCluster 3.16.1: its schema and 2 of its validators were run; 1 need AWS" in capsys.readouterr().out
        )

    def test_what_it_says_is_shown_escaped(
        self, files: Example, stand_in: Callable[[str], str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert check(files, "--pcluster-python", stand_in(says({**CLEAN, "findings": [FOUND]}))) == 1
        told = capsys.readouterr().out
        assert "not a \\x1b[31mname (NameValidator)" in told
        assert "\x1b" not in told

    def test_what_it_merely_tells_is_no_finding(self, files: Example, stand_in: Callable[[str], str]) -> None:
        answer = {**CLEAN, "findings": [{**FOUND, "level": "INFO"}]}
        assert check(files, "--pcluster-python", stand_in(says(answer))) == 0

    @pytest.mark.parametrize(
        "answer",
        ["echo hello", "echo '[]'", "echo '{}'", says({**CLEAN, "findings": [{}]}), "true", "kill -9 $$", "exit 3"],
    )
    def test_no_answer_is_not_a_good_one(
        self, files: Example, stand_in: Callable[[str], str], capsys: pytest.CaptureFixture[str], answer: str
    ) -> None:
        assert check(files, "--pcluster-python", stand_in(answer)) == 4
        assert "were NOT run" in capsys.readouterr().out

    def test_one_that_hangs_is_ended(
        self, files: Example, stand_in: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(theirs, "DEADLINE", 0.3)
        assert check(files, "--pcluster-python", stand_in("exec sleep 600")) == 4

    def test_one_that_says_too_much_is_ended(
        self, files: Example, stand_in: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(theirs, "MAX_ANSWER", 1000)
        assert check(files, "--pcluster-python", stand_in("exec yes")) == 4

    def test_one_without_parallelcluster(self, files: Example, capsys: pytest.CaptureFixture[str]) -> None:
        assert check(files, "--pcluster-python", sys.executable) == 4
        assert "No module named 'pcluster'" in capsys.readouterr().out

    def test_one_that_is_not_there(self, files: Example, tmp_path: Path) -> None:
        assert check(files, "--pcluster-python", str(tmp_path / "none")) == 4

    def test_it_gets_no_credentials_and_no_metadata_service(
        self, files: Example, stand_in: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        monkeypatch.setenv("AWS_PROFILE", "admin")
        seen = tmp_path / "seen"
        check(files, "--pcluster-python", stand_in(f"env > {seen}"))
        environment = seen.read_text()
        assert "a-secret" not in environment
        assert "AWS_PROFILE" not in environment
        assert "AWS_EC2_METADATA_DISABLED=true" in environment
        assert "AWS_DEFAULT_REGION=eu-central-1" in environment
        assert f"HOME={os.environ.get('HOME')}\n" not in environment

    def test_the_one_of_the_pcluster_on_the_path_is_found(
        self, files: Example, stand_in: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        stand_in(says(CLEAN))
        (tmp_path / "pcluster").symlink_to(tmp_path / "python3")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert check(files) == 0

    def test_root_does_not_run_what_others_may_write(
        self, stand_in: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        stand_in("true")
        (tmp_path / "pcluster").symlink_to(tmp_path / "python3")
        tmp_path.chmod(0o777)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        with pytest.raises(theirs.BackendUnavailable, match="root alone"):
            theirs.find_python()


class TestChild:
    """The doors that the child shuts; ParallelCluster itself behind them is in tests/services/parallelcluster."""

    @staticmethod
    def run(code: str) -> subprocess.CompletedProcess[str]:
        start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from admin.parallelcluster import child; "
        return subprocess.run(
            [sys.executable, "-I", "-c", start + "sys.addaudithook(child._refuse)\n" + code],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def test_no_connection(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            done = self.run(f"import socket; socket.create_connection(('127.0.0.1', {port}))")
        assert "PermissionError" in done.stderr

    @pytest.mark.parametrize(
        "code",
        [
            "import socket; socket.gethostbyname('localhost')",
            "import socket; socket.getaddrinfo('localhost', 80)",
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
            "import subprocess; subprocess.run(['/bin/true'])",
            "import os; os.system('true')",
            "import os; os.execv('/bin/true', ['true'])",
            "import os; os.posix_spawn('/bin/true', ['true'], {})",
            "import os; os.fork()",
        ],
    )
    def test_nothing_else_either(self, code: str) -> None:
        done = self.run(code)
        assert done.returncode == 1
        assert "is refused while a configuration is checked" in done.stderr

    def test_it_is_for_an_older_python_too(self) -> None:
        """ParallelCluster runs on 3.9: no match statement, no | between types outside annotations."""
        import ast

        source = (ROOT / "admin/parallelcluster/child.py").read_text()
        ast.parse(source, feature_version=(3, 9))
