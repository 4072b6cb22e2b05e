"""Jobs of several people in a real accounting database, accepted by the real filter under the test cluster's policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.testbed.accounting import SERVER, Accounting
from tests.testbed.need import need

PHI_EU = "--extra=secure-slurm:class=phi;residency=eu"
PHI_US = "--extra=secure-slurm:class=phi;residency=us"
INTERNAL = "--extra=secure-slurm:class=internal"
QUICK = ("--wrap=true", "--output=/dev/null")


class World(NamedTuple):
    """The accounting, and what was submitted, by what it is for. An array and a het job have several names."""

    accounting: Accounting
    jobs: dict[str, list[str]]


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    need("slurmctld", "slurmd", "slurmdbd", "munged", SERVER, root=True)
    if not Path("/src/tests").exists():
        pytest.fail("this installs and starts Slurm: run it in the test bed's root, with make test-services")
    with Accounting({"phi-eu": ["alice", "dora"], "phi-us": ["carol"]}) as accounting:
        yield World(accounting, submit(accounting))


def submit(accounting: Accounting) -> dict[str, list[str]]:
    accounting.command(["useradd", "-m", "dora"])

    def sbatch(user: str, *words: str) -> str:
        return str(accounting.submit(user, *words, command="sbatch"))

    phi = sbatch("alice", PHI_EU, "--partition=phi", "--time=10", *QUICK)
    internal = sbatch("alice", f"{INTERNAL};residency=eu", "--partition=main", "--time=2", *QUICK)
    gpus = sbatch("alice", PHI_EU, "--partition=phi", "--gpus=2", "--time=2", *QUICK)
    plain = sbatch("bob", "--time=2", *QUICK)
    # the bytes of a name are the user's: an escape sequence, and what is no UTF-8
    hostile = sbatch("bob", "--time=2", b"--job-name=x\x1b[31m\xff".decode("utf-8", "surrogateescape"), *QUICK)
    array = sbatch("carol", PHI_US, "--partition=us", "--array=1-2", "--time=2", *QUICK)
    het = sbatch("bob", "--time=2", *QUICK, ":", "--partition=us", "--time=2")
    deleted = sbatch("dora", PHI_EU, "--partition=phi", "--time=2", *QUICK)
    accounting.wait_nothing_left()
    # it waits for a node that is down, and so has no decision record in the accounting
    waiting = sbatch("alice", PHI_EU, "--partition=phi", "--nodelist=n2", "--time=10", *QUICK)
    refused = accounting.as_user("bob", ["sbatch", "--partition=phi", *QUICK])
    assert "tag.missing" in refused.stderr
    accounting.command(["userdel", "dora"])
    accounting.wait_accounted(COMPLETED=10, PENDING=1)
    return {
        "phi": [phi],
        "internal": [internal],
        "gpus": [gpus],
        "plain": [plain],
        "hostile": [hostile],
        "array": [f"{array}_1", f"{array}_2"],
        "het": [f"{het}+0", f"{het}+1"],
        "deleted": [deleted],
        "waiting": [waiting],
    }
