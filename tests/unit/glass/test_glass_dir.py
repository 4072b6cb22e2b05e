"""The folder, with real files of the most unpleasant kinds."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import ConfigError, UsageError
from slurm_hooks import breakglass_dir
from slurm_hooks.breakglass_dir import MAX_FILES, Box, open_folder, write
from slurm_hooks.breakglass_papers import MAX_BYTES

ME = os.geteuid()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "break-glass"
    path.mkdir()
    path.chmod(0o3770)
    return path


def put(path: Path, data: bytes = b"{}\n", mode: int = 0o640) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def looked(folder: Path) -> Box:
    box = Box(str(folder))
    box.poll()
    return box


@pytest.mark.parametrize("mode", [0o770, 0o3777, 0o1777, 0o755])
def test_a_folder_that_proves_nothing(folder: Path, mode: int) -> None:
    put(folder / "g1.request")
    folder.chmod(mode)

    box = looked(folder)
    assert "sticky" in box.problem
    assert box.papers == {}
    with pytest.raises(ConfigError, match="sticky"):
        open_folder(str(folder))


def test_a_folder_that_is_none(tmp_path: Path, folder: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path in (link, tmp_path / "missing", put(tmp_path / "file")):
        assert looked(path).problem


def odd_file(folder: Path, kind: str) -> Iterator[None]:
    target = folder / "g1.request"
    outside = put(folder.parent / "outside")
    if kind == "link":
        target.symlink_to(outside)
    elif kind == "hard link":
        target.hardlink_to(outside)
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "dangling":
        target.symlink_to("/nowhere")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            here = Path.cwd()
            os.chdir(folder)
            listening.bind(target.name)
            os.chdir(here)
            yield
            return
    elif kind == "huge":
        put(target, b"x" * (MAX_BYTES + 1))
    elif kind == "group-writable":
        put(target, mode=0o660)
    elif kind == "world-writable":
        put(target, mode=0o646)
    yield


@pytest.mark.parametrize(
    "kind",
    ["link", "hard link", "fifo", "folder", "dangling", "socket", "huge", "group-writable", "world-writable"],
)
def test_an_odd_file_is_reported_and_counts_for_nothing(folder: Path, kind: str) -> None:
    put(folder / "g2.request", b"fine\n")
    for _ in odd_file(folder, kind):
        box = looked(folder)

    assert [(each.name, each.owner) for each in box.odd] == [("g1.request", ME)]
    assert box.odd[0].what
    assert list(box.papers) == ["g2"]
    assert box.problem == ""


@pytest.mark.parametrize(
    "name",
    [
        "g1",
        "G1.request",
        "g_1.request",
        ".request",
        "g1.approval~",
        "g1.request.end",
        "a b.end",
        "\u202e.end",
        "x\n.end",
    ],
)
def test_foreign_names(folder: Path, name: str) -> None:
    put(folder / name)

    box = looked(folder)
    assert [each.name for each in box.odd] == [name]
    assert box.papers == {}


def test_what_is_read(folder: Path) -> None:
    put(folder / "g1.request", b"one")
    put(folder / "g1.approval", b"two", mode=0o600)
    put(folder / "g1.end", b"", mode=0o666)

    found = looked(folder).papers["g1"]
    assert {kind: (paper.owner, paper.data) for kind, paper in found.items()} == {
        "request": (ME, b"one"),
        "approval": (ME, b"two"),
        # an end ends, however carelessly it was made
        "end": (ME, b""),
    }
    assert found["request"].changed == (folder / "g1.request").stat().st_ctime


def test_only_changes_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "g1.request", b"one")
    box = Box(str(folder))
    assert box.poll()
    reads: list[str] = []
    real = breakglass_dir.read_one
    monkeypatch.setattr(breakglass_dir, "read_one", lambda fd, name: reads.append(name) or real(fd, name))
    assert not box.poll()
    assert reads == []
    # the folder itself does not change when a file in it is written to
    put(folder / "g1.request", b"two!")
    assert box.poll()
    assert box.papers["g1"]["request"].data == b"two!"
    (folder / "g1.request").chmod(0o666)
    assert box.poll()
    assert box.papers == {}
    (folder / "g1.request").unlink()
    assert box.poll()
    assert (box.papers, box.odd) == ({}, ())


def test_a_second_name_that_comes_later(folder: Path) -> None:
    put(folder / "g1.request", b"one")
    box = looked(folder)
    (folder.parent / "other").hardlink_to(folder / "g1.request")

    assert box.poll()
    assert box.papers == {}


def test_too_many_files(folder: Path) -> None:
    put(folder / "g1.request")
    box = looked(folder)
    for number in range(MAX_FILES):
        (folder / f"junk{number}").touch()
    assert box.poll()
    assert (box.papers, box.odd) == ({}, ())
    assert str(MAX_FILES) in box.problem
    assert looked(folder).problem == box.problem
    (folder / "junk0").unlink()
    assert box.poll()
    assert "g1" in box.papers
    assert box.problem == ""


def test_a_folder_that_goes_and_comes_back(folder: Path) -> None:
    put(folder / "g1.request")
    box = looked(folder)
    away = folder.rename(folder.with_name("away"))
    assert box.poll()
    assert (box.papers, bool(box.problem)) == ({}, True)
    assert not box.poll()
    away.rename(folder)
    assert box.poll()
    assert "g1" in box.papers


def test_writing(folder: Path) -> None:
    fd = open_folder(str(folder))
    write(fd, "g1.request", b"one\n")

    path = folder / "g1.request"
    assert path.read_bytes() == b"one\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_gid == folder.stat().st_gid
    with pytest.raises(UsageError, match="already"):
        write(fd, "g1.request", b"two\n")
    (folder / "g2.request").symlink_to("/tmp/elsewhere")
    with pytest.raises(UsageError):
        write(fd, "g2.request", b"two\n")
    assert path.read_bytes() == b"one\n"
    os.close(fd)
