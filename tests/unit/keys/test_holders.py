"""A look at one process that never ends: the search goes on after it, and names alone decide about it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keys.scratch import holders

Start = Callable[[Path], int]


@pytest.fixture
def processes() -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    started: dict[int, subprocess.Popen[bytes]] = {}
    yield started
    for each in started.values():
        each.kill()
        each.wait()


@pytest.fixture
def start(processes: dict[int, subprocess.Popen[bytes]]) -> Start:
    def run(cwd: Path) -> int:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=cwd)
        processes[child.pid] = child
        return child.pid

    return run


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., holders.Ended]:
    """A search in which some processes never answer, and others hold the file system; ``mine`` are the job's."""

    def run(stuck: set[int], holding: set[int], mine: set[int], below: Path) -> holders.Ended:
        def why(pid: int, _devices: set[int]) -> str:
            if pid in stuck:
                time.sleep(600)
            return "open file" if pid in holding else ""

        monkeypatch.setattr(holders, "_why", why)
        monkeypatch.setattr(holders, "_LOOK", 0.5)
        monkeypatch.setattr(holders, "_is_of", lambda pid, uid: uid == 1001 and pid in mine)
        return holders.end_holders({1}, 1001, copies=False, timeout=60, below=str(below))

    return run


def test_those_after_it_are_found(
    start: Start, search: Callable[..., holders.Ended], processes: dict[int, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    first, dead, last = (start(Path("/")) for _ in range(3))
    found = search({dead}, {first, last}, {first, dead, last}, tmp_path)
    assert sorted(int(line.split()[0]) for line in found.killed) == sorted([first, last])
    assert [processes[pid].wait(20) for pid in (first, last)] == [-9, -9]
    # nothing shows that it has anything to do with the scratch
    assert processes[dead].poll() is None
    assert [line for line in found.others if line.startswith(f"{dead} ")]
    assert not found.complete


def test_one_whose_names_say_that_it_holds_is_killed_if_it_is_the_jobs(
    start: Start, search: Callable[..., holders.Ended], processes: dict[int, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path.parent / f"{tmp_path.name}x").mkdir()
    mine, anothers, beside = start(tmp_path / "inner"), start(tmp_path), start(tmp_path.parent / f"{tmp_path.name}x")
    found = search({mine, anothers, beside}, set(), {mine, beside}, tmp_path)
    assert processes[mine].wait(20) == -9
    assert processes[anothers].poll() is None
    assert processes[beside].poll() is None
    assert [int(line.split()[0]) for line in found.killed] == [mine]
    assert any(f"has {tmp_path} open" in line for line in found.others if line.startswith(f"{anothers} "))


def test_a_process_that_is_stuck_for_ever_does_not_make_the_search_so(
    start: Start, search: Callable[..., holders.Ended], tmp_path: Path
) -> None:
    dead = {start(Path("/")) for _ in range(4)}
    found = search(dead, set(), set(), tmp_path)
    assert {int(line.split()[0]) for line in found.others} == dead
