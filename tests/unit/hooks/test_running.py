"""Where tagged jobs run: written by one daemon, read by another, and of no use to anybody who writes there besides."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from conf.errors import BackendUnavailable
from conf.policy import load_policy
from conf.tag import Tag
from slurm_hooks import running
from slurm_hooks.filters import judge_tag
from slurm_hooks.filters.job import SubmitJob
from slurm_hooks.filters.verdict import Allow, Context, Deny
from tests.unit.policy.people import NOW, SITE, snapshot

PHI = Tag("phi", "eu", 5, ("genomes",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "running"
    made.mkdir(mode=0o750)
    return made


@pytest.fixture
def reader(folder: Path) -> running.Running:
    return running.Running(str(folder), 0)


def test_what_is_written_is_read_by_node(folder: Path, reader: running.Running) -> None:
    running.write(str(folder), 7, 1001, PHI, ("N1", "n2"))
    reader.look()

    assert reader.places == {"n1": (running.Inside(7, 1001, PHI),), "n2": (running.Inside(7, 1001, PHI),)}
    assert (folder / "7").stat().st_mode & 0o777 == 0o640
    running.remove(str(folder), 7)
    running.remove(str(folder), 7)
    reader.look()
    assert reader.places == {}


def test_a_folder_that_is_not_there_says_that_nothing_runs(tmp_path: Path) -> None:
    reader = running.Running(str(tmp_path / "none"), 0)
    reader.look()

    assert reader.places == {}
    with pytest.raises(BackendUnavailable):
        running.write(str(tmp_path / "none"), 7, 1001, PHI, ("n1",))


@pytest.mark.parametrize(
    "content",
    ["", "x", "[]", '{"uid": 1}', '{"uid": "a", "tag": "x", "nodes": []}', '{"uid": 1, "tag": "x", "nodes": ["n1"]}'],
)
def test_what_cannot_be_read_says_nothing(content: str, folder: Path, reader: running.Running) -> None:
    (folder / "8").write_text(content)
    running.write(str(folder), 7, 1001, PHI, ("n1",))
    reader.look()

    assert set(reader.places) == {"n1"}


def test_links_fifos_and_other_names_are_passed_over(folder: Path, reader: running.Running, tmp_path: Path) -> None:
    running.write(str(tmp_path), 7, 1001, PHI, ("n1",))
    (folder / "7").symlink_to(tmp_path / "7")
    os.mkfifo(folder / "8")
    (folder / "9").mkdir()
    (folder / "x").write_text("{}")
    reader.look()

    assert reader.places == {}


def test_a_folder_that_anybody_can_write_to_is_not_believed(folder: Path, reader: running.Running) -> None:
    running.write(str(folder), 7, 1001, PHI, ("n1",))
    reader.look()
    folder.chmod(0o777)
    (folder / "8").write_text("{}")
    with pytest.raises(BackendUnavailable):
        reader.look()

    assert set(reader.places) == {"n1"}


def test_a_file_of_somebody_else_says_nothing(folder: Path, reader: running.Running) -> None:
    running.write(str(folder), 7, 1001, PHI, ("n1",))
    os.chown(folder / "7", 12345, 12345)
    reader.look()

    assert reader.places == {}


JOB = SubmitJob(submit_uid=1001, user_id=1001, user_name="bea", strings={}, alloc_node="n1.cluster.example")
INSIDE = {"n1": (running.Inside(7, 1001, PHI),), "n3": (running.Inside(8, 1001, Tag("open")),)}


@pytest.fixture
def context(policy_of_site: Context) -> Context:
    return policy_of_site._replace(running=INSIDE)


@pytest.fixture(scope="module")
def policy_of_site() -> Context:
    return Context(load_policy(str(SITE)), snapshot(), now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"tag": None},
        {"tag": Tag("internal", "eu", None, ("genomes",))},
        {"tag": Tag("phi", "uk", 5, ("genomes",))},
        {"tag": Tag("phi", "eu", 5)},
        {"tag": None, "alloc_node": "N1"},
    ],
)
def test_nothing_weaker_comes_from_inside(changes: dict[str, object], context: Context) -> None:
    verdict = judge_tag.inherited_tag(attrs.evolve(JOB, **changes), context)

    assert isinstance(verdict, Deny)
    assert verdict.rule == "tag.inherit"
    assert "job 7" in verdict.message


@pytest.mark.parametrize(
    "changes",
    [
        {"tag": PHI},
        {"tag": Tag("export", "eu", None, ("genomes", "mri"))},
        {"tag": None, "alloc_node": "n2"},
        {"tag": None, "alloc_node": "login1"},
        {"tag": None, "user_id": 1002},
        {"tag": Tag("open"), "alloc_node": "n3"},
    ],
)
def test_from_elsewhere_or_as_strong(changes: dict[str, object], context: Context) -> None:
    assert isinstance(judge_tag.inherited_tag(attrs.evolve(JOB, **changes), context), Allow)
