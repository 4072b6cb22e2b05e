"""The facts that a job's tasks read: whole, for all to read, for none but root to write, one variable a line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from conf.errors import InternalError
from slurm_hooks import taskfile

GRANT = {"class": "phi", "residency": "eu", "scratch": "5", "datasets": ""}


def test_the_lines(tmp_path: Path) -> None:
    taskfile.write(str(tmp_path), 17, GRANT, "/secure-scratch/17")
    taskfile.write(str(tmp_path), 18, {"class": "internal", "residency": "", "datasets": "a,b"}, "")

    assert (tmp_path / "task" / "17").read_text() == (
        "SECURE_CLASS=phi\nSECURE_RESIDENCY=eu\nSECURE_SCRATCH_SIZE=5\n"
        "SECURE_SCRATCH=/secure-scratch/17\nTMPDIR=/secure-scratch/17/tmp\n"
    )
    assert (tmp_path / "task" / "18").read_text() == "SECURE_CLASS=internal\nSECURE_DATASETS=a,b\n"


def test_every_task_may_read_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        taskfile.write(str(tmp_path), 17, GRANT, "")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "task").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "task" / "17").stat().st_mode) == 0o644


def test_it_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taskfile.write(str(tmp_path), 17, GRANT, "/secure-scratch/17")
    seen: list[str] = []
    rename = os.rename

    def look(old: str, new: str) -> None:
        seen.extend((Path(new).read_text(), Path(old).read_text()))
        rename(old, new)

    monkeypatch.setattr(os, "rename", look)
    taskfile.write(str(tmp_path), 17, {"class": "raw", "residency": "", "datasets": ""}, "")

    assert seen[0].startswith("SECURE_CLASS=phi\n")
    assert seen[1] == (tmp_path / "task" / "17").read_text() == "SECURE_CLASS=raw\n"
    assert [path.name for path in (tmp_path / "task").iterdir()] == ["17"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "task" / ".17").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        taskfile.write(str(tmp_path), 17, GRANT, "")
    (tmp_path / "task" / ".17").unlink()
    (tmp_path / "task" / "17").symlink_to(victim)

    taskfile.write(str(tmp_path), 17, GRANT, "")

    assert victim.read_text() == "untouched"
    assert not (tmp_path / "task" / "17").is_symlink()


@pytest.mark.parametrize("value", ["eu\nLD_PRELOAD=/tmp/x", "eu\r", "eu\0", "eu\x1b[2J", "ëu", "e\u202eu"])
@pytest.mark.parametrize("name", ["class", "residency", "scratch", "datasets"])
def test_a_value_cannot_set_another_variable(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(InternalError):
        taskfile.write(str(tmp_path), 17, {**GRANT, name: value}, value if name == "scratch" else "")
    assert not (tmp_path / "task").exists()


def test_it_goes_and_may_go_again(tmp_path: Path) -> None:
    taskfile.remove(str(tmp_path), 17)
    taskfile.write(str(tmp_path), 17, GRANT, "")
    taskfile.remove(str(tmp_path), 17)
    taskfile.remove(str(tmp_path), 17)

    assert list((tmp_path / "task").iterdir()) == []
