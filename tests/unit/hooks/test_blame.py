"""Holding a job without draining a node, with programs in the place of scontrol and scancel."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conf.errors import SecureSlurmError
from slurm_hooks import blame
from slurm_hooks.blame import hold, job_facts

RECORD = "secure-slurm/1 cluster=test uid=1001 mac=00"

SCRIPT = """\
#!/bin/sh
# {name}: notes its arguments, one a line, and does what the test wrote beside it
for word in {name} "$@"; do printf '%s\\n' "$word"; done >> '{folder}/calls'
echo -- >> '{folder}/calls'
case "$*" in *show*) cat '{folder}/answer' 2>/dev/null; exit ;; esac
for verb in requeuehold update; do
  case "$1" in "$verb") [ ! -e '{folder}/'"$verb.fails" ]; exit ;; esac
done
[ ! -e '{folder}/{name}.fails' ]
"""


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = str(folder / "bin")
        (folder / "bin").mkdir(mode=0o755)
        for name in ("scontrol", "scancel"):
            program = folder / "bin" / name
            program.write_text(SCRIPT.format(name=name, folder=folder))
            program.chmod(0o755)
        self.knows({"job_id": 17, "admin_comment": RECORD})

    def knows(self, *jobs: dict[str, Any]) -> None:
        self.answers(json.dumps({"jobs": jobs}).encode())

    def answers(self, content: bytes) -> None:
        (self.folder / "answer").write_bytes(content)

    def fails(self, what: str) -> None:
        (self.folder / f"{what}.fails").touch()

    def calls(self) -> list[list[str]]:
        text = (self.folder / "calls").read_text()
        return [call.splitlines() for call in text.split("--\n") if call]

    def comment(self) -> str | None:
        for call in self.calls():
            if call[1] == "update":
                assert call[2] == "JobId=17"
                assert len(call) == 4
                return call[3].removeprefix("AdminComment=")
        return None


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def test_a_job_is_held_with_its_reason_behind_its_record(slurm: Slurm) -> None:
    assert hold(slurm.bin, 17, "[rbac.role] no role") == "held"
    assert slurm.comment() == f"{RECORD} | [rbac.role] no role"
    assert slurm.calls()[-1] == ["scontrol", "requeuehold", "17"]


def test_an_earlier_reason_is_replaced(slurm: Slurm) -> None:
    slurm.knows({"job_id": 17, "admin_comment": f"{RECORD} | an old reason | and more"})

    hold(slurm.bin, 17, "a new one")

    assert slurm.comment() == f"{RECORD} | a new one"


@pytest.mark.parametrize("comment", [None, "", 7, ["x"]])
def test_without_a_record_there_is_the_reason_alone(slurm: Slurm, comment: object) -> None:
    slurm.knows({"job_id": 17, "admin_comment": comment})

    assert hold(slurm.bin, 17, "why") == "held"
    assert slurm.comment() == "why"


def test_what_may_not_be_requeued_is_cancelled(slurm: Slurm) -> None:
    slurm.fails("requeuehold")

    assert hold(slurm.bin, 17, "why") == "cancelled"
    assert slurm.calls()[-1] == ["scancel", "17"]


@pytest.mark.parametrize("states", [["PENDING"], ["RUNNING", "COMPLETING"], ["PENDING", "REQUEUE_HOLD"]])
def test_what_another_node_has_sent_back_meanwhile_is_not_cancelled(slurm: Slurm, states: list[str]) -> None:
    """Both Prologs of a job looked while it ran; the other one was first, and Slurm refuses the second requeuehold."""
    slurm.fails("requeuehold")
    slurm.knows({"job_id": 17, "admin_comment": RECORD, "job_state": ["RUNNING"]})
    script = (slurm.folder / "bin/scontrol").read_text()
    later = json.dumps({"jobs": [{"job_id": 17, "admin_comment": RECORD, "job_state": states}]})
    (slurm.folder / "later").write_text(later)
    act = f"case \"$1\" in requeuehold) cp '{slurm.folder}/later' '{slurm.folder}/answer';; esac\n"
    (slurm.folder / "bin/scontrol").write_text(script.replace('case "$*" in *show*', act + 'case "$*" in *show*'))

    assert hold(slurm.bin, 17, "why") == "over"
    assert "scancel" not in [call[0] for call in slurm.calls()]


def _number(value: int | None) -> dict[str, Any]:
    return {"set": value is not None, "infinite": False, "number": value or 0}


@pytest.mark.parametrize(
    ("array", "task", "name"),
    [
        (_number(17), _number(3), "17_3"),
        (_number(17), _number(0), "17_0"),
        (17, 3, "17_3"),
        # no array; on 24.11 its id is then 0
        (_number(0), _number(None), "17"),
        (_number(17), _number(None), "17"),
        (_number(0), _number(0), "17"),
        ("17", "3", "17"),
    ],
)
def test_of_an_array_only_the_task_is_meant(slurm: Slurm, array: object, task: object, name: str) -> None:
    other = {"job_id": 18, "array_job_id": array, "array_task_id": _number(4)}
    slurm.knows({"job_id": 17, "admin_comment": RECORD, "array_job_id": array, "array_task_id": task}, other)
    slurm.fails("requeuehold")

    assert hold(slurm.bin, 17, "why") == "cancelled"
    assert [call[:3] for call in slurm.calls()[1:]] == [
        ["scontrol", "update", f"JobId={name}"],
        ["scontrol", "requeuehold", name],
        ["scontrol", "--json", "show"],
        ["scancel", name],
    ]


def test_an_array_of_a_thousand_tasks_is_not_too_much_to_read(slurm: Slurm) -> None:
    slurm.knows(*({"job_id": job, "text": "x" * 8000} for job in range(1, 1001)))

    assert job_facts(slurm.bin, 17)["job_id"] == 17


def test_when_both_fail_the_caller_learns_it(slurm: Slurm) -> None:
    slurm.fails("requeuehold")
    slurm.fails("scancel")

    with pytest.raises(SecureSlurmError, match="scancel"):
        hold(slurm.bin, 17, "why")


@pytest.mark.parametrize("missing", ["scontrol", "scancel"])
def test_a_missing_program_is_one_that_fails(slurm: Slurm, missing: str) -> None:
    (slurm.folder / "bin" / missing).unlink()
    if missing == "scancel":
        slurm.fails("requeuehold")
        with pytest.raises(SecureSlurmError, match="scancel"):
            hold(slurm.bin, 17, "why")
    else:
        assert hold(slurm.bin, 17, "why") == "cancelled"


def test_a_hanging_controller_does_not_hang_the_hook(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blame, "SCONTROL_TIMEOUT", 0.2)
    (slurm.folder / "bin" / "scontrol").write_text("#!/bin/sh\nexec sleep 600\n")

    assert hold(slurm.bin, 17, "why") == "cancelled"


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"no JSON", b"[]", b"{}", b'{"jobs": null}', b'{"jobs": 7}', b'{"jobs": []}', b'{"jobs": [null, 17]}'),
        *(
            b'{"jobs": [{"job_id": 18}]}',
            b'{"jobs": [{"job_id": "17"}]}',
            b'{"jobs": [{"job_id": 17}, {"job_id": 17}]}',
        ),
        *(b'{"jobs": [{"job_id": 17, "name": "\xff"}]}', b'{"jobs": {"job_id": 17}}', b"\x00" * 5_000_000),
    ],
    ids=lambda answer: repr(answer[:40]),
)
def test_an_answer_that_is_none_is_no_job_but_holds_it_all_the_same(slurm: Slurm, answer: bytes) -> None:
    slurm.answers(answer)

    with pytest.raises(SecureSlurmError):
        job_facts(slurm.bin, 17)
    assert hold(slurm.bin, 17, "why") == "held"
    assert slurm.comment() is None


def test_the_job_among_others(slurm: Slurm) -> None:
    slurm.knows({"job_id": 16}, {"job_id": 17, "extra": "x"}, {"job_id": 18})

    assert job_facts(slurm.bin, 17) == {"job_id": 17, "extra": "x"}
    assert slurm.calls() == [["scontrol", "--json", "show", "job", "17"]]


def test_a_reason_that_cannot_be_written_holds_the_job_all_the_same(slurm: Slurm) -> None:
    slurm.fails("update")

    assert hold(slurm.bin, 17, "why") == "held"


def test_a_reason_that_is_refused_for_a_moment_is_written_all_the_same(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own filter refuses the change while the decision daemon is late (measured on an overloaded head node)."""
    monkeypatch.setattr(blame, "PATIENCE", 60.0)
    slurm.fails("update")
    # in this module alone: waiting for a process sleeps too
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: (slurm.folder / "update.fails").unlink())
    monkeypatch.setattr(blame, "time", clock)

    assert hold(slurm.bin, 17, "why") == "held"
    assert [call[1] for call in slurm.calls()] == ["--json", "update", "update", "requeuehold"]


