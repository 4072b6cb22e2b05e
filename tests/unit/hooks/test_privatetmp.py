"""What the InitScript refuses to touch, and how its inverse takes away no more than it made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf.errors import InternalError
from keys.scratch import crypt
from slurm_hooks import privatetmp, taskfile

GRANT = {"class": "phi", "residency": "", "datasets": "", "scratch": "1"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What Slurm's plugin leaves of job 17 when our mount was in its way."""
    place = tmp_path / "base" / "17" / ".17"
    place.mkdir(parents=True)
    (place.parent / ".ns").touch()
    return place


def note(run_dir: Path, job: int, text: str) -> Path:
    (run_dir / "private").mkdir(mode=0o700, exist_ok=True)
    (run_dir / "private" / str(job)).write_text(text)
    return run_dir / "private" / str(job)


@pytest.mark.parametrize(
    "text",
    ["", "/", "/.17", "/17/.17", "base/17/.17", "/base/18/.18", "/base/17/.18", "/base/17/17", "/base/../17/.17",
     "/base/17/.17/", "/base//17/.17", "/base/117/.17"],
)  # fmt: skip
def test_a_place_that_is_none_of_slurms_is_refused(
    text: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mapping = crypt.Mapping("secure-n1-17", "", "dm-0", 1, 1, suspended=False)
    monkeypatch.setattr(crypt, "find", lambda _: mapping)
    config: dict[str, Any] = {
        "node": {"run_dir": str(run_dir)},
        "scratch": {"backing": "file", "directory": "/x", "mount_root": str(tmp_path / "mnt")},
    }
    with pytest.raises(InternalError, match="no place"):
        privatetmp.bind(config, "n1", 17, text)
    assert not (run_dir / "private").exists()
    note(run_dir, 17, text)
    with pytest.raises(InternalError):
        privatetmp.release(str(run_dir), 17)


def test_without_scratch_nothing_is_bound(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crypt, "find", lambda _: None)
    config: dict[str, Any] = {
        "node": {"run_dir": str(run_dir)},
        "scratch": {"backing": "file", "directory": "/x", "mount_root": "/mnt"},
    }
    with pytest.raises(InternalError, match="no mapping secure-n1-17"):
        privatetmp.bind(config, "n1", 17, "/base/17/.17")


def test_what_was_made_is_taken_away_once(run_dir: Path, place: Path) -> None:
    written = note(run_dir, 17, str(place))
    assert privatetmp.jobs(str(run_dir)) == [17]
    assert privatetmp.release(str(run_dir), 17)
    assert not place.parent.exists()
    assert place.parents[1].is_dir()
    assert not written.exists()
    assert not privatetmp.release(str(run_dir), 17)
    assert privatetmp.jobs(str(run_dir)) == []


def test_what_slurm_took_away_itself_is_no_error(run_dir: Path, place: Path) -> None:
    note(run_dir, 17, str(place))
    (place.parent / ".ns").unlink()
    place.rmdir()
    assert privatetmp.release(str(run_dir), 17)
    note(run_dir, 17, str(place))
    assert privatetmp.release(str(run_dir), 17)
    note(run_dir, 17, str(place))
    place.parents[1].rmdir()
    assert privatetmp.release(str(run_dir), 17)


def test_what_is_not_slurms_stays_and_is_told(run_dir: Path, place: Path) -> None:
    (place / "data").write_text("x")
    note(run_dir, 17, str(place))
    with pytest.raises(OSError, match="not empty"):
        privatetmp.release(str(run_dir), 17)
    assert (place / "data").exists()
    assert privatetmp.jobs(str(run_dir)) == [17]


def test_a_link_on_the_way_is_not_followed(run_dir: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place.parents[1])
    note(run_dir, 17, f"{tmp_path}/link/17/.17")
    with pytest.raises(InternalError, match="link"):
        privatetmp.release(str(run_dir), 17)
    assert place.is_dir()


class TestWithTheTaskFile:
    """Epilog, reaper and ``node clean`` take both away by one call."""

    def test_together(self, run_dir: Path, place: Path) -> None:
        taskfile.write(str(run_dir), 17, GRANT, "/secure-scratch/17")
        note(run_dir, 17, str(place))
        note(run_dir, 18, "/base/18/.18")
        assert taskfile.jobs(str(run_dir)) == [17, 18]
        assert taskfile.remove(str(run_dir), 17)
        assert not place.parent.exists()
        assert taskfile.jobs(str(run_dir)) == [18]
        assert taskfile.remove(str(run_dir), 18)
        assert not taskfile.remove(str(run_dir), 18)

    def test_a_place_that_stays_stops_nothing_and_is_found_again(
        self, run_dir: Path, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        taskfile.write(str(run_dir), 17, GRANT, "/secure-scratch/17")
        (place / "data").write_text("x")
        note(run_dir, 17, str(place))
        assert taskfile.remove(str(run_dir), 17)
        assert "the place of its /tmp is not gone" in capsys.readouterr().err
        assert taskfile.jobs(str(run_dir)) == [17]
