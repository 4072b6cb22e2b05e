"""The journal: what it refuses to believe, and that a write is whole or not at all."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest

from conf.errors import Refused
from keys.journal import KEEP_DESTROYED, KEEP_SEEN, STATES, Journal, JournalError, Record
from keys.scratch import backing, setup, teardown
from keys.scratch.errors import JobEnded
from keys.scratch.plan import ScratchPlan
from keys.secret import Secret

JOB = 4711
INCARNATION = "0123456789abcdef" * 2
RECORD = Record(
    job=JOB, node="n1", uid=1001, incarnation=INCARNATION, key_name="n1_test-4711-00", wrapped_key="vault:v1:x"
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    tmp_path.chmod(0o755)
    return Journal(str(tmp_path), "n1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


class TestNotBelieved:
    @pytest.mark.parametrize(
        "change",
        [
            lambda text: b"",
            lambda text: text[:-20],
            lambda text: text + b"x",
            lambda text: b"\x00" * 100,
            lambda text: b"null",
            lambda text: b"[1]",
            lambda text: b"{}",
            lambda text: text.replace(b'"v": 1', b'"v": 2'),
            lambda text: text.replace(b'"v": 1', b'"v": 1, "more": 1'),
            lambda text: text.replace(b'"state": "planned"', b'"state": "invented"'),
            lambda text: text.replace(b'"uid": 1001', b'"uid": "1001"'),
            lambda text: text.replace(b'"uid": 1001', b'"uid": true'),
            lambda text: text.replace(b'"node": "n1"', b'"node": "n2"'),
            lambda text: text.replace(b'"job": 4711', b'"job": 4712'),
            lambda text: b" " * 70_000 + text,
            lambda text: b"[" * 60_000,
        ],
    )
    def test_content(self, journal: Journal, folder: Path, change: object) -> None:
        journal.write(RECORD)
        path = folder / f"{JOB}.json"
        text = change(path.read_bytes())  # type: ignore[operator]
        assert text != path.read_bytes()
        path.write_bytes(text)
        with pytest.raises(JournalError, match="damaged"):
            journal.read(JOB)

    @pytest.mark.parametrize("what", ["symlink", "fifo", "directory", "open to others", "foreign"])
    def test_file(self, journal: Journal, folder: Path, what: str) -> None:
        journal.write(RECORD)
        path = folder / f"{JOB}.json"
        if what == "symlink":
            path.rename(folder / "other")
            path.symlink_to(folder / "other")
        elif what in ("fifo", "directory"):
            path.unlink()
            os.mkfifo(path, 0o600) if what == "fifo" else path.mkdir()
        elif what == "foreign" and os.geteuid() == 0:
            os.chown(path, 12345, 0)
        else:
            path.chmod(0o644)
        with pytest.raises(JournalError):
            journal.read(JOB)

    @pytest.mark.parametrize("mode", [0o750, 0o707, 0o777, 0o1777])
    def test_folder_open_to_others(self, journal: Journal, folder: Path, mode: int) -> None:
        journal.write(RECORD)
        folder.chmod(mode)
        for act in (
            lambda: journal.read(JOB),
            lambda: journal.write(RECORD),
            lambda: journal.claim_incarnation(JOB, INCARNATION),
        ):
            with pytest.raises(JournalError, match="trusted"):
                act()

    def test_folder_that_is_a_link(self, journal: Journal, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(JournalError, match="trusted"):
            journal.write(RECORD)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_run_directory_that_others_may_rename_things_in(self, journal: Journal, tmp_path: Path) -> None:
        journal.write(RECORD)
        tmp_path.chmod(0o777)
        with pytest.raises(JournalError, match="trusted"):
            journal.read(JOB)
        tmp_path.chmod(0o1777)  # with the sticky bit others cannot rename what is root's
        assert journal.read(JOB) is not None

    def test_no_run_directory(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        journal = Journal(str(tmp_path / "missing"), "n1")
        assert journal.read(JOB) is None
        assert journal.jobs() == []
        with pytest.raises(JournalError, match="there is no"):
            journal.write(RECORD)
        with pytest.raises(JournalError):
            journal.claim_incarnation(JOB, INCARNATION)

    @pytest.mark.parametrize("job", [0, -1, 2**32, True, "1", "../1", "1/../2", 1.0, None])
    def test_job_ids(self, journal: Journal, job: object) -> None:
        for act in (journal.read, journal.remove):
            with pytest.raises(JournalError, match="not a job id"):
                act(job)  # type: ignore[operator]
        with pytest.raises(JournalError, match="not a job id"):
            journal.write(RECORD._replace(job=job))  # type: ignore[arg-type]

    @pytest.mark.parametrize("change", [{"state": "invented"}, {"state": ""}, {"node": "n2"}])
    def test_records_of_others(self, journal: Journal, change: dict[str, str]) -> None:
        with pytest.raises(JournalError):
            journal.write(RECORD._replace(**change))  # type: ignore[arg-type]


class TestIncarnation:
    def test_is_good_once(self, journal: Journal) -> None:
        journal.claim_incarnation(JOB, INCARNATION)
        with pytest.raises(Refused) as caught:
            journal.claim_incarnation(JOB, INCARNATION)
        assert caught.value.rule == "grant.seen"
        journal.claim_incarnation(JOB, INCARNATION[::-1])

    def test_not_even_for_another_job_or_by_another_process(self, journal: Journal, tmp_path: Path) -> None:
        journal.claim_incarnation(JOB, INCARNATION)
        with pytest.raises(Refused):
            Journal(str(tmp_path), "n1").claim_incarnation(JOB + 1, INCARNATION)

    def test_one_of_many_at_once(self, journal: Journal) -> None:
        won: list[int] = []

        def claim(number: int) -> None:
            try:
                journal.claim_incarnation(JOB, INCARNATION)
            except Refused:
                return
            won.append(number)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1

    @pytest.mark.parametrize("name", ["", "abc", "../" + "a" * 29, "A" * 32, "g" * 32, INCARNATION + "\n", "a" * 33])
    def test_that_is_none(self, journal: Journal, name: str) -> None:
        with pytest.raises(Refused) as caught:
            journal.claim_incarnation(JOB, name)
        assert caught.value.rule == "grant.incarnation"

    def test_planted_link(self, journal: Journal, folder: Path, tmp_path: Path) -> None:
        journal.claim_incarnation(JOB, INCARNATION[::-1])
        (folder / "seen" / INCARNATION).symlink_to(tmp_path / "target")
        with pytest.raises(Refused):
            journal.claim_incarnation(JOB, INCARNATION)
        assert not (tmp_path / "target").exists()


class TestClaim:
    """Of a start that comes late: a hook that outlived its slurmd."""

    def test_one_that_never_was(self, journal: Journal) -> None:
        for incarnation in (INCARNATION, "", "x"):
            with pytest.raises(JobEnded):
                journal.check_claim(JOB, incarnation)

    def test_holds_until_it_is_revoked(self, journal: Journal) -> None:
        journal.claim_incarnation(JOB, INCARNATION)
        journal.claim_incarnation(JOB + 1, INCARNATION[::-1])
        for _ in range(2):
            journal.check_claim(JOB, INCARNATION)
        for _ in range(2):
            journal.revoke(JOB)
            with pytest.raises(JobEnded):
                journal.check_claim(JOB, INCARNATION)
        journal.check_claim(JOB + 1, INCARNATION[::-1])
        with pytest.raises(JobEnded):
            journal.check_claim(JOB + 1, INCARNATION)

    def test_gives_way_to_the_next(self, journal: Journal) -> None:
        journal.claim_incarnation(JOB, INCARNATION)
        journal.revoke(JOB)
        journal.claim_incarnation(JOB, INCARNATION[::-1])
        journal.check_claim(JOB, INCARNATION[::-1])
        with pytest.raises(JobEnded):
            journal.check_claim(JOB, INCARNATION)

    def test_a_replay_does_not_renew_it(self, journal: Journal) -> None:
        journal.claim_incarnation(JOB, INCARNATION)
        journal.revoke(JOB)
        with pytest.raises(Refused):
            journal.claim_incarnation(JOB, INCARNATION)
        with pytest.raises(JobEnded):
            journal.check_claim(JOB, INCARNATION)

    def test_what_cannot_be_read_claims_nothing(self, journal: Journal, folder: Path, tmp_path: Path) -> None:
        journal.claim_incarnation(JOB, INCARNATION)
        path = folder / f"{JOB}.claim"
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(JobEnded):
            journal.check_claim(JOB, INCARNATION)
        path.rename(tmp_path / "claim")
        (tmp_path / "claim").write_text(INCARNATION)
        path.symlink_to(tmp_path / "claim")
        with pytest.raises(JournalError):
            journal.check_claim(JOB, INCARNATION)
        folder.chmod(0o777)
        for act in (lambda: journal.check_claim(JOB, INCARNATION), lambda: journal.revoke(JOB)):
            with pytest.raises(JournalError, match="trusted"):
                act()

    @pytest.mark.parametrize("step", ["before", "planned"])
    def test_set_up_gives_up_when_a_tear_down_came(
        self, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        scratch = {"backing": "file", "directory": str(tmp_path / "store"), "mount_root": str(tmp_path / "mnt")}
        plan = ScratchPlan(
            node="n1", job=JOB, uid=1001, gid=1001, size_bytes=64 * 1024**2, overcommit=True, volume_group="",
            device="", filesystem="ext4", run_dir=str(tmp_path), **scratch,
        )  # fmt: skip
        monkeypatch.setattr(backing, "make_file", lambda _plan: pytest.fail("set-up went on"))
        monkeypatch.setattr(teardown, "_LOCK_PATIENCE", 0.0)
        write = journal.write

        def close_meanwhile(record: Record) -> Record:
            written = write(record)
            if record.state == step:
                assert teardown.close_scratch(journal, JOB, scratch).gone
            return written

        monkeypatch.setattr(journal, "write", close_meanwhile)
        journal.claim_incarnation(JOB, INCARNATION)
        if step == "before":
            assert teardown.close_scratch(journal, JOB, scratch).gone
        key = Secret(bytes(64))
        with pytest.raises(JobEnded):
            setup.open_scratch(plan, key, journal, incarnation=INCARNATION, key_name="k", wrapped="w")
        assert len(key) == 0


class TestWritten:
    @pytest.mark.parametrize("state", STATES)
    def test_and_read_again(self, journal: Journal, state: str) -> None:
        written = journal.write(RECORD._replace(state=state))
        assert journal.read(JOB) == written
        assert written.changed >= written.created > 0

    def test_private(self, journal: Journal, folder: Path) -> None:
        os.umask(0)
        try:
            journal.write(RECORD)
            journal.claim_incarnation(JOB, INCARNATION)
        finally:
            os.umask(0o022)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "seen").stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / f"{JOB}.json").stat().st_mode) == 0o600

    def test_a_write_that_fails_leaves_the_one_before(
        self, journal: Journal, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = journal.write(RECORD)

        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(JournalError, match="No space left"):
                journal.write(RECORD._replace(state="ready"))
        assert journal.read(JOB) == before
        assert journal.write(RECORD._replace(state="ready")).state == "ready"
        assert [path.name for path in folder.iterdir()] == [f"{JOB}.json"]

    def test_a_link_in_place_of_the_temporary_file_is_not_followed(
        self, journal: Journal, folder: Path, tmp_path: Path
    ) -> None:
        journal.write(RECORD)
        (folder / f".{JOB}.{os.getpid()}.tmp").symlink_to(tmp_path / "target")
        journal.write(RECORD)
        assert not (tmp_path / "target").exists()

    def test_holds_no_plain_key(self) -> None:
        assert [name for name in Record._fields if "key" in name] == ["key_name", "wrapped_key"]

    def test_is_json(self, journal: Journal, folder: Path) -> None:
        journal.write(RECORD)
        assert json.loads((folder / f"{JOB}.json").read_text())["v"] == 1

    def test_removed_as_often_as_one_likes(self, journal: Journal, folder: Path) -> None:
        journal.write(RECORD)
        for _ in range(2):
            journal.remove(JOB)
        assert journal.read(JOB) is None
        assert list(folder.iterdir()) == []

    def test_jobs(self, journal: Journal, folder: Path) -> None:
        for job in (30, 4, 500):
            journal.write(RECORD._replace(job=job))
        for name in ("x.json", "007.json", "5.json.bak", "6.lock"):
            (folder / name).touch()
        assert journal.jobs() == [4, 30, 500]


class TestPrune:
    def test_takes_what_is_old_and_over(self, journal: Journal, folder: Path) -> None:
        over = journal.write(RECORD._replace(job=1, state="destroyed"))
        journal.write(RECORD._replace(job=2, state="ready"))
        journal.write(RECORD._replace(job=3, state="destroyed"))
        (folder / "3.json").write_bytes(b"garbled")
        journal.claim_incarnation(JOB, INCARNATION)
        journal.prune(over.changed + KEEP_DESTROYED - 10)
        assert journal.jobs() == [1, 2, 3]
        journal.prune(over.changed + KEEP_DESTROYED + 10)
        assert journal.jobs() == [2, 3]
        with pytest.raises(Refused):
            journal.claim_incarnation(JOB, INCARNATION)
        journal.prune(over.changed + KEEP_SEEN + 100)
        journal.claim_incarnation(JOB, INCARNATION)


class TestLock:
    def test_keeps_others_out(self, journal: Journal) -> None:
        with journal.lock(JOB, 1.0), pytest.raises(JournalError, match="another process"), journal.lock(JOB, 0.0):
            pass
        with journal.lock(JOB, 0.0):
            pass

    def test_is_for_one_job(self, journal: Journal) -> None:
        with journal.lock(JOB, 0.0), journal.lock(JOB + 1, 0.0):
            pass

    def test_goes_with_its_holder(self, journal: Journal) -> None:
        child = os.fork()
        if child == 0:
            with journal.lock(JOB, 5.0):
                os._exit(0)
        os.waitpid(child, 0)
        with journal.lock(JOB, 0.0):
            pass

    def test_one_that_was_removed_is_none(self, journal: Journal) -> None:
        """A lock on a file that nobody can find any more would let a second holder in."""
        entered = threading.Event()

        def wait_for_it() -> None:
            with journal.lock(JOB, 20.0):
                entered.set()
                with pytest.raises(JournalError), journal.lock(JOB, 0.0):
                    pass

        with journal.lock(JOB, 0.0):
            waiter = threading.Thread(target=wait_for_it)
            waiter.start()
            journal.remove(JOB)
        waiter.join(30)
        assert entered.is_set()


def test_the_place_is_kept_and_a_journal_of_an_older_version_has_none(journal: Journal, folder: Path) -> None:
    place = "ec2 eu-central-1 i-0123456789abcdef0 verified"
    journal.write(RECORD._replace(place=place))
    found = journal.read(JOB)
    assert found
    assert found.place == place
    path = folder / f"{JOB}.json"
    text = json.loads(path.read_text())
    del text["place"]
    path.write_text(json.dumps(text))
    found = journal.read(JOB)
    assert found
    assert found.place == ""
