"""What counts as clear on a disk: everything of which it cannot be told that it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from keys import atrest
from keys.process import Completed, ProcessError
from keys.scratch.mounts import Mount

CRYPT = "0 32768 crypt aes-xts-plain64 {key} 0 7:0 0 1 sector_size:4096\n"


class Kernel:
    """A sysfs with the block devices of a test, and a device-mapper that tells their tables."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.block = folder / "block"
        self.swaps = folder / "swaps"
        self.tables: dict[str, str] = {}
        self.block.mkdir()
        monkeypatch.setattr(atrest, "SYSFS", str(self.block))
        monkeypatch.setattr(atrest, "SWAPS", str(self.swaps))
        monkeypatch.setattr(atrest, "program", str)
        monkeypatch.setattr(atrest, "run", self.run)

    def run(self, argv: list[str], **_: object) -> Completed:
        number = f"{argv[argv.index('--major') + 1]}:{argv[argv.index('--minor') + 1]}"
        if number not in self.tables:
            raise ProcessError("no such device")
        return Completed(0, self.tables[number].encode(), "")

    def device(self, number: str, name: str, *, below: tuple[str, ...] = (), **texts: str) -> int:
        entry = self.block / name
        for path, text in texts.items():
            file = entry / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        entry.mkdir(exist_ok=True)
        for index, other in enumerate(below):
            (entry / "slaves" / str(index)).mkdir(parents=True)
            (entry / "slaves" / str(index) / "dev").write_text(other + "\n")
        (self.block / number).symlink_to(name)
        major, _, minor = number.partition(":")
        return os.makedev(int(major), int(minor))

    def mapping(self, number: str, table: str = CRYPT, uuid: str = "CRYPT-PLAIN-x") -> int:
        self.tables[number] = table
        return self.device(number, "dm-" + number.partition(":")[2], dm__uuid=uuid)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_a_disk_and_what_nothing_is_known_of_are_clear(kernel: Kernel) -> None:
    assert "sda1 is not encrypted" in atrest.device_fault(kernel.device("8:1", "sda1"))
    assert "loop0 is not encrypted" in atrest.device_fault(kernel.device("7:0", "loop0"))
    assert "does not describe" in atrest.device_fault(os.makedev(8, 2))
    # btrfs, overlay, NFS: the device is the file system's own, and no block device
    assert "does not say" in atrest.device_fault(os.makedev(0, 31))


def test_dm_crypt_is_not(kernel: Kernel) -> None:
    assert atrest.device_fault(kernel.mapping("254:0")) == ""


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("0 32768 linear 8:1 0\n", "though it is called so"),
        ("0 32768 error\n", "though it is called so"),
        ("0 100 crypt aes-xts-plain64 00 0 8:1 0\n100 100 linear 8:1 0\n", "though it is called so"),
        ("0 32768 crypt cipher_null-ecb - 0 8:1 0\n", "encrypts nothing"),
        ("0 32768 crypt capi:cipher_null-ecb - 0 8:1 0\n", "encrypts nothing"),
        ("", "has no table"),
    ],
)
def test_but_a_name_alone_is_nothing(kernel: Kernel, table: str, words: str) -> None:
    assert words in atrest.device_fault(kernel.mapping("254:0", table))


def test_nor_is_what_cannot_be_asked(kernel: Kernel) -> None:
    device = kernel.mapping("254:0")
    kernel.tables.clear()
    assert "cannot be asked" in atrest.device_fault(device)


def test_a_volume_is_as_good_as_the_worst_below_it(kernel: Kernel) -> None:
    kernel.mapping("254:0")
    kernel.device("8:1", "sda1")
    good = kernel.device("254:1", "dm-1", below=("254:0",), dm__uuid="LVM-x")
    bad = kernel.device("254:2", "dm-2", below=("254:0", "8:1"), dm__uuid="LVM-y")
    assert atrest.device_fault(good) == ""
    assert "sda1 is not encrypted" in atrest.device_fault(bad)


