"""A command line with some options changed: the rest is what it was, and the result says what was asked for."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submit.nearest_line import rewritten
from submit.options import split_argv
from submit.sbatch_args import read

OWN = ["--secure-class=phi", "--secure-scratch", "2T", "--secure-explain"]


def line(
    words: list[str],
    changes: list[tuple[str, str | None]],
    script: bytes = b"",
    environ: dict[str, str] | None = None,
) -> str:
    return rewritten("sbatch", OWN, words, read(words, script, environ), changes).command


FRONT = "secure-sbatch --secure-class=phi --secure-scratch 2T"


@pytest.mark.parametrize(
    ("words", "changes", "result"),
    [
        (["-N2", "job.sh", "a b"], [], f"{FRONT} -N2 job.sh 'a b'"),
        (
            ["-N2", "job.sh"],
            [("--secure-scratch", "1T")],
            "secure-sbatch --secure-class=phi --secure-scratch=1T -N2 job.sh",
        ),
        (["-N2"], [("--secure-scratch", None)], "secure-sbatch --secure-class=phi -N2"),
        (
            ["-N2"],
            [("--secure-residency", "eu"), ("--secure-class", None)],
            "secure-sbatch --secure-scratch 2T --secure-residency=eu -N2",
        ),
        (["-p", "us", "-N2", "job.sh", "-p"], [("--partition", "eu")], f"{FRONT} --partition=eu -N2 job.sh -p"),
        (["-p", "us", "-N2", "-pxx", "job.sh"], [("--partition", "eu")], f"{FRONT} --partition=eu -N2 job.sh"),
        (["-N2", "job.sh"], [("--partition", "eu")], f"{FRONT} --partition=eu -N2 job.sh"),
        (["-Cus", "--constr=x", "job.sh"], [("--constraint", None)], f"{FRONT} job.sh"),
        (["-HN9", "job.sh"], [("--nodes", "4")], f"{FRONT} --hold --nodes=4 job.sh"),
        (["-sHC", "us", "-t5"], [("--constraint", None)], f"{FRONT} --oversubscribe --hold -t5"),
        (["--gres=gpu:9", "-t5"], [("--gpus-per-node", None)], f"{FRONT} -t5"),
        (["--", "job.sh"], [("--account", "a b")], f"{FRONT} '--account=a b' -- job.sh"),
        (["--wrap=true; x"], [("--chdir", "/data")], f"{FRONT} --chdir=/data '--wrap=true; x'"),
    ],
)
def test_what_changes_and_what_stays(words: list[str], changes: list[tuple[str, str | None]], result: str) -> None:
    assert line(words, changes) == result


def test_what_is_said_elsewhere_is_overruled_or_told() -> None:
    script = b"#!/bin/sh\n#SBATCH -C us\n#SBATCH -p us\n"
    environ = {"SBATCH_CONSTRAINT": "x"}
    args = read(["job.sh"], script, environ)
    found = rewritten("sbatch", OWN, ["job.sh"], args, [("--constraint", None), ("--partition", "eu")])
    assert found.command == f"env -u SBATCH_CONSTRAINT {FRONT} --partition=eu job.sh"
    assert found.notes == ("and remove --constraint from line 2 of the script",)


NAMES = st.sampled_from(["partition", "constraint", "nodes", "qos", "time"])
WORDS = st.lists(
    st.sampled_from(["-pa", "--constraint=b", "-HN2", "-q", "-Hs", "--time=5", "-t1", "--qos=x"]), max_size=6
)


@given(WORDS, st.dictionaries(NAMES, st.none() | st.sampled_from(["1", "two words", "'\"$x"])))
def test_the_result_says_what_was_asked_for_and_nothing_else_less(
    words: list[str], wanted: dict[str, str | None]
) -> None:
    words = [each for word in words for each in ([word, "v"] if word == "-q" else [word])] + ["job.sh", "-p", "x"]
    command = line(words, [(f"--{name}", value) for name, value in wanted.items()])
    own, rest = split_argv(shlex.split(command)[1:])
    before, after = read(words), read(rest)
    assert rest[after.end :] == ["job.sh", "-p", "x"]
    for name in ("partition", "constraint", "nodes", "qos", "time", "hold", "oversubscribe"):
        was, now = before.last(name), after.last(name)
        if name in wanted:
            assert (now.value if now else None) == wanted[name]
        else:
            assert (now is None) == (was is None)
            assert was is None or now is None or now.value == was.value
    assert own == ["--secure-class=phi", "--secure-scratch", "2T"]
