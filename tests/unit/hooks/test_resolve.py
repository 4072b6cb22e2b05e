"""What is asked about a job's paths, what is made of the answers, and the child that answers: late, killed, odd."""

from __future__ import annotations

import os
import pwd
import tempfile
import time
from pathlib import Path

import pytest

from slurm_hooks import resolve
from slurm_hooks.hookenv import HookJob, read_job
from slurm_hooks.resolve import Answer, Asked, ask, questions, refusals, verdict
from slurm_hooks.walk import Unresolved

needs_root = pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="becoming somebody needs root")
ME = pwd.getpwuid(os.geteuid())
BATCH = {"SLURM_JOB_WORK_DIR": "/data/phi/a", "SLURM_JOB_STDIN": "/dev/null"}
DIRS = ("/data/phi", "/data/two")
ASKED = Asked("path.output", "--output", "/data/phi/x", DIRS)


def job(user: str = ME.pw_name, uid: int = ME.pw_uid, gid: int = ME.pw_gid) -> HookJob:
    return read_job(
        {
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_USER": user,
            "SLURM_JOB_UID": str(uid),
            "SLURM_JOB_GID": str(gid),
            "SLURMD_NODENAME": "n1",
        }
    )


def paths(limits: dict[str, list[str] | None], environ: dict[str, str]) -> list[tuple[str, str]]:
    return [(each.rule, each.path) for each in questions(limits, environ)]


def test_a_class_without_directories_is_asked_nothing() -> None:
    assert paths({}, BATCH) == []
    assert paths({"work": None, "output": None}, BATCH) == []
    assert list(refusals({}, job(), BATCH)) == []


def test_the_working_directory_is_always_asked() -> None:
    assert paths({"work": ["/data"], "output": None}, BATCH) == [("path.work-dir", "/data/phi/a")]
    assert paths({"work": ["/data"], "output": None}, {}) == [("path.work-dir", "")]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ["/data/phi/a/slurm-%j.out", "/data/phi/a/slurm-%A_%a.out"]),
        ({"SLURM_JOB_STDOUT": "/o/%x"}, ["/o/%x"]),
        ({"SLURM_JOB_STDOUT": "o"}, ["/data/phi/a/o"]),
        ({"SLURM_JOB_STDOUT": "/dev/null"}, []),
        ({"SLURM_JOB_STDOUT": "/dev/null", "SLURM_JOB_STDERR": "/e", "SLURM_JOB_STDIN": "/i"}, ["/i", "/e"]),
        ({"SLURM_JOB_STDOUT": "/dev/../dev/null"}, ["/dev/../dev/null"]),
    ],
)
def test_the_streams_of_a_batch_job(more: dict[str, str], expected: list[str]) -> None:
    assert [path for _, path in paths({"work": None, "output": ["/data"]}, BATCH | more)] == expected


def test_an_interactive_job_has_no_default_output_unless_nothing_judges_where_it_works() -> None:
    interactive = {"SLURM_JOB_WORK_DIR": "/data/phi/a"}
    assert paths({"work": ["/data"], "output": ["/data"]}, interactive) == [("path.work-dir", "/data/phi/a")]
    assert len(paths({"work": None, "output": ["/data"]}, interactive)) == 2


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (Answer({}, {}, {}), "cannot be resolved"),
        (Answer({}, {"/data/phi": "/data/phi"}, {}), "cannot be resolved"),
        (Answer({"/data/phi/x": []}, {"/data/phi": "/data/phi"}, {}), "cannot be resolved"),
        (Answer({"/data/phi/x": ["/data/phi/x"]}, {}, {}), "cannot be found by root"),
        (
            Answer({"/data/phi/x": ["/data/phi/x"]}, {"/data/phi": None, "/data/two": None}, {}),
            "cannot be found by root",
        ),
        (Answer({"/data/phi/x": ["/tmp/x"]}, {"/data/phi": "/data/phi"}, {}), "leads to '/tmp/x'"),
        (Answer({"/data/phi/x": ["/data/phi2"]}, {"/data/phi": "/data/phi"}, {}), "leads to"),
        (Answer({"/data/phi/x": ["/data/phi/x", "/tmp/x"]}, {"/data/phi": "/data/phi"}, {}), "leads to '/tmp/x'"),
        # the directory itself is a link: what lies under its own name is elsewhere
        (Answer({"/data/phi/x": ["/data/phi/x"]}, {"/data/phi": "/vol1/phi"}, {}), "leads to"),
        (Answer({"/data/phi/x": ["/data/phi/x"]}, {"/data/phi": "/data/phi"}, {"/data/phi/x": "no"}), "no"),
    ],
)
def test_what_an_answer_does_not_allow_is_refused(answer: Answer, part: str) -> None:
    assert part in verdict(ASKED, answer)


