"""What can be judged of scratch without a kernel that has dm-crypt: names, plans, tables, mounts, safe folders."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import InternalError, Refused
from keys.scratch import crypt, filesystem, holders, mounts, setup, volume
from keys.scratch.errors import NodeBroken, ScratchTooLarge, UnsafePath
from keys.scratch.paths import open_directory
from keys.scratch.plan import ScratchPlan, check_plan, names_from_config

MIB = 1024**2
PLAN = ScratchPlan(
    node="n1", job=7, uid=1001, gid=1001, size_bytes=200 * MIB, backing="file", directory="/var/scratch",
    overcommit=False, volume_group="vg", device="/dev/nvme1n1", mount_root="/secure-scratch", filesystem="ext4",
    run_dir="/run/x",
)  # fmt: skip
CONFIG = {
    "backing": "file", "directory": "/var/scratch", "volume_group": "vg", "device": "/dev/nvme1n1",
    "mount_root": "/secure-scratch",
}  # fmt: skip


class TestPlan:
    @pytest.mark.parametrize(
        "change",
        [
            {"node": ""}, {"node": "a_b"}, {"node": "../x"}, {"node": "n1\n"}, {"node": "x" * 64}, {"node": "-n"},
            {"job": 0}, {"job": -7}, {"job": "7"}, {"job": True}, {"job": 2**32},
            {"backing": ""}, {"backing": "tape"}, {"filesystem": "btrfs"}, {"filesystem": ""},
            {"directory": ""}, {"directory": "relative"}, {"mount_root": ""}, {"mount_root": "/"}, {"mount_root": "x"},
            {"backing": "lvm", "volume_group": ""}, {"backing": "lvm", "volume_group": "a/b"},
            {"backing": "lvm", "volume_group": "-x"}, {"backing": "lvm", "volume_group": "--yes"},
            {"backing": "block", "device": ""}, {"backing": "block", "device": "sda"},
        ],
    )  # fmt: skip
    def test_a_node_that_is_set_up_wrongly(self, change: dict[str, Any]) -> None:
        with pytest.raises(NodeBroken):
            check_plan(PLAN._replace(**change))

    @pytest.mark.parametrize(
        ("change", "rule"),
        [
            ({"uid": 0}, "scratch.root"), ({"uid": -1}, "scratch.root"), ({"gid": -1}, "scratch.root"),
            ({"size_bytes": 0}, "scratch.too-small"), ({"size_bytes": -4096}, "scratch.too-small"),
            ({"size_bytes": 16 * MIB - 1}, "scratch.too-small"),
            ({"size_bytes": 299 * MIB, "filesystem": "xfs"}, "scratch.too-small"),
        ],
    )  # fmt: skip
    def test_what_a_job_may_not_have(self, change: dict[str, Any], rule: str) -> None:
        with pytest.raises(Refused) as caught:
            check_plan(PLAN._replace(**change))
        assert caught.value.rule == rule

    def test_names(self) -> None:
        check_plan(PLAN)
        names = PLAN.names
        assert names.mapper == "secure-n1-7"
        assert names.device == "/dev/mapper/secure-n1-7"
        assert names.path == "/var/scratch/n1-7.img"
        assert names.mount_point == "/secure-scratch/7"
        assert PLAN._replace(backing="lvm").names.path == "vg/secure-n1-7"
        assert PLAN._replace(backing="block").names.path == "/dev/nvme1n1"

    def test_tear_down_finds_the_same_names_as_set_up_made(self) -> None:
        for backing in ("file", "lvm", "block"):
            assert names_from_config("n1", 7, CONFIG | {"backing": backing}) == PLAN._replace(backing=backing).names

    @pytest.mark.parametrize("lacking", ["backing", "directory", "mount_root"])
    def test_configuration_that_lacks_something(self, lacking: str) -> None:
        with pytest.raises(NodeBroken, match="lacks"):
            names_from_config("n1", 7, {key: value for key, value in CONFIG.items() if key != lacking})

    @given(st.integers(min_value=1, max_value=2**60))
    def test_sizes_are_rounded_up_to_blocks(self, size: int) -> None:
        mapped = PLAN._replace(size_bytes=size).mapped_bytes
        assert mapped % 4096 == 0
        assert 0 <= mapped - size < 4096

    @given(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", fullmatch=True), st.integers(1, 2**32 - 1),
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}", fullmatch=True), st.integers(1, 2**32 - 1),
    )  # fmt: skip
    def test_no_two_jobs_share_a_name(self, node: str, job: int, other: str, other_job: int) -> None:
        one, two = PLAN._replace(node=node, job=job).names, PLAN._replace(node=other, job=other_job).names
        if (node, job) != (other, other_job):
            assert one.mapper != two.mapper
            assert one.path != two.path
        assert len(one.mapper) < 127  # DM_NAME_LEN
        assert "/" not in one.mapper

    def test_blame(self) -> None:
        assert ScratchTooLarge("x").rule == "scratch.no-space"
        assert issubclass(ScratchTooLarge, Refused)
        assert issubclass(NodeBroken, InternalError)
        assert not issubclass(NodeBroken, Refused)

    def test_volume_nodes_double_their_dashes(self) -> None:
        assert volume.node_path("my-vg/secure-n1-7") == "/dev/mapper/my--vg-secure--n1--7"


GOOD = "0 8192 crypt aes-xts-plain64 " + "0" * 128 + " 0 7:0 0 1 sector_size:4096"


class TestTable:
    def test_good(self) -> None:
        assert crypt.table_fault(GOOD, 8192, "7:0") == ""
        assert crypt.table_fault(GOOD.replace("1 sector", "2 no_read_workqueue sector"), 8192, "7:0") == ""
        assert crypt.table_fault(GOOD.replace("0" * 128, ":64:logon:cryptsetup:x"), 8192, "7:0") == ""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (GOOD, ""),
            (GOOD, GOOD + "\n" + GOOD),
            (GOOD, "0 8192 error"),
            ("crypt", "linear"),
            ("0 8192", "8 8192"),
            ("8192", "8184"),
            ("aes-xts-plain64", "aes-cbc-essiv:sha256"),
            ("aes-xts-plain64", "cipher_null-ecb"),
            ("0" * 128, "0" * 64),
            ("0" * 128, "-"),
            ("0" * 128, "ab" * 64),
            ("0" * 128, ":32:logon:cryptsetup:x"),
            (" 0 7:0 0 ", " 8 7:0 0 "),
            (" 0 7:0 0 ", " 0 7:1 0 "),
            (" 0 7:0 0 ", " 0 7:0 8 "),
            (" 1 sector_size:4096", ""),
            ("sector_size:4096", "sector_size:512"),
            ("1 sector_size:4096", "2 sector_size:4096 allow_discards"),
            ("1 sector_size:4096", "2 sector_size:4096 integrity:28:aead"),
            ("1 sector_size:4096", "2 sector_size:4096 iv_large_sectors"),
        ],
    )
    def test_anything_else_is_a_fault(self, old: str, new: str) -> None:
        assert old in GOOD
        assert crypt.table_fault(GOOD.replace(old, new, 1), 8192, "7:0") != ""

    @pytest.mark.parametrize(
        ("text", "is_error"), [("0 8 error", True), ("", False), (GOOD, False), ("0 8 error\n8 8 zero", False)]
    )
    def test_error_table(self, text: str, is_error: bool) -> None:
        assert crypt._is_error(text) is is_error


MOUNTINFO = rb"""27 20 0:22 / / rw,relatime - overlay overlay rw
40 27 254:0 / /secure-scratch/7 rw,nosuid shared:3 master:1 - ext4 /dev/mapper/secure-n1-7 rw
41 40 0:50 / /secure-scratch/7/in\040ner rw - fuse.sshfs x rw
42 41 0:51 / /secure-scratch/7/in\040ner/deep rw - tmpfs x rw
43 27 254:0 /sub /secure-scratch/77 rw - ext4 /dev/mapper/secure-n1-7 rw
44 40 0:52 / /secure-scratch/7 rw - tmpfs x rw
garbage
45 27 x:y / /bad rw - ext4 x rw
46 27 8:1 / /short rw
"""


class TestMounts:
    def test_parsed(self) -> None:
        found = mounts.parse(MOUNTINFO)
        assert [mount.point for mount in found] == [
            "/", "/secure-scratch/7", "/secure-scratch/7/in ner", "/secure-scratch/7/in ner/deep", "/secure-scratch/77",
            "/secure-scratch/7",
        ]  # fmt: skip
        assert found[1] == mounts.Mount(os.makedev(254, 0), "/", "/secure-scratch/7", "ext4", "rw,nosuid")
        assert found[2].fstype == "fuse.sshfs"

    def test_innermost_first_and_no_namesakes(self) -> None:
        order = [(mount.point, mount.fstype) for mount in mounts.below("/secure-scratch/7", mounts.parse(MOUNTINFO))]
        assert order == [
            ("/secure-scratch/7/in ner/deep", "tmpfs"),
            ("/secure-scratch/7/in ner", "fuse.sshfs"),
            ("/secure-scratch/7", "tmpfs"),
            ("/secure-scratch/7", "ext4"),
        ]

    def test_a_carriage_return_in_a_name_hides_no_mount(self) -> None:
        # a user's FUSE mount in the job's scratch, which must be unmounted before it
        (found,) = mounts.parse(b"41 40 0:50 / /secure-scratch/7/a\rb rw - fuse.sshfs x\ry rw\n")
        assert (found.point, found.fstype) == ("/secure-scratch/7/a\rb", "fuse.sshfs")

    def test_a_process_that_is_gone_sees_none(self) -> None:
        assert mounts.mounts("999999999") == []

    @given(st.binary(max_size=300))
    def test_any_bytes(self, data: bytes) -> None:
        mounts.parse(data)

    def test_our_own(self) -> None:
        assert any(mount.point == "/" for mount in mounts.mounts())


class TestFolders:
    @pytest.mark.parametrize("path", ["", "/", "x", "./x", "/tmp/../etc", "/tmp/./x", "/tmp/\0x"])
    def test_paths_that_are_none(self, path: str) -> None:
        with pytest.raises(UnsafePath):
            open_directory(path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            open_directory(str(tmp_path / "x"))
        with pytest.raises(FileNotFoundError):
            open_directory(str(tmp_path / "x" / "y"), create=0o700)

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
    def test_writable_by_others(self, tmp_path: Path, mode: int) -> None:
        tmp_path.chmod(mode)
        with pytest.raises(UnsafePath, match="written to by others"):
            open_directory(str(tmp_path))

    @pytest.mark.parametrize("mode", [0o770, 0o707])
    def test_below_one_that_is_writable_by_others(self, tmp_path: Path, mode: int) -> None:
        (tmp_path / "x").mkdir(mode=0o700)
        tmp_path.chmod(mode)
        with pytest.raises(UnsafePath, match="written to by others"):
            open_directory(str(tmp_path / "x"))
        tmp_path.chmod(mode | stat.S_ISVTX)
        os.close(open_directory(str(tmp_path / "x")))

    @pytest.mark.parametrize("mode", [0o750, 0o705, 0o711])
    def test_private_is_private(self, tmp_path: Path, mode: int) -> None:
        tmp_path.chmod(mode)
        with pytest.raises(UnsafePath, match="open to others"):
            open_directory(str(tmp_path), private=True)
        os.close(open_directory(str(tmp_path)))

    def test_links_on_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "real" / "x").mkdir(parents=True)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        for path in ("link", "link/x"):
            with pytest.raises(UnsafePath, match="symbolic link"):
                open_directory(str(tmp_path / path))
        with pytest.raises(UnsafePath):
            open_directory(str(tmp_path / "link"), create=0o700)

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        with pytest.raises(UnsafePath):
            open_directory(str(tmp_path / "x"))

    @pytest.mark.parametrize("mode", [0o700, 0o755])
    def test_created_with_its_mode_whatever_the_umask(self, tmp_path: Path, mode: int) -> None:
        old = os.umask(0o077)
        try:
            os.close(open_directory(str(tmp_path / "x"), create=mode))
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == mode

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        before = set(Path("/proc/self/fd").iterdir())
        for path in (tmp_path / "missing", tmp_path):
            tmp_path.chmod(0o777)
            with pytest.raises((UnsafePath, FileNotFoundError)):
                open_directory(str(path))
        assert set(Path("/proc/self/fd").iterdir()) == before


class TestHolders:
    """On a file system that anybody has: what the processes of this machine hold of it."""

    def test_nobody_holds_what_is_not(self) -> None:
        ended = holders.end_holders({os.makedev(4000, 1)}, None, copies=True, timeout=20)
        assert ended == holders.Ended([], [], True)

    def test_found_and_not_killed_without_a_user(self, tmp_path: Path) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; print('x', flush=True); time.sleep(600)"],
                                 cwd=tmp_path, stdout=subprocess.PIPE)  # fmt: skip
        try:
            assert child.stdout is not None
            child.stdout.readline()
            for uid in (None, 0):
                ended = holders.end_holders({tmp_path.stat().st_dev}, uid, copies=False, timeout=30)
                assert ended.complete
                assert ended.killed == []
            assert child.poll() is None
        finally:
            child.kill()
            child.wait()
            child.stdout.close()  # type: ignore[union-attr]

    def test_a_search_that_does_not_end_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import time

        monkeypatch.setattr(holders, "_search", lambda *_args, **_kw: time.sleep(600))
        assert not holders.end_holders({1}, 1001, copies=False, timeout=0.5).complete

    def test_a_search_that_fails_is_incomplete(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holders, "_search", lambda *_args, **_kw: 1 / 0)
        assert not holders.end_holders({1}, 1001, copies=False, timeout=20).complete

    def test_namespaces_of_the_system_are_roots(self) -> None:
        assert holders._namespace_owner(os.getpid()) in (0, os.geteuid())
        assert holders._namespace_owner(999_999_999) == -1
        assert set(holders._uids(os.getpid())) == {os.getuid()}


class TestSignals:
    def test_are_held_back_and_handed_on(self) -> None:
        import signal

        got: list[int] = []
        old = signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
        try:
            with setup._Signals() as signals:
                os.kill(os.getpid(), signal.SIGTERM)
                assert signals.pending()
                assert got == []
                with pytest.raises(setup.Interrupted):
                    signals.check()
                assert got == [signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGTERM)
            assert len(got) == 2
        finally:
            signal.signal(signal.SIGTERM, old)


def test_the_hooks_stay_light() -> None:
    """Every job pays for what these import, twice on every node."""
    heavy = ["asyncio", "logging", "dataclasses", "pathlib", "hvac", "yaml", "attrs", "email", "http", "ssl"]
    code = (
        f"import sys; sys.path.insert(0, {str(Path(setup.__file__).parents[2])!r})\n"
        "import keys.scratch.setup, keys.scratch.teardown, keys.journal\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n", done.stdout


def test_file_systems_are_made_without_what_grows_with_size() -> None:
    assert {"^has_journal", "^resize_inode"} <= set(",".join(filesystem._MAKE["ext4"]).split(","))
    assert all({"nosuid", "nodev", "noatime"} <= set(options.split(",")) for options in filesystem._OPTIONS.values())
