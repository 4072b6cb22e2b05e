"""What is refused, with which rule, and that the user can read why. No node ever notices."""

from __future__ import annotations

import pytest

from tests.testbed.cluster import Cluster

PHI = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
WRAP = "--wrap=true"

REFUSED = [
    # user, words, rule, words of the message
    ("bob", [*PHI, WRAP], "rbac.role", "phi-eu"),
    ("carol", [*PHI, WRAP], "rbac.role", "phi-eu"),
    ("oper", [*PHI, WRAP], "rbac.role", "phi-eu"),
    ("alice", ["--secure-class=phi", "--secure-residency=us", WRAP], "rbac.role", "phi-us"),
    ("alice", ["--secure-class=phy", "--secure-residency=eu", WRAP], "class.unknown", "phy"),
    ("alice", ["--secure-class=phi", "--secure-residency=mars", WRAP], "residency.unknown", "mars"),
    ("alice", ["--secure-class=phi", WRAP], "residency.required", "--secure-residency"),
    (
        "alice",
        ["--secure-class=phi", "--secure-residency=eu", "--secure-scratch=201G", WRAP],
        "scratch.too-large",
        "200G",
    ),
    ("alice", [*PHI, "-C", "us", WRAP], "residency.constraint", "us"),
    ("alice", [*PHI, "-C", "eu*2", WRAP], "residency.constraint", "--nodes"),
    ("alice", [*PHI, "-C", "[eu*1&us*1]", WRAP], "residency.constraint", ""),
    ("alice", [*PHI, "--prefer=us", WRAP], "residency.constraint", "us"),
    ("alice", [*PHI, "-p", "us", WRAP], "residency.partition", "us"),
    ("alice", [*PHI, "--dependency=expand:1", WRAP], "route.dependency-expand", "expand"),
    ("alice", [*PHI, "--job-name=a\nb", WRAP], "input.control-characters", ""),
    ("alice", [*PHI, "--comment=" + "x" * 65536, WRAP], "input.too-long", "comment"),
]


@pytest.mark.parametrize(("user", "words", "rule", "hint"), REFUSED, ids=[f"{r[2]}-{i}" for i, r in enumerate(REFUSED)])
def test_refused_at_submission(clean: Cluster, user: str, words: list[str], rule: str, hint: str) -> None:
    done = clean.as_user(user, ["secure-sbatch", *words])
    assert done.returncode == 1
    assert done.stdout == ""
    assert rule in done.stderr
    assert hint in done.stderr
    assert "sbatch: error:" in done.stderr
    assert not clean.command(["squeue", "-h", "-u", user]).stdout


@pytest.mark.parametrize("command", ["secure-srun", "secure-salloc"])
def test_interactive_routes_are_judged_too(clean: Cluster, command: str) -> None:
    done = clean.as_user("bob", [command, *PHI, "true"])
    assert done.returncode != 0
    assert "rbac.role" in done.stderr
    assert "phi-eu" in done.stderr


def test_plain_sbatch_of_a_tagged_script_is_refused(clean: Cluster) -> None:
    path = clean.script("alice", "tagged.sh", "#!/bin/bash\n#SECURE --class=phi --residency=eu\ntrue\n")
    done = clean.as_user("alice", ["sbatch", path])
    assert done.returncode == 1
    assert "tag.missing" in done.stderr
    assert "secure-sbatch" in done.stderr


def test_plain_sbatch_with_a_tag_in_the_environment_is_refused(clean: Cluster) -> None:
    done = clean.as_user("alice", ["sbatch", WRAP], env={"SECURE_CLASS": "phi", "SECURE_RESIDENCY": "eu"})
    assert done.returncode == 1
    assert "tag.missing" in done.stderr


def test_the_tag_may_be_strengthened_and_not_weakened(clean: Cluster) -> None:
    path = clean.script("alice", "strong.sh", "#!/bin/bash\n#SECURE --class=phi --residency=eu\ntrue\n")
    done = clean.as_user("alice", ["secure-sbatch", "--secure-class=internal", path])
    assert done.returncode != 0
    assert "weaker" in done.stderr
    # nor may the command line weaken what the environment asks for
    done = clean.as_user("alice", ["secure-sbatch", "--secure-class=internal", WRAP], env={"SECURE_CLASS": "phi"})
    assert done.returncode != 0
    assert "weaker" in done.stderr
    path = clean.script("alice", "weak.sh", "#!/bin/bash\n#SECURE --class=internal\ntrue\n")
    job = clean.submit("alice", *PHI, path)
    clean.wait_end(job)


def test_a_partition_that_demands_a_tag(clean: Cluster) -> None:
    done = clean.as_user("alice", ["sbatch", "-p", "phi", WRAP])
    assert done.returncode == 1
    assert "tag.missing" in done.stderr
    job = clean.submit("alice", *PHI, "-p", "phi", WRAP)
    clean.wait_end(job)


def test_a_tag_cannot_be_forged_by_hand(clean: Cluster) -> None:
    # the same text that the wrapper writes is judged like any other: it is a request, not a permission
    done = clean.as_user("bob", ["sbatch", "--extra=secure-slurm:class=phi;residency=eu;scratch=1048576", WRAP])
    assert done.returncode == 1
    assert "rbac.role" in done.stderr
    done = clean.as_user("alice", ["sbatch", "--extra=SECURE-SLURM:class=phi", WRAP])
    assert done.returncode == 1


def test_an_option_given_twice(clean: Cluster) -> None:
    done = clean.as_user("alice", ["secure-sbatch", "--secure-class=phi", "--secure-class=internal", WRAP])
    assert done.returncode == 2
    assert "secure-class" in done.stderr


def test_a_script_that_is_not_there(clean: Cluster) -> None:
    done = clean.as_user("alice", ["secure-sbatch", *PHI, "no-such-script.sh"])
    assert done.returncode == 1
    assert "no-such-script.sh" in done.stderr


def test_no_tag_at_all(clean: Cluster) -> None:
    done = clean.as_user("alice", ["secure-sbatch", WRAP])
    assert done.returncode == 2
    assert "--secure-class" in done.stderr


def test_utf8_is_carried_where_it_harms_nobody(clean: Cluster) -> None:
    job = clean.submit("alice", *PHI, "--comment=für Zürich", "--wrap=true")
    clean.wait_end(job)