@pytest.mark.parametrize(
    ("takes", "given"),
    [
        (1.0, [10.0, 9.0, 8.0]),
        (0.5, [10.0, 9.5, 9.0, 8.5, 8.0, 7.5]),
        # the machine stood still meanwhile: it is tried again, for as long as one command may take
        (4.0, [10.0, 6.0, 2.0]),
        (9.5, [10.0]),
        (60.0, [10.0]),
    ],
)
def test_it_is_not_tried_for_longer_than_one_command_may_take(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch, takes: float, given: list[float]
) -> None:
    monkeypatch.setattr(blame, "PATIENCE", 3.0)
    now, found = [0.0], list[float]()

    def fails(*_: str, timeout: float) -> None:
        found.append(timeout)
        now[0] += takes
        raise SecureSlurmError("Access/permission denied")

    monkeypatch.setattr(blame, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda _: None))
    monkeypatch.setattr(blame, "_slurm", fails)
    assert not blame._explain(slurm.bin, "17", RECORD, "why")
    assert found == given


@pytest.mark.parametrize("comment", ["half a character \ud800", "a NUL \0"])
def test_a_comment_that_is_no_argument_holds_the_job_all_the_same(slurm: Slurm, comment: str) -> None:
    slurm.knows({"job_id": 17, "admin_comment": comment})

    assert hold(slurm.bin, 17, "why") == "held"


