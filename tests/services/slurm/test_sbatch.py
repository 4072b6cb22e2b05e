"""What we understand of sbatch's words is what sbatch makes of them: the real one sends each to the real filter."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin.sbatch_fields import fields_of
from conf.errors import UsageError
from slurm_hooks.filters import job
from slurm_hooks.request import Submission
from submit.sbatch_args import read
from submit.sbatch_options import BY_NAME, BY_SHORT, FLAG, MAYBE, VALUE
from tests.services.slurm.recorder import Recorder

HOME = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
SCRIPT = "#!/bin/sh\ntrue\n"
# what a policy looks at, and no more: the rest of what slurmctld gets is its own business
LOOKED_AT = {
    *(name for name in job.STRINGS if name != "tres_bind"),
    *job.NUMBERS,
    "shared",
    "requeue",
    "het_job_offset",
    "has_script",
    "script_lines",
} | {
    "script_burst_buffer",
    "user_environment",
    "env.slurm_get_user_env",
    "env.secure_class",
}
LINES = [
    *["-t10", "-t 1:31", "--time=2:00:01", "-t 1-2", "-t 1-2:3", "--time 1-2:3:4", "-t UNLIMITED", "-t 0", "-t-1"],
    *["-N2", "-N 2-4", "--nodes=2k", "--nodes 1,3-5", "-N0", "-n5", "-n5 -c2", "-c3", "-N2 -n5", "-N4k"],
    *["-G2", "--gpus=a100:2", "--gpus=a100:2,v:3", "--gpus-per-node=2", "--gpus-per-task=2 -n2", "--tasks-per-node=3"],
    *["--gpus-per-task=a:2 -n2", "--gres=gpu:2", "--gres=gres/gpu:2", "--gres=gpu", "--gres=none"],
    *["--gpus-per-socket=2 --sockets-per-node=2", "--gpus-per-task=2 -n2 -c3", "--tres-per-task=gres/gpu:1 -n2"],
    *["--mail-type=ALL", "--mail-type=NONE", "--mail-type=BEGIN,end", "--mail-type=TIME_LIMIT,TIME_LIMIT_90"],
    *["--mail-type=STAGE_OUT,ARRAY_TASKS", "--mail-type=INVALID_DEPEND,x", "--mail-user=a@b", "--mail-type=FAIL"],
    *["-a1-10%2", "-A acc", "-q q", "--reservation=r", "-L a:2", "--bb=x", "--container=/c", "--wckey=w"],
    *[
        "--export=NONE",
        "--export=NIL",
        "--export=ALL,A=b",
        "--export=A=b",
        "--export=HOME",
        "--export=ALL",
        "--export=X",
    ],
    *["--get-user-env", "--get-user-env --export=NIL", "-w e1", "-w e[1-2]", "-x e1", "--prefer=a", "-C a", "-p main"],
    *["-d afterok:1", "-d singleton", "-D /x", "-D sub", "-o out", "-e err", "-i in", "-o none", "-i none", "-o /a/%x"],
    *[
        "-J n",
        "--comment=c",
        "--network=n",
        "--mcs-label=l",
        "--exclusive",
        "--exclusive=user",
        "--exclusive=mcs",
        "-s",
    ],
    *["--requeue", "--no-requeue", "-H", "-HN2", "-Hs -N 3", "--part=main", "-k", "-koff -t5", "--batch=a", "-Q"],
    *["--acctg-freq=5", "--requeue --no-requeue", "-t5 -t7"],
    *["-C a -- ", "-Ca", "--nice -t5", "--mem=1G", "--comment=", "-Dsub/../x", "--gres=gpu:1 -w e[1-2] -N3"],
]
ENVIRONMENTS = [
    {"SBATCH_PARTITION": "main", "SBATCH_TIMELIMIT": "5", "SBATCH_REQUEUE": "", "SBATCH_OUTPUT": "o"},
    {"SBATCH_NO_REQUEUE": "no", "SBATCH_EXCLUSIVE": "user", "SBATCH_GRES": "gpu:1", "SBATCH_ARRAY_INX": "1-2"},
    {"SBATCH_EXPORT": "NONE", "SBATCH_JOB_NAME": "n", "SBATCH_ACCOUNT": "a", "SBATCH_QOS": "q"},
    {"SBATCH_GET_USER_ENV": "", "SECURE_CLASS": "phi", "SBATCH_CONSTRAINT": "a", "SBATCH_RESERVATION": "r"},
    {"SECURE_CLASS": "phi", "SBATCH_EXPORT": "A=b", "SBATCH_BURST_BUFFER": "x", "SBATCH_INPUT": "in"},
]
SCRIPTS = [
    "#!/bin/sh\n#SBATCH -N2 --time=5\n\n# x\n  # y\n#SBATCH\t-p main\ntrue\n#SBATCH -p other\n",
    "#!/bin/sh\n#SBATCH --comment='two words' -J \"a b\" # -N7\n#SBATCH --partition main\n",
    "#!/bin/sh\n#SBATCH -C a\\ b\n#SBATCH--time=5\n#BB x\n#SECURE --class=phi\n",
    "#!/bin/sh\n#SBATCH --comment=a#b\n #SBATCH -N2\n",
]
REFUSED = ["-t x", "-N 4-2", "-N 2-", "--exclusive=x", "--tim=5", "--work=x", "-Z", "-t", "--parsable=x", "-N x"]


@pytest.fixture(scope="module")
def recorder(throw_away_root: None) -> Iterator[Recorder]:
    with Recorder() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.sh").write_text(SCRIPT)
    return tmp_path


def both(
    recorder: Recorder, folder: Path, words: list[str], environ: dict[str, str], script: str = SCRIPT
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    (folder / "job.sh").write_text(script)
    environ = HOME | environ
    recorder.asked.clear()
    done = recorder.submit([*words, "job.sh"], environ, folder)
    assert recorder.asked, done.stderr
    theirs = recorder.asked[0]
    args = read(words, script.encode(), environ)
    said = fields_of(args, environ, str(folder), "job.sh")
    ours = Submission(
        uid=0,
        user="root",
        texts=dict(said.texts),
        numbers=dict(said.numbers),
        environment=said.environment,
        script=script.encode(),
    ).fields()
    return tuple({name: value for name, value in each.items() if name in LOOKED_AT} for each in (ours, theirs))  # type: ignore[return-value]


@pytest.mark.parametrize("line", LINES)
def test_a_line(recorder: Recorder, folder: Path, line: str) -> None:
    ours, theirs = both(recorder, folder, line.split(" ") if "=''" in line else line.split(), {})
    assert ours == theirs


@pytest.mark.parametrize("environ", ENVIRONMENTS, ids=lambda each: next(iter(each)))
def test_an_environment(recorder: Recorder, folder: Path, environ: dict[str, str]) -> None:
    for words in ([], ["-ppart", "-t9", "--no-requeue", "--export=ALL"]):
        ours, theirs = both(recorder, folder, words, environ)
        assert ours == theirs


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script(recorder: Recorder, folder: Path, script: str) -> None:
    for words in ([], ["-N3", "-J", "c"]):
        ours, theirs = both(recorder, folder, words, {"SBATCH_PARTITION": "from-environment"}, script)
        assert ours == theirs


@pytest.mark.parametrize("line", REFUSED)
def test_what_sbatch_refuses_is_refused(recorder: Recorder, folder: Path, line: str) -> None:
    recorder.asked.clear()
    done = recorder.submit([*line.split(), "job.sh"] if line != "-t" else ["-t"], HOME, folder)
    assert done.returncode
    assert not recorder.asked
    words = line.split()
    if line == "--work=x":
        # a plugin of a site may have it
        assert read(words).given[0].option is None
        return
    with pytest.raises(UsageError):
        fields_of(read(words), HOME, "/", "x")


def possibilities(recorder: Recorder, folder: Path, prefix: str) -> set[str]:
    said = recorder.submit([f"--{prefix}=x"], HOME, folder).stderr.decode()
    many = re.search(r"is ambiguous; possibilities:(.*)", said)
    if many:
        return set(re.findall(r"'--([^']+)'", many[1]))
    one = re.search(r"option '--([^']+)' doesn't allow", said)
    if one or "unrecognized option" in said:
        return {one[1]} if one else set()
    needs = re.search(r"option '--([^']+)' requires", recorder.submit([f"--{prefix}"], HOME, folder).stderr.decode())
    return {needs[1]} if needs else set()


def test_every_option_of_this_sbatch_is_in_the_table(recorder: Recorder, folder: Path) -> None:
    found = set().union(*(possibilities(recorder, folder, letter) for letter in string.ascii_lowercase))
    assert len(found) > 100
    assert found <= BY_NAME.keys()
    takes = {}
    for name in found:
        if b"doesn't allow an argument" in recorder.submit([f"--{name}=x", "--version"], HOME, folder).stderr:
            takes[name] = FLAG
        else:
            needs = b"requires an argument" in recorder.submit([f"--{name}"], HOME, folder).stderr
            takes[name] = VALUE if needs else MAYBE
    # in one of the two versions these take a value, and never the next word
    takes |= {name: MAYBE for name in ("get-user-env", "requeue") if takes[name] == FLAG}
    assert takes == {name: BY_NAME[name].takes for name in found}
    letters = {
        letter
        for letter in string.ascii_letters
        if b"invalid option" not in recorder.submit([f"-{letter}"], HOME, folder).stderr
    }
    assert letters == BY_SHORT.keys()
    print(json.dumps({"options": len(found), "version": recorder.version()}))


@pytest.mark.parametrize("tool", ["sbatch", "srun"])
def test_a_message_of_any_length_reaches_the_terminal_whole(recorder: Recorder, folder: Path, tool: str) -> None:
    for size in (1000, 64 * 1024, 512 * 1024):
        recorder.words = "{" + "x" * size + "}"
        done = recorder.submit(["--test-only", "./job.sh"], HOME, folder, tool=tool)
        assert done.returncode
        assert recorder.words.encode() in done.stderr
    recorder.words = "no"
