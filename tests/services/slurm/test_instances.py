"""Where slurmctld has a node, asked by an ordinary account as the enrolment daemon is one, of the real Slurm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.slurm.controller import Controller, run, until

ROOT = Path(__file__).parents[3]
CODE = """\
import sys
from conf.errors import SecureSlurmError
from slurm_hooks.instances import FromSlurm
try:
    FromSlurm("/usr/bin").check(sys.argv[1], "i-0123456789abcdef0", sys.argv[2])
    print("yes")
except SecureSlurmError as error:
    print(type(error).__name__, error)
"""


def check(node: str, address: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, node, address],
        user="nobody", group="nogroup", extra_groups=[],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/", capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture(scope="module")
def moved(slurm: Controller) -> Controller:
    """As ResumeProgram does it when it has made an instance."""
    run("scontrol", "update", "NodeName=e2", "NodeAddr=127.0.0.2")
    return slurm


def test_another_address(moved: Controller) -> None:
    assert check("e2", "127.0.0.1").startswith("Refused i-0123456789abcdef0 asks from 127.0.0.1, and slurmctld has")
    assert check("e2", "127.0.0.22").startswith("Refused")


def test_an_unknown_node(moved: Controller) -> None:
    assert check("e9", "127.0.0.1") == "Refused slurmctld knows no node e9"


def test_where_it_is(moved: Controller) -> None:
    assert check("e2", "127.0.0.2") == "yes"
    assert check("e1", "127.0.0.1") == "yes"


def test_a_slurmd_that_registers_does_not_change_it(moved: Controller) -> None:
    """What the node says of itself is no source."""
    run("pkill", "-f", "slurmd -N e2$")
    until(lambda: not run("pgrep", "-f", "-r", "D,R,S", "slurmd -N e2$", check=False), "the slurmd to end")
    began = run("scontrol", "show", "node", "e2").partition("SlurmdStartTime=")[2].split()[0]
    until(lambda: _again(began), "the slurmd to register")
    assert check("e2", "127.0.0.2") == "yes"
    assert check("e2", "127.0.0.1").startswith("Refused")


def _again(began: str) -> bool:
    if not run("pgrep", "-f", "slurmd -N e2$", check=False):
        run("slurmd", "-N", "e2")
    return run("scontrol", "show", "node", "e2").partition("SlurmdStartTime=")[2].split()[0] != began


def test_nobody_answers(moved: Controller) -> None:
    run("pkill", "-STOP", "-x", "slurmctld")
    try:
        # as long as Slurm's own commands wait, or ours for them
        assert check("e2", "127.0.0.2").startswith("BackendUnavailable")
    finally:
        run("pkill", "-CONT", "-x", "slurmctld")
