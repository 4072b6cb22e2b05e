"""secure-slurm doctor, on this machine and on what is ours: each fault is seen, and what is harmless only warned of."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from admin.doctor import doors_files, doors_here, doors_ours
from admin.doctor.facts import (
    Attempt,
    Clock,
    Commands,
    Crypt,
    Daemon,
    Decision,
    Enrolled,
    FileSystems,
    Fips,
    Head,
    Leak,
    Metadata,
    NodeDaemon,
    NodeJobs,
    Rendered,
    Revocations,
    ScratchPlace,
    SecretFile,
    Settings,
    SlurmNode,
    Space,
    Speed,
)
from admin.doctor.finding import Silence, amount, some
from admin.doctor.judge_machine import (
    encryption,
    endpoints,
    file_systems,
    fips,
    head_leaks,
    leaks,
    metadata,
    no_way_out,
    scratch,
    space,
    speed,
)
from admin.doctor.judge_ours import (
    commands,
    configuration,
    daemons,
    decision,
    enrolment,
    head,
    node_daemon,
    node_jobs,
    orphans,
    pending,
    rendered,
    revocations,
    secrets,
)
from conf.errors import BackendUnavailable
from tests.unit.admin.test_status_cmd import WELL, with_

GIB = 1024**3
HEAD = Head((), (), 0, (), 0, 0)
SPACE = Space("/var/log/secure-slurm", 50 * GIB, 100 * GIB, 900, 1000)


class TestConfiguration:
    def test_mistakes(self) -> None:
        found = configuration(Settings(("secure-slurm.yaml:3:1: unknown key",), "file"))
        assert (found.state, "3:1" in found.seen) == ("fail", True)
        twice = configuration(
            Settings(("/etc/secure-slurm does not exist", "/etc/secure-slurm does not exist"), "file")
        )
        assert twice.seen == "/etc/secure-slurm does not exist"
        assert configuration(Settings((), "none")).state == "fail"
        assert configuration(Settings((), "file")).state == "ok"

    def test_what_is_stale(self) -> None:
        assert rendered(Rendered("policy.yaml has changed", "run: secure-slurm conf render")).state == "fail"
        assert rendered(Rendered("", "")).state == "ok"


class TestDaemons:
    @pytest.mark.parametrize(
        "one", [Daemon("noded", "failed", 0), Daemon("noded", "", 0), Daemon("noded", "inactive", 1)]
    )
    def test_one_that_does_not_run(self, one: Daemon) -> None:
        found = daemons((Daemon("handd", "", 1), one))
        assert (found.state, "secure-slurm-noded" in found.seen, "enable --now secure-slurm-noded" in found.fix) == (
            "fail",
            True,
            True,
        )

    def test_the_hook_server_is_only_missed(self) -> None:
        assert daemons((Daemon("noded", "active", 0), Daemon("hookd", "failed", 0))).state == "warn"
        assert daemons((Daemon("noded", "active", 0), Daemon("hookd", "", 1))).state == "ok"

    def test_a_process_counts_only_as_its_account_and_for_this_node(self) -> None:
        program = f"{doors_ours.PREFIX}/bin/secure-slurm-handd"
        root = [(0, ["python3", "-I", program, "--node", "n1"]), (0, ["python3", "-I", program, "--node", "n2"])]
        assert doors_ours._count("handd", root, "n1") == 1
        assert doors_ours._count("handd", [(1001, ["python3", "-I", program, "--node", "n1"])], "n1") == 0
        assert doors_ours._count("handd", [(0, ["less", "/x", "/y", "/z", program])], "n1") == 0


class TestHead:
    def test_what_the_lifecycle_daemon_says(self) -> None:
        assert head(HEAD._replace(bad=("Vault: it is sealed",))).state == "fail"
        assert pending(HEAD._replace(pending=("job 7 for 3 s (sealed)",), pending_count=9)).state == "fail"
        assert (
            orphans(HEAD._replace(kept=("job 7: slurmctld has not given that number",), kept_count=1)).state == "fail"
        )
        assert orphans(HEAD._replace(damaged=1)).state == "fail"
        assert {head(HEAD).state, pending(HEAD).state, orphans(HEAD).state} == {"ok"}

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("vault", "it is sealed"),
            ("slurm", "no slurmctld is up"),
            ("members", "too old"),
            ("audit", "the disk is full"),
            ("reaper.error", "Vault could not list"),
            ("certificates.error", "Vault could not sign"),
            ("breaker.state", "open"),
        ],
    )
    def test_its_report(self, path: str, value: str) -> None:
        assert head(doors_ours.head_of(with_(path, value))).state == "fail"

    def test_what_has_a_line_of_its_own(self) -> None:
        seen = doors_ours.head_of({**WELL, "pending_count": 1, "pending": [{"job": 7, "age": 3.0, "reason": "sealed"}]})
        assert (head(seen).state, pending(seen).state) == ("ok", "fail")
        reaper = {**WELL["reaper"], "kept_count": 1, "kept": [{"job": 7, "why": "slurmctld has not given it yet"}]}
        seen = doors_ours.head_of({**WELL, "reaper": reaper})
        assert (head(seen).state, orphans(seen).state) == ("ok", "fail")

    @pytest.mark.parametrize("report", [{}, {"pending": 1}, {**WELL, "reaper": None}])
    def test_a_report_of_another_version(self, report: dict[str, Any]) -> None:
        with pytest.raises(BackendUnavailable):
            doors_ours.head_of(report)

    def test_the_decision_daemon(self) -> None:
        assert decision(Decision("3 s old", "failing")).state == "fail"
        assert decision(Decision("", "")).state == "fail"
        assert decision(Decision("3 s old", "written")).state == "ok"

    def test_revocations(self) -> None:
        assert revocations(Revocations(2, ("job 7",))).state == "fail"
        assert revocations(Revocations(2, ())).state == "ok"


class TestFiles:
    def test_what_is_wrong_with_one(self) -> None:
        bad = SecretFile("node key", "/etc/k", "others may read it")
        assert secrets((SecretFile("record key", "/etc/r", ""), bad)).state == "fail"
        assert secrets((SecretFile("record key", "/etc/r", ""),)).state == "ok"

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
    def test_a_secret_that_others_may_read_or_write(self, tmp_path: Path, mode: int) -> None:
        path = tmp_path / "key"
        path.touch()
        path.chmod(mode)
        assert doors_files.secret_fault(str(path), pwd.getpwuid(os.geteuid()).pw_name)

    def test_a_secret_that_is_none(self, tmp_path: Path) -> None:
        me = pwd.getpwuid(os.geteuid()).pw_name
        (tmp_path / "there").touch(mode=0o600)
        (tmp_path / "link").symlink_to(tmp_path / "there")
        for name in ("none", "link"):
            assert doors_files.secret_fault(str(tmp_path / name), me)
        assert doors_files.secret_fault(str(tmp_path / "there"), "no-such-account")
        assert doors_files.secret_fault(str(tmp_path / "there"), me) == ""


class TestNode:
    def test_its_daemon(self) -> None:
        assert node_daemon(NodeDaemon("", "", "", "the region 'x' belongs to no jurisdiction")).state == "fail"
        assert node_daemon(NodeDaemon("eu-central-1", "eu", "file eu-central-1 not verified")).state == "ok"

    def test_orphans(self) -> None:
        found = node_jobs(NodeJobs(1, ("job 7: mapping: secure-n1-7 (journal: none)",), ()))
        assert (found.state, "secure-n1-7" in found.seen, "node clean" in found.fix) == ("fail", True, True)
        assert node_jobs(NodeJobs(0, (), ("/run/x: Permission denied",))).state == "fail"
        assert node_jobs(NodeJobs(2, (), ())).state == "ok"

    def test_encryption(self) -> None:
        assert encryption(Crypt(True, ("cryptsetup",), True)).state == "fail"
        assert encryption(Crypt(False, (), True)).state == "fail"
        assert encryption(Crypt(True, (), False)).state == "warn"
        assert encryption(Crypt(True, (), None)).state == "ok"
        assert speed(Speed(299.0)).state == "warn"
        assert speed(Speed(2000.0)).state == "ok"

    def test_scratch(self) -> None:
        phi = SlurmNode("IDLE", "", ("phi",))
        assert scratch(ScratchPlace("/var/s", 0, 0, "it must be root's alone", "chmod"), phi).state == "fail"
        assert scratch(ScratchPlace("/var/s", GIB, 2 * GIB), phi).state == "fail"
        assert scratch(ScratchPlace("/var/s", 2 * GIB, 2 * GIB), phi).state == "ok"

    @pytest.mark.parametrize("place", [ScratchPlace("auto", 0, 0, "nothing was chosen"), ScratchPlace("/s", 1, 2)])
    def test_a_node_of_queues_that_demand_no_tag_may_do_without_scratch(self, place: ScratchPlace) -> None:
        found = scratch(place, SlurmNode("IDLE", "", ()))
        assert (found.state, "no partition of this node demands a tag" in found.seen) == ("warn", True)
        # and only if slurmctld has said so
        for unknown in (Silence("no answer within 17 s"), SlurmNode("IDLE", ""), SlurmNode("IDLE", "", ("phi",))):
            assert scratch(place, unknown).state == "fail"

    def test_enrolment(self) -> None:
        now = Clock(1000.0, synchronised=True)
        assert enrolment(Enrolled(asked=False), now).state == "ok"
        found = enrolment(Enrolled(asked=True), now)
        assert (found.state, "secure-slurm node enrol" in found.fix) == ("fail", True)
        assert enrolment(Enrolled(True, "i-0a", 0.0, 1300.0), now).state == "warn"
        assert enrolment(Enrolled(True, "i-0a", 0.0, 2000.0), now).state == "ok"

    def test_the_folder_for_scratch(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o755)
        (tmp_path / "file").touch()
        (tmp_path / "link").symlink_to(tmp_path)
        assert all(doors_here._folder(str(tmp_path / name), 0).problem for name in ("none", "file", "link", ""))
        if os.geteuid() == 0:
            tmp_path.chmod(0o700)
            assert doors_here._folder(str(tmp_path), 0).problem == ""

    def test_file_systems(self) -> None:
        assert file_systems(FileSystems("eu", ("/mnt (srv:/x, nfs4)",), ())).state == "fail"
        assert file_systems(FileSystems("", ("/mnt (srv:/x, nfs4)",), ())).state == "fail"
        assert file_systems(FileSystems("eu", (), ("/home/a/mnt (x, fuse.sshfs)",))).state == "warn"
        assert file_systems(FileSystems("eu", (), ())).state == "ok"


class TestMachine:
    SWAP = (Leak("node.swap", "swap on /dev/sda2: it is not encrypted", "swapoff"),)

    def test_leaks(self) -> None:
        assert leaks(self.SWAP, "node.swap", "none") == ("fail", self.SWAP[0].seen, "swapoff")
        assert leaks(self.SWAP, "node.core-dumps", "none").state == "ok"
        assert head_leaks(self.SWAP, "node.swap", "none").state == "warn"
        assert head_leaks((), "node.swap", "none").state == "ok"

    def test_the_metadata_service(self) -> None:
        assert metadata(Metadata(None, True)).state == "fail"
        assert metadata(Metadata(("169.254.169.254",), True)).state == "fail"
        assert metadata(Metadata((), False)).state == "ok"

    @pytest.mark.parametrize(
        ("attempt", "state"),
        [
            (Attempt("1.1.1.1:53", (), "open"), "fail"),
            (Attempt("162.159.200.1:123", (), "open"), "fail"),
            (Attempt("1.1.1.1:443", (), "refused"), "warn"),
            (Attempt("example.com:80", ("192.0.2.9",), "silent"), "warn"),
            (Attempt("1.1.1.1:443", (), "silent"), "ok"),
            (Attempt("1.1.1.1:443", (), "ENETUNREACH"), "ok"),
            (Attempt("example.com:80", (), "not resolved"), "ok"),
        ],
    )
    def test_no_way_out(self, attempt: Attempt, state: str) -> None:
        found = no_way_out((Attempt("9.9.9.9:53", (), "silent"), attempt))
        assert (found.state, attempt.target.rpartition(":")[0] in found.seen) == (state, True)

    def test_endpoints(self) -> None:
        away = Attempt("sts.eu-central-1.amazonaws.com:443", (), "not resolved")
        assert endpoints((Attempt("a:443", (), "open"), away)).state == "fail"
        assert endpoints((Attempt("a:443", ("10.0.0.5",), "open"),)).state == "ok"
        assert endpoints(()).state == "ok"

    @pytest.mark.parametrize("enabled", [False, None])
    def test_fips(self, enabled: bool | None) -> None:
        assert fips(Fips(enabled, wanted=True)).state == "fail"
        assert fips(Fips(enabled, wanted=False)).state == "ok"
        assert fips(Fips(True, wanted=True)).state == "ok"

    @pytest.mark.parametrize(
        ("free", "files", "state"),
        [(1, 900, "fail"), (50, 5, "fail"), (5, 900, "warn"), (50, 90, "warn"), (50, 900, "ok")],
    )
    def test_space(self, free: int, files: int, state: str) -> None:
        assert space((SPACE, SPACE._replace(free=free * GIB, files_free=files))).state == state

    def test_space_of_a_file_system_that_counts_no_files(self) -> None:
        assert space((SPACE._replace(files_free=0, files=0),)).state == "ok"

    def test_commands(self) -> None:
        assert commands(Commands(("sbatch",), "")).state == "fail"
        assert commands(Commands((), "24.11.5")).state == "ok"


def test_words() -> None:
    assert amount(512) == "512 B"
    assert amount(1.5 * GIB) == "1.5 GiB"
    assert some("abcdefg", ", ") == "a, b, c, d, e, and 2 more"
