from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import ConfigError
from conf.safefile import check_file_safety, read_safely

STRANGER = 12345


def refusal(path: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_safely(path, **options)
    assert str(caught.value).isprintable()
    if "limit" not in options:
        with pytest.raises(ConfigError):
            check_file_safety(path, **options)
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777, 0o620])
def test_a_file_that_others_can_write(written: Callable[..., str], mode: int) -> None:
    path = written("a: 1")
    Path(path).chmod(mode)
    assert "can be written by group or others" in refusal(path)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_directory_that_others_can_write(room: Path, mode: int) -> None:
    folder = room / "a" / "b"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "file").chmod(0o644)
    (room / "a").chmod(mode)
    folder.chmod(0o755)
    assert f"{room}/a can be written" in refusal(folder / "file")


def test_a_sticky_directory_is_as_safe_as_tmp(room: Path) -> None:
    folder = room / "sticky"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "file").write_text("x")
    (folder / "file").chmod(0o600)
    assert read_safely(folder / "file") == b"x"


def test_a_symbolic_link_to_a_good_file(written: Callable[..., str], room: Path) -> None:
    link = room / "link"
    link.symlink_to(written("x"))
    assert "is a symbolic link" in refusal(link)


def test_a_fifo_does_not_hang(room: Path) -> None:
    os.mkfifo(room / "fifo", 0o600)
    assert "not a regular file" in refusal(room / "fifo")


@pytest.mark.parametrize("path", ["", "/", "/etc/", "/etc/..", "a\0b", "/dev/null", "/etc"])
def test_what_is_no_file(path: str) -> None:
    refusal(path)


def test_a_missing_file_and_a_missing_directory(room: Path) -> None:
    assert "does not exist" in refusal(room / "none")
    assert "does not exist" in refusal(room / "none" / "file")


def test_a_file_where_a_directory_should_be(written: Callable[..., str]) -> None:
    assert "is not a directory" in refusal(written("x") + "/file")


def test_too_large(written: Callable[..., str]) -> None:
    assert read_safely(written("12345"), limit=5) == b"12345"
    assert "larger than 4 bytes" in refusal(written("12345"), limit=4)


def test_a_secret_that_all_can_read(written: Callable[..., str]) -> None:
    path = written("key")
    assert "open to all" in refusal(path, secret=True)
    Path(path).chmod(0o640)
    assert read_safely(path, secret=True) == b"key"


def test_a_hostile_path_is_escaped(room: Path) -> None:
    assert r"\x1b" in refusal(room / "\x1b[2J")
    assert r"\n" in refusal(room / "a\nb")


def test_links_in_a_loop(room: Path) -> None:
    (room / "a").symlink_to(room / "b")
    (room / "b").symlink_to(room / "a")
    assert "too many symbolic links" in refusal(room / "a" / "file")


def test_a_directory_may_be_reached_by_a_safe_link(written: Callable[..., str], room: Path) -> None:
    (room / "real").mkdir(mode=0o755)
    written("x", "real/file")
    (room / "link").symlink_to("real/../real")
    assert read_safely(room / "link" / "file") == b"x"
    (room / "real").chmod(0o777)
    assert "real can be written" in refusal(room / "link" / "file")


def test_a_relative_path(written: Callable[..., str], room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written("x", "here")
    monkeypatch.chdir(room)
    assert read_safely("here") == b"x"
    assert read_safely("./../" + room.name + "/here") == b"x"


needs_root = pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="changing owners needs root")


@needs_root
@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_a_stranger_owns(written: Callable[..., str], room: Path, what: str) -> None:
    (room / "d").mkdir(mode=0o755)
    path = written("x", "d/file")
    (room / "l").symlink_to("d")
    target = {"file": path, "directory": str(room / "d"), "link": str(room / "l")}[what]
    os.lchown(target, STRANGER, STRANGER)
    through = str(room / "l" / "file") if what == "link" else path
    assert f"uid {STRANGER}" in refusal(through)


@needs_root
def test_the_named_owner_is_trusted(written: Callable[..., str]) -> None:
    path = written("x")
    os.chown(path, STRANGER, STRANGER)
    assert read_safely(path, owner=STRANGER) == b"x"
    refusal(path, owner=STRANGER + 1)
    refusal(path)
