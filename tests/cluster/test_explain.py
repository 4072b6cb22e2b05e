"""--secure-explain from where users are: the real daemon answers through the real sbatch, and nothing is submitted."""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.testbed import settings
from tests.testbed.cluster import Cluster

PHI = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
WRAP = "--wrap=true"


def explained(cluster: Cluster, user: str, *words: str, tool: str = "secure-sbatch", **more: Any) -> tuple[int, Any]:
    done = cluster.as_user(user, [tool, "--secure-explain", "--secure-json", *words], **more)
    assert done.stdout, done.stderr
    assert not cluster.command(["squeue", "-h"]).stdout
    return done.returncode, json.loads(done.stdout)


def test_allowed_with_the_lines_of_the_policy_in_use(clean: Cluster) -> None:
    code, told = explained(clean, "alice", *PHI, WRAP)
    assert (code, told["allowed"], told["rule"]) == (0, True, "allow.tagged")
    assert told["slurm"]["accepted"] is True
    assert told["set"]["shared"] == "0"
    steps = {step["step"]: step for step in told["steps"]}
    lines = open(told["policy"]["file"], encoding="utf-8").read().splitlines()  # noqa: PTH123, SIM115
    assert all(each["line"] for step in told["steps"] for each in step["policy"])
    assert "phi-eu" in lines[steps["role"]["policy"][0]["line"] - 1]


def test_what_is_told_to_be_accepted_is_accepted(clean: Cluster) -> None:
    words = ["--secure-class=phi", "--secure-residency=eu", "--secure-scratch=201G", "-C", "us", "-Q", WRAP]
    code, told = explained(clean, "alice", *words)
    assert (code, told["allowed"]) == (1, False)
    better = shlex.split(told["nearest"]["command"])
    assert better[0] == "secure-sbatch"
    assert better[-2:] == ["-Q", WRAP]
    assert "-C" not in better
    smaller = [word if not word.startswith("--secure-scratch") else "--secure-scratch=32M" for word in better]
    job = clean.submit("alice", *(word for word in smaller[1:] if word != "-Q"))
    clean.wait_end(job)


def test_refused_in_words(clean: Cluster) -> None:
    done = clean.as_user("bob", ["secure-sbatch", "--secure-explain", *PHI, WRAP])
    assert done.returncode == 1
    assert "REFUSED (rbac.role)" in done.stdout
    assert "policy.yaml:" in done.stdout
    assert "No similar request" in done.stdout
    # nobody is told who else is in a group
    assert "alice" not in done.stdout
    assert not clean.command(["squeue", "-h"]).stdout


def test_srun_asks_too(clean: Cluster) -> None:
    assert explained(clean, "alice", *PHI, "true", tool="secure-srun")[0] == 0
    code, told = explained(clean, "alice", "--secure-class=phi", "true", tool="secure-srun")
    assert (code, told["rule"]) == (1, "residency.required")
    assert told["nearest"]["changes"] == [{"option": "--secure-residency", "value": "eu"}]


def test_the_word_that_asks_never_submits(clean: Cluster) -> None:
    extra = "--extra=secure-slurm:class=phi;residency=eu;scratch=33554432;explain=1"
    done = clean.as_user("alice", ["sbatch", extra, WRAP])
    assert done.returncode == 1
    assert "(rule explain.answer)" in done.stderr
    assert not clean.command(["squeue", "-h"]).stdout


def test_the_trail_tells_a_question_from_a_submission(clean: Cluster) -> None:
    explained(clean, "alice", *PHI, WRAP)
    explained(clean, "bob", *PHI, WRAP)
    events = json.loads(clean.tool("audit", "show", "--json", f"{settings.LOG}/decision").stdout)
    # what took too long was asked again
    asked = [each for each in events if each.get("verb") == "explain" and each["rule"] != "engine.timeout"]
    assert {each["rule"] for each in asked} == {"explain.answer"}
    assert {each["reason"] for each in asked} >= {"allow allow.tagged", "refuse rbac.role"}
    assert all("nonce" not in each for each in asked)
    assert clean.tool("audit", "verify", settings.LOG).returncode == 0


def test_the_admins_explanation_is_the_daemons(clean: Cluster) -> None:
    for user, words in (
        ("alice", [*PHI, WRAP]),
        ("bob", [*PHI, WRAP]),
        ("alice", ["--secure-class=phi", "-Cus", WRAP]),
    ):
        theirs = explained(clean, user, *words)[1]
        done = clean.tool("explain", "--json", "--user", user, "--", *words, check=False)
        ours = json.loads(done.stdout)
        assert (ours["allowed"], ours["rule"], ours["message"]) == (
            theirs["allowed"],
            theirs["rule"],
            theirs["message"],
        )
        assert ours["policy"]["hash"] == theirs["policy"]["hash"]


def test_nobody_decides_is_no_answer(clean: Cluster) -> None:
    clean.stop_daemon("decisiond")
    try:
        done = clean.as_user("alice", ["secure-sbatch", "--secure-explain", *PHI, WRAP])
        assert done.returncode == 4
        assert done.stdout == ""
        assert "nobody could decide" in done.stderr
    finally:
        clean.daemon("decisiond", "secure-decide")
        clean.until(
            lambda: clean.as_user("alice", ["secure-sbatch", "--secure-explain", *PHI, WRAP]).returncode == 0,
            "the decision daemon",
        )
