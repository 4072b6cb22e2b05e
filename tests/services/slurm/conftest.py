"""The real Slurm that these tests ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.slurm.controller import Controller
from tests.testbed.need import need


@pytest.fixture(scope="module")
def throw_away_root() -> None:
    """Only in a root of the test bed (``make test-services``): these tests write Slurm's configuration."""
    need("slurmctld", "slurmd", "munged", root=True)
    if Path("/etc/slurm/slurm.conf").exists() and not Path("/src/tests").exists():
        pytest.fail("there is a slurm.conf on this machine: run it in the test bed's root, with make test-services")


@pytest.fixture(scope="module")
def slurm(throw_away_root: None) -> Iterator[Controller]:
    """Plain features; a module's own, as two cannot run at once."""
    with Controller() as controller:
        yield controller


@pytest.fixture(scope="module")
def changeable(throw_away_root: None) -> Iterator[Controller]:
    """The features that most expressions name are a node feature plugin's."""
    with Controller("a,b,c") as controller:
        yield controller
