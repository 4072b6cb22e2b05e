"""--secure-explain, with a stand-in for sbatch that answers as slurmctld's filter does."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable, ConfigError
from submit import asking

ROOT = Path(__file__).parents[3]
TAG = "--extra=secure-slurm:class=phi;residency=eu"
OWN = ["--secure-explain", "--secure-class=phi", "--secure-residency=eu"]
START = """
import sys
from submit import main
main.HOOKS_JSON, main.USUAL_PLACES = {hooks!r}, ({bin!r},)
main.find_tool.__defaults__ = ({hooks!r}, ({bin!r},))
sys.exit(main.run(sys.argv[1], sys.argv[2:]))
"""
# one line for each call; then what the test has put into answer-<number of the call>
STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path({folder!r})
calls = here / "calls"
before = len(calls.read_text().splitlines()) if calls.exists() else 0
with calls.open("a") as file:
    print(json.dumps([sys.argv, sys.stdin.read()]), file=file)
code, text = json.loads((here / f"answer-{{before}}").read_text())
sys.stderr.write(text)
sys.exit(code)
"""
ALLOWED: dict[str, Any] = {
    "explanation": 1,
    "allowed": True,
    "rule": "allow.tagged",
    "message": "",
    "advice": "",
    "policy": {"file": "/etc/secure-slurm/policy.yaml", "hash": "ab" * 32},
    "tag": {"class": "phi", "residency": "eu", "scratch": 2**30, "datasets": []},
    "steps": [
        {
            "step": "nodes",
            "part": "judge",
            "verdict": "allow",
            "rule": "",
            "message": "",
            "advice": "",
            "policy": [{"section": "classes[1].max_nodes", "line": 7}],
            "set": {"features": "eu"},
            "shadowed": [{"rule": "limit.nodes", "message": "too many\x1b[2J"}],
        }
    ],
    "set": {"features": "eu"},
    "nearest": None,
}
CHANGES = [{"option": "--secure-scratch", "value": "1T"}, {"option": "--constraint", "value": None}]
REFUSED = ALLOWED | {
    "allowed": False,
    "rule": "scratch.too-large",
    "message": "too much",
    "advice": "ask for less",
    "nearest": {"changes": CHANGES},
}


def refusal(told: dict[str, Any]) -> tuple[int, str]:
    line = json.dumps(told, separators=(",", ":"))
    end = "sbatch: error: (rule explain.answer)\nallocation failure: Access/permission denied\n"
    return 1, f"sbatch: info: x\nsbatch: error: secure-slurm: {line}\n{end}"


TAKEN = (0, "sbatch: Job 7 to start at 2026-01-01T00:00:00 using 1 processors on nodes n1 in partition p\n")


