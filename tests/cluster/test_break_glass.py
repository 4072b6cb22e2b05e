"""An exception of two people, on a real cluster: from the request to the destroyed keys, and what the trail says."""

from __future__ import annotations

import json
import pwd
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
TOOL = ("secure-slurm", "break-glass")
FOLDER = Path("/var/lib/secure-slurm/break-glass")


@pytest.fixture
def glass(clean: Cluster) -> Iterator[Cluster]:
    yield clean
    for path in FOLDER.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()


def request(cluster: Cluster, who: str, *words: str) -> str:
    done = cluster.as_user(who, [*TOOL, "request", *words, "--for", "1h", "--reason", "ward 3 waits", "--json"])
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def approve(cluster: Cluster, who: str, grant: str) -> None:
    done = cluster.as_user(who, [*TOOL, "approve", grant, "--reason", "checked"])
    assert done.returncode == 0, done.stderr


def end(cluster: Cluster, who: str, grant: str) -> None:
    done = cluster.as_user(who, [*TOOL, "end", grant, "--reason", "done"])
    assert done.returncode == 0, done.stderr


def trail(grant: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for path in Path(settings.LOG).rglob("*.jsonl"):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        lines += [line for line in found if line.get("exemption") == grant]
    return sorted(lines, key=lambda line: str(line["time"]))


def told(grant: str) -> list[str]:
    return [line["event"] for line in trail(grant) if line["writer"] == "break-glass"]


def wait_told(cluster: Cluster, grant: str, event: str) -> None:
    cluster.until(lambda: told(grant)[-1:] == [event], f"{event} of {grant}", 20)


def test_a_role_for_an_hour(glass: Cluster) -> None:
    refused = glass.as_user("bob", ["secure-sbatch", *TAG, "--wrap=true"])
    assert refused.returncode == 1
    assert "rbac.role" in refused.stderr

    grant = request(glass, "oper", "--user", "bob", "--role", "phi-eu")
    wait_told(glass, grant, "glass.requested")
    assert glass.as_user("bob", ["secure-sbatch", *TAG, "--wrap=true"]).returncode == 1
    # somebody who may approve, and not the one who asked
    assert glass.as_user("oper", [*TOOL, "approve", grant, "--reason", "me"]).returncode == 1
    approve(glass, "carol", grant)
    wait_told(glass, grant, "glass.approved")

    done = glass.as_user("bob", ["secure-sbatch", *TAG, "--wrap=cat /proc/mounts"])
    assert done.returncode == 0, done.stderr
    assert grant in done.stderr
    job = int(done.stdout.split()[-1])
    assert glass.wait_end(job)["JobState"] == "COMPLETED"
    # one that waits is judged again when it starts
    waiting = glass.submit("bob", *TAG, "--hold", "--wrap=true")

    end(glass, "carol", grant)
    wait_told(glass, grant, "glass.ended")
    refused = glass.as_user("bob", ["secure-sbatch", *TAG, "--wrap=true"])
    assert refused.returncode == 1
    assert grant in refused.stderr
    assert "has ended" in refused.stderr
    glass.as_user("bob", ["scontrol", "release", str(waiting)])
    glass.until(lambda: "has ended" in glass.facts(waiting)["admin_comment"], "the start to be refused", 60)
    glass.wait_state(waiting, "PENDING")
    glass.command(["scancel", str(waiting)])

    lines = trail(grant)
    uses = [(line["event"], line.get("verdict")) for line in lines if line["writer"] != "break-glass"]
    # one verdict for each record: what came too late for the filter was asked for again
    assert uses.count(("decision", "allow")) >= 2
    for one, starts in ((job, True), (waiting, False)):
        nonce = glass.facts(one)["admin_comment"].partition("nonce=")[2].split()[0]
        mine = [line["event"] for line in lines if line.get("nonce") == nonce and line["verdict"] == "allow"]
        assert mine.count("decision") == 1
        assert ("start.judged" in mine) is starts
    assert told(grant) == ["glass.requested", "glass.approved", "glass.ended"]
    assert lines[0]["reason"] == "ward 3 waits"
    assert glass.tool("audit", "verify", settings.LOG).returncode == 0
    glass.wait_gone(job)


def test_who_may_take_no_part(glass: Cluster) -> None:
    # bob is not in the socket's group
    done = glass.as_user("bob", [*TOOL, "request", "--user", "bob", "--role", "phi-eu", "--for", "1h", "--reason", "x"])
    assert done.returncode == 3
    assert "group" in done.stderr
    assert glass.as_user("bob", [*TOOL, "list"]).returncode == 3
    # alice may connect, and is no requester
    grant = request(glass, "alice", "--user", "bob", "--role", "phi-eu")
    wait_told(glass, grant, "glass.refused")
    assert trail(grant)[0]["rule"] == "glass.requester"
    # oper is no approver
    grant = request(glass, "carol", "--user", "bob", "--role", "phi-eu")
    approve(glass, "oper", grant)
    wait_told(glass, grant, "glass.refused")
    assert glass.as_user("bob", ["secure-sbatch", *TAG, "--wrap=true"]).returncode == 1
    assert f"{grant}" in glass.tool("break-glass", "list").stdout
    assert "glass.approver" in glass.tool("break-glass", "list").stdout
    # alice has no part in it, and the daemon knows that it is her
    foreign = glass.as_user("alice", [*TOOL, "end", grant, "--reason", "x"])
    assert foreign.returncode == 1
    assert "only its requester" in foreign.stderr
    # root is nobody
    assert glass.tool("break-glass", "approve", grant, "--reason", "x", check=False).returncode == 1


def test_nobody_but_the_daemon_writes_a_paper(glass: Cluster) -> None:
    """What broke the folder in which people wrote as themselves: unpacking, linking, taking away, hiding."""
    grant = request(glass, "oper", "--user", "bob", "--role", "phi-eu")
    mine, theirs = FOLDER / f"{grant}.request", FOLDER / f"{grant}.end"
    for words in (
        ["rm", "-f", str(mine)],
        ["mv", "-f", "/etc/hostname", str(mine)],
        ["ln", str(mine), str(FOLDER / "g1.request")],
        ["mkdir", str(theirs)],
        ["touch", str(FOLDER / f"{grant}.approval")],
        ["tar", "-C", str(FOLDER), "-xf", "/home/carol/papers.tar"],
        ["cat", str(mine)],
    ):
        glass.as_user("carol", ["tar", "-C", "/etc", "-cf", "/home/carol/papers.tar", "hostname"], check=True)
        assert glass.as_user("carol", words).returncode != 0, words
    # a file of somebody's that gets there all the same counts for nothing
    asked = json.loads(mine.read_text())
    note = {"by": asked["by"], "id": grant, "reason": "x", "sha256": "0" * 64}
    planted = FOLDER / f"{grant}.approval"
    glass.write(planted, json.dumps(note), mode=0o640, owner="carol")
    glass.until(lambda: "is not secure-glass's" in glass.tool("break-glass", "list").stdout, "the list to show it")
    assert "waiting" in glass.tool("break-glass", "list").stdout
    planted.unlink()
    approve(glass, "carol", grant)
    wait_told(glass, grant, "glass.approved")
    status = planted.stat()
    assert (planted.owner(), planted.group(), status.st_mode & 0o7777) == ("secure-glass", "secure-record", 0o640)

    def submits() -> bool:
        return glass.as_user("bob", ["secure-sbatch", *TAG, "--hold", "--wrap=true"]).returncode == 0

    assert submits()
    # with a folder that others can write to there are no exemptions, and with a good one there are again
    FOLDER.chmod(0o2770)
    glass.until(lambda: not submits(), "the grant to count no more", 20)
    FOLDER.chmod(0o2750)
    glass.until(submits, "the grant to count again", 20)
    # an end is there as soon as its name is; and it is the last word
    theirs.mkdir()
    wait_told(glass, grant, "glass.ended")
    assert not submits()
    assert glass.as_user("oper", [*TOOL, "end", grant, "--reason", "x"]).returncode == 1
    lines = trail(grant)
    uids = [
        (line["event"], line["submit_uid"]) for line in lines if line["event"] in ("glass.requested", "glass.approved")
    ]
    assert uids == [("glass.requested", pwd.getpwnam("oper").pw_uid), ("glass.approved", pwd.getpwnam("carol").pw_uid)]


def test_a_restart_of_the_daemon_tells_nothing_twice(glass: Cluster) -> None:
    grant = request(glass, "oper", "--user", "bob", "--role", "phi-eu")
    approve(glass, "carol", grant)
    wait_told(glass, grant, "glass.approved")
    glass.stop_daemon("decisiond")
    glass.daemon("decisiond", "secure-decide")
    glass.until(
        lambda: glass.as_user("bob", ["secure-sbatch", *TAG, "--hold", "--wrap=true"]).returncode == 0, "the daemon", 30
    )
    assert told(grant) == ["glass.requested", "glass.approved"]
    end(glass, "oper", grant)
    wait_told(glass, grant, "glass.ended")


def test_another_tag_for_a_job_that_waits(glass: Cluster) -> None:
    job = glass.submit("alice", *TAG, "--hold", "-p", "main", "--wrap=sleep 5")
    smaller = "Extra=secure-slurm:class=phi;residency=eu;scratch=20971520"
    refused = glass.command(["scontrol", "update", f"JobId={job}", smaller], check=False)
    assert refused.returncode != 0
    assert "modify.tag" in refused.stderr

    grant = request(glass, "oper", "--user", "root", "--job", str(job))
    approve(glass, "carol", grant)
    wait_told(glass, grant, "glass.approved")
    # the grant is root's, and for this job
    assert glass.as_user("alice", ["scontrol", "update", f"JobId={job}", smaller]).returncode != 0
    other = glass.submit("alice", *TAG, "--hold", "--wrap=true")
    assert glass.command(["scontrol", "update", f"JobId={other}", smaller], check=False).returncode != 0
    # the owner has no role for that place
    away = glass.command(
        ["scontrol", "update", f"JobId={job}", "Extra=secure-slurm:class=phi;residency=us"], check=False
    )
    assert "rbac.role" in away.stderr

    before = glass.facts(job)
    glass.command(["scontrol", "update", f"JobId={job}", smaller])
    after = glass.facts(job)
    assert after["extra"].endswith("scratch=20971520")
    assert "scratch=20971520" in after["admin_comment"]
    assert after["admin_comment"].endswith(f"tag changed by break-glass {grant}")
    assert after["admin_comment"] != before["admin_comment"]
    assert after["features"] == before["features"]
    # its new record holds at the start, and what runs keeps it
    glass.command(["scontrol", "release", str(job)])
    glass.wait_state(job, "RUNNING", "COMPLETED")
    running = glass.command(["scontrol", "update", f"JobId={job}", "Extra="], check=False)
    assert running.returncode != 0
    assert glass.wait_end(job)["JobState"] == "COMPLETED"
    used = [line for line in trail(grant) if line["event"] == "decision" and line["verdict"] == "allow"]
    assert {(line["verb"], line["job"], line["submit_uid"], line["scratch"]) for line in used} == {
        ("modify", job, 0, 20971520)
    }
    glass.wait_gone(job)


def test_no_tag_at_all_for_a_job_that_waits(glass: Cluster) -> None:
    job = glass.submit("alice", *TAG, "--hold", "-p", "main", "--wrap=true")
    demanding = glass.submit("alice", *TAG, "--hold", "-p", "phi", "--wrap=true")
    for each in (job, demanding):
        grant = request(glass, "oper", "--user", "root", "--job", str(each))
        approve(glass, "carol", grant)
        wait_told(glass, grant, "glass.approved")
    refused = glass.command(["scontrol", "update", f"JobId={demanding}", "Extra="], check=False)
    assert "tag.missing" in refused.stderr
    glass.command(["scontrol", "update", f"JobId={job}", "Extra="])
    after = glass.facts(job)
    assert after["extra"] == ""
    assert "secure-slurm/" not in after["admin_comment"]
    assert "tag removed by break-glass" in after["admin_comment"]
    glass.command(["scontrol", "release", str(job)])
    end_of_it = glass.wait_end(job)
    # its environment still asks for the class (secure-sbatch sets it), and TaskProlog lets no such task run
    assert end_of_it["JobState"] == "FAILED"


def test_an_operator_without_a_grant(glass: Cluster) -> None:
    job = glass.submit("alice", *TAG, "--hold", "--wrap=true")
    for change in ("Extra=", "Extra=secure-slurm:class=internal"):
        done = glass.command(["scontrol", "update", f"JobId={job}", change], check=False)
        assert done.returncode != 0
        assert "modify.tag" in done.stderr
