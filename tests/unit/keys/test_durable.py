"""What is on disk of a job's scratch: written before the rest, believed only when whole, gone with the last of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keys import durable
from keys.durable import Durable, DurableError, Kept, boot_id, boot_time
from keys.journal import Journal, JournalError, Record, journal_of
from keys.scratch import crypt, deadboot, loop, teardown

JOB = 4711
NODE = "n1"
EARLIER = "00000000-0000-4000-8000-000000000000"
RECORD = Record(
    job=JOB, node=NODE, uid=1001, incarnation="0123456789abcdef" * 2, restarts=2, key_name="n1_test-4711-00",
    wrapped_key="vault:v1:secret", mapper=f"secure-n1-{JOB}", backing="file",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The hooks' configuration of a node on which the kernel knows nothing."""
    for name, mode in (("run", 0o755), ("store", 0o700), ("mnt", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(crypt, "find", lambda _: None)
    monkeypatch.setattr(loop, "find", lambda _: [])
    return {
        "node": {"run_dir": f"{tmp_path}/run", "state_dir": f"{tmp_path}/state-%n", "prolog_deadline": 45.0},
        "scratch": {"backing": "file", "directory": f"{tmp_path}/store", "mount_root": f"{tmp_path}/mnt"},
    }


@pytest.fixture
def journal(config: dict[str, Any]) -> Journal:
    return journal_of(config, NODE)


@pytest.fixture
def kept(journal: Journal) -> Durable:
    assert journal.durable is not None
    return journal.durable


def planned(tmp_path: Path) -> Record:
    return RECORD._replace(
        backing_path=f"{tmp_path}/store/n1-{JOB}.img", mount_root=f"{tmp_path}/mnt", mount_point=f"{tmp_path}/mnt/{JOB}"
    )


def rebooted(tmp_path: Path, journal: Journal) -> Path:
    """What a start leaves on the disks; returns its backing file."""
    journal.write(planned(tmp_path))
    file = tmp_path / "store" / f"n1-{JOB}.img"
    file.write_bytes(b"ciphertext")
    (tmp_path / "mnt" / str(JOB)).mkdir()
    (tmp_path / "run/journal" / f"{JOB}.json").unlink()
    record = tmp_path / f"state-n1/{JOB}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"boot": EARLIER}))
    return file


class TestRecord:
    def test_is_written_with_the_first_step_and_holds_no_key(
        self, journal: Journal, kept: Durable, tmp_path: Path
    ) -> None:
        journal.write(planned(tmp_path))
        found = kept.read(JOB)
        assert found is not None
        assert (found.boot, found.uid, found.restarts) == (boot_id(), 1001, 2)
        assert 0 <= boot_time() - found.since < 60
        path = Path(kept.path) / f"{JOB}.json"
        assert b"vault:" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        assert Path(kept.path).stat().st_mode & 0o777 == 0o700
        assert kept.jobs() == journal.jobs() == [JOB]

    def test_stands_until_everything_is_settled(self, journal: Journal, kept: Durable, tmp_path: Path) -> None:
        record = journal.write(planned(tmp_path))
        since = kept.read(JOB)
        journal.write(record._replace(state="mount"))
        assert kept.read(JOB) == since
        journal.settled(JOB)
        journal.settled(JOB)
        assert kept.read(JOB) is None

    def test_that_cannot_be_written_lets_nothing_begin(self, journal: Journal, kept: Durable, tmp_path: Path) -> None:
        Path(kept.path).mkdir(mode=0o777)
        Path(kept.path).chmod(0o777)
        with pytest.raises(JournalError, match="trusted"):
            journal.write(planned(tmp_path))
        assert journal.read(JOB) is None

    def test_no_disk_for_it(self, tmp_path: Path) -> None:
        with pytest.raises(DurableError, match="no folder"):
            Durable(f"{tmp_path}/none/state", NODE).write(Kept(JOB, NODE, *[""] * 11))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"[]", b'{"v": 1}', b"\xff", b"[" * 9000, b"x" * 20_000],
    )
    def test_damaged(self, journal: Journal, kept: Durable, tmp_path: Path, text: bytes) -> None:
        journal.write(planned(tmp_path))
        (Path(kept.path) / f"{JOB}.json").write_bytes(text)
        with pytest.raises(DurableError, match="damaged"):
            kept.read(JOB)

    @pytest.mark.parametrize(
        "change", [{"v": 2}, {"job": 1}, {"node": "n2"}, {"since": "now"}, {"uid": True}, {"boot": None}, {"more": 1}]
    )
    def test_with_a_field_of_another_kind(
        self, journal: Journal, kept: Durable, tmp_path: Path, change: dict[str, object]
    ) -> None:
        journal.write(planned(tmp_path))
        path = Path(kept.path) / f"{JOB}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(DurableError):
            kept.read(JOB)

    def test_a_link_or_an_open_file_is_not_believed(self, journal: Journal, kept: Durable, tmp_path: Path) -> None:
        journal.write(planned(tmp_path))
        path = Path(kept.path) / f"{JOB}.json"
        path.chmod(0o644)
        with pytest.raises(DurableError):
            kept.read(JOB)
        path.rename(tmp_path / "else")
        path.symlink_to(tmp_path / "else")
        with pytest.raises(DurableError):
            kept.read(JOB)

    def test_without_a_folder_there_is_none(self, tmp_path: Path) -> None:
        none = Durable(f"{tmp_path}/none", NODE)
        assert none.jobs() == []
        assert none.read(JOB) is None
        none.remove(JOB)

    def test_other_names_are_passed_over(self, kept: Durable) -> None:
        Path(kept.path).mkdir(mode=0o700)
        for name in ("0.json", "x.json", "12", ".13.9.tmp", "0014.json"):
            (Path(kept.path) / name).touch()
        assert kept.jobs() == []

    def test_a_configuration_of_an_older_version_has_it_in_the_usual_place(self) -> None:
        assert durable.folder_of({}, NODE) == "/var/lib/secure-slurm/node-n1"


