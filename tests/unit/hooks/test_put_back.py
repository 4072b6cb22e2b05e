"""Sending a job back that is not to blame, and releasing what an outage held; programs in the place of Slurm's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import SecureSlurmError
from slurm_hooks import tries
from slurm_hooks.blame import drain, note, put_back, release
from tests.unit.hooks.test_blame import RECORD, Slurm

WHY = "[backend.unavailable] Vault is away"


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def knows(slurm: Slurm, behind: str = "", restarts: int = 0, **more: Any) -> None:
    comment = f"{RECORD} | {behind}" if behind else RECORD
    count = {"set": True, "infinite": False, "number": restarts}
    slurm.knows({"job_id": 17, "admin_comment": comment, "restart_cnt": count, "job_state": ["RUNNING"], **more})


def last(slurm: Slurm) -> list[str]:
    return slurm.calls()[-1]


def test_the_first_time_it_is_requeued(slurm: Slurm) -> None:
    knows(slurm)
    assert put_back(slurm.bin, 17, WHY) == "requeued"
    assert slurm.comment() == f"{RECORD} | requeued try=1 restart=0: {WHY}"
    assert last(slurm) == ["scontrol", "requeue", "17"]


@pytest.mark.parametrize(("outage", "word"), [(False, tries.TWICE), (True, tries.WAITS)])
def test_the_second_time_in_a_row_it_is_held(slurm: Slurm, outage: bool, word: str) -> None:
    knows(slurm, f"requeued try=1 restart=4: {WHY}", 5)
    assert put_back(slurm.bin, 17, WHY, outage=outage) == "held"
    assert slurm.comment() == f"{RECORD} | {word} try=2 restart=5: {WHY}"
    assert last(slurm) == ["scontrol", "requeuehold", "17"]


def test_what_was_not_tried_waits_and_nothing_is_counted(slurm: Slurm) -> None:
    knows(slurm, f"requeued try=1 restart=4: {WHY}", 5)
    assert put_back(slurm.bin, 17, WHY, tried=False, outage=True) == "held"
    assert slurm.comment() == f"{RECORD} | waits try=1 restart=5: {WHY}"


def test_a_count_that_cannot_be_written_holds_it_or_it_would_loop(slurm: Slurm) -> None:
    knows(slurm)
    slurm.fails("update")
    assert put_back(slurm.bin, 17, WHY) == "held"
    assert last(slurm) == ["scontrol", "requeuehold", "17"]


def test_a_job_that_slurmctld_does_not_tell_of_is_held(slurm: Slurm) -> None:
    slurm.answers(b"{}")
    assert put_back(slurm.bin, 17, WHY) == "held"
    assert slurm.comment() is None


@pytest.mark.parametrize("states", [["PENDING"], ["CANCELLED", "COMPLETING"], ["RUNNING", "COMPLETING"]])
def test_what_another_node_has_put_back_already_is_left_alone(slurm: Slurm, states: list[str]) -> None:
    knows(slurm, job_state=states)
    assert put_back(slurm.bin, 17, WHY) == "over"
    assert len(slurm.calls()) == 1


def test_what_may_not_be_requeued_is_cancelled(slurm: Slurm) -> None:
    knows(slurm)
    slurm.fails("scontrol")
    assert put_back(slurm.bin, 17, WHY) == "cancelled"
    assert last(slurm) == ["scancel", "17"]
    slurm.fails("scancel")
    with pytest.raises(SecureSlurmError):
        put_back(slurm.bin, 17, WHY)


def test_two_nodes_of_a_job_count_one_start_once(slurm: Slurm) -> None:
    # the other has written its mark, and is about to requeue
    knows(slurm, f"requeued try=1 restart=5: {WHY}", 5)
    assert put_back(slurm.bin, 17, WHY) == "requeued"
    assert slurm.comment() is None
    knows(slurm, f"twice try=2 restart=5: {WHY}", 5)
    assert put_back(slurm.bin, 17, WHY, outage=True) == "held"
    assert slurm.comment() is None


def test_what_another_node_puts_back_at_the_same_moment_is_not_cancelled(slurm: Slurm) -> None:
    knows(slurm)
    scontrol = slurm.folder / "bin" / "scontrol"
    over = json.dumps({"jobs": [{"job_id": 17, "job_state": ["PENDING"]}]})
    # slurmctld refuses the requeue, for by then it has been done
    (slurm.folder / "later").write_text(over)
    text = scontrol.read_text()
    change = f"case \"$1\" in requeue) mv '{slurm.folder}/later' '{slurm.folder}/answer'; exit 1 ;; esac\n"
    scontrol.write_text(text + change)
    assert put_back(slurm.bin, 17, WHY) == "over"
    assert "scancel" not in [call[0] for call in slurm.calls()]


def test_of_an_array_only_the_task(slurm: Slurm) -> None:
    knows(slurm, array_job_id=12, array_task_id=3)
    assert put_back(slurm.bin, 17, WHY) == "requeued"
    assert last(slurm) == ["scontrol", "requeue", "12_3"]


def test_a_note_counts_nothing_and_keeps_what_was_counted(slurm: Slurm) -> None:
    knows(slurm, f"requeued try=1 restart=4: {WHY}", 5)
    note(slurm.bin, 17, WHY)
    assert slurm.comment() == f"{RECORD} | waiting try=1 restart=5: {WHY}"
    assert all(call[1] in ("update", "--json") for call in slurm.calls())


HELD = {"job_state": ["PENDING"], "state_reason": "JobHeldUser", "state_description": "job requeued in held state"}
MARK = f"waits try=2 restart=1: {WHY}"


def test_what_an_outage_holds_is_released(slurm: Slurm) -> None:
    knows(slurm, MARK, 2, **HELD)
    assert release(slurm.bin, 17)
    # afterwards it is no longer the outage that holds it, whoever does
    assert slurm.calls()[1:] == [
        ["scontrol", "release", "17"],
        ["scontrol", "update", "JobId=17", f"AdminComment={RECORD} | requeued try=2 restart=1: {WHY}"],
    ]


@pytest.mark.parametrize(
    ("mark", "restarts", "more"),
    [
        ("", 2, {}),
        ("[rbac.role] no role", 2, {}),
        (f"[path.output] {MARK}", 2, {}),
        (MARK.replace("waits", "twice"), 2, {}),
        (MARK.replace("waits", "requeued"), 2, {}),
        (MARK.replace("waits", "waiting"), 2, {}),
        # it has started since, or never ended
        (MARK, 3, {}),
        (MARK, 1, {}),
        # an admin has held it since; it was released, and held by its user
        (MARK, 2, {"state_reason": "JobHeldAdmin"}),
        (MARK, 2, {"state_description": ""}),
        (MARK, 2, {"state_reason": "BeginTime"}),
        (MARK, 2, {"job_state": ["RUNNING"]}),
        (MARK, 2, {"job_state": []}),
    ],
)
def test_what_anybody_else_holds_is_never_released(
    slurm: Slurm, mark: str, restarts: int, more: dict[str, object]
) -> None:
    knows(slurm, mark, restarts, **(HELD | more))
    assert not release(slurm.bin, 17)
    assert len(slurm.calls()) == 1


def test_a_release_that_fails_is_told(slurm: Slurm) -> None:
    knows(slurm, MARK, 2, **HELD)
    slurm.fails("scontrol")
    with pytest.raises(SecureSlurmError):
        release(slurm.bin, 17)


def test_a_node_is_drained_with_its_reason(slurm: Slurm) -> None:
    drain(slurm.bin, "n1", "[node.broken] no dm-crypt\nhere")
    assert last(slurm) == [
        *("scontrol", "update", "NodeName=n1", "State=DRAIN"),
        "Reason=secure-slurm: [node.broken] no dm-crypt?here",
    ]
