"""secure-slurm policy replay: what a job of the accounting asks, hostile entries, two policies compared."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin import policy_replay
from admin.main import main
from admin.sacct_job import INFINITE, NOBODY, Accounted, accounted
from conf.policy import load_policy
from slurm_hooks.engine import POLICY_DIGITS
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot

UNSET = {"set": False, "infinite": False, "number": 0}
UNDER = "ab" * 8
GROUP = "cn=g,dc=example"

POLICY = f"""\
version: 1
jurisdictions:
  eu: {{feature: eu, regions: [eu-west-1]}}
classes:
  - {{name: low, residency: optional, scratch: optional, exclusive_nodes: false}}
  - {{name: phi, residency: required, scratch: required, default_scratch: 64M, max_scratch: 1G}}
roles:
  all: {{groups: ["{GROUP}"], classes: [low, phi], jurisdictions: [eu]}}
partitions:
  phi: {{demand_tag: true, jurisdiction: eu}}
"""


def number(value: int) -> dict[str, object]:
    return {"set": True, "infinite": False, "number": value}


def record(**changes: str) -> str:
    fields = {
        **{"cluster": "test", "uid": "1001", "user": "alice", "class": "phi", "residency": "eu", "scratch": "67108864"},
        **{"policy": UNDER, "nonce": "0" * 32, "time": "1795300000", "mac": "0" * 64},
        **changes,
    }
    return "secure-slurm/1 " + " ".join(f"{key}={value}" for key, value in fields.items() if value)


def entry(job: int = 7, *, tagged: bool = False, **changes: Any) -> dict[str, Any]:
    """As data_parser v0.0.42 of 24.11 writes it, measured; ``changes`` by key, ``a__b`` for what is inside."""
    found: dict[str, Any] = {
        "account": "acc",
        "comment": {"administrator": record() if tagged else "", "job": "", "system": ""},
        "allocation_nodes": 2,
        "array": {"job_id": 0, "limits": {"max": {"running": {"tasks": 0}}}, "task_id": UNSET, "task": ""},
        "association": {"account": "acc", "cluster": "test", "partition": "", "user": "alice", "id": 3},
        "cluster": "test",
        "constraints": "eu" if tagged else "",
        "container": "",
        "extra": "",
        "het": {"job_id": 0, "job_offset": UNSET},
        "job_id": job,
        "licenses": "matlab:2",
        "mcs": {"label": ""},
        "name": "wrap",
        "partition": "phi" if tagged else "main",
        "qos": "normal",
        "reservation": {"id": 0, "name": ""},
        "state": {"current": ["COMPLETED"], "reason": "None"},
        "stderr": "",
        "stdin": "/dev/null",
        "stdout": "/home/alice/slurm-%j.out",
        "submit_line": "sbatch --extra=secure-slurm:class=phi;residency=eu x.sh" if tagged else "sbatch x.sh",
        "time": {"end": 1795300009, "limit": number(10)},
        "tres": {
            "allocated": [],
            "requested": [
                {"type": "cpu", "name": "", "id": 1, "count": 1},
                {"type": "node", "name": "", "id": 4, "count": 1},
                {"type": "gres", "name": "gpu", "id": 1001, "count": 4},
                {"type": "gres", "name": "gpu:a100", "id": 1002, "count": 4},
            ],
        },
        "user": "alice",
        "working_directory": "/home/alice",
    }
    for path, value in changes.items():
        inside = found
        *outer, last = path.split("__")
        for name in outer:
            inside = inside[name]
        inside[last] = value
    return copy.deepcopy(found)


def job(**changes: Any) -> Accounted:
    found = accounted(entry(**changes))
    assert found is not None
    return found


def fields(**changes: Any) -> dict[str, bytes]:
    return job(**changes).submission.fields()


class TestOneJob:
    @pytest.mark.parametrize(
        "value", [None, 1, "a", [], {}, {"job_id": "7"}, {"job_id": 0}, {"job_id": -1}, {"job_id": True}]
    )
    def test_what_is_no_job(self, value: object) -> None:
        assert accounted(value) is None

    @pytest.mark.parametrize(
        "comment",
        [
            "secure-slurm/1",
            "secure-slurm/2 class=phi",
            "Secure-Slurm/1 class=phi",
            record(**{"class": ""}),
            record(residency="EU"),
            record(scratch="-1"),
            record(scratch="many"),
        ],
    )
    def test_a_damaged_record_is_not_taken_for_an_untagged_job(self, comment: str) -> None:
        assert accounted(entry(comment__administrator=comment)) is None

    def test_everything_that_the_engine_can_use(self) -> None:
        assert fields(tagged=True) == {
            "verb": b"submit",
            "submit_uid": b"1001",
            "user_id": b"1001",
            "user_name": b"alice",
            "account": b"acc",
            "features": b"eu",
            "licenses": b"matlab:2",
            "name": b"wrap",
            "partition": b"phi",
            "qos": b"normal",
            "std_in": b"/dev/null",
            "std_out": b"/home/alice/slurm-%j.out",
            "tres_per_job": b"gres/gpu:4,gres/gpu:a100:4",
            "work_dir": b"/home/alice",
            "extra": b"secure-slurm:class=phi;residency=eu",
            "min_nodes": b"2",
            "max_nodes": b"2",
            "time_limit": b"10",
            "has_script": b"1",
            "has_environment": b"1",
        }

    def test_the_record_is_not_sent(self) -> None:
        # only the daemon may write one: a job that comes with one is refused (record.foreign)
        assert "admin_comment" not in fields(tagged=True)

    @pytest.mark.parametrize(
        ("line", "expected", "source"),
        [
            ("sbatch --extra=secure-slurm:class=phi;residency=eu x.sh", b"class=phi;residency=eu", "record"),
            ("sbatch --extra=secure-slurm:class=low --extra=secure-slurm:class=phi x", b"class=phi", "record"),
            ("sbatch --extra secure-slurm:class=phi x.sh", b"class=phi", "record"),
            ("sbatch --extra='secure-slurm:class=phi' x.sh", b"class=phi", "record"),
            # somebody else's words behind the script's name, or an operator's change
            ("sbatch --extra=secure-slurm:class=low x.sh", b"class=phi;residency=eu;scratch=67108864", "record"),
            ("sbatch --extra=secure-slurm:class=phi;scratch=1 x", b"class=phi;residency=eu;scratch=67108864", "record"),
            ("sbatch --extra=secure-slurm:nonsense x.sh", b"class=phi;residency=eu;scratch=67108864", "record"),
            ("", b"class=phi;residency=eu;scratch=67108864", "record"),
        ],
    )
    def test_what_was_asked_before_the_defaults(self, line: str, expected: bytes, source: str) -> None:
        found = job(tagged=True, submit_line=line)
        assert found.submission.fields()["extra"] == b"secure-slurm:" + expected
        assert found.tag_from == source
        assert found.policy == UNDER

    def test_datasets_are_what_the_record_says(self) -> None:
        text = record().replace(" policy=", " datasets=a,b policy=")
        line = "sbatch --extra=secure-slurm:datasets=a,b x"
        assert (
            fields(tagged=True, comment__administrator=text, submit_line=line)["extra"] == b"secure-slurm:datasets=a,b"
        )
        line = "sbatch --extra=secure-slurm:datasets=a x"
        other = fields(tagged=True, comment__administrator=text, submit_line=line)["extra"]
        assert other == b"secure-slurm:class=phi;residency=eu;scratch=67108864;datasets=a,b"

    def test_before_its_end_a_job_has_no_record(self) -> None:
        found = job(tagged=True, comment__administrator="")
        assert (found.tag_from, found.policy) == ("submit line", "")
        assert found.submission.fields()["extra"] == b"secure-slurm:class=phi;residency=eu"

    def test_with_job_extra_the_tag_is_there(self) -> None:
        found = job(extra="secure-slurm:class=low")
        assert (found.tag_from, found.submission.texts["extra"]) == ("extra", "secure-slurm:class=low")

    def test_another_extra_is_no_tag(self) -> None:
        assert job(extra="project=7").tag_from == "none"

    def test_an_admins_comment_is_no_record(self) -> None:
        assert job(comment__administrator="talked to bob about it").tag_from == "none"

    def test_a_reason_behind_the_record_is_not_part_of_it(self) -> None:
        found = job(tagged=True, comment__administrator=record() + " | scratch.full: class=low")
        assert found.submission.texts["extra"] == "secure-slurm:class=phi;residency=eu"

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({}, "7"),
            ({"array__job_id": 5, "array__task_id": number(0)}, "5_0"),
            ({"array__job_id": 5, "array__task": "0xE"}, "7"),
            ({"het__job_id": 6, "het__job_offset": number(1)}, "6+1"),
            ({"array": None, "het": 5}, "7"),
        ],
    )
    def test_its_name(self, changes: dict[str, Any], name: str) -> None:
        assert job(**changes).name == name

    def test_a_het_component_is_one(self) -> None:
        assert fields(het__job_id=6, het__job_offset=number(0))["het_job_offset"] == b"0"
        assert "het_job_offset" not in fields()

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (10, b"10"),
            (number(10), b"10"),
            (UNSET, None),
            ({"set": False, "infinite": True, "number": 0}, str(INFINITE).encode()),
            (-1, None),
            (2**40, None),
            (1.5, None),
            (True, None),
            ("10", None),
            (None, None),
            ({"number": 10}, None),
            ({"set": True}, None),
        ],
    )
    def test_numbers_of_every_form(self, value: object, expected: bytes | None) -> None:
        assert fields(time__limit=value).get("time_limit") == expected

    def test_a_job_that_never_ran_has_the_nodes_that_it_asked_for(self) -> None:
        assert fields(allocation_nodes=0)["max_nodes"] == b"1"

    @pytest.mark.parametrize(
        ("line", "script"), [("srun -n1 x", False), ("/usr/bin/salloc", False), ("sbatch x", True), ("", True)]
    )
    def test_what_srun_sends_has_no_script(self, line: str, script: bool) -> None:
        assert ("has_script" in fields(submit_line=line)) is script

    @pytest.mark.parametrize("user", ["", "1003", None])
    def test_a_deleted_user(self, user: object) -> None:
        assert job(user=user, association__user="dora").user == "dora"
        assert job(user=user, association={}, tagged=True).user == "alice"
        nobody = job(user=user, association={})
        assert nobody.user == ""
        assert "user_name" not in nobody.submission.fields()
        assert nobody.submission.uid == NOBODY

    def test_characters_that_no_text_has_become_bytes(self) -> None:
        assert fields(name="a\ud800\udcff")["name"] == b"a\xed\xa0\x80\xed\xb3\xbf"
        assert fields(name="a\udcff\n")["name"] == b"a\xff\n"

    @given(st.data())
    def test_any_value_anywhere_is_a_job_or_none(self, data: st.DataObject) -> None:
        anything = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=6,
        )
        hostile = entry(tagged=data.draw(st.booleans()))
        for key in data.draw(st.sets(st.sampled_from(sorted(hostile)), max_size=6)):
            hostile[key] = data.draw(anything)
        found = accounted(hostile)
        if found is not None:
            assert all(isinstance(value, bytes) for value in found.submission.fields().values())


class TestCommand:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        (tmp_path / "policy.yaml").write_text(POLICY)
        write_snapshot(tmp_path / "members.json", Snapshot(time.time(), "x", {GROUP: Group("g", frozenset({"alice"}))}))
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        return tmp_path

    def run(self, place: Path, jobs: list[Any], *words: str) -> int:
        (place / "jobs.json").write_text(json.dumps({"jobs": jobs}))
        files = [f"--jobs={place}/jobs.json", f"--members={place}/members.json"]
        return main(["policy", "replay", f"{place}/policy.yaml", *files, *words])

    def changed(self, place: Path, *changes: tuple[str, str], name: str = "policy.yaml") -> str:
        text = POLICY
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (place / name).write_text(text)
        (place / name).chmod(0o644)
        return str(place / name)

    @pytest.mark.parametrize("missing", ["policy.yaml", "members.json", "jobs.json"])
    def test_a_missing_file_is_exit_3(self, place: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(place, [])
        (place / missing).unlink()
        words = [
            "policy",
            "replay",
            f"{place}/policy.yaml",
            f"--jobs={place}/jobs.json",
            f"--members={place}/members.json",
        ]
        capsys.readouterr()
        assert main(words) == 3
        assert missing in capsys.readouterr().err

    def test_a_missing_old_policy_is_exit_3(self, place: Path) -> None:
        assert self.run(place, [], f"--against={place}/none.yaml") == 3

    def test_damaged_members_are_exit_3(self, place: Path) -> None:
        (place / "members.json").write_text("{}")
        assert self.run(place, [entry()]) == 3

    def test_a_file_of_something_else_is_exit_3(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(place, [1, {"partition": "x"}]) == 3
        assert "none of the 2 entries" in capsys.readouterr().err

    @pytest.mark.parametrize("days", ["0", "-1", "x", "1.5", "99999999999", "٣"])
    def test_days(self, place: Path, days: str) -> None:
        with pytest.raises(SystemExit) as found:
            main(["policy", "replay", f"{place}/policy.yaml", f"--days={days}"])
        assert found.value.code == 2

    def test_days_and_a_file(self, place: Path) -> None:
        with pytest.raises(SystemExit):
            self.run(place, [], "--days=1")

    def test_an_entry_that_cannot_be_judged_is_no_success(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(place, [entry(), entry(comment__administrator="secure-slurm/1 ")]) == 1
        assert "1 entries could not be judged" in capsys.readouterr().out

    def test_nothing_changes(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(place, [entry(), entry(8, tagged=True)]) == 0
        assert "0 newly refused, 0 newly allowed" in capsys.readouterr().out

    def test_no_job_at_all_is_said(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(place, []) == 0
        assert "there is no job at all" in capsys.readouterr().out

    def test_newly_refused_by_rule_and_user(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        jobs = [entry(), entry(8, partition="phi"), entry(9, partition="phi"), entry(10, partition="phi", user="bob")]
        assert self.run(place, [*jobs, entry(11, tagged=True, user="bob")], "--json") == 1
        found = json.loads(capsys.readouterr().out)
        assert found["counts"] == {
            **{"judged": 5, "newly_refused": 4, "newly_allowed": 0, "other_rule": 0, "in_shadow": 0},
            **{"unchanged": 1, "unreadable": 0},
        }
        groups = {
            (each["change"], each["rule"], each["user"]): (each["jobs"], each["examples"]) for each in found["groups"]
        }
        assert groups == {
            ("newly refused", "tag.missing", "alice"): (2, ["8", "9"]),
            ("newly refused", "tag.missing", "bob"): (1, ["10"]),
            ("newly refused", "rbac.role", "bob"): (1, ["11"]),
        }
        assert [each["job"] for each in found["changes"]] == ["8", "9", "10", "11"]
        assert all(each["message"] for each in found["changes"])
        assert found["accepted_under"] == [{"policy": "", "jobs": 4}, {"policy": UNDER, "jobs": 1}]
        assert found["unknown"]

    def test_against_an_old_policy_both_ways(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        old = self.changed(place, ("max_scratch: 1G", "max_scratch: 64M"), name="old.yaml")
        self.changed(place, ("  phi: {demand", "  main: {demand_tag: true}\n  phi: {demand"))
        large = record(scratch="134217728")
        jobs = [
            *(entry(), entry(8, tagged=True), entry(9, tagged=True, comment__administrator=large, submit_line="")),
            # refused by both: nothing to do with the change
            entry(10, partition="phi"),
        ]
        assert self.run(place, jobs, f"--against={old}", "--json") == 1
        found = json.loads(capsys.readouterr().out)
        told = {each["job"]: (each["change"], each["before"], each["after"]) for each in found["changes"]}
        assert told == {
            "7": ("newly refused", "allow.untagged", "tag.missing"),
            "9": ("newly allowed", "scratch.too-large", "allow.tagged"),
        }
        assert found["counts"]["unchanged"] == 2

    def test_newly_allowed_alone_is_a_change(self, place: Path) -> None:
        old = self.changed(place, ("  phi: {demand", "  main: {demand_tag: true}\n  phi: {demand"), name="old.yaml")
        assert self.run(place, [entry()], f"--against={old}") == 1

    def test_another_rule_changes_no_verdict(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        old = self.changed(
            place, ("classes: [low, phi]", "classes: [low]"), ("max_scratch: 1G", "max_scratch: 64M"), name="old.yaml"
        )
        self.changed(place, ("classes: [low, phi]", "classes: [low]"))
        jobs = [entry(8, tagged=True, comment__administrator=record(scratch="134217728"), submit_line="")]
        assert self.run(place, jobs, f"--against={old}", "--list") == 0
        assert "other rule: job 8 of alice (scratch.too-large -> rbac.role)" in capsys.readouterr().out

    def test_a_default_is_not_held_against_the_user(self, place: Path) -> None:
        self.changed(place, ("default_scratch: 64M, max_scratch: 1G", "default_scratch: 16M, max_scratch: 32M"))
        assert self.run(place, [entry(tagged=True)]) == 0

    def test_accepted_under_this_very_policy(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        under = load_policy(str(place / "policy.yaml")).hash[:POLICY_DIGITS]
        assert self.run(place, [entry(tagged=True, user="bob", comment__administrator=record(policy=under))]) == 1
        assert "1 of the newly refused were accepted under this very policy" in capsys.readouterr().out

    def test_a_rule_in_shadow_refuses_nothing_and_is_told(
        self, place: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.changed(place, ("max_scratch: 1G", "max_scratch: 1G, max_time: 5m"))
        assert self.run(place, [entry(tagged=True)]) == 1
        with (place / "policy.yaml").open("a") as file:
            file.write("shadow: {limit.time: 2199-12-31}\n")
        capsys.readouterr()
        assert self.run(place, [entry(tagged=True)], "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert [(each["change"], each["rule"]) for each in found["groups"]] == [("in shadow", "limit.time")]
        assert found["counts"]["unchanged"] == 1

    def test_a_job_without_a_partition_is_said(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(place, [entry(partition="")]) == 1
        assert "1 jobs have no partition" in capsys.readouterr().out

    def test_what_is_not_known_is_told_once(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run(place, [entry(tagged=True), entry(8, tagged=True)])
        out = capsys.readouterr().out
        for word in ("#SECURE", "SECURE_*", "--prefer", "host", "array", "MAC was not checked"):
            assert out.count(word) == 1, word

    def test_nothing_reaches_the_terminal_as_a_command(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        bad = "\x1b]0;x\x07\udcff"
        jobs = [entry(tagged=True, user=bad, name=bad, partition=bad, comment__administrator=record(user="x"))]
        for words in (["--list"], ["--json"]):
            assert self.run(place, jobs, *words) == 1
            out = capsys.readouterr().out
            assert "\x1b" not in out
            assert out.replace("\n", "").isprintable()

    def test_many_rows_are_cut_and_counted(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        jobs = [entry(number, partition="phi", user=f"u{number:03}") for number in range(1, 101)]
        assert self.run(place, jobs) == 1
        out = capsys.readouterr().out
        assert f"and {100 - policy_replay.MAX_ROWS} more rows" in out
        assert "newly refused, tag.missing: 100 jobs of 100 users" in out

    def test_examples_are_few(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(place, [entry(number, partition="phi") for number in range(1, 30)]) == 1
        assert "1, 2, 3, 4, 5, ..." in capsys.readouterr().out