class TestAfterAReboot:
    def test_it_goes_and_is_told(self, config: dict[str, Any], journal: Journal, tmp_path: Path) -> None:
        file = rebooted(tmp_path, journal)
        (taken,) = deadboot.sweep(journal, config["scratch"], seconds=5.0)
        assert taken.problem == ""
        assert not file.exists()
        assert not (tmp_path / "mnt" / str(JOB)).exists()
        fields = taken.report.healed(deadboot.REASON)
        assert (fields["key"], fields["incarnation"]) == (RECORD.key_name, RECORD.incarnation)
        assert fields["evidence"] == f"mount point: {tmp_path}/mnt/{JOB}; file: {file}"
        assert list(deadboot.sweep(journal, config["scratch"], seconds=5.0)) == []

    def test_what_lies_where_it_was_configured_before(
        self, config: dict[str, Any], journal: Journal, tmp_path: Path
    ) -> None:
        file = rebooted(tmp_path, journal)
        config["scratch"]["directory"] = f"{tmp_path}/elsewhere"
        (taken,) = deadboot.sweep(journal, config["scratch"], seconds=5.0)
        assert taken.problem == ""
        assert not file.exists()

    def test_a_start_of_this_boot_is_left_alone(self, config: dict[str, Any], journal: Journal, tmp_path: Path) -> None:
        journal.write(planned(tmp_path))
        file = tmp_path / "store" / f"n1-{JOB}.img"
        file.touch()
        assert list(deadboot.sweep(journal, config["scratch"], seconds=5.0)) == []
        assert file.exists()

    @pytest.mark.parametrize("what", ["mapping", "loop", "journal", "lock", "damaged", "time"])
    def test_what_may_be_of_this_boot_is_left_alone(
        self, config: dict[str, Any], journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        file = rebooted(tmp_path, journal)
        seconds = 5.0
        if what == "mapping":
            monkeypatch.setattr(crypt, "find", lambda name: object() if name == RECORD.mapper else None)
        elif what == "loop":
            monkeypatch.setattr(loop, "find", lambda path: ["/dev/loop0"] * (path == str(file)))
        elif what == "journal":
            journal.durable = None
            journal.write(planned(tmp_path))
            journal = journal_of(config, NODE)
        elif what == "damaged":
            (tmp_path / f"state-n1/{JOB}.json").write_text("{")
        elif what == "time":
            seconds = 0.0
        if what == "lock":
            with journal_of(config, NODE).lock(JOB, 0.0):
                assert list(deadboot.sweep(journal, config["scratch"], seconds=seconds)) == []
        else:
            assert list(deadboot.sweep(journal, config["scratch"], seconds=seconds)) == []
        assert file.exists()

    def test_what_cannot_be_removed_is_told_and_kept_in_mind(
        self, config: dict[str, Any], journal: Journal, tmp_path: Path
    ) -> None:
        rebooted(tmp_path, journal)
        (tmp_path / "mnt" / str(JOB) / "file").touch()
        (taken,) = deadboot.sweep(journal, config["scratch"], seconds=5.0)
        assert "mount point" in taken.problem
        (again,) = deadboot.sweep(journal, config["scratch"], seconds=5.0)
        assert again.problem

    def test_a_journal_that_cannot_say_destroyed_keeps_the_record(
        self, config: dict[str, Any], journal: Journal, kept: Durable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rebooted(tmp_path, journal)

        def full(_record: Record) -> Record:
            raise JournalError("no space")

        monkeypatch.setattr(journal, "write", full)
        list(deadboot.sweep(journal, config["scratch"], seconds=5.0))
        assert kept.jobs() == [JOB]

    def test_a_tear_down_knows_it_without_a_journal(
        self, config: dict[str, Any], journal: Journal, tmp_path: Path
    ) -> None:
        file = rebooted(tmp_path, journal)
        report = teardown.close_scratch(journal, JOB, config["scratch"])
        assert (report.key_name, report.incarnation) == (RECORD.key_name, RECORD.incarnation)
        assert not file.exists()


class TestJournalsLock:
    def test_is_seen_and_nothing_is_made_by_looking(self, journal: Journal, tmp_path: Path) -> None:
        assert not journal.locked(JOB)
        assert not (tmp_path / "run/journal").exists()
        with journal.lock(JOB, 0.0):
            assert journal.locked(JOB)
            assert not journal.locked(JOB + 1)
        assert not journal.locked(JOB)


class TestJournalsClaim:
    def test_of_another_start_is_not_taken_back(self, journal: Journal) -> None:
        journal.claim_incarnation(JOB, "a" * 32)
        journal.revoke(JOB, "b" * 32)
        journal.revoke(JOB, "")
        journal.check_claim(JOB, "a" * 32)
        journal.revoke(JOB, "a" * 32)
        journal.revoke(JOB, "a" * 32)
        with pytest.raises(Exception, match="torn down"):
            journal.check_claim(JOB, "a" * 32)
