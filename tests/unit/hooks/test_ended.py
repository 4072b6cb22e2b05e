"""The notes of ended jobs: whole or not there, and nothing but a proper note is ever taken for one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from slurm_hooks import ended

GOOD = "17.0123456789abcdef"


def put(folder: Path, name: str = GOOD, content: bytes = b"n1\nn2\n") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    ended.write(str(tmp_path), 17, ("n1", "n2.cluster"))
    ended.write(str(tmp_path), 9, ("n3",))
    ended.write(str(tmp_path), 17, ("n4",))

    notes = ended.read(str(tmp_path))

    assert [note.job for note in notes] == [9, 17, 17]
    assert {note.nodes for note in notes} == {("n3",), ("n1", "n2.cluster"), ("n4",)}
    assert {note.nodes for note in ended.read(str(tmp_path), 17)} == {("n1", "n2.cluster"), ("n4",)}
    assert ended.read(str(tmp_path), 1) == []
    assert all(stat.S_IMODE(Path(note.path).stat().st_mode) == 0o644 for note in notes)


def test_a_removed_note_is_gone_and_may_be_removed_again(tmp_path: Path) -> None:
    ended.write(str(tmp_path), 17, ("n1",))
    (note,) = ended.read(str(tmp_path))

    ended.remove(note)
    ended.remove(note)

    assert ended.read(str(tmp_path)) == []


def test_that_a_note_is_gone_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a power cut brought back would end the job's next start."""
    ended.write(str(tmp_path), 17, ("n1",))
    (note,) = ended.read(str(tmp_path))
    synced: list[tuple[bool, list[Path]]] = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append((stat.S_ISDIR(os.fstat(fd).st_mode), list(tmp_path.iterdir())))
    )
    ended.remove(note)

    assert synced == [(True, [])]


@pytest.mark.parametrize("step", ["fsync", "rename", "fchmod"])
def test_half_a_note_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The disk is full: there is a whole note or an error, and no rest that fills the disk further."""

    def fail(*_: object) -> None:
        assert ended.read(str(tmp_path)) == []
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        ended.write(str(tmp_path), 17, ("n1",))
    monkeypatch.undo()

    assert list(tmp_path.iterdir()) == []


def test_content_and_folder_are_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, os.rename
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder"}

    def note_fsync(fd: int) -> None:
        steps.append(kinds[stat.S_IFMT(os.fstat(fd).st_mode)])
        fsync(fd)

    def note_rename(old: str, new: str) -> None:
        steps.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    ended.write(str(tmp_path), 17, ("n1",))

    assert steps == ["file", "rename", "folder"]


def test_no_folder_is_an_error_and_not_no_notes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ended.read(str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError):
        ended.write(str(tmp_path / "absent"), 17, ("n1",))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "17",
            "17.",
            f"{GOOD}0",
            GOOD.upper(),
            f".{GOOD}",
            f"{GOOD}.tmp",
            f"{GOOD}\n",
            f" {GOOD}",
            "0.0123456789abcdef",
        ),
        *(
            "017.0123456789abcdef",
            "-1.0123456789abcdef",
            "12345678901.0123456789abcdef",
            "\u0661\u0667.0123456789abcdef",
        ),
        *("x.0123456789abcdef", "17.0123456789abcdeg", "17_0123456789abcdef"),
    ],
)
def test_wrong_names(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)

    assert ended.read(str(tmp_path)) == []
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b" \n\t", b"n1", b"\x00", b"n1\x00\n", b"n1\n../n2\n", b"n1\nn_2\n", b"n1,n2\n", b"n[1-2]\n", b"-n1\n"),
        *(b"n1\n\xff\n", "n1\nñ2\n".encode(), b"n1 $(id)\n", b"n" * 64, b"n1\n" * 1_000_000),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_garbage(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, content=content)

    assert ended.read(str(tmp_path)) == []
    assert (tmp_path / GOOD).exists()


def test_an_end_whose_nodes_are_not_known(tmp_path: Path) -> None:
    ended.write(str(tmp_path), 17, ())

    (note,) = ended.read(str(tmp_path))
    assert (note.job, note.nodes) == (17, ())


def test_a_long_list_of_nodes_is_read_whole(tmp_path: Path) -> None:
    nodes = tuple(f"{'n' * 50}{number:05}" for number in range(20_000))
    ended.write(str(tmp_path), 17, nodes)

    assert ended.read(str(tmp_path))[0].nodes == nodes


@pytest.mark.parametrize("target", ["elsewhere", "absent", GOOD])
def test_links_are_not_followed(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    put(tmp_path, "elsewhere")
    (folder / GOOD).symlink_to(tmp_path / target if target != GOOD else GOOD)

    assert ended.read(str(folder)) == []
    assert (folder / GOOD).is_symlink()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_folder_and_a_pipe_are_no_notes_and_cost_nothing(tmp_path: Path) -> None:
    """A pipe would be waited for for ever, and every look at a folder would cost a descriptor."""
    (tmp_path / GOOD).mkdir()
    os.mkfifo(tmp_path / "18.0123456789abcdef")
    before = open_files()

    for _ in range(20):
        assert ended.read(str(tmp_path)) == []

    assert open_files() == before


def test_a_bad_note_does_not_hide_a_good_one(tmp_path: Path) -> None:
    put(tmp_path, "16.0123456789abcdef", b"\xff")
    put(tmp_path)

    assert [note.job for note in ended.read(str(tmp_path))] == [17]
