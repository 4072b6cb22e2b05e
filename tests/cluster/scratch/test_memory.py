"""Scratch in memory, on a named volume, on a folder that all may write to, and limits: on a real kernel."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from conf.errors import Refused
from keys.journal import Journal
from keys.process import program, run
from keys.scratch import backing, crypt, deadboot, loop, memory
from keys.scratch.errors import NodeBroken, ScratchTooLarge, UnsafePath
from keys.scratch.present import jobs_present
from keys.scratch.teardown import close_scratch
from tests.cluster.scratch.conftest import loop_device
from tests.cluster.scratch.test_setup import check_ready, use

MIB = 1024**2
STEPS = ["planned", "backing", "loop", "mapping", "filesystem", "mount", "ready"]


@pytest.fixture
def in_memory(make_node: Any) -> Any:
    return lambda **options: make_node(backing="memory", limit=400 * MIB, overcommit=False, **options)


def free_memory() -> int:
    return memory._meminfo("MemFree")


class TestMemory:
    @pytest.mark.parametrize("kind", ["ext4", "xfs"])
    def test_a_job_and_its_end(self, in_memory: Any, kind: str) -> None:
        node = in_memory(filesystem=kind, size_bytes=(64 if kind == "ext4" else 300) * MIB)
        before = memory.taken()
        info = node.open()
        check_ready(node, info)
        use(info)
        assert memory.taken() - before == node.plan.mapped_bytes
        assert len(loop.find(node.names.path)) == 1
        assert set(jobs_present("n1", node.config)) >= {node.job}
        report = node.close()
        assert report.gone
        assert memory.taken() == before
        assert node.job not in set(jobs_present("n1", node.config))

    def test_all_of_it_is_reserved_before_the_job_starts(self, in_memory: Any) -> None:
        node = in_memory(size_bytes=256 * MIB)
        before = free_memory()
        node.open()
        assert before - free_memory() > 200 * MIB
        assert node.close().gone
        assert before - free_memory() < 100 * MIB

    def test_nothing_has_a_path(self, in_memory: Any) -> None:
        node = in_memory()
        node.open()
        (device,) = loop.find(node.names.path)
        shown = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text().strip()
        assert shown == f"/memfd:{node.names.mapper} (deleted)"
        assert not Path(node.plan.directory).exists()
        assert node.close().gone

    def test_what_lies_in_it_is_ciphertext(self, in_memory: Any) -> None:
        node = in_memory()
        info = node.open()
        mark = b"a patient's name" * 4096
        (Path(info.path) / "data").write_bytes(mark)
        os.sync()
        (device,) = loop.find(node.names.path)
        content = Path(device).read_bytes()
        assert len(content) == node.plan.mapped_bytes
        assert any(content)
        assert mark[:16] not in content
        assert node.close().gone

    @pytest.mark.parametrize("step", STEPS)
    def test_killed_at_each_step(self, in_memory: Any, step: str, in_child: Any) -> None:
        node = in_memory()
        write = node.journal.write

        def killed(record: Any) -> Any:
            written = write(record)
            if record.state == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return written

        node.journal.write = killed
        assert in_child(node.open) == -signal.SIGKILL
        node.journal.write = write
        if STEPS.index(step) < STEPS.index("filesystem"):
            assert loop.find(node.names.path) == [], "what no mapping holds goes with the process"
        assert node.close().gone
        assert memory.taken() == 0
        info = node.open()
        use(info)
        assert node.close().gone

    @pytest.mark.parametrize("step", STEPS)
    def test_a_failure_at_each_step_is_undone(self, in_memory: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        node = in_memory()
        write = node.journal.write

        def fails(record: Any) -> Any:
            if record.state == step:
                raise NodeBroken("it broke")
            return write(record)

        monkeypatch.setattr(node.journal, "write", fails)
        with pytest.raises(NodeBroken, match="it broke"):
            node.open()
        assert node.left() == []
        assert memory.taken() == 0

    def test_what_a_reboot_leaves_is_the_mount_point_alone(self, in_memory: Any, base: Path) -> None:
        node = in_memory()
        node.journal = Journal(str(base / "run"), "n1", str(base / "state"))
        node.open()
        run([program("umount"), node.names.mount_point], timeout=120)
        run([program("dmsetup"), "remove", node.names.mapper], timeout=120)
        assert loop.find(node.names.path) == [], "the memory goes with the mapping"
        for path in (base / "run/journal").rglob("*"):
            if path.is_file():
                path.unlink()
        record = base / f"state/{node.job}.json"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        record.write_text(record.read_text().replace(boot, "00000000-0000-4000-8000-000000000000"))
        (taken,) = deadboot.sweep(node.journal, node.config, seconds=120.0)
        assert taken.problem == ""
        assert node.left() == []

    def test_a_held_mapping_is_wiped(self, in_memory: Any, hold: Any) -> None:
        node = in_memory()
        info = node.open()
        process = hold("pass", cwd=info.path)
        report = node.close(uid=node.uid)
        assert report.wiped
        assert report.gone
        assert process.wait(120) is not None
        assert memory.taken() == 0

    def test_several_jobs_up_to_the_limit(self, in_memory: Any) -> None:
        first, second = in_memory(size_bytes=200 * MIB), in_memory(size_bytes=200 * MIB)
        third = in_memory(size_bytes=16 * MIB)
        first.open()
        second.open()
        with pytest.raises(ScratchTooLarge, match="in all") as caught:
            third.open()
        assert caught.value.rule == "scratch.no-space"
        assert third.left() == []
        assert first.close().gone
        third.open()
        assert second.close().gone
        assert third.close().gone

    def test_two_that_start_at_once_do_not_pass_the_limit(
        self, in_memory: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both have looked before either is on its loop device."""
        first, second = in_memory(size_bytes=300 * MIB), in_memory(size_bytes=300 * MIB)
        first.open()
        looked = memory.taken
        monkeypatch.setattr(memory, "taken", lambda but="": looked(but) if but else 0)
        with pytest.raises(ScratchTooLarge):
            second.open()
        assert second.left() == []
        assert first.close().gone

    def test_more_than_the_machine_has(self, in_memory: Any) -> None:
        node = in_memory(size_bytes=2**40)
        node.plan = node.plan._replace(limit=2**41)
        with pytest.raises(ScratchTooLarge, match="are available"):
            node.open()
        assert memory.taken() == 0

    def test_swap(self, in_memory: Any, base: Path) -> None:
        node = in_memory()
        device = loop_device(base / "swap", 16 * MIB)
        run([program("mkswap"), device], timeout=120)
        run([program("swapon"), device], timeout=120)
        try:
            with pytest.raises(Refused) as caught:
                node.open()
            assert caught.value.rule == "node.swap"
            assert node.left() == []
        finally:
            run([program("swapoff"), device], timeout=120)
            loop.detach(device)
        node.open()
        assert node.close().gone


