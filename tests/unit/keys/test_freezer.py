"""Stopping a job's processes, on real ones; the cgroups are folders with the kernel's files in them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keys import freezer, stopping
from keys.journal import Journal, Record
from keys.scratch import crypt

JOB = 4_000_000_017
"""No job of this number runs where the tests run."""


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    top = tmp_path / "cgroup"
    top.mkdir()
    (tmp_path / "mounts").write_text(f"proc /proc proc rw 0 0\ncgroup2 {top} cgroup2 rw 0 0\n")
    return top


def make(top: Path, scope: str, job: int = JOB, step: str = "step_batch") -> Path:
    user = top / scope / f"job_{job}" / step / "user"
    user.mkdir(parents=True)
    (user.parent / "slurm").mkdir()
    return user


def found(top: Path, node: str = "n1") -> list[str]:
    proc = top.parent / "proc"
    proc.mkdir(exist_ok=True)
    return sorted(freezer.step_cgroups(node, JOB, str(top.parent / "mounts"), str(proc)))


def stepd(top: Path, pid: int, title: str, cgroup: str, uid: int = 0) -> None:
    """A process as proc_pid(5) shows it."""
    folder = top.parent / "proc" / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_text(title)
    (folder / "cgroup").write_text(f"0::{cgroup}\n")
    (folder / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")


def test_a_job_whose_cgroup_has_another_name(cgroups: Path) -> None:
    """Slurm 26.05: the SLUID in the place of ``job_J``."""
    scope = "system.slice/n1_slurmstepd.scope"
    steps = []
    for step in ("step_batch", "step_0"):
        (cgroups / scope / "sCYSM80A1F2T00" / step / "slurm").mkdir(parents=True)
        steps.append(cgroups / scope / "sCYSM80A1F2T00" / step / "user")
        steps[-1].mkdir()
    (cgroups / scope / "sOTHER" / "step_batch" / "user").mkdir(parents=True)
    batch = f"slurmstepd: [{JOB}.batch]"
    stepd(cgroups, 10, batch, f"/{scope}/sCYSM80A1F2T00/step_batch/slurm")
    assert found(cgroups) == sorted(map(str, steps))
    # of another node, job or user, or not where a slurmstepd is
    for pid, title, where, uid in (
        (11, batch, "/system.slice/n2_slurmstepd.scope/sX/step_batch/slurm", 0),
        (12, f"slurmstepd: [{JOB + 1}.batch]", f"/{scope}/sOTHER/step_batch/slurm", 0),
        (13, batch, f"/{scope}/sOTHER/step_batch/slurm", 1001),
        (14, batch, f"/{scope}/sOTHER/step_batch/user/task_0", 0),
        (15, batch, "/", 0),
        (16, batch, "", 0),
        (17, batch, "/user.slice/x/step_batch/slurm", 0),
    ):
        stepd(cgroups, pid, title, where, uid)
    assert found(cgroups) == sorted(map(str, steps))
    assert found(cgroups, "n3") == []


def test_where_steps_are_looked_for(cgroups: Path) -> None:
    assert found(cgroups) == []
    mine = [make(cgroups, "system.slice/slurmstepd.scope", step=step) for step in ("step_batch", "step_0")]
    make(cgroups, "system.slice/slurmstepd.scope", JOB + 1)
    # where a user can make cgroups
    make(cgroups, "user.slice/user-1001.slice/user@1001.service/slurmstepd.scope")
    assert found(cgroups) == sorted(map(str, mine))


def test_a_node_of_several_has_a_scope_of_its_own(cgroups: Path) -> None:
    mine = make(cgroups, "system.slice/n1_slurmstepd.scope")
    other = make(cgroups, "system.slice/n2_slurmstepd.scope")
    assert found(cgroups) == [str(mine)]
    assert found(cgroups, "n2") == [str(other)]
    assert found(cgroups, "n3") == []


def test_slurmstepd_itself_is_left_alone(cgroups: Path) -> None:
    (path,) = [make(cgroups, "slurmstepd.scope")]
    assert found(cgroups) == [str(path)]
    assert path.name == "user"


def test_no_cgroup_file_system(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("")
    assert list(freezer.step_cgroups("n1", JOB, str(tmp_path / "mounts"))) == []
    assert list(freezer.step_cgroups("n1", JOB, str(tmp_path / "none"))) == []


class TestSignals:
    @pytest.fixture(autouse=True)
    def without_cgroups(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(freezer, "step_cgroups", lambda *_: iter(()))
        monkeypatch.setattr(freezer, "_owner", lambda _: 1001)

    @pytest.fixture
    def job(self) -> Iterator[subprocess.Popen[bytes]]:
        environment = {"SLURM_JOB_ID": str(JOB), "SLURMD_NODENAME": "n1", "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], env=environment, start_new_session=True)
        yield process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def test_nothing_runs(self) -> None:
        assert freezer.freeze("n1", JOB) == freezer.Frozen("none", 0, True)
        assert not freezer.is_there("n1", JOB)

    def test_all_of_a_job_by_its_environment(self, job: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 10
        while len(freezer._processes("n1", JOB)) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        assert freezer.is_there("n1", JOB)
        assert freezer.freeze("n1", JOB) == freezer.Frozen("signal", 3, True)
        for pid in freezer._processes("n1", JOB):
            while state(pid) != "T" and time.monotonic() < end:
                time.sleep(0.01)
            assert state(pid) == "T"

    def test_a_process_that_has_the_number_by_now_is_left_alone(
        self, job: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The one that was looked at has ended, and its number is another's."""
        monkeypatch.setattr(freezer, "ROUNDS", 1)
        monkeypatch.setattr(freezer, "_processes", lambda *_: {job.pid: b"1"})
        freezer.freeze("n1", JOB)
        assert state(job.pid) != "T"
        monkeypatch.setattr(freezer, "_processes", lambda *_: {job.pid: freezer._begun(job.pid)})
        freezer.freeze("n1", JOB)
        end = time.monotonic() + 10
        while state(job.pid) != "T" and time.monotonic() < end:
            time.sleep(0.01)
        assert state(job.pid) == "T"
        freezer.thaw("n1", JOB)
        while state(job.pid) == "T" and time.monotonic() < end:
            time.sleep(0.01)
        assert state(job.pid) != "T"

    def test_of_this_node_and_job_alone(self, job: subprocess.Popen[bytes]) -> None:
        assert freezer.freeze("n2", JOB).how == "none"
        assert freezer.freeze("n1", JOB + 1).how == "none"

    def test_roots_hooks_are_left_alone(self, job: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(freezer, "_owner", lambda _: 0)
        assert freezer.freeze("n1", JOB) == freezer.Frozen("none", 0, True)

    def test_a_name_like_slurmstepds_saves_nobody_who_is_not_root(self) -> None:
        environment = {"SLURM_JOB_ID": str(JOB), "SLURMD_NODENAME": "n1"}
        argv = ["slurmstepd: [4000000017.batch]", "60"]
        with subprocess.Popen(argv, executable="/bin/sleep", env=environment) as process:
            try:
                # its environment is there a moment after Popen has come back (execve(2))
                end = time.monotonic() + 10
                while process.pid not in freezer._processes("n1", JOB) and time.monotonic() < end:
                    time.sleep(0.01)
                assert process.pid in freezer._processes("n1", JOB)
            finally:
                process.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class TestStopping:
    @pytest.fixture
    def journal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
        tmp_path.chmod(0o755)
        monkeypatch.setattr(freezer, "freeze", lambda *_: freezer.Frozen("cgroup", 2, True))
        return Journal(str(tmp_path), "n1")

    def test_a_set_up_in_progress_does_not_go_on(self, journal: Journal) -> None:
        for job, states in ((17, ("planned",)), (18, ("planned", "mapping")), (19, ())):
            journal.claim_incarnation(job, f"{job:032x}")
            for each in states:
                journal.write(Record(job, "n1", 1001, state=each, incarnation=f"{job:032x}"))
            stopping.stop_job(journal, journal.run_dir, job)
            assert not Path(journal.run_dir, "journal", f"{job}.claim").exists()

    def test_a_job_that_runs_keeps_its_claim(self, journal: Journal) -> None:
        journal.claim_incarnation(17, "ab" * 16)
        journal.write(Record(17, "n1", 1001, state="ready", incarnation="ab" * 16))
        found = stopping.stop_job(journal, journal.run_dir, 17)
        assert (found.done, found.evidence()) == (True, "2 cgroups frozen; no key was there")
        assert Path(journal.run_dir, "journal/17.claim").exists()

    def test_a_job_without_scratch_keeps_its_claim(self, journal: Journal) -> None:
        journal.claim_incarnation(17, "ab" * 16)
        Path(journal.run_dir, "task").mkdir()
        Path(journal.run_dir, "task/17").touch()
        assert stopping.stop_job(journal, journal.run_dir, 17).done
        assert Path(journal.run_dir, "journal/17.claim").exists()

    def test_the_key_goes_though_a_tear_down_hangs(self, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
        wiped: list[str] = []
        monkeypatch.setattr(stopping, "_LOCK", 0.05)
        monkeypatch.setattr(crypt, "wipe_key", lambda name, _: bool(wiped.append(name) or True))
        with journal.lock(17, 1.0):
            found = stopping.stop_job(journal, journal.run_dir, 17)
        assert wiped == ["secure-n1-17"]
        assert (found.wiped, "another process" in found.evidence()) == (True, True)

    def test_a_mapping_that_cannot_be_looked_at_counts_as_one_with_a_key(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crypt, "find", lambda name: crypt.Mapping(name, f"CRYPT-PLAIN-{name}", "dm-9", 9, 8, False))
        found = stopping.stop_job(journal, journal.run_dir, 17)
        assert not found.done
        assert found.problem
        assert "the key is still there" in found.evidence()


def test_frozen_and_let_go(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = make(cgroups, "system.slice/n1_slurmstepd.scope")
    monkeypatch.setattr(freezer, "step_cgroups", lambda *_: iter([str(user)]))
    assert freezer.thaw("n1", JOB)
    assert (user / "cgroup.freeze").read_text() == "0"
    (user / "cgroup.freeze").unlink()
    (user / "cgroup.freeze").mkdir()
    assert not freezer.thaw("n1", JOB)


def test_who_is_killed_and_cannot_die(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = make(cgroups, "system.slice/n1_slurmstepd.scope")
    (user / "task_0").mkdir()
    (user / "task_0/cgroup.procs").write_text("17\n18\n")
    pending = {"17": "0000000000000000", "18": "0000000000000002"}
    monkeypatch.setattr(freezer, "step_cgroups", lambda *_: iter([str(user)]))

    def read(path: str) -> bytes:
        name = path.split("/")[2]
        if path.startswith("/proc/"):
            return f"Name:\tx\nSigPnd:\t{pending[name]}\nShdPnd:\t0000000000000000\n".encode()
        return Path(path).read_bytes() if Path(path).exists() else b""

    monkeypatch.setattr(freezer, "_read", read)
    assert not freezer.is_being_killed("n1", JOB)
    pending["18"] = "0000000000000100"
    assert freezer.is_being_killed("n1", JOB)


def test_without_cgroups_they_go_on_by_signal(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(freezer, "step_cgroups", lambda *_: iter([]))
        monkeypatch.setattr(freezer, "_processes", lambda *_: {child.pid: freezer._begun(child.pid)})
        try:
            os.kill(child.pid, signal.SIGSTOP)
            stands_still(child.pid, yes=True)
            assert not freezer.is_being_killed("n1", JOB)
            assert freezer.thaw("n1", JOB)
            stands_still(child.pid, yes=False)
        finally:
            # one that stands still is waited for without end
            child.kill()


def stands_still(pid: int, *, yes: bool) -> None:
    end = time.monotonic() + 30
    while (freezer._read(f"/proc/{pid}/stat").split()[2] == b"T") is not yes:
        assert time.monotonic() < end
        time.sleep(0.01)
