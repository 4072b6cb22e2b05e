"""From the command line to what is executed; the last tests execute a stand-in for sbatch that tells what it got."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conf.errors import ConfigError, UsageError
from submit.main import find_tool, prepare, run

ROOT = Path(__file__).parents[3]
TAG = "--extra=secure-slurm:class=phi;residency=eu"
ASKED = {"class": "phi", "residency": "eu"}

STAND_IN = f"""#!{sys.executable}
import json, os, sys
print(json.dumps({{"argv": sys.argv, "stdin": sys.stdin.read(),
    "env": {{k: v for k, v in os.environ.items() if k.startswith("SECURE")}}}}))
sys.exit(7)
"""

# as the console script does, but with a place of our own for hooks.json and the commands
START = """
import sys
from submit import main
main.find_tool.__defaults__ = ({hooks!r}, ({bin!r},))
sys.argv[0] = "secure-sbatch"
sys.exit(main.sbatch())
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "sbatch"
    tool.write_text(STAND_IN)
    tool.chmod(0o755)
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#SECURE --class=phi --residency=eu\nhostname\n")
    return tmp_path


@pytest.mark.parametrize(
    ("tool", "rest", "message"),
    [
        ("sbatch", ["job.sh"], None),
        ("sbatch", ["--extra=mine", "job.sh"], "--extra is where the tag travels"),
        ("sbatch", ["--extra", "mine", "job.sh"], "--extra is where the tag travels"),
        ("sbatch", ["job.sh", "--extra=mine"], None),
        ("srun", ["-n", "2", "--extra=x", "hostname"], "--extra is where the tag travels"),
        ("srun", ["-n", "2", "hostname", "--extra=x"], None),
        ("sbatch", ["-N1", ":", "-N2", "job.sh"], "heterogeneous"),
        ("srun", ["-n1", "a", ":", "-n2", "b"], "heterogeneous"),
        ("sbatch", ["job.sh", ":"], None),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_cannot_be_tagged(tool: str, rest: list[str], message: str | None) -> None:
    if message is None:
        assert prepare(tool, ASKED, rest, {}).argv == [tool, TAG, *rest]
        return
    with pytest.raises(UsageError, match=message) as caught:
        prepare(tool, ASKED, rest, {})
    assert caught.value.advice


@pytest.mark.usefixtures("place")
def test_no_tag_anywhere_is_exit_2_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("srun", ["hostname"]) == 2
    assert "use srun for a job without a tag" in capsys.readouterr().err
    assert run("srun", ["-n2", "--secure-class=phi", "hostname"]) == 2
    assert "'--secure-class' stands too late" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_srun_does_not_read_scripts() -> None:
    with pytest.raises(UsageError, match="has no tag"):
        prepare("srun", {}, ["./job.sh"], {})


def test_no_place_for_the_tool(place: Path) -> None:
    with pytest.raises(ConfigError, match="sbatch is not in /none"):
        find_tool("sbatch", str(place / "none.json"), ("/none",))
    (place / "broken.json").write_text("{")
    with pytest.raises(ConfigError):
        find_tool("sbatch", str(place / "broken.json"), (str(place / "bin"),))


def test_a_relative_place_is_never_used(place: Path) -> None:
    assert (place / "bin" / "sbatch").exists()
    with pytest.raises(ConfigError):
        find_tool("sbatch", str(place / "none.json"), ("bin",))


def test_what_the_environment_asks_for_stays_for_the_filter_to_compare() -> None:
    # only the policy knows whether phi is stronger than internal: the filter refuses it if it is not
    environ = {"SECURE_CLASS": "internal", "SECURE_SCRATCH": "/secure-scratch/7", "SECURE_SCRATCH_SIZE": "5", "A": "b"}
    command = prepare("salloc", ASKED, [], environ)
    assert command.argv == ["salloc", TAG + ";scratch=5"]
    assert command.environ == {
        "A": "b",
        "SECURE_CLASS": "internal",
        "SECURE_RESIDENCY": "eu",
        "SECURE_SCRATCH_SIZE": "5",
    }


@pytest.mark.parametrize("tool", ["sbatch", "srun", "salloc"])
def test_help_and_version(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tool, ["--secure-help"]) == 0
    text = capsys.readouterr().out
    assert f"secure-{tool}" in text
    assert "{" not in text
    assert max(map(len, text.splitlines())) <= 120
    assert run(tool, ["--secure-version"]) == 0


def test_dry_run_shows_and_submits_nothing(place: Path) -> None:
    done = execute(place, ["--secure-dry-run", "job.sh", "two words", b"\xff"])
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        b"SECURE_CLASS=phi",
        b"SECURE_RESIDENCY=eu",
        b"sbatch '" + TAG.encode() + b"' job.sh 'two words' '\xff'",
    ]


def execute(place: Path, argv: list[str | bytes], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    start = START.format(hooks=str(place / "none.json"), bin=str(place / "bin"))
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-c", start, *argv], input=stdin, capture_output=True, check=False, env=environ, timeout=60
    )


def test_the_real_command_gets_everything_and_its_exit_code_is_ours(place: Path) -> None:
    done = execute(place, ["--parsable", "job.sh", "--secure-class=not-ours", ""])
    told = json.loads(done.stdout)
    assert done.returncode == 7
    assert told["argv"][1:] == [TAG, "--parsable", "job.sh", "--secure-class=not-ours", ""]
    assert told["env"] == {"SECURE_CLASS": "phi", "SECURE_RESIDENCY": "eu"}


def test_a_piped_script_reaches_the_real_command(place: Path) -> None:
    text = (place / "job.sh").read_bytes()
    told = json.loads(execute(place, ["-N", "2"], stdin=text).stdout)
    assert told["argv"][1:] == [TAG, "-N", "2"]
    assert told["stdin"] == text.decode()


def test_stdin_is_left_alone_when_there_is_a_script_or_a_wrap(place: Path) -> None:
    for words in (["job.sh"], ["--wrap=hostname"]):
        done = execute(place, ["--secure-class=phi", "--secure-residency=eu", *words], stdin=b"#SECURE --class=x\n")
        assert json.loads(done.stdout)["stdin"] == "#SECURE --class=x\n"


def test_an_error_says_what_and_what_next(place: Path) -> None:
    done = execute(place, ["--secure-class=phi", "--secure-residency=us", "job.sh"])
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.splitlines() == [
        b"secure-sbatch: error: the command line says residency 'us', the script says 'eu'",
        b"secure-sbatch: data has one residency: remove the wrong one",
    ]


def test_nothing_heavy_is_imported() -> None:
    code = "import submit.main, sys; print(*sys.modules)"
    environ = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environ, text=True)
    heavy = {"attrs", "attr", "cattrs", "yaml", "asyncio", "logging", "subprocess", "argparse", "difflib", "rich"}
    assert heavy.isdisjoint(done.stdout.split())


@pytest.mark.parametrize("tool", ["sbatch", "srun"])
@pytest.mark.usefixtures("place")
def test_explain_asks_in_front_of_everything_of_the_users(tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--secure-explain", "--secure-dry-run", "--secure-class=phi", "--secure-residency=eu"]
    assert run(tool, [*own, "-J", "--secure-explain", "job.sh", "x"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{tool} '{TAG};explain=1' --test-only -J --secure-explain job.sh x"


@pytest.mark.usefixtures("place")
def test_explain_is_refused_where_slurm_cannot_only_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("salloc", ["--secure-explain", "--secure-class=phi", "--secure-residency=eu"]) == 2
    shown = capsys.readouterr().err
    assert "salloc has no --test-only" in shown
    assert "secure-sbatch --secure-explain" in shown


@pytest.mark.usefixtures("place")
def test_explain_without_a_tag_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("srun", ["--secure-explain", "hostname"]) == 2
    assert run("sbatch", ["--secure-explain=yes", "job.sh"]) == 2
    assert "takes no value" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_json_is_for_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sbatch", ["--secure-json", "--secure-class=phi", "job.sh"]) == 2
    assert "add --secure-explain" in capsys.readouterr().err
