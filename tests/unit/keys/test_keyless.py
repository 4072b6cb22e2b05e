"""The key taken from a mapping and put back: the refusals, and the one message to the kernel that holds a key.

With a real device: tests/cluster/test_freeze.py.
"""

from __future__ import annotations

import fcntl
import struct
from pathlib import Path

import pytest

from keys import freezer, freezing
from keys.freezer import Frozen
from keys.journal import Journal
from keys.process import Budget, ProcessError
from keys.scratch import crypt, keyless
from keys.scratch.crypt import Mapping
from keys.scratch.errors import NodeBroken
from keys.secret import Secret

NAME = "secure-n1-17"
KEY = bytes(range(64))
TABLE = f"0 800 crypt aes-xts-plain64 {'0' * 128} 0 7:0 0 1 sector_size:4096"


class Kernel:
    def __init__(self) -> None:
        self.mapping: Mapping | None = Mapping(NAME, f"CRYPT-PLAIN-{NAME}", "dm-9", 1, 800, True)
        self.table = TABLE
        self.ran: list[list[str]] = []
        self.fails = ""
        self.messages: list[bytes] = []
        self.buffers: list[bytearray] = []

    def run(self, argv: list[str], **_: object) -> object:
        self.ran.append(argv[1:])
        if self.fails and self.fails in argv:
            raise ProcessError("dmsetup failed")
        return None

    def ioctl(self, _descriptor: int, request: int, buffer: bytearray, mutate: bool) -> int:
        assert (request, mutate) == (0xC138FD0E, True)  # DM_TARGET_MSG of <linux/dm-ioctl.h>, as strace shows it
        self.messages.append(bytes(buffer))
        self.buffers.append(buffer)
        if self.fails == "ioctl":
            raise OSError(22, "Invalid argument")
        return 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(crypt, "find", lambda _: made.mapping)
    monkeypatch.setattr(crypt, "table", lambda *_: made.table)
    monkeypatch.setattr(keyless, "program", lambda name: f"/sbin/{name}")
    monkeypatch.setattr(keyless, "_backing", lambda _: "7:0")
    monkeypatch.setattr(Budget, "run", lambda _, argv, **more: made.run(argv, **more))
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    control = tmp_path / "control"
    control.touch()
    monkeypatch.setattr(keyless, "CONTROL", str(control))
    return made


def give(key: bytes = KEY) -> None:
    secret = Secret(key)
    try:
        keyless.give(NAME, secret, Budget(5))
    finally:
        assert len(secret) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"mapping": None},
        {"mapping": Mapping(NAME, "LVM-x", "dm-9", 1, 800, True)},
        {"mapping": Mapping(NAME, f"CRYPT-PLAIN-{NAME}", "dm-9", 1, 800, False)},
        {"table": "0 800 error"},
        {"table": TABLE.replace("7:0", "8:1")},
        {"table": TABLE.replace("xts", "cbc")},
        {"fails": "ioctl"},
    ],
)
def test_no_key_for_what_does_not_wait_for_one(kernel: Kernel, change: dict[str, object]) -> None:
    for name, value in change.items():
        setattr(kernel, name, value)
    with pytest.raises(NodeBroken):
        give()
    assert not [words for words in kernel.ran if "resume" in words]
    assert all(set(buffer) == {0} for buffer in kernel.buffers)
    if "fails" not in change:
        assert kernel.messages == []


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_no_key_of_another_length(kernel: Kernel, length: int) -> None:
    with pytest.raises(NodeBroken):
        give(b"k" * length)
    assert kernel.messages == []


def test_a_key_that_cannot_be_used_goes_again(kernel: Kernel) -> None:
    kernel.fails = "resume"
    with pytest.raises(ProcessError):
        give()
    assert kernel.ran[-1] == ["message", "--", NAME, "0", "key", "wipe"]


def test_the_key_goes_to_the_kernel_and_nowhere_else(kernel: Kernel) -> None:
    give()
    (said,) = kernel.messages
    major, _, _, size, start = struct.unpack_from("=3I2I", said)
    (flags,) = struct.unpack_from("=I", said, 28)
    assert (major, size, start, flags) == (4, len(said), 312, 1 << 15)
    assert said[48:176].rstrip(b"\0") == NAME.encode()
    assert said[320:].partition(b"\0")[0] == b"key set " + KEY.hex().encode()
    assert all(set(buffer) == {0} for buffer in kernel.buffers)
    assert kernel.ran == [["resume", "--noflush", "--nolockfs", "--", NAME]]
    assert KEY.hex() not in str(kernel.ran)


def test_taken_and_taken_again(kernel: Kernel) -> None:
    assert keyless.take(NAME, Budget(5))
    assert kernel.ran == [["message", "--", NAME, "0", "key", "wipe"]]
    assert kernel.mapping is not None
    kernel.mapping, kernel.ran = kernel.mapping._replace(suspended=False), []
    assert keyless.take(NAME, Budget(5))
    assert [words[0] for words in kernel.ran] == ["suspend", "message"]
    assert not keyless.waits(NAME)
    kernel.mapping = None
    assert not keyless.take(NAME, Budget(5))
    assert not keyless.waits(NAME)


class TestJob:
    @pytest.fixture(autouse=True)
    def processes(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        self.journal = Journal(str(tmp_path), "n1")
        self.goes = True
        self.thawed: list[int] = []
        monkeypatch.setattr(freezer, "freeze", lambda *_: Frozen("cgroup", 2, True))
        monkeypatch.setattr(freezer, "thaw", lambda _, job: self.thawed.append(job) or self.goes)

    def test_nothing_is_let_go_without_the_key(self, kernel: Kernel) -> None:
        assert "no key" in freezing.thaw_job(self.journal, 17, None)
        kernel.fails = "ioctl"
        assert "does not take" in freezing.thaw_job(self.journal, 17, Secret(KEY))
        assert self.thawed == []

    def test_let_go(self, kernel: Kernel) -> None:
        assert freezing.thaw_job(self.journal, 17, Secret(KEY)) == ""
        kernel.mapping = None
        assert freezing.thaw_job(self.journal, 17, None) == ""
        self.goes = False
        assert "not all" in freezing.thaw_job(self.journal, 17, None)
        assert self.thawed == [17, 17, 17]

    def test_frozen(self, kernel: Kernel) -> None:
        found = freezing.freeze_job(self.journal, 17)
        assert (found.wiped, found.evidence()) == (True, "2 cgroups frozen; the key was wiped")
        kernel.fails = "message"
        assert freezing.freeze_job(self.journal, 17).problem == "dmsetup failed"
        kernel.mapping = None
        assert freezing.freeze_job(self.journal, 17).evidence() == "2 cgroups frozen; no key was there"
