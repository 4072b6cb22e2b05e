"""sbatch's words: the table is complete for both versions, and a line is read as getopt_long reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UsageError
from submit.sbatch_args import COMMAND_LINE, read, read_words
from submit.sbatch_options import BY_NAME, BY_SHORT, BY_VARIABLE, FLAG, MAYBE, OPTIONS, VALUE

# asked of the real ones: tests/services/slurm/test_sbatch.py does it again
MEASURED = json.loads((Path(__file__).parent / "sbatch-options.json").read_text())
# read by sbatch, and no option of its own
NO_OPTION = {"SBATCH_DEBUG", "SBATCH_POWER", "SBATCH_WAIT4SWITCH"}
Said = list[tuple[str, str | None]]


@pytest.mark.parametrize("version", MEASURED)
def test_every_option_of_a_version_is_in_the_table(version: str) -> None:
    options = MEASURED[version]["options"]
    assert len(options) > 100
    assert options.keys() <= BY_NAME.keys()
    # in one of the two versions these take a value, and never the next word
    either = {"get-user-env", "requeue"}
    assert {name: BY_NAME[name].takes for name in options.keys() - either} == {
        name: takes for name, takes in options.items() if name not in either
    }
    assert set(MEASURED[version]["letters"]) == BY_SHORT.keys()
    assert set(MEASURED[version]["variables"]) - NO_OPTION <= BY_VARIABLE.keys()


def test_no_option_is_there_twice() -> None:
    assert len(BY_NAME) == len(OPTIONS)
    assert len(BY_SHORT) == sum(bool(option.short) for option in OPTIONS)
    known = set().union(*(each["options"] for each in MEASURED.values()))
    assert BY_NAME.keys() == known


def said(words: list[str]) -> Said:
    return [(given.name, given.value) for given in read(words).given]


@pytest.mark.parametrize(
    ("words", "found", "end"),
    [
        ([], [], 0),
        (["job.sh", "-N2"], [], 0),
        (["-N2", "job.sh"], [("nodes", "2")], 1),
        (["-N", "2", "job.sh"], [("nodes", "2")], 2),
        (["-N", "--", "job.sh"], [("nodes", "--")], 2),
        (["--nodes", "2", "--", "-x"], [("nodes", "2")], 3),
        (["--nodes=2-4"], [("nodes", "2-4")], 1),
        (["--nodes="], [("nodes", "")], 1),
        (["--nodel=n1"], [("nodelist", "n1")], 1),
        (["--part", "a=b"], [("partition", "a=b")], 2),
        (["--exclusive", "user"], [("exclusive", None)], 1),
        (["--exclusive=user"], [("exclusive", "user")], 1),
        (["-HN2"], [("hold", None), ("nodes", "2")], 1),
        (["-HsN", "2", "x"], [("hold", None), ("oversubscribe", None), ("nodes", "2")], 2),
        (["-k", "-koff"], [("no-kill", None), ("no-kill", "off")], 2),
        (["-", "-N2"], [], 0),
        (["--cluster=a", "-Mb"], [("cluster", "a"), ("clusters", "b")], 2),
        (["--site-plugin=x", "--other", "job.sh"], [("--site-plugin", "x"), ("--other", None)], 2),
    ],
)
def test_a_line(words: list[str], found: Said, end: int) -> None:
    assert said(words) == found
    assert read(words).end == end


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--time-m", "5", "--tim=5"], "may be '--time' or '--time-min'"),
        (["-N"], "has no value"),
        (["--nodes"], "has no value"),
        (["--parsable=x"], "takes no value"),
        (["-Z"], "no option '-Z'"),
        (["-HZ"], "no option '-Z'"),
    ],
)
def test_what_sbatch_would_not_take(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match="the command line: ") as caught:
        read(words)
    assert why in str(caught.value)


def test_the_later_one_counts_and_the_command_line_last() -> None:
    script = b"#!/bin/sh\n#SBATCH -p one\n#SBATCH --qos=low # -A x\n\n  # comment\n#SBATCH -t5\ntrue\n#SBATCH -A late\n"
    args = read(["-p", "three"], script, {"SBATCH_PARTITION": "two", "SBATCH_QOS": "high", "SBATCH_NO_REQUEUE": "no"})
    found = {name: args.last(name) for name in ("partition", "qos", "time", "account", "no-requeue")}
    assert {name: each and (each.value, each.source) for name, each in found.items()} == {
        "partition": ("three", COMMAND_LINE),
        "qos": ("high", "SBATCH_QOS"),
        "time": ("5", "line 6 of the script"),
        "account": None,
        "no-requeue": None,
    }


def test_another_schedulers_lines_are_named() -> None:
    assert "line 2" in read([], b"#!/bin/sh\n#PBS -l nodes=2\n").unread[0]
    with pytest.raises(UsageError, match="line 2 of the script"):
        read([], b"#!/bin/sh\n#SBATCH --comment='x\n")


@given(st.lists(st.sampled_from(["-N2", "-H", "--qos", "a", "--", "-x", "--exclusive", "--time=5", "-Hs", ":"])))
def test_every_word_of_the_front_belongs_to_something(words: list[str]) -> None:
    try:
        given_options, end = read_words(words, "x")
    except UsageError:
        return
    covered = {index for each in given_options for index in range(each.start, each.end)}
    assert covered | {end - 1} >= set(range(end))
    assert all(each.option is not None and each.option.takes in {VALUE, MAYBE, FLAG} for each in given_options)