@pytest.mark.parametrize(
    ("reason", "written"),
    [
        ("a | b", "a ? b"),
        ("a\nb\rc\td", "a?b?c?d"),
        ("\x1b[2J\x00\x7f", "?[2J??"),
        ("größer\u202e\udcff", "gr??er??"),
        ("$(id) `id` ; 'x' \"y\" \\ *", "$(id) `id` ; 'x' \"y\" \\ *"),
        ("{}~", "{}~"),
        ("x" * 1000, "x" * 400),
    ],
)
def test_a_reason_is_plain_short_and_one_part(slurm: Slurm, reason: str, written: str) -> None:
    hold(slurm.bin, 17, reason)

    assert slurm.comment() == f"{RECORD} | {written}"
    assert not (slurm.folder / "id").exists()


@pytest.mark.parametrize(
    "states",
    [["CANCELLED"], ["CANCELLED", "COMPLETING"], ["RUNNING", "COMPLETING"], ["PENDING"], ["TIMEOUT"], "CANCELLED"],
)
def test_a_job_that_its_user_has_ended_is_not_brought_back(slurm: Slurm, states: list[str] | str) -> None:
    slurm.knows({"job_id": 17, "admin_comment": RECORD, "job_state": states})

    assert hold(slurm.bin, 17, "[grant.missing] no grant") == "over"
    assert all(call[1] not in ("requeuehold", "update") for call in slurm.calls())


@pytest.mark.parametrize("states", [["RUNNING"], ["RUNNING", "CONFIGURING"], ["CONFIGURING"], [], None, ["UNHEARD_OF"]])
def test_a_job_that_may_still_start_is_held(slurm: Slurm, states: list[str] | None) -> None:
    slurm.knows({"job_id": 17, "admin_comment": RECORD, "job_state": states})

    assert hold(slurm.bin, 17, "no") == "held"
