"""The folder, with real files of the most unpleasant kinds."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.errors import BackendUnavailable, ConfigError, Refused
from slurm_hooks import breakglass_dir
from slurm_hooks.breakglass_dir import MAX_FILES, TEMPORARY, Box, Pen, open_folder
from slurm_hooks.breakglass_papers import MAX_BYTES

ME = os.geteuid()
WRITER = pwd.getpwuid(ME).pw_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "break-glass"
    path.mkdir()
    path.chmod(0o2750)
    return path


def put(path: Path, data: bytes = b"{}\n", mode: int = 0o640) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


def looked(folder: Path) -> Box:
    box = Box(str(folder), WRITER)
    box.poll()
    return box


@pytest.mark.parametrize("mode", [0o770, 0o3770, 0o3777, 0o1777, 0o702])
def test_a_folder_that_proves_nothing(folder: Path, mode: int) -> None:
    put(folder / "g1.request")
    box = looked(folder)
    assert "g1" in box.papers
    folder.chmod(mode)

    assert box.poll()
    assert "by others" in box.problem
    assert box.papers == {}
    with pytest.raises(ConfigError, match="by others"):
        Pen(str(folder))


def test_somebody_elses_folder(folder: Path) -> None:
    with pytest.raises(ConfigError, match="belongs to"):
        open_folder(str(folder), frozenset({ME + 1}))


@pytest.mark.parametrize("call", ["os.stat", "os.scandir", "os.open"])
def test_a_folder_that_cannot_be_read_any_more(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A file system that answers with an error: what counted before counts no more, and nothing is raised."""

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    put(folder / "g1.request", b"one")
    box = looked(folder)
    with monkeypatch.context() as patched:
        patched.setattr(call, broken)
        assert box.poll()
    assert (box.papers, "Input/output error" in box.problem) == ({}, True)
    assert box.poll()
    assert "g1" in box.papers


def test_a_file_that_could_not_be_read_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    put(folder / "g1.request", b"one")
    with monkeypatch.context() as patched:
        patched.setattr("os.read", broken)
        box = looked(folder)
    assert (box.papers, [each.name for each in box.odd]) == ({}, ["g1.request"])
    assert box.poll()
    assert (list(box.papers), box.odd) == (["g1"], ())


def test_a_folder_that_is_none(tmp_path: Path, folder: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path in (link, tmp_path / "missing", put(tmp_path / "file")):
        assert looked(path).problem


def odd_file(folder: Path, kind: str, name: str = "g1.request") -> Iterator[None]:
    target = folder / name
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


KINDS = ["link", "hard link", "fifo", "folder", "dangling", "socket", "huge", "group-writable", "world-writable"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_file_is_reported_and_counts_for_nothing(folder: Path, kind: str) -> None:
    put(folder / "g2.request", b"fine\n")
    for _ in odd_file(folder, kind):
        box = looked(folder)

    assert [(each.name, each.owner) for each in box.odd] == [("g1.request", ME)]
    assert box.odd[0].what
    assert list(box.papers) == ["g2"]
    assert box.problem == ""


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_is_there_whatever_it_is(folder: Path, kind: str) -> None:
    put(folder / "g1.request", b"fine\n")
    for _ in odd_file(folder, kind, "g1.end"):
        box = looked(folder)

    assert box.papers["g1"]["end"].by is None
    assert [each.name for each in box.odd] == ["g1.end"]


@pytest.mark.parametrize("name", ["g1.request", "g1.approval", "g1.end"])
def test_a_file_of_somebody_elses(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    put(folder / name, b'{"by":11}')
    monkeypatch.setattr(breakglass_dir, "_problem", lambda status, _: real(status, frozenset({status.st_uid + 1})))
    box = looked(folder)

    assert [(each.name, each.what) for each in box.odd] == [(name, "is not secure-glass's")]
    assert list(box.papers) == (["g1"] if name == "g1.end" else [])


real = breakglass_dir._problem


def test_without_its_account_only_roots_files_count(folder: Path) -> None:
    put(folder / "g1.request")
    box = Box(str(folder), "no-such-account")
    box.poll()
    assert bool(box.papers) == (ME == 0)


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
        ".end",
        "x\n.end",
    ],
)
def test_foreign_names(folder: Path, name: str) -> None:
    put(folder / name)

    box = looked(folder)
    assert [each.name for each in box.odd] == [name]
    assert box.papers == {}


def test_what_is_read(folder: Path) -> None:
    put(folder / "g1.request", b'{"by":11}')
    put(folder / "g1.approval", b"two", mode=0o600)
    put(folder / "g1.end", b"")
    put(folder / f"{TEMPORARY}g1.end", b"half")

    box = looked(folder)
    found = box.papers["g1"]
    assert {kind: (paper.by, paper.data) for kind, paper in found.items()} == {
        "request": (11, b'{"by":11}'),
        "approval": (None, b"two"),
        "end": (None, b""),
    }
    assert found["request"].changed == (folder / "g1.request").stat().st_ctime
    assert box.odd == ()


def test_only_changes_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder / "g1.request", b"one")
    box = Box(str(folder), WRITER)
    assert box.poll()
    reads: list[str] = []
    real = breakglass_dir.read_one
    monkeypatch.setattr(breakglass_dir, "read_one", lambda fd, name, who: reads.append(name) or real(fd, name, who))
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
    put(folder / f"{TEMPORARY}left", b"of an earlier run")
    pen = Pen(str(folder))
    assert not list(folder.iterdir())
    pen.write("g1.request", b"one\n")

    path = folder / "g1.request"
    assert path.read_bytes() == b"one\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_gid == folder.stat().st_gid
    (folder / "g2.request").symlink_to("/tmp/elsewhere")
    (folder / "g3.request").mkdir()
    for name in ("g1.request", "g2.request", "g3.request"):
        assert pen.there(name)
        with pytest.raises(Refused, match="already") as caught:
            pen.write(name, b"two\n")
        assert caught.value.rule == "glass.twice"
    assert path.read_bytes() == b"one\n"
    with pytest.raises(Refused, match="bytes"):
        pen.write("g4.request", b"x" * (MAX_BYTES + 1))
    pen.remove("g1.request")
    pen.remove("g1.request")
    assert not pen.there("g1.request")
    pen.close()


def test_one_writer_at_a_time(folder: Path) -> None:
    pen = Pen(str(folder))
    with pytest.raises(ConfigError, match="another daemon"):
        Pen(str(folder))
    pen.close()
    Pen(str(folder)).close()


@pytest.mark.parametrize("call", ["os.write", "os.fsync", "os.rename"])
def test_a_disk_that_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    pen = Pen(str(folder))
    monkeypatch.setattr(call, full)
    with pytest.raises(BackendUnavailable, match="No space"):
        pen.write("g1.request", b"one\n")
    pen.close()
    assert not list(folder.iterdir())
