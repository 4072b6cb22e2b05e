"""What the real slurmctld says of nodes that EC2 names, and of a job that lost one; asked by an ordinary account."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from slurm_hooks.hostlist import expand
from slurm_hooks.lostnodes import read_places
from tests.services.slurm.controller import Controller, run, until

ROOT = Path(__file__).parents[3]
CODE = """\
import json
from slurm_hooks.slurmview import SlurmView
slurm = SlurmView("/usr/bin", "test")
print(json.dumps([slurm.hosts(), slurm.places()]))
"""


def ask() -> tuple[dict[str, list[str]], str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        user="nobody", group="nogroup", extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/", capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found: list[Any] = json.loads(done.stdout)
    return found[0], found[1]


def test_a_node_with_a_host_name_of_ec2s(slurm: Controller) -> None:
    """As ResumeProgram tells slurmctld about an instance, before that has booted."""
    run("scontrol", "update", "NodeName=e2", "NodeAddr=127.0.0.2", "NodeHostName=ip-127-0-0-2")
    hosts, _ = ask()

    assert hosts["ip-127-0-0-2"] == hosts["127.0.0.2"] == ["e2"]
    assert "e2" not in hosts["head"]
    assert "e1" in hosts["head"]


def test_a_job_that_goes_on_without_a_node(slurm: Controller) -> None:
    options = ("--no-kill", "--nodes=2", "--nodelist=e1,e3", "--output=/dev/null", "--wrap=sleep 600")
    job = int(run("sbatch", "--parsable", "--chdir=/", *options))
    waiting = int(run("sbatch", "--parsable", "--chdir=/", "--hold", "--output=/dev/null", "--wrap=true"))
    until(lambda: run("squeue", "-h", "-t", "R", "-o", "%A").split() == [str(job)], "the job to run")
    before = read_places(ask()[1])
    assert sorted(expand(before[job])) == ["e1", "e3"]
    assert waiting not in before

    run("scontrol", "update", "NodeName=e3", "State=DOWN", "Reason=terminated")
    until(lambda: run("squeue", "-h", "-t", "R", "-o", "%N").strip() == "e1", "slurmctld to take the node out")
    assert read_places(ask()[1])[job] == "e1"
    run("scancel", str(job), str(waiting))
    run("scontrol", "update", "NodeName=e3", "State=RESUME")