def test_a_circle_of_devices_ends(kernel: Kernel) -> None:
    assert atrest.device_fault(kernel.device("254:1", "dm-1", below=("254:1",), dm__uuid="LVM-x"))


def test_zram_is_memory_unless_it_writes_back(kernel: Kernel) -> None:
    assert atrest.device_fault(kernel.device("253:0", "zram0", backing_dev="none")) == ""
    assert "/dev/sda3" in atrest.device_fault(kernel.device("253:1", "zram1", backing_dev="/dev/sda3"))


class TestSwap:
    HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

    @pytest.fixture
    def area(self, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """One swap area with this name; it is a file of the test's file system, or is not there."""
        own = (tmp_path / "swap file").stat().st_dev if (tmp_path / "swap file").exists() else tmp_path.stat().st_dev
        monkeypatch.setattr(
            atrest, "device_fault", lambda device, *_: "clear" if device == own else pytest.fail("another device")
        )

        def put(name: str) -> None:
            kernel.swaps.write_text(f"{self.HEAD}{name}\tfile\t\t1024\t\t0\t\t-2\n")

        return put

    def test_none(self, kernel: Kernel) -> None:
        kernel.swaps.write_text(self.HEAD)
        assert atrest.swap_faults() == []

    def test_a_file_is_judged_by_its_file_system_whatever_its_name(
        self, area: Callable[[str], None], tmp_path: Path
    ) -> None:
        (tmp_path / "swap file").write_text("")
        area(f"{tmp_path}/swap\\040file")
        assert atrest.swap_faults() == [f"swap on {tmp_path}/swap file: clear"]

    def test_what_is_gone_or_elsewhere_cannot_be_judged(self, area: Callable[[str], None], tmp_path: Path) -> None:
        area(f"{tmp_path}/swapfile\\040(deleted)")
        assert "cannot be looked at" in atrest.swap_faults()[0]

    def test_a_list_that_cannot_be_read_is_an_error(self, kernel: Kernel) -> None:
        with pytest.raises(FileNotFoundError):
            atrest.swap_faults()


class TestPlace:
    @pytest.fixture
    def on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
        """The test's folder is on this file system."""

        def put(fstype: str, device: int) -> None:
            monkeypatch.setattr(atrest, "mounts", lambda: [Mount(device, "/", "/", fstype)])
            status = os.stat_result((0o040755, 1, device, 2, 0, 0, 0, 0, 0, 0))
            monkeypatch.setattr(atrest.os, "stat", lambda *_, **__: status)

        return put

    def test_by_its_device(self, kernel: Kernel, on: Callable[[str, int], None], tmp_path: Path) -> None:
        disk, mapping = kernel.device("8:1", "sda1"), kernel.mapping("254:0")
        on("ext4", mapping)
        assert atrest.place_fault(f"{tmp_path}/not/yet/there") == ""
        on("ext4", disk)
        assert atrest.place_fault(str(tmp_path)) == f"{tmp_path} is on ext4: sda1 is not encrypted"

    def test_memory_is_not_clear(self, on: Callable[[str, int], None]) -> None:
        on("tmpfs", os.makedev(0, 20))
        assert atrest.place_fault("/anything") == ""

    @pytest.mark.parametrize("fstype", ["overlay", "btrfs", "nfs4", "fuse.sshfs"])
    def test_others_are(self, on: Callable[[str, int], None], fstype: str) -> None:
        on(fstype, os.makedev(0, 20))
        assert fstype in atrest.place_fault("/anything")

    def test_and_what_cannot_be_told(self, on: Callable[[str, int], None], monkeypatch: pytest.MonkeyPatch) -> None:
        on("tmpfs", os.makedev(0, 20))
        monkeypatch.setattr(atrest, "mounts", list)
        assert "unknown file system" in atrest.place_fault("/anything")

    def test_a_link_is_followed(self, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "link").symlink_to("/proc/self/fd")
        monkeypatch.setattr(atrest, "device_fault", lambda device, *_: f"device {device}")
        assert f"device {Path('/proc').stat().st_dev}" in atrest.place_fault(f"{tmp_path}/link")
