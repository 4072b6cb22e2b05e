"""Slurm's answers, whole and otherwise; the programs are stand-ins that print what the real ones printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import BackendUnavailable
from slurm_hooks.slurmview import Controller, Seen, SlurmView, read_config, read_jobs

CONFIG = """\
Configuration data as of 1795303666
BOOT_TIME               = 1795303606
ClusterName             = test
MCSParameters           = (null)
MinJobAge               = 300 sec
NEXT_JOB_ID             = 7
PrivateData             = none
SlurmctldHost[0]        = head

Slurmctld(primary) at head is UP
"""
JOBS = "".join(
    "".join(f"{word:<32} " for word in line) + "\n"
    for line in (("2", "COMPLETED", "0", "1795303669"), ("5", "PENDING", "1", "N/A"), ("6", "RUNNING", "0", "Unknown"))
)
UP = "Slurmctld(primary) at head is UP"


def test_jobs() -> None:
    assert read_jobs(JOBS) == {
        2: Seen("COMPLETED", 0, 1795303669),
        5: Seen("PENDING", 1, 0),
        6: Seen("RUNNING", 0, 0),
    }
    assert read_jobs("") == {}


@pytest.mark.parametrize(
    "text",
    [
        JOBS[:-1],
        JOBS[:-40],
        JOBS + "slurm_load_jobs error: something\n",
        JOBS + JOBS,
        JOBS.replace("PENDING", "       "),
        JOBS.replace("RUNNING", "running"),
        JOBS.replace("5   ", "5_1 "),
        "\n",
        "JOBID STATE\n",
    ],
)
def test_a_list_that_is_not_whole(text: str) -> None:
    with pytest.raises(BackendUnavailable):
        read_jobs(text)


def test_config() -> None:
    assert read_config(CONFIG) == Controller("test", "1795303606", 60, 7, 300, hides=False)


@pytest.mark.parametrize(
    ("old", "new", "hides"),
    [
        ("PrivateData             = none", "PrivateData             = accounts,jobs,usage", True),
        ("PrivateData             = none", "PrivateData             = accounts,nodes", False),
        ("MCSParameters           = (null)", "MCSParameters           = ondemand,select,privatedata:group", True),
        ("MCSParameters           = (null)", "MCSParameters           = enforced,noprivatedata", False),
    ],
)
def test_jobs_may_be_hidden(old: str, new: str, *, hides: bool) -> None:
    assert old in CONFIG
    assert read_config(CONFIG.replace(old, new)).hides is hides


@pytest.mark.parametrize(
    ("user", "mcs", "uid"),
    [
        ("slurm(64030)", "(null)", 64030),
        ("root(0)", "enforced", 0),
        ("slurm(64030)", "ondemand,privatedata", -1),
        ("slurm", "(null)", -1),
        ("slurm(-1)", "(null)", -1),
        ("slurm(1)(2)", "(null)", -1),
    ],
)
def test_who_sees_all_jobs(user: str, mcs: str, uid: int) -> None:
    changed = CONFIG.replace("= (null)", f"= {mcs}") + f"SlurmUser               = {user}\n"
    assert read_config(changed).sees_all == uid
    assert read_config(CONFIG).sees_all == -1


@pytest.mark.parametrize("line", [line for line in CONFIG.splitlines() if line and "SlurmctldHost" not in line])
def test_a_configuration_without_one_of_its_lines(line: str) -> None:
    with pytest.raises(BackendUnavailable):
        read_config(CONFIG.replace(line, ""))


def test_times_that_are_no_numbers() -> None:
    with pytest.raises(BackendUnavailable):
        read_config(
            CONFIG.replace("BOOT_TIME               = 1795303606", "BOOT_TIME               = 2026-11-21T23:28:31")
        )


@pytest.fixture
def slurm(tmp_path: Path) -> SlurmView:
    write(tmp_path, "squeue", JOBS)
    write(tmp_path, "scontrol", CONFIG, ping=UP)
    return SlurmView(str(tmp_path), "test")


def write(folder: Path, name: str, text: str, *, ping: str = "", code: int = 0, error: str = "") -> None:
    (folder / f"{name}.out").write_text(text)
    asked = f'[ "$1" = ping ] && {{ echo "{ping}"; exit 0; }}\n' if ping else ""
    script = f"#!/bin/sh\n{asked}echo -n '{error}' >&2\ncat {folder}/{name}.out\nexit {code}\n"
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_a_whole_answer(slurm: SlurmView) -> None:
    view = slurm.look()
    assert view.controller.next_job == 7
    assert set(view.jobs) == {2, 5, 6}
    slurm.check_same(view.controller)


def test_another_clusters_slurmctld(slurm: SlurmView, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="of the cluster"):
        SlurmView(str(tmp_path), "other").look()


def test_slurmctld_started_anew_while_it_was_asked(slurm: SlurmView, tmp_path: Path) -> None:
    before = slurm.look().controller
    write(
        tmp_path,
        "scontrol",
        CONFIG.replace("BOOT_TIME               = 1795303606", "BOOT_TIME               = 1795303660"),
        ping=UP,
    )
    with pytest.raises(BackendUnavailable, match="anew"):
        slurm.check_same(before)


@pytest.mark.parametrize("ping", [UP.replace("UP", "DOWN"), "nonsense", "Slurmctld is UP"])
def test_nobody_is_up(slurm: SlurmView, tmp_path: Path, ping: str) -> None:
    write(tmp_path, "scontrol", CONFIG, ping=ping)
    with pytest.raises(BackendUnavailable, match="no slurmctld"):
        slurm.look()


def test_the_backup_is_up(slurm: SlurmView, tmp_path: Path) -> None:
    ping = "Slurmctld(primary) at h1 is DOWN\nSlurmctld(backup) at h2 is UP"
    write(tmp_path, "scontrol", CONFIG, ping=ping)
    assert slurm.look().jobs


def test_squeue_fails(slurm: SlurmView, tmp_path: Path) -> None:
    write(tmp_path, "squeue", JOBS, code=1, error="slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(BackendUnavailable, match="Unable to contact"):
        slurm.look()


@pytest.mark.parametrize("gap", [" ", ""])
def test_there_is_no_such_job(slurm: SlurmView, tmp_path: Path, gap: str) -> None:
    write(tmp_path, "scontrol", "", code=1, error=f"slurm_load_jobs error:{gap}Invalid job id specified")
    assert slurm.is_unknown(17)


def test_there_is_such_a_job(slurm: SlurmView, tmp_path: Path) -> None:
    write(tmp_path, "scontrol", "JobId=17 JobName=Invalid job id specified\n")
    assert not slurm.is_unknown(17)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        (1, "slurm_load_jobs error: Invalid job id specified or not"),
        (1, "x slurm_load_jobs error: Invalid job id specified"),
        (1, ""),
        (2, "slurm_load_jobs error: Invalid job id specified"),
        (139, "slurm_load_jobs error: Invalid job id specified"),
    ],
)
def test_anything_else_is_no_answer(slurm: SlurmView, tmp_path: Path, code: int, error: str) -> None:
    write(tmp_path, "scontrol", "", code=code, error=error)
    with pytest.raises(BackendUnavailable):
        slurm.is_unknown(17)


def test_no_slurm_at_all(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable):
        SlurmView(str(tmp_path / "absent"), "test").look()
