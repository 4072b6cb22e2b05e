"""Scratch in memory: what is refused, what is reserved, what names tell of it. Real memory, without loop devices."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from conf.errors import Refused
from keys.process import Budget
from keys.scratch import memory
from keys.scratch.errors import NodeBroken, ScratchTooLarge
from keys.scratch.plan import ScratchPlan, check_plan, names_from_config

MIB = 1024**2
CONFIG = {"backing": "memory", "mount_root": "/secure-scratch"}


@pytest.fixture
def plan() -> ScratchPlan:
    return ScratchPlan(
        node="n1", job=7, uid=1001, gid=1001, size_bytes=100 * MIB + 1, backing="memory", directory="",
        overcommit=False, volume_group="", device="", mount_root="/secure-scratch", filesystem="ext4", run_dir="/run/x",
        limit=200 * MIB,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 4 GiB with 1 GiB available, without swap and without loop devices."""
    (tmp_path / "swaps").write_text("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    (tmp_path / "meminfo").write_text("MemTotal:  4194304 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n")
    (tmp_path / "block").mkdir()
    monkeypatch.setattr(memory, "SWAPS", str(tmp_path / "swaps"))
    monkeypatch.setattr(memory, "MEMINFO", str(tmp_path / "meminfo"))
    monkeypatch.setattr(memory, "SYSFS", str(tmp_path / "block"))
    return tmp_path


def loop_device(machine: Path, number: int, backing: str, size: int) -> None:
    folder = machine / f"block/loop{number}"
    (folder / "loop").mkdir(parents=True)
    (folder / "loop/backing_file").write_text(f"{backing}\n")
    (folder / "size").write_text(f"{size // 512}\n")


def refused(plan: ScratchPlan) -> ScratchTooLarge:
    with pytest.raises(ScratchTooLarge) as caught:
        memory.make(plan, Budget(20))
    return caught.value


class TestRefusals:
    def test_without_a_limit(self, plan: ScratchPlan) -> None:
        with pytest.raises(NodeBroken, match="needs a limit"):
            memory.make(plan._replace(limit=0), Budget(20))

    @pytest.mark.parametrize(
        "area", ["/dev/dm-1 partition 1 0 -2", "/swap\\040file file 1 0 -2", "/dev/zram0 partition 1 0 5"]
    )
    def test_any_swap(self, plan: ScratchPlan, machine: Path, area: str) -> None:
        with (machine / "swaps").open("a") as file:
            file.write(f"{area}\n")
        with pytest.raises(Refused) as caught:
            memory.make(plan, Budget(20))
        assert caught.value.rule == "node.swap"

    def test_swap_that_cannot_be_told(self, plan: ScratchPlan, machine: Path) -> None:
        (machine / "swaps").unlink()
        with pytest.raises(Refused) as caught:
            memory.make(plan, Budget(20))
        assert caught.value.rule == "node.swap"

    @pytest.mark.parametrize("text", ["", "MemTotal: 4 kB\n", "MemTotal: 4 kB\nMemAvailable: much\n"])
    def test_memory_that_cannot_be_told(self, plan: ScratchPlan, machine: Path, text: str) -> None:
        (machine / "meminfo").write_text(text)
        with pytest.raises(NodeBroken, match="does not say"):
            memory.make(plan, Budget(20))

    def test_no_sysfs(self, plan: ScratchPlan, machine: Path) -> None:
        (machine / "block").rmdir()
        with pytest.raises(NodeBroken, match="cannot be told"):
            memory.make(plan, Budget(20))

    def test_more_than_the_limit(self, plan: ScratchPlan) -> None:
        assert "in all" in str(refused(plan._replace(limit=100 * MIB)))

    def test_more_than_the_limit_with_what_others_have(self, plan: ScratchPlan, machine: Path) -> None:
        loop_device(machine, 0, "/memfd:secure-n1-6 (deleted)", 60 * MIB)
        loop_device(machine, 1, "/memfd:secure-n2-6 (deleted)", 60 * MIB)
        assert "in all" in str(refused(plan))

    @pytest.mark.parametrize("available", [50 * MIB, 100 * MIB, 300 * MIB])
    def test_too_little_would_stay(self, plan: ScratchPlan, machine: Path, available: int) -> None:
        (machine / "meminfo").write_text(f"MemTotal: 4194304 kB\nMemAvailable: {available // 1024} kB\n")
        assert "stay" in str(refused(plan))

    def test_no_time(self, plan: ScratchPlan) -> None:
        with pytest.raises(NodeBroken, match="in time"):
            memory.make(plan, Budget(0))

    def test_told_to_stop(self, plan: ScratchPlan) -> None:
        asked: list[int] = []

        def stop() -> bool:
            asked.append(1)
            return len(asked) > 1

        with pytest.raises(NodeBroken):
            memory.make(plan, Budget(20, stop))
        assert len(asked) == 2
        assert open_memory() == []


def open_memory() -> list[str]:
    links = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [link for link in links if link.startswith("/memfd:secure-")]


def test_it_is_reserved_whole_and_gone_when_it_is_closed(plan: ScratchPlan) -> None:
    file = memory.make(plan, Budget(20))
    try:
        status = os.fstat(file)
        assert status.st_size == plan.mapped_bytes == 100 * MIB + 4096
        assert status.st_blocks * 512 >= plan.mapped_bytes
        assert open_memory() == ["/memfd:secure-n1-7 (deleted)"]
        assert plan.names.path == "/memfd:secure-n1-7"
        assert os.get_inheritable(file) is False
    finally:
        os.close(file)
    assert open_memory() == []


def test_it_is_asked_for_as_never_to_be_run(plan: ScratchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """MFD_NOEXEC_SEAL, which vm.memfd_noexec=2 demands and kernels before 6.3 do not know (memfd_create(2))."""
    asked: list[int] = []
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        asked.append(flags)
        if flags & 8:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    os.close(memory.make(plan, Budget(20)))
    assert asked == [os.MFD_CLOEXEC | 8, os.MFD_CLOEXEC]

    def refuses(_name: str, flags: int) -> int:
        asked.append(flags)
        raise OSError(errno.EACCES, "Permission denied")

    asked.clear()
    monkeypatch.setattr(os, "memfd_create", refuses)
    with pytest.raises(NodeBroken, match="Permission denied"):
        memory.make(plan, Budget(20))
    assert asked == [os.MFD_CLOEXEC | 8]


def test_what_is_taken(machine: Path) -> None:
    loop_device(machine, 0, "/memfd:secure-n1-6 (deleted)", 3 * MIB)
    loop_device(machine, 1, "/memfd:secure-n1-7 (deleted)", 4 * MIB)
    loop_device(machine, 2, "/memfd:other (deleted)", 5 * MIB)
    loop_device(machine, 3, "/scratch/secure-n1-8", 6 * MIB)
    (machine / "block/sda").mkdir()
    assert memory.taken() == 7 * MIB
    assert memory.taken(but="/memfd:secure-n1-7") == 3 * MIB


def test_starts_at_the_same_moment_see_each_other_afterwards(plan: ScratchPlan, machine: Path) -> None:
    loop_device(machine, 0, f"{plan.names.path} (deleted)", plan.mapped_bytes)
    memory.check_limit(plan)
    loop_device(machine, 1, "/memfd:secure-n1-8 (deleted)", plan.mapped_bytes)
    with pytest.raises(ScratchTooLarge):
        memory.check_limit(plan)
    memory.check_limit(plan._replace(backing="file"))


def test_names_without_a_journal() -> None:
    assert names_from_config("n1", 7, CONFIG).path == "/memfd:secure-n1-7"


def test_what_was_not_chosen_is_not_set_up_but_taken_down(plan: ScratchPlan) -> None:
    """An Epilog must find what a job has, also when an admin has just written ``auto`` and prepared nothing."""
    names = names_from_config("n1", 7, {**CONFIG, "backing": "auto"})
    assert (names.mapper, names.mount_point) == ("secure-n1-7", "/secure-scratch/7")
    with pytest.raises(NodeBroken) as caught:
        check_plan(plan._replace(backing="auto"))
    assert "node store --prepare" in caught.value.advice
