"""One place for errors and exit codes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from admin import main as command
from conf.errors import BackendUnavailable, ConfigError, Refused, SecureSlurmError, UsageError
from conf.site import DEFAULT_PATH
from conf.version import __version__

ROOT = Path(__file__).parents[3]


def with_run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(command, "_version", run)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("a.rule", "no"), 1),
        (UsageError("no"), 2),
        (ConfigError("no"), 3),
        (BackendUnavailable("no"), 4),
        (SecureSlurmError("no"), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_run(monkeypatch, error)
    assert command.main(["version"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_defect_is_one_line_without_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_run(monkeypatch, RuntimeError("token=abc"))
    assert command.main(["version"]) == 5
    shown = capsys.readouterr().err
    assert "a defect of secure-slurm (RuntimeError)" in shown
    assert "abc" not in shown


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_run(monkeypatch, ConfigError("broken"))
    assert command.main(["--debug", "version"]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["nothing"], ["--conf", "x", "version"], ["audit"], ["why"], ["why", "-1"]])
def test_usage_errors_are_exit_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(argv)
    assert caught.value.code == 2
    assert "usage: secure-slurm" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name, (_, summary) in command.COMMANDS.items():
        assert name in shown
        assert summary.split(",")[0] in shown


@pytest.mark.parametrize("name", [name for name in command.COMMANDS if name != "version"])
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main([name, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: secure-slurm {name}")


def test_version_and_the_default_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["version"]) == 0
    assert capsys.readouterr().out == f"secure-slurm {__version__}\n"
    assert command.DEFAULT_CONFIG == DEFAULT_PATH


def test_subcommands_are_imported_when_called() -> None:
    code = "import sys\nfrom admin.main import main\nmain(['version'])\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True, timeout=60
    )
    assert {"attr", "yaml", "hvac", "rich", "subprocess"}.isdisjoint(done.stdout.split())


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'secure-slurm'; from admin.main import main; sys.exit(main(['version']))"
    script = f'set -o pipefail; {sys.executable} -c "{code}" | true'
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, check=False, stderr=stderr, timeout=60)
    assert done.returncode == 0
    assert errors.read_bytes() == b""
