"""secure-slurm audit verify on a real accounting database: the trails lack what they lack, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from admin import audit_sacct
from audit import chain
from audit.chain import Chain
from audit.facts import gather
from audit.story import read_events
from tests.services.slurmdbd.conftest import World

START = "ab" * 16


@pytest.fixture
def secured(world: World) -> dict[int, dict[str, Any]]:
    """What the accounting has of the jobs that carry a record and ran, by the number that hooks know them by."""
    entries = json.loads(world.accounting.sacct("--json=v0.0.42"))["jobs"]
    return {one["job_id"]: one for one in entries if one["comment"]["administrator"].startswith("secure-slurm/1 ")}


class Trail:
    """A lifecycle trail from well before the jobs to well after them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        folder.mkdir()
        self.folder = folder
        self._chain = Chain(folder, "lifecycle", "head")

    def tell(self, at: float, event: str, **fields: object) -> None:
        text = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(at))
        with self._patch.context() as patch:
            patch.setattr(chain, "_now", lambda: text)
            self._chain.append(event, durable=True, **fields)

    def start(self, at: float, job: int) -> None:
        self.tell(
            at, "start.judged", job=job, verdict="allow", rule="start.allowed", incarnation=START, nonce="cd" * 16
        )

    def whole(self, secured: dict[int, dict[str, Any]], but: frozenset[int] = frozenset()) -> None:
        """Every job's start, its key, and the key's end."""
        first = min(one["time"]["start"] for one in secured.values())
        self.tell(first - 3600, "daemon.start")
        jobs = [(job, one["time"]) for job, one in secured.items() if job not in but]
        for job, times in sorted(jobs, key=lambda one: int(one[1]["start"])):
            self.start(times["start"], job)
            self.create(times["start"], job)
        for job, _ in jobs:
            # EpilogSlurmctld runs after the last of them here, so that no clock goes back
            self.tell(self.end(secured), "key.delete", job=job, node="n1", key=key_of(job), evidence="404")
        self.tell(time.time() + 3600, "daemon.stop")

    def create(self, at: float, job: int) -> None:
        self.tell(at, "key.create", job=job, node="n1", incarnation=START, key=key_of(job))

    def end(self, secured: dict[int, dict[str, Any]]) -> float:
        return float(max(one["time"]["end"] for one in secured.values()))


def key_of(job: int) -> str:
    return f"n1_test-{job}-{job:016x}"


@pytest.fixture
def trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trail:
    return Trail(tmp_path / "audit", monkeypatch)


def gaps(world: World, *words: str, code: int = 1) -> list[tuple[str, int]]:
    done = world.accounting.tool("audit", "verify", "--json", *words, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["whole"]
    # of these trails there are no nodes' lines, and each says so
    return sorted((one["kind"], one["job"]) for one in found["gaps"] if one["kind"] != "segment-missing")


def test_there_is_something_to_compare(secured: dict[int, dict[str, Any]]) -> None:
    # phi, internal, gpus, deleted, and two of an array
    assert len(secured) == 6
    assert all(one["state"]["current"] == ["COMPLETED"] for one in secured.values())


def test_the_same_jobs(world: World, trail: Trail, secured: dict[int, dict[str, Any]]) -> None:
    trail.whole(secured)
    assert gaps(world, "--sacct", "--days=2", str(trail.folder)) == []


def test_a_job_of_which_no_trail_tells(world: World, trail: Trail, secured: dict[int, dict[str, Any]]) -> None:
    missing = min(secured)
    trail.whole(secured, frozenset({missing}))
    assert gaps(world, "--sacct", "--days=2", str(trail.folder)) == [("job-without-record", missing)]
    done = world.accounting.tool("audit", "verify", "--sacct", "--days=2", str(trail.folder), check=False)
    assert f"job-without-record: job {missing}: " in done.stdout
    assert f"look at: sacct -j {missing}" in done.stdout


def test_a_file_says_the_same(world: World, trail: Trail, secured: dict[int, dict[str, Any]], tmp_path: Path) -> None:
    missing = max(secured)
    trail.whole(secured, frozenset({missing}))
    saved = tmp_path / "jobs.json"
    saved.write_text(world.accounting.sacct("--json=v0.0.42"), encoding="utf-8", errors="surrogateescape")
    # offline: no site file is read
    words = ("--config", str(tmp_path / "none"), "audit", "verify", "--json", "--cluster", "test")
    done = world.accounting.tool(*words, f"--sacct-file={saved}", str(trail.folder), check=False)
    assert done.returncode == 1, done.stderr
    assert ("job-without-record", missing) in {(one["kind"], one["job"]) for one in json.loads(done.stdout)["gaps"]}


def test_a_start_that_the_accounting_does_not_know(
    world: World, trail: Trail, secured: dict[int, dict[str, Any]]
) -> None:
    first = min(one["time"]["submission"] for one in secured.values())
    trail.whole(secured)
    # before the first job that the accounting has, nothing can be said
    trail.start(first - 3600, 999_998)
    trail.start(first + 3600, 999_999)
    accounts = audit_sacct.Accounts("test")
    for one in json.loads(world.accounting.sacct("--json=v0.0.42"))["jobs"]:
        accounts.take(one)
    found = audit_sacct.compare(gather(read_events([trail.folder])), accounts, time.time() + 7200)
    assert [(gap.kind, gap.job) for gap in found] == [("job-not-accounted", 999_999)]


def test_a_key_that_outlives_its_job(world: World, trail: Trail, secured: dict[int, dict[str, Any]]) -> None:
    job = min(secured)
    # its start alone, before the others: the clock of the trail goes on
    trail.start(secured[job]["time"]["start"], job)
    trail.create(secured[job]["time"]["start"], job)
    trail.whole(secured, frozenset({job}))
    assert ("key-outlives-job", job) in gaps(world, "--sacct", "--days=2", str(trail.folder))


def test_an_accounting_that_does_not_answer(world: World, trail: Trail, tmp_path: Path) -> None:
    trail.tell(time.time(), "daemon.start")
    done = world.accounting.tool(
        "audit", "verify", "--cluster=test", f"--sacct-file={tmp_path}/none", str(trail.folder), check=False
    )
    assert done.returncode == 3
    assert "cannot be read" in done.stderr
