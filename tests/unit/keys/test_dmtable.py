"""What is made of the kernel's answer about a table, and above all what is not: the key."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from keys.scratch import crypt, dmtable
from keys.scratch.errors import NodeBroken

KEY = "0123456789abcdef" * 8
PARAMETERS = f"aes-xts-plain64 {KEY} 0 7:3 0 1 sector_size:4096"


def answer(parameters: str, kind: str = "crypt", *, targets: int = 1, flags: int = 0, start: int = 312) -> bytearray:
    buffer = bytearray(dmtable._SIZE)
    dmtable._HEAD.pack_into(buffer, 0, 4, 48, 0, len(buffer), start, targets, 0, flags, 0, 0, 0, b"x", b"")
    if start + 40 <= len(buffer):
        dmtable._TARGET.pack_into(buffer, start, 0, 204800, 0, 0, kind.encode())
        text = parameters.encode()[: len(buffer) - start - 40]
        buffer[start + 40 : start + 40 + len(text)] = text
    return buffer


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytearray]:
    """The kernel's part; what the caller's buffer holds in the end is kept."""
    state: dict[str, bytearray] = {}
    (tmp_path / "control").touch()
    monkeypatch.setattr(dmtable, "CONTROL", str(tmp_path / "control"))

    def ioctl(_fd: int, number: int, buffer: bytearray) -> int:
        assert number == 0xC138FD0C
        state["asked"] = bytearray(buffer)
        buffer[:] = state["answer"]
        state["buffer"] = buffer
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return state


def test_the_table_is_as_dmsetup_prints_it_and_without_the_key(kernel: dict[str, bytearray]) -> None:
    kernel["answer"] = answer(PARAMETERS)
    text = dmtable.table("secure-n1-17")
    assert text == f"0 204800 crypt aes-xts-plain64 {'0' * 128} 0 7:3 0 1 sector_size:4096"
    assert crypt.table_fault(text, 204800, "7:3") == ""
    assert not any(kernel["buffer"])
    version, size, flags, name = struct.unpack_from("=I8xI12xI16x128s", kernel["asked"])
    assert (version, size, name.rstrip(b"\0")) == (4, dmtable._SIZE, b"secure-n1-17")
    # the table and not the status, and the kernel wipes what it copied
    assert flags == (1 << 4) | (1 << 15)


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        (":64:logon:cryptsetup:x 0", ":64:logon:cryptsetup:x 0"),
        (KEY, "0" * 128),
        (f"{KEY} 0 7:3", f"{'0' * 128} 0 7:3"),
        ("", ""),
    ],
)
def test_only_the_key_is_hidden(kernel: dict[str, bytearray], parameters: str, shown: str) -> None:
    kernel["answer"] = answer(f"aes-xts-plain64 {parameters}")
    assert dmtable.table("x") == f"0 204800 crypt aes-xts-plain64 {shown}".strip()


def test_another_target_is_shown_as_it_is(kernel: dict[str, bytearray]) -> None:
    kernel["answer"] = answer("", "error")
    assert dmtable.table("x") == "0 204800 error"
    assert crypt.table_fault(dmtable.table("x"), 204800, "7:3")


@pytest.mark.parametrize(
    "given",
    [
        answer(PARAMETERS, targets=0), answer(PARAMETERS, targets=2), answer(PARAMETERS, flags=1 << 8),
        answer(PARAMETERS, start=0), answer(PARAMETERS, start=4090), answer("x" * 4096),
    ],
    ids=["no target", "two targets", "cut", "no data", "past the end", "without an end"],
)  # fmt: skip
def test_anything_but_one_whole_target_is_refused(kernel: dict[str, bytearray], given: bytearray) -> None:
    kernel["answer"] = given
    with pytest.raises(NodeBroken):
        dmtable.table("x")
    assert not any(kernel["buffer"])


def test_no_device_mapper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dmtable, "CONTROL", str(tmp_path / "control"))
    with pytest.raises(NodeBroken, match="No such file"):
        dmtable.table("x")


def test_the_kernels_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "control").touch()
    monkeypatch.setattr(dmtable, "CONTROL", str(tmp_path / "control"))
    with pytest.raises(NodeBroken, match=os.strerror(25)):
        dmtable.table("x")
