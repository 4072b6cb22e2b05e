"""What a hook takes from Slurm's variables, and what it does not."""

from __future__ import annotations

import syslog

import pytest

from conf.errors import InternalError, SecureSlurmError, UsageError
from slurm_hooks import hookenv
from slurm_hooks.hookenv import read_job

FULL = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_UID": "1001",
    "SLURM_JOB_GID": "1002",
    "SLURM_JOB_USER": "alice",
    "SLURM_CLUSTER_NAME": "test",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_NODELIST": "n[1-3,07],gpu1",
    "SLURM_JOB_RESTART_COUNT": "2",
    "SLURM_JOB_EXTRA": "secure-slurm:class=phi",
}


def test_a_job() -> None:
    assert read_job(FULL) == (
        *(17, 1001, 1002, "alice", "test", "n1", ("n1", "n2", "n3", "n07", "gpu1"), 2),
        FULL["SLURM_JOB_EXTRA"],
    )
    assert read_job(FULL).marked


def test_what_a_hook_may_lack() -> None:
    assert read_job({"SLURM_JOB_ID": "1"}) == (1, -1, -1, "", "", "", (), 0, "")
    assert read_job({**dict.fromkeys(FULL, ""), "SLURM_JOB_ID": "1"}) == (1, -1, -1, "", "", "", (), 0, "")


def test_a_hook_that_ends_things_does_without_the_nodes() -> None:
    environ = {**FULL, "SLURM_JOB_NODELIST": "n[1-"}
    with pytest.raises(UsageError):
        read_job(environ)
    assert read_job(environ, any_nodes=True).nodes == ()


def test_a_hook_without_its_job_is_refused() -> None:
    for environ in ({}, {"SLURM_JOB_ID": ""}, {name: FULL[name] for name in FULL if name != "SLURM_JOB_ID"}):
        with pytest.raises(InternalError, match="SLURM_JOB_ID"):
            read_job(environ)


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_GID", "SLURM_JOB_RESTART_COUNT"])
@pytest.mark.parametrize(
    "value", ["-1", "+1", " 1", "1 ", "1\n", "01", "1_0", "0x1", "1.0", "\u0661", "12345678901", "$(id)"]
)
def test_a_number_that_is_none_is_refused(name: str, value: str) -> None:
    with pytest.raises(InternalError, match=name):
        read_job({**FULL, name: value})


@pytest.mark.parametrize("name", ["SLURMD_NODENAME", "SLURM_CLUSTER_NAME"])
@pytest.mark.parametrize("value", ["../n1", "n1/x", ".n1", "-n1", "n 1", "n1\n", "ñ1", "n" * 64, "n%n", "$(id)", "n*"])
def test_a_name_that_could_leave_a_path_is_refused(name: str, value: str) -> None:
    with pytest.raises(InternalError, match=name):
        read_job({**FULL, name: value})


def test_a_node_with_an_underscore_is_refused_and_a_cluster_is_not() -> None:
    with pytest.raises(InternalError):
        read_job({**FULL, "SLURMD_NODENAME": "n_1"})
    assert read_job({**FULL, "SLURM_CLUSTER_NAME": "c_1"}).cluster == "c_1"


@pytest.mark.parametrize(
    "value", ["n[1-", "n[2-1]", "n1,,n2", "n1 n2", "n1\nn2", "$(id)", "n[1-20001]", "n[1-999][1-999]"]
)
def test_a_list_of_nodes_that_slurm_would_not_write_is_refused(value: str) -> None:
    with pytest.raises(UsageError):
        read_job({**FULL, "SLURM_JOB_NODELIST": value})


def test_a_hostile_value_is_shown_on_one_line_and_cut() -> None:
    with pytest.raises(SecureSlurmError) as caught:
        read_job({**FULL, "SLURM_JOB_ID": "1\x1b[2J\n" + "x" * 1000})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 120


def test_what_is_said_is_one_plain_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(syslog, "syslog", lambda _level, line: logged.append(line))

    hookenv.say("prolog", "a\nb\x1b[2J\udcffñ")

    assert capsys.readouterr().err == "secure-slurm prolog: a\\nb\\x1b[2J\\udcff\\xf1\n"
    assert logged == ["prolog: a\\nb\\x1b[2J\\udcff\\xf1"]
