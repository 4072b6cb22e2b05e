"""What only the kernel holds a job's device with: mappings and loop devices on it, file systems on those, swap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keys.process import Budget, program, run
from keys.scratch import crypt, stacked, teardown
from keys.scratch.mounts import mounts

MIB = 1024**2


def sh(*words: str) -> str:
    return run([program(words[0]), *words[1:]], timeout=120).stdout.decode().strip()


def image(path: Path, mib: int = 8) -> str:
    with path.open("wb") as file:
        file.truncate(mib * MIB)
    return str(path)


def linear(name: str, device: str, sectors: int = 8192) -> str:
    sh("dmsetup", "create", name, "--table", f"0 {sectors} linear {device} 0")
    return f"/dev/mapper/{name}"


def gone(name: str) -> bool:
    return crypt.find(name) is None


class TestOnTheFileSystem:
    def test_a_loop_device_on_a_file_in_it(self, node: Any) -> None:
        file = image(Path(node.open().path) / "disk")
        device = sh("losetup", "--find", "--show", file)
        report = node.close()
        assert report.gone
        assert report.wiped
        assert f"nested loop: {device}" in report.removed
        assert not Path(f"/sys/block/{device[5:]}/loop/backing_file").exists()

    def test_one_that_is_mounted_elsewhere(self, node: Any, base: Path) -> None:
        file = image(Path(node.open().path) / "disk")
        device = sh("losetup", "--find", "--show", file)
        sh("mkfs.ext4", "-q", device)
        (base / "elsewhere").mkdir()
        sh("mount", device, str(base / "elsewhere"))
        assert node.close().gone
        assert not [mount for mount in mounts() if mount.point == str(base / "elsewhere")]

    def test_one_that_is_held_by_the_jobs_process(self, node: Any, hold: Any, base: Path) -> None:
        file = image(Path(node.open().path) / "disk")
        device = sh("losetup", "--find", "--show", file)
        sh("mkfs.ext4", "-q", device)
        (base / "elsewhere").mkdir()
        sh("mount", device, str(base / "elsewhere"))
        process = hold("pass", cwd=str(base / "elsewhere"))
        report = node.close()
        assert report.gone
        assert process.wait(120) == -9

    def test_mappings_on_mappings_on_a_loop_device(self, node: Any) -> None:
        file = image(Path(node.open().path) / "disk")
        device = sh("losetup", "--find", "--show", file)
        top = linear("nested-upper", linear("nested-lower", device), 4096)
        assert [each.name for each in stacked.above(crypt.find(node.names.mapper).device)] == [  # type: ignore[union-attr]
            "nested-upper", "nested-lower", device,
        ]  # fmt: skip
        report = node.close()
        assert report.gone
        assert gone("nested-upper")
        assert gone("nested-lower")
        assert not Path(top).exists()

    def test_a_mapping_on_another_jobs_file_lives_on(self, make_node: Any) -> None:
        one, two = make_node(), make_node()
        one.open()
        image(Path(one.names.mount_point) / "disk")
        linear("nested-other", sh("losetup", "--find", "--show", image(Path(two.open().path) / "disk")))
        assert one.close().gone
        assert not gone("nested-other")
        assert two.close().gone
        assert gone("nested-other")


class TestOnTheMapping:
    def test_another_mapping(self, node: Any) -> None:
        sh("umount", node.open().path)  # a mounted device takes no other
        linear("nested-on-it", node.names.device)
        report = node.close()
        assert report.gone
        assert report.wiped
        assert "nested mapping: nested-on-it" in report.removed
        assert gone("nested-on-it")

    def test_the_key_goes_before_anything_is_taken_off(self, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        sh("umount", node.open().path)  # a mounted device takes no other
        linear("nested-on-it", node.names.device)
        tables: list[str] = []
        real = stacked.take_off

        def watch(device: int, budget: Budget) -> list[stacked.Taken]:
            tables.append(node.table().split()[2])
            return real(device, budget)

        monkeypatch.setattr(teardown.stacked, "take_off", watch)
        assert node.close().gone
        assert set(tables) == {"error"}

    def test_a_loop_device(self, node: Any) -> None:
        node.open()
        device = sh("losetup", "--find", "--show", node.names.device)
        report = node.close()
        assert report.gone
        assert f"nested loop: {device}" in report.removed


class TestSwap:
    def test_a_file_in_it(self, node: Any) -> None:
        file = Path(node.open().path) / "swap"
        file.write_bytes(bytes(8 * MIB))
        file.chmod(0o600)
        sh("mkswap", str(file))
        sh("swapon", str(file))
        report = node.close()
        assert report.gone
        assert f"swap: {file}" in report.removed
        assert str(file) not in Path("/proc/swaps").read_text()

    def test_of_others_lives_on(self, node: Any, base: Path) -> None:
        """A swap file elsewhere is no reason, and no victim."""
        other = Path("/var/tmp/other-swap")
        other.write_bytes(bytes(8 * MIB))
        other.chmod(0o600)
        sh("mkswap", str(other))
        device = sh("losetup", "--find", "--show", str(other))
        sh("swapon", device)
        try:
            sh("losetup", "--find", image(Path(node.open().path) / "disk"))
            assert node.close().gone
            assert device in Path("/proc/swaps").read_text()
        finally:
            sh("swapoff", device)
            sh("losetup", "-d", device)
            other.unlink()
