"""What the daemons make of the folder: what counts, and what the trail says, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from audit.chain import AuditError, Chain
from audit.verify import verify
from slurm_hooks import breakglass_live
from slurm_hooks.breakglass_dir import Odd
from slurm_hooks.breakglass_live import Accounts, BreakGlass, Trail
from slurm_hooks.breakglass_papers import Paper
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot
from tests.unit.glass.conftest import (
    HOUR,
    NOW,
    Everybody,
    approval_paper,
    end_paper,
    make_members,
    make_policy,
    request_paper,
)

POLICY, MEMBERS = make_policy(), make_members()


class Names(Everybody):
    def forget(self, now: float) -> None: ...


class Folder:
    """In the place of the box: files of whatever owner."""

    def __init__(self) -> None:
        self.papers: dict[str, dict[str, Paper]] = {}
        self.odd: tuple[Odd, ...] = ()
        self.problem = ""

    def poll(self) -> bool:
        return True


class World:
    def __init__(self, audit: Path) -> None:
        self.audit = audit
        audit.mkdir(mode=0o750)
        self.folder = Folder()
        self.glass = self.restarted()

    def restarted(self, *, told: bool = True) -> BreakGlass:
        trail = Trail(Chain(self.audit, "break-glass", "head")) if told else None
        glass = BreakGlass("/nowhere", trail)
        glass._box = self.folder  # type: ignore[assignment]
        glass._accounts = Names()  # type: ignore[assignment]
        self.glass = glass
        return glass

    def look(self, now: float = NOW, **more: Any) -> list[str]:
        """Look, and return the ids that count."""
        self.glass.look(**{"policy": POLICY, "members": MEMBERS, "now": now, **more})
        return [each.id for each in self.glass.exemptions if each.holds(now)]

    def put(self, *kinds: str, name: str = "g1") -> None:
        asked = request_paper(id=name)
        papers = {"request": asked, "approval": approval_paper(asked, name=name), "end": end_paper(12)}
        self.folder.papers[name] = {kind: papers[kind] for kind in kinds}

    def trail(self) -> list[dict[str, Any]]:
        path = self.audit / "head-break-glass.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def told(self) -> list[str]:
        return [line["event"].removeprefix("glass.") for line in self.trail()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "audit")


def test_a_whole_life(world: World) -> None:
    assert world.look() == []
    assert world.told() == []
    world.put("request")
    assert world.look() == []
    assert world.look() == []
    assert world.told() == ["requested"]
    world.put("request", "approval")
    assert world.look() == ["g1"]
    assert world.look() == ["g1"]
    world.put("request", "approval", "end")
    assert world.look() == []
    assert world.look() == []
    assert world.told() == ["requested", "approved", "ended"]

    asked, approved, end = world.trail()
    assert (asked["exemption"], asked["uid"], asked["submit_uid"], asked["role"]) == ("g1", 13, 11, "phi-eu")
    assert (asked["reason"], asked["until"]) == ("the ward waits", int(NOW) + HOUR)
    assert (approved["submit_uid"], approved["reason"]) == (12, "checked by telephone")
    assert (end["submit_uid"], end["rule"], end["reason"]) == (12, "glass.end", "no more needed")
    assert asked["digest"] == approved["digest"] == end["digest"]
    assert verify([world.audit]).whole


def test_all_in_one_look(world: World) -> None:
    world.put("request", "approval")
    assert world.look() == ["g1"]
    assert world.told() == ["requested", "approved"]
    world.put("request", "approval", "end", name="g2")
    world.look()
    assert world.told() == ["requested", "approved", "requested", "ended"]


def test_its_time_is_over(world: World) -> None:
    world.put("request", "approval")
    world.look()
    assert world.look(NOW + HOUR) == []
    assert world.look(NOW + HOUR + 1) == []
    assert world.told() == ["requested", "approved", "ended"]
    assert world.trail()[-1]["rule"] == "glass.over"
    # it is told of in a refusal
    assert [each.ended for each in world.glass.exemptions] == [True]


def test_a_restart_tells_nothing_twice(world: World) -> None:
    world.put("request", "approval")
    world.folder.odd = (Odd("junk\n", 99, "is none of the files that belong here"),)
    world.look()
    before = world.told()
    assert before == ["requested", "approved", "refused"]
    for path in world.audit.glob("*.jsonl"):
        path.rename(f"{path}.1")
    world.restarted()
    assert world.look() == ["g1"]
    assert world.told() == []
    del world.folder.papers["g1"]
    assert world.look() == []
    assert world.told() == ["ended"]
    assert world.trail()[0]["rule"] == "glass.request"


@pytest.mark.parametrize("kinds", [("request",), ("request", "approval")])
def test_a_request_that_is_taken_away(world: World, kinds: tuple[str, ...]) -> None:
    world.put(*kinds)
    world.look()
    world.folder.papers.clear()
    assert world.look() == []
    world.look()
    assert world.told()[-1] == "ended"
    assert world.told().count("ended") == 1


def test_an_approval_that_is_taken_back(world: World) -> None:
    world.put("request", "approval")
    world.look()
    world.put("request")
    assert world.look() == []
    assert world.told() == ["requested", "approved", "ended"]
    world.put("request", "approval")
    assert world.look() == ["g1"]
    assert world.told() == ["requested", "approved", "ended", "approved"]


def test_a_request_that_is_changed_after_its_approval(world: World) -> None:
    world.put("request", "approval")
    world.look()
    world.folder.papers["g1"]["request"] = request_paper(until=int(NOW) + 2 * HOUR)
    assert world.look() == []
    world.look()
    assert world.told() == ["requested", "approved", "ended", "refused"]
    assert [line["rule"] for line in world.trail()[2:]] == ["glass.digest", "glass.digest"]


def test_who_leaves_the_group_takes_it_along(world: World) -> None:
    world.put("request", "approval")
    world.look()
    left = Snapshot(NOW, "test", {dn: Group("x", frozenset()) for dn in MEMBERS.groups})
    assert world.look(members=left) == []
    assert world.told() == ["requested", "approved", "ended"]
    assert world.trail()[-1]["rule"] == "glass.requester"


def test_a_refused_one_is_told_once(world: World) -> None:
    world.folder.papers["g1"] = {"request": request_paper(13)}
    world.look()
    world.look()
    world.restarted()
    world.look()
    (line,) = world.trail()
    assert (line["event"], line["rule"], line["submit_uid"], line["exemption"]) == (
        "glass.refused",
        "glass.requester",
        13,
        "g1",
    )


def test_who_asked_is_told_as_who_asked(world: World) -> None:
    """Also when the approval is there at the first look."""
    world.put("request", "approval")
    world.look()
    assert [line["submit_uid"] for line in world.trail()] == [11, 12]


def test_without_members_nothing_counts_and_nothing_is_said(world: World) -> None:
    world.put("request", "approval")
    assert world.look(members=None) == []
    assert world.told() == []
    assert world.look() == ["g1"]
    assert world.look(members=None) == []
    assert world.look() == ["g1"]
    assert world.told() == ["requested", "approved"]


def test_a_folder_that_cannot_be_read(world: World) -> None:
    world.put("request", "approval")
    world.look()
    world.folder.problem, world.folder.papers = "too many", {}
    assert world.look() == []
    assert world.told() == ["requested", "approved"]


def test_what_the_trail_does_not_know_does_not_count(world: World, mocker: MockerFixture) -> None:
    world.put("request", "approval")
    stuck = mocker.patch("audit.chain.Chain.append", side_effect=AuditError("no space"))
    assert world.look() == []
    mocker.stop(stuck)
    assert world.look() == ["g1"]
    assert world.told() == ["requested", "approved"]


def test_a_trail_that_cannot_be_read(world: World, mocker: MockerFixture) -> None:
    world.put("request", "approval")
    stuck = mocker.patch.object(Path, "iterdir", side_effect=PermissionError(13, "no"))
    assert world.look() == []
    mocker.stop(stuck)
    assert world.look() == ["g1"]


def test_the_daemon_that_keeps_no_trail(world: World) -> None:
    world.put("request", "approval")
    world.restarted(told=False)
    assert world.look() == ["g1"]
    assert world.told() == []


def test_a_look_that_fails_leaves_nothing_in_force(world: World, mocker: MockerFixture) -> None:
    world.put("request", "approval")
    assert world.look() == ["g1"]
    for what in ("Folder.poll", "Names.name_of"):
        stuck = mocker.patch(f"{__name__}.{what}", side_effect=OSError(5, "Input/output error"))
        assert world.look() == []
        assert world.glass.current() == ()
        mocker.stop(stuck)
        assert world.look() == ["g1"]
    assert world.told() == ["requested", "approved"]


def test_a_look_that_hangs_counts_no_more_after_a_while(world: World, mocker: MockerFixture) -> None:
    world.put("request", "approval")
    world.look()
    assert len(world.glass.current()) == 1
    later = breakglass_live.time.monotonic() + breakglass_live.HOLDS + 1
    mocker.patch("slurm_hooks.breakglass_live.time.monotonic", return_value=later)
    assert world.glass.current() == ()


def test_a_flood_is_told_slowly(world: World) -> None:
    world.folder.odd = tuple(Odd(f"junk{number}", 99, "is none") for number in range(200))
    for number in range(200):
        world.folder.papers[f"a{number}"] = {"request": request_paper(13, id=f"a{number}")}
    world.put("request", "approval")
    # what counts comes first
    assert world.look() == ["g1"]
    assert world.told()[:2] == ["requested", "approved"]
    assert len(world.trail()) == breakglass_live.MAX_NEWS
    world.put("request", "approval", "end")
    world.look()
    assert world.told()[breakglass_live.MAX_NEWS] == "ended"
    # only lines that are written are counted: in the end all is told, once
    for _ in range(10):
        world.look()
    assert len(world.trail()) == 403


def test_a_stuck_trail_is_not_tried_for_every_line(world: World, mocker: MockerFixture) -> None:
    for number in range(20):
        world.folder.papers[f"a{number}"] = {"request": request_paper(13, id=f"a{number}")}
    stuck = mocker.patch("audit.chain.Chain.append", side_effect=AuditError("no space"))
    world.look()
    assert stuck.call_count == 1


def test_an_old_grant_that_is_cleared_away_is_no_news(world: World) -> None:
    world.put("request", "approval", "end")
    world.look()
    before = world.told()
    for kinds in (("request", "end"), ("end",), ()):
        world.put(*kinds)
        if not kinds:
            world.folder.papers.clear()
        assert world.look() == []
    assert world.told() == before


def test_a_hostile_line_in_the_trail_harms_nobody(world: World) -> None:
    (world.audit / "head-break-glass.jsonl.1").write_bytes(
        b"[]\n\xff\n" + b"[" * 9000 + b'\n{"seq":"x","exemption":5}\n'
    )
    world.put("request", "approval")
    assert world.look() == ["g1"]


def test_the_name_service() -> None:
    accounts = Accounts()
    assert accounts.name_of(0) == "root"
    assert accounts.uid_of("root") == 0
    assert accounts.name_of(2**31 + 77) is None
    assert accounts.uid_of("no-such-user-here") is None
    assert accounts.uid_of("\0") is None
    accounts.forget(NOW)
    assert accounts.name_of(0) == "root"