class TestWhereFilesLie:
    def test_below_a_folder_that_all_may_write_to(self, make_node: Any, base: Path) -> None:
        """/scratch, as ParallelCluster mounts instance store."""
        (base / "scratch").mkdir()
        (base / "scratch").chmod(0o1777)
        node = make_node(directory=str(base / "scratch/secure-slurm"), volume=str(base))
        info = node.open()
        use(info)
        assert (base / "scratch/secure-slurm").stat().st_mode & 0o7777 == 0o700
        assert node.close().gone

    @pytest.mark.parametrize("what", ["folder", "link", "file"])
    def test_a_user_was_there_first(self, make_node: Any, base: Path, hold: Any, what: str) -> None:
        (base / "scratch").mkdir()
        (base / "scratch").chmod(0o1777)
        place = str(base / "scratch/secure-slurm")
        (base / "trap").mkdir(mode=0o700)
        hold(
            {
                "folder": f"os.mkdir({place!r}, 0o700)",
                "link": f"os.symlink({str(base / 'trap')!r}, {place!r})",
                "file": f"open({place!r}, 'w')",
            }[what]
        )
        node = make_node(directory=place)
        with pytest.raises(UnsafePath):
            node.open()
        assert list((base / "trap").iterdir()) == []

    def test_without_the_sticky_bit_it_is_refused(self, make_node: Any, base: Path) -> None:
        (base / "scratch").mkdir()
        (base / "scratch").chmod(0o777)
        with pytest.raises(UnsafePath, match="written to by others"):
            make_node(directory=str(base / "scratch/secure-slurm")).open()
        (base / "scratch").chmod(0o755)

    def test_the_volume_is_not_mounted(self, make_node: Any, base: Path) -> None:
        (base / "data").mkdir(mode=0o755)
        node = make_node(directory=str(base / "data/secure-slurm"), volume=str(base / "data"))
        with pytest.raises(NodeBroken, match="nothing is mounted"):
            node.open()
        assert list((base / "data").iterdir()) == []

    def test_another_file_system_over_the_folder(self, make_node: Any, base: Path) -> None:
        (base / "store").mkdir(mode=0o700)
        run([program("mount"), "-t", "tmpfs", "-o", "mode=700,size=200m", "tmpfs", str(base / "store")], timeout=120)
        try:
            with pytest.raises(NodeBroken, match="is not on the file system"):
                make_node(directory=str(base / "store"), volume=str(base)).open()
        finally:
            run([program("umount"), str(base / "store")], timeout=120)

    def test_the_limit_of_files(self, make_node: Any) -> None:
        first = make_node(size_bytes=64 * MIB, limit=100 * MIB)
        second = make_node(size_bytes=64 * MIB, limit=100 * MIB)
        first.open()
        with pytest.raises(ScratchTooLarge, match="in all"):
            second.open()
        assert second.left() == []
        assert first.close().gone
        second.open()
        assert second.close().gone

    def test_two_that_start_at_once_do_not_pass_the_limit(
        self, make_node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = (make_node(size_bytes=64 * MIB, limit=100 * MIB) for _ in range(2))
        size = backing._size

        def meanwhile(file: int, plan: Any) -> None:
            monkeypatch.setattr(backing, "_size", size)
            first.open()
            size(file, plan)

        monkeypatch.setattr(backing, "_size", meanwhile)
        with pytest.raises(ScratchTooLarge):
            second.open()
        # the other saw the name and not yet its size, so it has its scratch
        assert second.left() == []
        assert crypt.find(first.names.mapper) is not None
        assert first.close().gone


def test_a_job_on_a_file_ends_though_the_site_says_auto_now(make_node: Any) -> None:
    node = make_node()
    node.open()
    unchosen = {**node.config, "backing": "auto"}
    assert node.job in set(jobs_present("n1", unchosen))
    report = close_scratch(node.journal, node.job, unchosen)
    assert report.gone
    assert node.left() == []
