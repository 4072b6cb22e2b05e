"""How much of a file system a reservation may take, and what is left of one that takes too much."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from keys.scratch import backing
from keys.scratch.errors import ScratchTooLarge
from keys.scratch.plan import ScratchPlan

MIB = 1024**2
GIB = 1024**3


@pytest.fixture
def plan(tmp_path: Path) -> ScratchPlan:
    tmp_path.chmod(0o755)
    return ScratchPlan(
        node="n1", job=7, uid=1001, gid=1001, size_bytes=MIB, backing="file", directory=str(tmp_path / "store"),
        overcommit=False, volume_group="", device="", mount_root="/secure-scratch", filesystem="ext4", run_dir="/run/x",
    )  # fmt: skip


def space(size: int, *free: int) -> Callable[[int], SimpleNamespace]:
    """A file system of ``size`` bytes that has ``free`` bytes, one look after the other; the last stays."""
    left = list(free)

    def look(_file: int) -> SimpleNamespace:
        now = left.pop(0) if len(left) > 1 else left[0]
        # the blocks that only root may use are many, and do not count
        return SimpleNamespace(f_frsize=4096, f_blocks=size // 4096, f_bavail=now // 4096, f_bfree=size // 4096)

    return look


@pytest.mark.parametrize(
    ("size", "free"),
    [
        (10 * GIB, GIB // 2), (10 * GIB, GIB // 2 + MIB - 4096), (10 * GIB, 0),
        (1024 * GIB, GIB), (1024 * GIB, GIB + MIB - 4096), (100 * MIB, 5 * MIB),
    ],
)  # fmt: skip
def test_the_last_of_a_file_system_is_not_taken(
    plan: ScratchPlan, monkeypatch: pytest.MonkeyPatch, size: int, free: int
) -> None:
    monkeypatch.setattr(os, "fstatvfs", space(size, free))
    monkeypatch.setattr(backing, "_reserve", lambda *_: pytest.fail("it was reserved"))
    with pytest.raises(ScratchTooLarge) as caught:
        backing.make_file(plan)
    assert caught.value.rule == "scratch.no-space"
    assert list(Path(plan.directory).iterdir()) == []


@pytest.mark.parametrize(("size", "keep"), [(10 * GIB, GIB // 2), (1024 * GIB, GIB)])
def test_another_start_reserved_at_the_same_time(
    plan: ScratchPlan, monkeypatch: pytest.MonkeyPatch, size: int, keep: int
) -> None:
    monkeypatch.setattr(os, "fstatvfs", space(size, keep + MIB, keep - 4096))
    with pytest.raises(ScratchTooLarge):
        backing.make_file(plan)
    assert list(Path(plan.directory).iterdir()) == []


@pytest.mark.parametrize(("size", "keep"), [(10 * GIB, GIB // 2), (1024 * GIB, GIB)])
def test_what_is_above_may_be_had(plan: ScratchPlan, monkeypatch: pytest.MonkeyPatch, size: int, keep: int) -> None:
    monkeypatch.setattr(os, "fstatvfs", space(size, keep + MIB, keep))
    os.close(backing.make_file(plan))
    assert Path(plan.names.path).stat().st_size == MIB


def test_sparse_files_reserve_nothing(plan: ScratchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fstatvfs", space(10 * GIB, 0))
    os.close(backing.make_file(plan._replace(overcommit=True)))
    assert Path(plan.names.path).stat().st_blocks == 0
