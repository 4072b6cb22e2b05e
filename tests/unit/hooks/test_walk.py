"""Where paths lead on a real file system: links, patterns, what does not exist, what a user may make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm_hooks import walk as module
from slurm_hooks.hookenv import HookJob, read_job
from slurm_hooks.walk import Unresolved, walk

JOB = read_job({"SLURM_JOB_ID": "17", "SLURM_JOB_USER": "alice"})


@pytest.fixture
def phi(tmp_path: Path) -> Path:
    """A folder that is allowed, beside one that is not."""
    (tmp_path / "phi" / "alice").mkdir(parents=True)
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "file").write_text("")
    return tmp_path / "phi"


def led(path: Path | str, job: HookJob = JOB, *, folder: bool = False) -> set[str]:
    return set(walk(str(path), job, folder=folder))


@pytest.mark.parametrize(
    "path",
    ["", "out.txt", "./x", "/a/../b", "/..", "/a\\b", "/no/such/folder/x", "/etc/passwd/x", "/a\0b", "/%x/none/x"],
)
def test_what_cannot_be_told_is_refused(path: str) -> None:
    with pytest.raises((Unresolved, OSError, ValueError)):
        walk(path, JOB)


@pytest.mark.parametrize("path", ["", "x", "/no/such/folder", "/etc/passwd", "/etc/../etc"])
def test_a_folder_must_be_there(path: str) -> None:
    with pytest.raises((Unresolved, OSError)):
        walk(path, JOB, folder=True)


def test_a_new_file_is_where_its_folder_is(phi: Path) -> None:
    assert led(phi / "alice" / "new.txt") == {str(phi / "alice" / "new.txt")}
    (phi / "way").symlink_to(phi.parent / "open")
    assert led(phi / "way" / "new.txt") == {str(phi.parent / "open" / "new.txt")}
    with pytest.raises(FileNotFoundError):
        led(phi / "none" / "new.txt")


def test_links_are_followed_to_their_end(phi: Path) -> None:
    (phi / "a").symlink_to("b")
    (phi / "b").symlink_to("../open/file")
    assert led(phi / "a") == {str(phi.parent / "open" / "file")}
    assert led(f"{phi}//.//a") == {str(phi.parent / "open" / "file")}
    assert led(phi / "alice", folder=True) == {str(phi / "alice")}
    (phi / "c").symlink_to(phi.parent / "open")
    assert led(phi / "c", folder=True) == {str(phi.parent / "open")}


def test_a_link_to_a_file_that_is_not_there_yet_leads_to_where_it_would_be_made(phi: Path) -> None:
    (phi / "a").symlink_to("../open/new")
    assert led(phi / "a") == {str(phi.parent / "open" / "new")}
    (phi / "b").symlink_to("a")
    assert led(phi / "b") == {str(phi.parent / "open" / "new")}
    (phi / "c").symlink_to("../none/new")
    with pytest.raises(OSError, match="No such file"):
        led(phi / "c")


def test_a_circle_of_links_ends(phi: Path) -> None:
    (phi / "a").symlink_to("b")
    (phi / "b").symlink_to("a")
    with pytest.raises((OSError, Unresolved)):
        led(phi / "a")
    (phi / "c").symlink_to("c/d")
    with pytest.raises((OSError, Unresolved)):
        led(phi / "c")


def test_the_jobs_own_number_and_user_are_known(phi: Path) -> None:
    (phi / "o-17.txt").symlink_to("../open/file")
    assert led(phi / "o-%j.txt") == {str(phi.parent / "open" / "file")}
    assert led(phi / "%u" / "x") == {str(phi / "alice" / "x")}
    assert led(phi / "100%%") == {str(phi / "100%")}
    (phi / "alice" / "o-18.txt").symlink_to("../../open/file")
    assert led(phi / "%u" / "o-%j.txt") == {str(phi / "alice" / "o-17.txt")}


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("o-%5j", "o-00017", True),
        ("o-%5j", "o-00018", False),
        ("o-%a", "o-3", True),
        ("o-%A_%a", "o-12_3", True),
        ("o-%a", "o-x", False),
        ("o-%x", "o-anything at all", True),
        ("o-%N", "o-n1.example", True),
        ("o-%J", "o-17.batch", True),
        ("o-%q", "o-what", True),
        ("o-%x%", "o-what", True),
        ("o.%a", "ox3", False),
        ("%u-%t", "alice-0", True),
        ("%u-%t", "bob-0", False),
    ],
)
def test_a_name_that_a_pattern_may_become_is_looked_at(phi: Path, pattern: str, name: str, fits: bool) -> None:
    (phi / name).symlink_to("../open/file")
    outside = str(phi.parent / "open" / "file")
    found = led(phi / pattern)
    assert (outside in found) is fits
    # and where a new one would be
    assert str(phi / "%") in found


def test_a_pattern_in_a_folders_name(phi: Path) -> None:
    with pytest.raises(Unresolved, match="no directory fits"):
        led(phi / "%x" / "none" / "%j.out")
    (phi / "run-1").mkdir()
    (phi / "run-2").symlink_to("../open")
    (phi / "run-3").write_text("")
    (phi / "run-4").symlink_to("nowhere")
    assert led(phi / "run-%a" / "%j.out") == {str(phi / "run-1" / "17.out"), str(phi.parent / "open" / "17.out")}


def test_a_pattern_means_nothing_in_a_folder(phi: Path) -> None:
    (phi / "%j").mkdir()
    assert led(phi / "%j", folder=True) == {str(phi / "%j")}


def test_a_file_without_links_beside_many_is_found_and_too_many_are_refused(
    phi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (phi / f"o-{number}").write_text("")
    assert led(phi / "o-%a") == {str(phi / "%")}
    monkeypatch.setattr(module, "MAX_LOOKED_AT", 10)
    with pytest.raises(Unresolved, match="too many"):
        led(phi / "o-%a")


def test_where_the_kernel_goes_another_way_than_the_links_say(phi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does at /proc/PID/root of a process in a mount namespace of its own."""
    (phi / "elsewhere").mkdir()
    real = module.os.path.realpath

    def by_text(path: str, *, strict: bool = False) -> str:
        return str(phi / "elsewhere") if path.endswith("/away") else str(real(path, strict=strict))

    (phi / "away").mkdir()
    monkeypatch.setattr(module.os.path, "realpath", by_text)
    with pytest.raises(Unresolved, match="own file systems"):
        walk(f"{phi}/away/file", JOB)
    with pytest.raises(Unresolved):
        walk(f"{phi}/away", JOB, folder=True)
