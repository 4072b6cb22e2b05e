"""What of Slurm's answers counts as a word, and what never does: real answers of 24.11 and 26.05, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slurm_hooks.slurmword import Answer, Slurm, Start, Word, controller_answers, read_word

NODE = "n1"
JOB = 17
UID = 1001
START = Start(UID, 1)
UP = Answer(0, b"Slurmctld(primary) at head is UP\n", b"")
SHOWN = Answer(0, b"NodeName=n1 Arch=x86_64 CoresPerSocket=1 State=IDLE\n", b"")
TEXT = Answer(0, b"JobId=17 JobName=x\n", b"")
NOT_KNOWN = Answer(1, b"", b"slurm_load_jobs error: Invalid job id specified\n")


def number(value: int) -> dict[str, object]:
    return {"set": True, "infinite": False, "number": value}


def entry(*states: str, **changes: object) -> dict[str, Any]:
    return {
        "job_id": JOB, "array_job_id": number(0), "job_state": list(states), "nodes": "n[1-2]", "restart_cnt": 1,
        "user_id": UID, **changes,
    }  # fmt: skip


def facts(*entries: object) -> Answer:
    return Answer(0, json.dumps({"jobs": list(entries)}).encode(), b"")


def word(*states: str, **changes: object) -> str:
    return read_word(TEXT, facts(entry(*states, **changes)), NODE, JOB, START).kind


class TestController:
    def test_that_answers(self) -> None:
        assert controller_answers(UP, SHOWN, NODE) == ""
        two = Answer(0, b"Slurmctld(primary) at a is DOWN\nSlurmctld(backup1) at b is UP\n", b"")
        assert controller_answers(two, SHOWN, NODE) == ""

    @pytest.mark.parametrize(
        "ping",
        [
            Answer(0, b"", b""),
            Answer(0, b"Slurmctld(primary) at head is DOWN\n", b""),
            Answer(0, b"Slurmctld(primary) at head is UP?\n", b""),
            Answer(0, b"it is UP\n", b""),
            Answer(1, UP.stdout, b""),
            Answer(-9, UP.stdout, b""),
            UP._replace(failed="scontrol did not end within 10 s"),
        ],
    )
    def test_that_does_not(self, ping: Answer) -> None:
        assert "up" in controller_answers(ping, SHOWN, NODE)

    @pytest.mark.parametrize(
        "shown",
        [
            Answer(0, b"", b""),
            Answer(1, b"Node n1 not found\n", b""),
            Answer(0, b"NodeName=n10 Arch=x\n", b""),
            Answer(0, b"Arch=x NodeName=n1\n", b""),
            Answer(1, SHOWN.stdout, b""),
            SHOWN._replace(failed="killed"),
        ],
    )
    def test_that_does_not_know_this_node(self, shown: Answer) -> None:
        assert NODE in controller_answers(UP, shown, NODE)


class TestUnknown:
    def test_in_so_many_words(self) -> None:
        assert read_word(NOT_KNOWN, None, NODE, JOB, START).kind == "unknown"

    @pytest.mark.parametrize(
        "text",
        [
            Answer(0, b"", b""),
            Answer(1, b"", b""),
            Answer(0, b"", NOT_KNOWN.stderr),
            Answer(1, b"JobId=17", NOT_KNOWN.stderr),
            Answer(1, b"", b"slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"),
            Answer(1, b"", NOT_KNOWN.stderr + b"slurm_load_jobs error: Socket timed out\n"),
            Answer(-15, b"", NOT_KNOWN.stderr),
            Answer(1, b"", b"Invalid job id specified"),
            NOT_KNOWN._replace(failed="stopped"),
        ],
    )
    def test_not_in_others(self, text: Answer) -> None:
        assert read_word(text, None, NODE, JOB, START).kind == "silent"

    def test_the_first_of_an_array_that_slurm_forgot_before_the_others(self) -> None:
        others = [entry("RUNNING", job_id=number_, array_job_id=number(JOB)) for number_ in (18, 19)]
        assert read_word(TEXT, facts(*others), NODE, JOB, START).kind == "unknown"
        others[0]["array_job_id"] = number(3)
        assert read_word(TEXT, facts(*others), NODE, JOB, START).kind == "silent"


class TestSilence:
    @pytest.mark.parametrize(
        "answer",
        [
            # what both versions say, with exit code 0, while no slurmctld runs
            Answer(0, b'{"jobs": [], "errors": [], "warnings": []}', b""),
            Answer(0, b"", b""),
            Answer(0, b"{}", b""),
            Answer(0, b"[]", b""),
            Answer(0, b'{"jobs": null}', b""),
            Answer(0, b'{"jobs": {"a": 1}}', b""),
            Answer(0, b'{"jobs": ["x"]}', b""),
            Answer(0, b'{"jobs": [{}]}', b""),
            Answer(0, b"[" * 100_000, b""),
            Answer(1, b"", b""),
            Answer(0, b"x", b"", "it was cut off"),
            None,
        ],
    )
    def test_json_that_says_nothing(self, answer: Answer | None) -> None:
        assert read_word(TEXT, answer, NODE, JOB, START).kind == "silent"

    def test_two_jobs_with_one_number(self) -> None:
        assert read_word(TEXT, facts(entry("FAILED"), entry("FAILED")), NODE, JOB, START).kind == "silent"

    def test_no_state_no_user_no_count(self) -> None:
        assert word() == "silent"
        assert word("FAILED", user_id=None) == "silent"
        assert word("FAILED", restart_cnt=None) == "silent"

    def test_a_job_of_another_user_is_another_job(self) -> None:
        """The number wrapped, or the controller was restored and gave it out again."""
        assert word("COMPLETED", user_id=UID + 1) == "silent"

    def test_an_earlier_start(self) -> None:
        """The controller was restored from a state that is older than this start."""
        assert word("COMPLETED", restart_cnt=0) == "silent"
        assert word("PENDING", restart_cnt=0) == "silent"
        assert word("PENDING", restart_cnt=1) == "silent"


class TestOver:
    @pytest.mark.parametrize(
        "state",
        [
            "COMPLETED",
            "CANCELLED",
            "FAILED",
            "TIMEOUT",
            "NODE_FAIL",
            "PREEMPTED",
            "BOOT_FAIL",
            "DEADLINE",
            "OUT_OF_MEMORY",
        ],
    )
    def test_ended(self, state: str) -> None:
        assert word(state) == "over"
        assert word(state, restart_cnt=number(1), user_id=number(UID)) == "over"
        assert read_word(TEXT, facts(entry(state)), NODE, JOB, Start()).kind == "over"

    def test_requeued(self) -> None:
        assert word("PENDING", restart_cnt=2, nodes="") == "over"
        assert word("PENDING", "REQUEUE_HOLD", restart_cnt=2) == "over"

    def test_started_anew_elsewhere(self) -> None:
        assert word("RUNNING", nodes="n[2-4]", restart_cnt=2) == "over"


class TestAlive:
    @pytest.mark.parametrize(
        "states",
        [
            ("RUNNING",),
            ("RUNNING", "CONFIGURING"),
            ("SUSPENDED",),
            ("COMPLETED", "COMPLETING"),
            ("CANCELLED", "COMPLETING"),
            ("FAILED", "STAGE_OUT"),
            ("COMPLETED", "A_NEW_FLAG"),
            ("A_NEW_STATE",),
            ("RUNNING", "COMPLETED"),
            ("COMPLETING",),
        ],
    )
    def test_whatever_is_not_over(self, states: tuple[str, ...]) -> None:
        assert word(*states) == "alive"

    @pytest.mark.parametrize(
        "changes",
        [
            {"nodes": "n[1-4]", "restart_cnt": 2},
            {"nodes": "n2"},  # the same start: the job was shrunk, and its Epilog is to come
            {"nodes": "n2", "restart_cnt": 0},
            {"nodes": "", "restart_cnt": 2},
            {"nodes": None, "restart_cnt": 2},
            {"nodes": "n[", "restart_cnt": 2},
        ],
    )
    def test_one_that_runs_and_may_be_here(self, changes: dict[str, object]) -> None:
        assert word("RUNNING", **changes) == "alive"

    def test_one_that_runs_elsewhere_when_nothing_tells_the_start(self) -> None:
        assert read_word(TEXT, facts(entry("RUNNING", nodes="n2")), NODE, JOB, Start()).kind == "alive"


class TestTheRealThing:
    """By programs that stand for scontrol; the cluster suite has the real one."""

    def slurm(self, folder: Path, script: str) -> Slurm:
        path = folder / "scontrol"
        path.write_text(f'#!/bin/sh\necho "$*" >> {folder}/asked\n{script}\n')
        path.chmod(0o755)
        return Slurm(str(folder), NODE)

    def asked(self, folder: Path) -> list[str]:
        return (folder / "asked").read_text().splitlines()

    def test_the_controller_is_asked_once_until_refreshed(self, tmp_path: Path) -> None:
        script = (
            "case \"$*\" in ping) echo 'Slurmctld(primary) at head is UP';; *node*) echo 'NodeName=n1 x';; "
            "*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1;; esac"
        )
        slurm = self.slurm(tmp_path, script)
        for _ in range(2):
            assert slurm.word(JOB, START).kind == "unknown"
        assert self.asked(tmp_path).count("ping") == 1
        assert "--json show job 17" not in self.asked(tmp_path)
        slurm.refresh()
        slurm.word(JOB, START)
        assert self.asked(tmp_path).count("ping") == 2

    def test_a_controller_that_is_away_is_not_asked_about_jobs(self, tmp_path: Path) -> None:
        slurm = self.slurm(tmp_path, "exit 1")
        assert slurm.word(JOB, START).kind == "silent"
        assert not [line for line in self.asked(tmp_path) if "job" in line]

    def test_a_missing_program(self, tmp_path: Path) -> None:
        assert isinstance(Slurm(str(tmp_path), NODE).word(JOB, START), Word)
        assert Slurm(str(tmp_path), NODE).word(JOB, START).kind == "silent"
