"""What an ordinary account learns of other people's jobs from the real slurmctld, as the lifecycle daemon is one."""

from __future__ import annotations

import json
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.slurm.controller import CONF, Controller, run, until

CODE = """\
import json, sys
from slurm_hooks.slurmview import SlurmView
slurm = SlurmView("/usr/bin", "test")
view = slurm.look()
asked = {job: slurm.is_unknown(job) for job in map(int, sys.argv[1:])}
print(json.dumps([view.controller._asdict(), {job: list(seen) for job, seen in view.jobs.items()}, asked]))
"""
ROOT = Path(__file__).parents[3]


class WithHidden(Controller):
    """With partitions that ordinary people do not see, and jobs that have ended seen for a while."""

    conf = CONF.replace("MinJobAge=2\n", "MinJobAge=300\n")

    def more(self) -> str:
        return "PartitionName=hidden Nodes=e1 Hidden=YES\nPartitionName=roots Nodes=e2 AllowGroups=root\n"


@pytest.fixture(scope="module")
def slurm(throw_away_root: None) -> Iterator[Controller]:
    with WithHidden() as controller:
        yield controller


def ask(
    *jobs: int, user: str = "nobody", group: str = "nogroup"
) -> tuple[dict[str, Any], dict[int, list[Any]], dict[int, bool]]:
    """As that account."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, jobs)],
        user=user,
        group=group,
        extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    controller, seen, asked = json.loads(done.stdout)
    return controller, {int(job): each for job, each in seen.items()}, {int(job): each for job, each in asked.items()}


def submit(*words: str) -> int:
    common = ("sbatch", "--parsable", "--ntasks=1", "--chdir=/tmp", "--output=/dev/null", "--time=10")
    return int(run(*common, *words).strip())


def test_what_is_seen_of_jobs(slurm: Controller) -> None:
    names = ("--job-name=x State=COMPLETED\n17 COMPLETED 0 1", "--comment=a b", "--extra=x=y")
    runs = submit(*names, "--wrap=sleep 600")
    hidden = submit("--partition=hidden", "--wrap=sleep 600")
    roots = submit("--partition=roots", "--wrap=sleep 600")
    waits = submit("--hold", "--wrap=true")
    array = submit("--array=1-2%1", "--wrap=sleep 600")
    requeued = submit("--wrap=sleep 600")
    until(lambda: run("squeue", "-h", "-t", "R", "-o", "%A").count("\n") == 5, "five running jobs")
    run("scontrol", "requeue", str(requeued))
    controller, seen, asked = ask(runs, hidden, 4000)
    assert seen[runs][:2] == seen[hidden][:2] == seen[roots][:2] == ["RUNNING", 0]
    assert (seen[waits][:2], seen[requeued][1]) == (["PENDING", 0], 1)
    # the task that runs has a number of its own, what waits has the array's
    others = {each[0] for job, each in seen.items() if job not in (runs, hidden, roots, waits, requeued)}
    assert others == {"PENDING", "RUNNING"}
    assert seen[array][0] in others
    assert asked == {runs: False, hidden: False, 4000: True}
    assert controller["hides"] is False
    assert controller["next_job"] > max(seen)
    assert 0 <= controller["up_for"] < 600
    run("scancel", str(runs))
    until(lambda: ask()[1].get(runs, ["COMPLETING"])[0] == "CANCELLED", "the end")
    # soon its number is all that is left
    conf = Path("/etc/slurm/slurm.conf")
    conf.write_text(conf.read_text().replace(WithHidden.conf, CONF))
    run("scontrol", "reconfigure")
    until(lambda: ask(runs)[2][runs], "slurmctld to forget it")
    assert runs not in ask()[1]


def test_hidden_jobs_are_called_unknown_and_that_is_seen(slurm: Controller) -> None:
    job = submit("--hold", "--wrap=true")
    conf = Path("/etc/slurm/slurm.conf")
    before = conf.read_text()
    boot = ask()[0]["boot"]
    time.sleep(1.1)
    try:
        conf.write_text(before + "PrivateData=jobs\n")
        run("scontrol", "reconfigure")
        until(lambda: ask()[0]["hides"], "the new configuration")
        controller, seen, asked = ask(job)
        # Slurm says of a job that is there what it says of one that never was
        assert (seen, asked) == ({}, {job: True})
        assert controller["boot"] != boot
        # and to SlurmUser it says what is true
        controller, seen, asked = ask(job, 4000, user="slurm", group="slurm")
        assert (seen[job][0], asked) == ("PENDING", {job: False, 4000: True})
        assert controller["sees_all"] == pwd.getpwnam("slurm").pw_uid
    finally:
        conf.write_text(before)
        run("scontrol", "reconfigure")
    until(lambda: not ask()[0]["hides"], "the old configuration")
    assert ask(job)[2] == {job: False}
