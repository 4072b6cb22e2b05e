"""The requeue daemon: it releases as many as it is told, the least tried first, and says which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conf.errors import SecureSlurmError
from conf.site import Site
from slurm_hooks import requeued, wire
from slurm_hooks.requeued import PORTION, Held, Requeuer
from slurm_hooks.requeued import held as find

SQUEUE = """\
#!/bin/sh
cat <<'X'
1                0                0
2                1                4294901000
3                2                0
4                1                0
5                1                0
what is this
X
"""


def test_only_what_was_requeued_and_waits_at_priority_0_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "squeue"
    program.write_text(SQUEUE)
    program.chmod(0o755)
    comments = {
        3: "rec | waits try=2 restart=1: [x] y",
        4: "rec | twice try=2 restart=0: [x] y",
        5: "rec | waits try=0 restart=0: [x] y",
    }
    asked: list[int] = []

    def facts(_bin: str, job: int) -> dict[str, object]:
        asked.append(job)
        return {"admin_comment": comments[job]}

    monkeypatch.setattr(requeued.blame, "job_facts", facts)
    assert find(str(tmp_path)) == [Held(5, 0), Held(3, 2)]
    assert asked == [3, 4, 5]


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
        self.how = b"all"
        self.waiting: list[Held] = []
        self.asked: list[dict[str, Any]] = []
        self.fails: set[int] = set()
        self.foreign: set[int] = set()
        self.looked = 0
        monkeypatch.setattr(wire, "exchange", self._exchange)
        monkeypatch.setattr(requeued, "held", self._held)
        monkeypatch.setattr(requeued.blame, "release", self._release)
        self.requeuer = Requeuer(site)

    def _exchange(self, _path: str, request: dict[str, Any], *, timeout: float) -> Mapping[str, bytes]:
        assert timeout > 0
        self.asked.append(request)
        return {"verdict": b"allow", "may": self.how} if self.how else {"verdict": b"refuse"}

    def _held(self, _bin: str, _alive: object) -> list[Held]:
        self.looked += 1
        return self.waiting

    def _release(self, _bin: str, job: int) -> bool:
        if job in self.fails:
            raise SecureSlurmError("no")
        return job not in self.foreign


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, site: Site) -> World:
    return World(monkeypatch, site)


@pytest.mark.parametrize("how", [b"none", b"", b"everything"])
def test_without_a_word_nothing_is_released(world: World, how: bytes) -> None:
    world.how = how
    world.waiting = [Held(1, 0)]
    if how:
        assert world.requeuer.look() == []
    else:
        with pytest.raises(SecureSlurmError):
            world.requeuer.look()
    assert (world.looked, len(world.asked)) == (0, 1)


def test_one_to_try(world: World) -> None:
    world.how = b"one"
    world.waiting = [Held(job, 0) for job in (1, 2, 3, 4)]
    world.fails, world.foreign = {1}, {2}
    assert world.requeuer.look() == [3]
    assert world.asked[-1] == {"verb": "released", "jobs": "3", "left": "1"}


def test_all_in_portions(world: World) -> None:
    world.waiting = [Held(job, 0) for job in range(1, PORTION + 6)]
    assert world.requeuer.look() == list(range(1, PORTION + 1))
    assert world.asked[-1]["left"] == "5"


def test_none_is_told_too(world: World) -> None:
    assert world.requeuer.look() == []
    assert world.asked[-1] == {"verb": "released", "jobs": "", "left": "0"}


class TestSight:
    """What the lifecycle daemon asks beside."""

    @pytest.fixture
    def asked(self, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
        plain = world._exchange

        def exchange(path: str, request: dict[str, Any], *, timeout: float) -> Mapping[str, bytes]:
            return {**plain(path, request, timeout=timeout), "see": b"1" * 32, "what": b"jobs"}

        monkeypatch.setattr(wire, "exchange", exchange)
        return world

    def test_that_there_is_no_answer_is_one_and_keeps_nobody_waiting(self, asked: World) -> None:
        """There is no Slurm here."""
        asked.waiting = [Held(1, 0)]
        assert asked.requeuer.look() == [1]
        assert [request["verb"] for request in asked.asked] == ["may-release", "seen", "released"]
        assert set(asked.asked[1]) == {"verb", "see", "problem"}

    def test_an_answer(self, asked: World, monkeypatch: pytest.MonkeyPatch) -> None:
        told: dict[str, bytes | str] = {"cluster": "test", "boot": "1", "next_job": "7", "told": b"x"}
        monkeypatch.setattr(requeued.sight, "see", lambda _slurm, _what, _alive: told)
        asked.requeuer.look()
        assert asked.asked[1] == {"verb": "seen", "see": "1" * 32, **told}


def test_a_broken_site_file_ends_it(tmp_path: Path) -> None:
    assert requeued.main(["--config", str(tmp_path / "nothing.yaml")]) == 3