class Place:
    """A folder with a stand-in for the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        for tool in ("sbatch", "srun", "salloc"):
            path = folder / "bin" / tool
            path.write_text(STAND_IN.format(python=sys.executable, folder=str(folder)))
            path.chmod(0o755)
        (folder / "job.sh").write_text("#!/bin/sh\n#SBATCH -C us\ntrue\n")

    def ask(
        self, words: list[str], *answers: tuple[int, str], tool: str = "sbatch", stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        for number, answer in enumerate(answers):
            (self.folder / f"answer-{number}").write_text(json.dumps(answer))
        start = START.format(hooks=str(self.folder / "none.json"), bin=str(self.folder / "bin"))
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", start, tool, *words],
            input=stdin,
            capture_output=True,
            check=False,
            env=environ,
            cwd=self.folder,
            timeout=60,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def calls(self) -> list[Any]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_refused(place: Place) -> None:
    done = place.ask([*OWN, "--secure-scratch=2T", "-Cx", "job.sh", "a b"], refusal(REFUSED))
    assert done.returncode == 1
    assert [argv[1:] for argv, _ in place.calls()] == [
        [TAG + ";scratch=2199023255552;explain=1", "--test-only", "-Cx", "job.sh", "a b"]
    ]
    assert "REFUSED (scratch.too-large): too much\nWhat to do: ask for less\n" in done.stdout
    better = "secure-sbatch --secure-class=phi --secure-residency=eu --secure-scratch=1T job.sh 'a b'"
    assert f"Would be accepted: {better}\n  (say --secure-scratch=1T; leave --constraint out)\n" in done.stdout
    assert "and remove --constraint from line 2 of the script" in done.stdout
    assert "nodes  shadow   policy.yaml:7 classes[1].max_nodes  features=eu" in done.stdout
    assert "In shadow, so not enforced (limit.nodes): too many\\x1b[2J" in done.stdout
    assert done.stderr == ""


def test_allowed_and_taken(place: Place) -> None:
    done = place.ask([*OWN, "job.sh"], refusal(ALLOWED), TAKEN)
    assert done.returncode == 0
    assert [argv[1:3] for argv, _ in place.calls()] == [
        [TAG + ";explain=1", "--test-only"],
        [TAG, "--test-only"],
    ]
    assert "ALLOWED, with 1G of encrypted scratch on each node\nSlurm takes it: sbatch: Job 7 to start" in done.stdout


def test_allowed_by_the_policy_and_not_by_slurm(place: Place) -> None:
    done = place.ask([*OWN, "job.sh"], refusal(ALLOWED), (1, "allocation failure: Invalid partition\n"))
    assert done.returncode == 1
    assert "Slurm REFUSES it: allocation failure: Invalid partition" in done.stdout


def test_json(place: Place) -> None:
    done = place.ask([*OWN, "--secure-json", "-Cx", "job.sh"], refusal(REFUSED))
    told = json.loads(done.stdout)
    assert done.returncode == 1
    assert (told["allowed"], told["rule"]) == (False, "scratch.too-large")
    assert told["command"] == "secure-sbatch --secure-class=phi --secure-residency=eu -Cx job.sh"
    assert told["nearest"]["changes"] == CHANGES
    assert shlex.split(told["nearest"]["command"])[-2:] == ["--secure-scratch=1T", "job.sh"]


def test_json_of_an_allowed_job(place: Place) -> None:
    done = place.ask([*OWN, "--secure-json", "job.sh"], refusal(ALLOWED), TAKEN)
    assert done.returncode == 0
    assert json.loads(done.stdout)["slurm"]["accepted"] is True


def test_what_the_script_says_of_the_tag_is_told(place: Place) -> None:
    (place.folder / "job.sh").write_text("#!/bin/sh\n#SECURE --class=phi --residency=eu --scratch=2T\n")
    done = place.ask(["--secure-explain", "job.sh"], refusal(REFUSED))
    assert "and where the tag is said elsewhere: the command line asks for 1T of scratch" in done.stdout


def test_a_piped_script_is_handed_over_each_time(place: Place) -> None:
    text = b"#!/bin/sh\n#SBATCH -C us\ntrue\n"
    done = place.ask([*OWN, "-N2"], refusal(ALLOWED), TAKEN, stdin=text)
    assert done.returncode == 0
    assert [stdin for _, stdin in place.calls()] == [text.decode()] * 2


def test_srun_has_changes_and_no_command(place: Place) -> None:
    done = place.ask([*OWN, "-n2", "true"], refusal(REFUSED), tool="srun")
    assert done.returncode == 1
    assert "Would be accepted with these changes:\n  (say --secure-scratch=1T; leave --constraint out)" in done.stdout


DOWN = "sbatch: error: secure-slurm: the decision daemon did not answer\nsbatch: error: (rule daemon.down)\n"
OLD = "sbatch: error: secure-slurm: 'explain' is not part of a tag\nsbatch: error: (rule tag.syntax)\n"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((1, DOWN), 4, "nobody could decide about the job"),
        ((1, OLD), 4, "explains nothing"),
        ((1, "sbatch: error: Unable to contact slurm controller (connect failure)\n"), 4, "nobody could decide"),
        ((1, "sbatch: error: Invalid --time specification\n"), 1, "Invalid --time"),
        (TAKEN, 4, "no filter of secure-slurm"),
        ((1, 'secure-slurm: {"explanation":2,"allowed":true}\n'), 4, "explains nothing"),
        ((0, 'secure-slurm: {"explanation":1,"allowed":"yes"}\n'), 4, "explains nothing"),
        ((0, 'secure-slurm: {"explanation":1,"allowed":tru\n'), 4, "explains nothing"),
    ],
)
def test_no_explanation_is_no_yes(place: Place, answer: tuple[int, str], code: int, words: str) -> None:
    done = place.ask([*OWN, "job.sh"], answer)
    assert done.returncode == code
    assert done.stdout == ""
    assert words in done.stderr
    assert "\x1b" not in done.stderr


def test_a_command_that_never_ends_is_killed(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="in time"):
        asking.run("/bin/sleep", ["sleep", "1000"], {}, deadline=0.2)
    with pytest.raises(ConfigError, match="cannot execute"):
        asking.run(str(tmp_path / "none"), ["none"], {})


def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_OUTPUT", 1000)
    said = asking.run("/bin/sh", ["sh", "-c", "head -c 300000 /dev/zero; echo x >&2; exit 3"], {})
    assert (said.code, len(said.stdout), said.stderr) == (3, 1000, "x\n")