def test_what_lies_in_a_resolved_directory_is_allowed() -> None:
    assert verdict(ASKED, Answer({"/data/phi/x": ["/vol1/phi/x"]}, {"/data/phi": "/vol1/phi"}, {})) == ""
    assert verdict(ASKED, Answer({"/data/phi/x": ["/t/x"]}, {"/data/phi": None, "/data/two": "/t"}, {})) == ""


def test_the_child_answers(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    limits = {"work": [str(inside)], "output": [str(inside)]}
    environ = {"SLURM_JOB_WORK_DIR": str(inside), "SLURM_JOB_STDIN": "/dev/null"}
    assert list(refusals(limits, job(), environ)) == []
    (refused,) = refusals(limits, job(), environ | {"SLURM_JOB_STDOUT": str(inside / "link" / "o")})
    assert refused.rule == "path.output"
    assert f"--output '{inside}/link/o' leads to '{outside}/o' on node n1" in str(refused)
    assert str(inside) in refused.advice
    (refused,) = refusals({**limits, "output": None}, job(), environ | {"SLURM_JOB_WORK_DIR": str(inside / "link")})
    assert refused.rule == "path.work-dir"


@pytest.mark.parametrize("who", [("", 1, 1), ("x", -1, 1), ("x", 1, -1)])
def test_a_user_that_slurm_does_not_name_is_refused(who: tuple[str, int, int], tmp_path: Path) -> None:
    user, uid, gid = who
    unknown = HookJob(17, uid, gid, user, "test", "n1", (), 0, "")
    assert list(refusals({"work": [str(tmp_path)]}, unknown, {"SLURM_JOB_WORK_DIR": str(tmp_path)}))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The children that are made; other tests may have left some of their own (multiprocessing, Python 3.14)."""
    found: list[int] = []
    fork = os.fork

    def noted() -> int:
        found.append(fork())
        return found[-1]

    monkeypatch.setattr(os, "fork", noted)
    return found


@pytest.mark.parametrize("how", ["slow", "dies", "killed", "chatter", "nonsense"])
def test_a_child_that_is_late_or_odd_refuses(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forked: list[int]
) -> None:
    def odd(_asked: object, _job: object, writing: int, _deadline: float) -> None:
        if how == "slow":
            time.sleep(60)
        elif how == "killed":
            os.kill(os.getpid(), 9)
        elif how == "chatter":
            while True:
                os.write(writing, b"[" * 65536)
        elif how == "nonsense":
            os.write(writing, b'{"paths": 1, "directories": {}, "problems": []}')
        os._exit(0)

    monkeypatch.setattr(resolve, "_in_child", odd)
    asked = Asked("path.output", "--output", str(tmp_path / "x"), (str(tmp_path),))
    answer = ask([asked], job(), deadline=0.3)
    assert "resolved" in verdict(asked, answer)
    # nobody is left of it
    with pytest.raises(ChildProcessError):
        os.waitpid(forked[0], os.WNOHANG)


def test_what_the_child_raises_ends_the_child_and_not_the_test(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forked: list[int]
) -> None:
    def failing(*_: object) -> None:
        raise SystemExit(0)

    monkeypatch.setattr(resolve, "become", failing)
    asked = Asked("path.output", "--output", str(tmp_path / "x"), (str(tmp_path),))
    assert verdict(asked, ask([asked], job())) == "cannot be resolved"


@needs_root
def test_as_the_user_and_with_no_more_rights_than_the_user_has() -> None:
    nobody = pwd.getpwnam("nobody")
    who = job("nobody", nobody.pw_uid, nobody.pw_gid)
    # not below pytest's own folder, which only root may enter
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        below = folder / "closed" / "below"
        below.mkdir(parents=True)
        below.parent.chmod(0o700)
        (refused,) = refusals({"work": [name]}, who, {"SLURM_JOB_WORK_DIR": str(below)})
        assert "Permission denied" in str(refused)
        for each in (below, below.parent):
            each.chmod(0o755)
        assert list(refusals({"work": [name]}, who, {"SLURM_JOB_WORK_DIR": str(below)})) == []


@needs_root
def test_becoming_a_user_leaves_nothing_of_roots() -> None:
    nobody = pwd.getpwnam("nobody")
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            resolve.become("nobody", nobody.pw_uid, nobody.pw_gid)
            told = f"{os.getresuid()} {os.getresgid()} {0 in os.getgroups()}"
        except (Unresolved, OSError) as error:
            told = str(error)
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        told = answer.read().decode()
    os.wait()
    uid, gid = nobody.pw_uid, nobody.pw_gid
    assert told == f"{(uid, uid, uid)} {(gid, gid, gid)} False"
