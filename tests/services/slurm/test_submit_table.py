"""Everything that a job can say about where its data goes, said to the real slurmctld, filter, daemon and policy.

One row for each way: what sbatch is asked, and the rule that refuses it, or none. That nothing else refused it is
shown by its neighbour, which differs in that alone.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.slurm.controller import until
from tests.services.slurm.filtered import TAG, Filtered

SECURED = ["--chdir=/data/phi", "--time=10", "--account=lab", "--qos=normal", "--hold", f"--extra={TAG}"]
# what comes after the job that is allowed, and what is said of it
ROWS: list[tuple[str, str | None]] = [
    ("", None),
    # where it runs
    ("-p phi", None),
    ("-p us", "residency.partition"),
    ("-p phi,us", "residency.partition"),
    ("-C a", None),
    ("-C us", "residency.constraint"),
    ("-C a*2 -N2", "residency.constraint"),
    ("--prefer=a", None),
    ("--prefer=us", "residency.constraint"),
    ("-M other", "slurm"),
    ("-w e1", None),
    ("-x e1", None),
    # as whom
    ("-A other", "role.account"),
    ("-q high", None),
    ("-q low", "role.qos"),
    ("-L foo:1", None),
    ("-L bar:1", "role.license"),
    # how much
    ("-N3", None),
    ("-N4", "limit.nodes"),
    ("-N1-4", "limit.nodes"),
    ("-t 30", None),
    ("-t 31", "limit.time"),
    ("-t 0", "limit.time"),
    ("-t UNLIMITED", "limit.time"),
    ("--gpus=5", "limit.gpus"),
    ("--gpus-per-node=2 -N3", "limit.gpus"),
    ("--gres=gpu:5", "limit.gpus"),
    ("--gpus-per-task=1 -n5 -N1", "limit.gpus"),
    ("-a 1-4", None),
    # what it reads and writes
    ("-D /data/open", "path.work-dir"),
    ("-D /data/phi/../open", "path.work-dir"),
    ("-o /data/open/%j", "path.output"),
    ("-o ../open/x", "path.output"),
    ("-o sub/%j", None),
    ("-o %x -J a/../../../open/x", "path.output"),
    ("-e /tmp/e", "path.output"),
    ("-e /dev/null", None),
    ("-i /data/open/in", "path.output"),
    # ways out
    ("--mail-type=ALL", None),
    ("--mail-user=bob", "route.mail"),
    ("--container=/data/phi/bundle", "route.container"),
    ("--bb=persistent", "route.burst-buffer"),
    ("-d singleton", None),
    ("-d expand:1", "route.dependency-expand"),
    ("--uid=bob", "identity.submit-uid"),
    ("--exclusive", None),
    ("--get-user-env", None),
    ("--export=NONE", None),
]  # fmt: skip


class Desk:
    """Who submits, and what came back."""

    def __init__(self, slurm: Filtered) -> None:
        self._slurm = slurm

    def ask(
        self, *words: str, user: str = "alice", script: str = "#!/bin/sh\ntrue\n", tool: str = "sbatch"
    ) -> tuple[str, str | None]:
        """Standard output, and the rule that refused it."""
        given = ["--parsable"] if tool == "sbatch" else []
        done = self._slurm.decided(
            lambda: subprocess.run(
                ["runuser", "-u", user, "--", tool, *given, *words],
                input=script if tool == "sbatch" else None,
                stdin=subprocess.DEVNULL if tool != "sbatch" else None,
                capture_output=True,
                text=True,
                timeout=120,
                cwd="/data/phi",
                check=False,
            )
        )
        rule = re.search(r"\(rule ([a-z.-]+)\)", done.stderr)
        if done.returncode and rule is None:
            return done.stderr, "slurm"
        return done.stdout.strip(), rule[1] if rule else None

    def facts(self, job: str) -> dict[str, str]:
        """What slurmctld has of the job, or of the first record of an array."""
        shown = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True)
        words = [word.partition("=") for word in shown.stdout.splitlines()[0].split(" ")]
        return {key: value for key, _, value in words}


@pytest.fixture(scope="module")
def desk(throw_away_root: None) -> Iterator[Desk]:
    with Filtered() as slurm:
        Path("/data/phi/sub").mkdir(exist_ok=True)
        found = Desk(slurm)
        # slurmctld learns of accounts a moment after slurmdbd does
        until(lambda: found.ask(*SECURED)[1] is None, "alice's account")
        yield found


@pytest.mark.parametrize(("words", "rule"), ROWS)
def test_sbatch(desk: Desk, words: str, rule: str | None) -> None:
    as_root = "--uid" in words
    said, found = desk.ask(*SECURED, *words.split(), user="root" if as_root else "alice")

    assert found == rule, said
    if rule is None:
        kept = desk.facts(said)
        assert kept["Features"].endswith("eu")
        assert "AdminComment=secure-slurm/1" in f"AdminComment={kept['AdminComment']}"
        assert kept["Requeue"] == "1"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("#BB create_persistent", "route.burst-buffer"),
        ("#DW jobdw capacity=10GB", "route.burst-buffer"),
        ("# BB is no line of a burst buffer", None),
        ("#SECURE --class=phi --residency=eu", None),
        ("#SECURE --residency=us", "tag.weaker-than-script"),
        ("#SECURE --dataset=other", "tag.weaker-than-script"),
    ],
)
def test_a_script(desk: Desk, line: str, rule: str | None) -> None:
    assert desk.ask(*SECURED, script=f"#!/bin/sh\n{line}\ntrue\n")[1] == rule


def test_a_dependency_is_judged_by_whose_job_it_names(desk: Desk) -> None:
    mine, _ = desk.ask(*SECURED)
    array, _ = desk.ask(*SECURED, "-a", "1-3")
    others, rule = desk.ask("-A", "lab", "-t", "5", "--hold", user="bob")

    assert rule is None
    # slurm.jobs is as old as the second in which it was read
    time.sleep(2)
    desk.ask(*SECURED)
    for allowed in (
        f"afterok:{mine}",
        f"after:{mine}+5",
        f"afterany:{array}_2",
        f"aftercorr:{array}",
        f"afterok:{mine}:{array}_*",
    ):
        assert desk.ask(*SECURED, "-d", allowed)[1] is None, allowed
    for refused in (
        f"afterok:{others}",
        f"afterok:{mine}:{others}",
        f"after:{others}+5",
        f"afterok:{mine},afternotok:{others}",
    ):
        assert desk.ask(*SECURED, "-d", refused)[1] == "route.dependency-other", refused
    assert desk.ask(*SECURED, "-d", "afterok:999999")[1] == "slurm"
    # at once, as in a script
    assert desk.ask(*SECURED, "-d", f"afterok:{desk.ask(*SECURED)[0]}")[1] is None
    # what carries no tag is nobody's business here
    assert desk.ask("-A", "lab", "-t", "5", "--hold", "-d", f"afterok:{mine}", user="bob")[1] is None


def test_a_heterogeneous_job(desk: Desk) -> None:
    assert desk.ask(*SECURED, ":", *SECURED)[1] == "route.het"


@pytest.mark.parametrize("tool", ["srun", "salloc"])
def test_what_waits_for_its_nodes_is_judged_as_well(desk: Desk, tool: str) -> None:
    words = [word for word in SECURED if word != "--hold"]
    command = ["true"]

    assert desk.ask(*words, "-p", "us", *command, tool=tool)[1] == "residency.partition"
    assert desk.ask(*words, "-A", "other", *command, tool=tool)[1] == "role.account"
    assert desk.ask(*words, "-N4", *command, tool=tool)[1] == "limit.nodes"
    assert desk.ask(*words, *command, tool=tool)[1] is None


def test_the_limits_that_nobody_named(desk: Desk) -> None:
    said, rule = desk.ask(*SECURED)
    kept = desk.facts(said)

    assert rule is None
    # one task, so one node of the three that its class may have
    assert kept["NumNodes"] in {"1", "1-1"}
    assert desk.ask(*(word for word in SECURED if not word.startswith("--time")))[1] == "limit.time"
