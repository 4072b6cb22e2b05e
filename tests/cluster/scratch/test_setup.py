"""Set-up on a real kernel: what is promised of cipher, size, owner and mount, for each backing store; and refusals."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable, Refused
from keys.process import Budget, program, run
from keys.scratch import backing, crypt, dmtable, filesystem, volume
from keys.scratch.errors import NodeBroken, ScratchTooLarge, UnsafePath
from keys.scratch.mounts import mounts
from keys.scratch.setup import Interrupted
from keys.secret import Secret

MIB = 1024**2


def mount_line(point: str) -> list[str]:
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [line for line in lines if line[1] == point]
    assert len(found) == 1
    return found[0]


def check_ready(node: Any, info: Any) -> None:
    """Everything that is promised of scratch that is ready, whatever it lies on."""
    assert info.path == node.names.mount_point == f"{node.plan.mount_root}/{node.job}"
    top, tmp = os.lstat(info.path), os.lstat(info.tmp)
    for status in (top, tmp):
        assert stat.S_ISDIR(status.st_mode)
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (node.uid, node.gid, 0o700)
    assert [entry.name for entry in Path(info.path).iterdir()] == ["tmp"]
    line = mount_line(info.path)
    assert line[0] == f"/dev/mapper/secure-n1-{node.job}"
    assert line[2] == node.plan.filesystem
    assert {"nosuid", "nodev", "noatime"} <= set(line[3].split(","))
    fields = node.table().split()
    assert fields[:4] == ["0", str(node.plan.mapped_bytes // 512), "crypt", "aes-xts-plain64"]
    assert fields[4] == "0" * 128, "dmsetup shows something of the key"
    assert fields[5:] == ["0", fields[6], "0", "1", "sector_size:4096"]
    assert (info.cipher, info.key_bits, info.size_bytes) == ("aes-xts-plain64", 512, node.plan.mapped_bytes)
    assert node.journal.read(node.job).state == "ready"


def use(info: Any) -> None:
    data = os.urandom(MIB)
    path = Path(info.path) / "data"
    path.write_bytes(data)
    os.sync()
    assert path.read_bytes() == data


class TestEachBacking:
    @pytest.mark.parametrize("kind", ["ext4", "xfs"])
    def test_sparse_file(self, make_node: Any, kind: str) -> None:
        node = make_node(size_bytes=10 * 1024**4, overcommit=True, filesystem=kind)
        info = node.open()
        check_ready(node, info)
        status = Path(node.names.path).lstat()
        assert status.st_size == 10 * 1024**4
        assert status.st_blocks * 512 < 100 * MIB, "set-up writes in proportion to the size"
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)
        assert stat.S_IMODE(Path(node.plan.directory).stat().st_mode) == 0o700
        use(info)
        assert node.close().gone

    @pytest.mark.parametrize(("kind", "size"), [("ext4", 16), ("xfs", 300)])
    def test_the_smallest(self, make_node: Any, kind: str, size: int) -> None:
        node = make_node(size_bytes=size * MIB, filesystem=kind)
        info = node.open()
        check_ready(node, info)
        use(info)

    def test_a_file_system_that_is_sound_though_it_was_made_on_garbage(
        self, node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Inode tables are never initialised, and what lies there is ciphertext of others, deciphered with our key."""
        monkeypatch.setattr(backing.os, "ftruncate", lambda file, size: os.write(file, os.urandom(size)))
        info = node.open()
        for number in range(3000):
            (Path(info.path) / f"d{number % 30}").mkdir(exist_ok=True)
            (Path(info.path) / f"d{number % 30}" / str(number)).write_bytes(b"%d" % number)
        filesystem.unmount(info.path, Budget(120))
        run([program("e2fsck"), "-f", "-n", node.names.device], timeout=120)
        filesystem.mount(node.names, "ext4", Budget(120))
        for number in range(3000):
            assert (Path(info.path) / f"d{number % 30}" / str(number)).read_bytes() == b"%d" % number

    def test_reserved_file(self, make_node: Any) -> None:
        node = make_node(overcommit=False)
        info = node.open()
        check_ready(node, info)
        assert Path(node.names.path).stat().st_blocks * 512 >= node.plan.size_bytes
        use(info)
        assert node.close().gone

    def test_logical_volume(self, make_node: Any, volume_group: str) -> None:
        node = make_node(backing="lvm", volume_group=volume_group)
        info = node.open()
        check_ready(node, info)
        assert volume.exists(node.names.path, Budget(120))
        use(info)
        assert node.close().gone
        assert not volume.exists(node.names.path, Budget(120))

    def test_whole_device(self, make_node: Any, disk: str) -> None:
        node = make_node(backing="block", device=disk)
        info = node.open()
        check_ready(node, info)
        use(info)
        assert node.close().gone

    def test_odd_size_is_rounded_up_to_whole_blocks(self, make_node: Any) -> None:
        node = make_node(size_bytes=64 * MIB + 1)
        info = node.open()
        check_ready(node, info)
        assert info.size_bytes == 64 * MIB + 4096


class TestTheKey:
    def test_only_ciphertext_reaches_the_disk(self, node: Any) -> None:
        info = node.open()
        marker = b"patient record 4711 " * 1000
        (Path(info.path) / "data").write_bytes(marker)
        os.sync()
        stored = Path(node.names.path).read_bytes()
        assert b"patient record" not in stored
        assert bytes.fromhex("53ef") not in stored[1080:1082], "the file system's magic number is in the clear"

    def test_is_wiped_from_our_memory_when_the_mapping_has_it(self, node: Any) -> None:
        key = node.new_key()
        node.open(key)
        assert len(key) == 0

    def test_is_wiped_when_set_up_fails(self, make_node: Any) -> None:
        node = make_node(size_bytes=1)
        key = node.new_key()
        with pytest.raises(Refused, match="too few"):
            node.open(key)
        assert len(key) == 0

    def test_is_in_no_argument_environment_journal_or_table(self, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import keys.process as door

        seen: list[str] = []
        real = door.subprocess.Popen

        def watch(argv: list[str], **options: Any) -> Any:
            seen.append(repr(argv) + repr(options.get("env")))
            return real(argv, **options)

        monkeypatch.setattr(door.subprocess, "Popen", watch)
        node.open()
        seen.append(node.table())
        node.close()
        text = "\n".join(seen) + "".join(path.read_text() for path in Path(node.plan.run_dir).rglob("*.json"))
        assert "cryptsetup" in text
        for shown in (node.keys[0].hex(), node.keys[0][:32].hex(), repr(node.keys[0])[2:20]):
            assert shown not in text
        assert "--showkeys" not in text

    def test_the_mapping_really_uses_it(self, node: Any) -> None:
        """The same key on the same store shows the same file system; another key does not."""
        info = node.open()
        use(info)
        budget = Budget(120)
        filesystem.unmount(info.path, budget)
        before = Path(node.names.device).read_bytes()[:MIB]
        crypt.close(node.names.mapper, budget)
        file = os.open(node.names.path, os.O_RDWR)
        for key, same in ((os.urandom(64), False), (node.keys[0], True)):
            held = backing.attach_file(file, node.names)
            crypt.open_mapping(node.names.mapper, held.device, node.plan.mapped_bytes, Secret(key), budget)
            assert (Path(node.names.device).read_bytes()[:MIB] == before) is same
            crypt.close(node.names.mapper, budget)
            os.close(held.held)
        os.close(file)

    @pytest.mark.parametrize("length", [0, 32, 63, 65, 128])
    def test_of_another_length_is_refused(self, node: Any, length: int) -> None:
        with pytest.raises(NodeBroken, match="bits"):
            node.open(Secret(os.urandom(length)))
        assert node.left() == []


class TestRefused:
    def test_more_than_there_is(self, make_node: Any) -> None:
        node = make_node(size_bytes=1024**4, overcommit=False)
        with pytest.raises(ScratchTooLarge) as caught:
            node.open()
        assert caught.value.rule == "scratch.no-space"
        assert node.left() == []

    def test_the_last_of_the_file_system(self, make_node: Any, base: Path) -> None:
        """slurmd's spool and the audit trail may lie there, too."""
        space = os.statvfs(base)
        free, keep = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize // 20
        with pytest.raises(ScratchTooLarge):
            make_node(size_bytes=free - keep + MIB, overcommit=False).open()
        assert os.statvfs(base).f_bavail * space.f_frsize > free - MIB

    def test_more_than_the_volume_group_has(self, make_node: Any, volume_group: str) -> None:
        node = make_node(backing="lvm", volume_group=volume_group, size_bytes=1024**4)
        with pytest.raises(ScratchTooLarge):
            node.open()
        assert node.left() == []

    def test_more_than_the_device_has(self, make_node: Any, disk: str) -> None:
        node = make_node(backing="block", device=disk, size_bytes=257 * MIB)
        with pytest.raises(ScratchTooLarge):
            node.open()
        assert node.left() == []

    def test_a_volume_group_that_is_not_there(self, make_node: Any) -> None:
        node = make_node(backing="lvm", volume_group="nosuchgroup")
        with pytest.raises(NodeBroken):
            node.open()

    def test_root(self, make_node: Any) -> None:
        with pytest.raises(Refused, match="user 0"):
            make_node(uid=0).open()

    @pytest.mark.parametrize("what", ["symlink", "file", "directory"])
    def test_something_planted_as_the_backing_file(self, node: Any, base: Path, what: str) -> None:
        store = Path(node.plan.directory)
        store.mkdir(mode=0o700)
        target = base / "victim"
        target.write_bytes(b"precious")
        path = Path(node.names.path)
        {"symlink": lambda: path.symlink_to(target), "file": path.touch, "directory": path.mkdir}[what]()
        with pytest.raises(NodeBroken, match="already"):
            node.open()
        assert target.read_bytes() == b"precious"
        assert os.path.lexists(path), "what we did not make is not ours to remove"
        path.rmdir() if what == "directory" else path.unlink()

    @pytest.mark.parametrize("what", ["symlink", "directory"])
    def test_something_planted_as_the_mount_point(self, node: Any, base: Path, what: str) -> None:
        root = Path(node.plan.mount_root)
        root.mkdir(mode=0o755)
        elsewhere = base / "elsewhere"
        elsewhere.mkdir()
        point = Path(node.names.mount_point)
        point.symlink_to(elsewhere) if what == "symlink" else point.mkdir()
        with pytest.raises(NodeBroken, match="already"):
            node.open()
        assert os.path.lexists(point)
        assert elsewhere.stat().st_uid == 0
        point.rmdir() if what == "directory" else point.unlink()
        assert node.left() == []

    @pytest.mark.parametrize("folder", ["directory", "mount_root"])
    @pytest.mark.parametrize("how", ["writable", "foreign", "symlink"])
    def test_folders_that_others_could_change(self, node: Any, base: Path, folder: str, how: str) -> None:
        path = Path(getattr(node.plan, folder))
        real = base / "real"
        real.mkdir(mode=0o700 if folder == "directory" else 0o755)
        real.rename(path) if how != "symlink" else path.symlink_to(real)
        if how == "writable":
            path.chmod(0o777)
        elif how == "foreign":
            os.chown(path, node.uid, 0)
        with pytest.raises(UnsafePath):
            node.open()
        assert crypt.find(node.names.mapper) is None
        path.unlink() if how == "symlink" else path.rmdir()

    def test_a_mount_root_that_users_cannot_enter(self, node: Any) -> None:
        Path(node.plan.mount_root).mkdir(mode=0o700)
        with pytest.raises(NodeBroken, match="cannot enter"):
            node.open()
        assert node.left() == []

    def test_a_device_that_is_no_device(self, make_node: Any, base: Path) -> None:
        (base / "plain").write_bytes(bytes(64 * MIB))
        with pytest.raises(NodeBroken, match="not a block device"):
            make_node(backing="block", device=str(base / "plain")).open()

    def test_a_device_that_another_job_has(self, make_node: Any, disk: str) -> None:
        first, second = make_node(backing="block", device=disk), make_node(backing="block", device=disk)
        first.open()
        with pytest.raises(Refused) as caught:
            second.open()
        assert caught.value.rule == "scratch.busy", "the node would be drained for a job that came second"
        assert first.left() != []
        assert first.close().gone
        second.open()
        assert second.close().gone

    def test_a_device_that_another_job_is_just_getting(self, make_node: Any, disk: str, hold: Any) -> None:
        """Udev locks it for a look, too; what the lock was for is known once it is free."""
        hold(f"import fcntl; fcntl.flock(os.open({disk!r}, os.O_RDONLY), 2)\nif os.fork(): os._exit(0)\n"
             "print('ready', flush=True); time.sleep(2); os._exit(0)", uid=0)  # fmt: skip
        node = make_node(backing="block", device=disk)
        node.open()
        assert node.close().gone

    @pytest.mark.parametrize("uuid", ["", "CRYPT-PLAIN-secure-n1-8"])
    def test_a_device_that_something_else_maps(self, make_node: Any, disk: str, uuid: str) -> None:
        """A mapping that only has a name like ours is nobody's job."""
        dmsetup = program("dmsetup")
        options = ["--uuid", uuid] if uuid else []
        run([dmsetup, "create", "secure-n1-7", *options, "--table", f"0 8192 linear {disk} 0"], timeout=120)
        try:
            with pytest.raises(NodeBroken, match="in use"):
                make_node(backing="block", device=disk).open()
        finally:
            run([dmsetup, "remove", "secure-n1-7"], timeout=120)

    def test_a_device_that_is_mounted(self, make_node: Any, disk: str, base: Path) -> None:
        run([program("mkfs.ext4"), "-q", "-F", disk], timeout=120)
        (base / "other").mkdir()
        run([program("mount"), disk, str(base / "other")], timeout=120)
        try:
            with pytest.raises(NodeBroken, match="in use"):
                make_node(backing="block", device=disk).open()
        finally:
            run([program("umount"), str(base / "other")], timeout=120)

    def test_a_mapping_of_our_name_that_is_not_ours(self, node: Any) -> None:
        dmsetup = program("dmsetup")
        run([dmsetup, "create", node.names.mapper, "--table", "0 8192 zero"], timeout=120)
        with pytest.raises(NodeBroken, match="already"):
            node.open()
        assert crypt.find(node.names.mapper) is not None
        run([dmsetup, "remove", node.names.mapper], timeout=120)

    @pytest.mark.parametrize("size", [0, -4096, 4095, 4097, MIB + 512])
    def test_mappings_of_no_whole_blocks(self, disk: str, size: int) -> None:
        with pytest.raises(NodeBroken, match="multiple of 4096"):
            crypt.open_mapping("secure-n1-1", disk, size, Secret(os.urandom(64)), Budget(120))

    def test_a_mapping_larger_than_its_device(self, disk: str) -> None:
        with pytest.raises(NodeBroken):
            crypt.open_mapping("secure-n1-1", disk, 512 * MIB, Secret(os.urandom(64)), Budget(120))
        assert crypt.find("secure-n1-1") is None

    def test_a_mapping_that_is_not_what_was_asked_for(self, disk: str) -> None:
        argv = [program("cryptsetup"), "open", "--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "256"]
        argv += ["--sector-size", "4096", "--size", "8192", "--key-file=-", "--batch-mode", disk, "secure-n1-1"]
        run(argv, timeout=120, input=os.urandom(64))
        try:
            # the kernel's own answer, without the key, as dmsetup prints it
            assert dmtable.table("secure-n1-1") == crypt.table("secure-n1-1", Budget(120))
            with pytest.raises(NodeBroken, match="512 bits"):
                crypt.verify("secure-n1-1", Path(disk).stat().st_rdev, 4 * MIB)
        finally:
            crypt.close("secure-n1-1", Budget(120))


class TestUndone:
    """Whatever step fails, nothing is left, and the next start of the job finds a clean node."""

    STEPS = ("backing", "loop", "mapping", "filesystem", "mount", "ready")

    @pytest.mark.parametrize("step", STEPS)
    def test_after_a_failure_before_each_step(self, node: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        write = node.journal.write

        def fail(record: Any) -> Any:
            if record.state == step:
                raise OSError(28, "No space left on device")
            return write(record)

        monkeypatch.setattr(node.journal, "write", fail)
        with pytest.raises(NodeBroken, match="No space left"):
            node.open()
        assert node.left() == []
        assert node.journal.read(node.job).state == "destroyed"
        assert node.journal.read(node.job).wrapped_key == ""
        monkeypatch.undo()
        check_ready(node, node.open())

    @pytest.mark.parametrize("kind", ["lvm", "block"])
    def test_on_the_other_backings(self, make_node: Any, request: Any, kind: str) -> None:
        where = {"lvm": "volume_group", "block": "disk"}[kind]
        option = {"lvm": "volume_group", "block": "device"}[kind]
        node = make_node(backing=kind, **{option: request.getfixturevalue(where)})
        write = node.journal.write
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node.journal, "write", lambda record: write(record) if record.state != "ready" else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                node.open()
        assert node.left() == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    @pytest.mark.parametrize("step", ["mapping", "mount", "ready"])
    def test_after_a_signal(self, node: Any, step: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        old = signal.signal(number, signal.SIG_DFL)
        write = node.journal.write

        def write_and_signal(record: Any) -> Any:
            if record.state == step:
                os.kill(os.getpid(), number)
            return write(record)

        monkeypatch.setattr(node.journal, "write", write_and_signal)
        try:
            # in the last step nothing is left to be interrupted, and still the signal must not be lost
            with pytest.raises(Interrupted):
                node.open()
        finally:
            signal.signal(number, old)
        assert node.left() == []

    def test_after_the_callers_alarm_in_the_middle_of_a_program(
        self, node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class OutOfTime(BackendUnavailable):
            pass

        def alarm(*_: object) -> None:
            raise OutOfTime("too late")

        old = signal.signal(signal.SIGALRM, alarm)
        monkeypatch.setattr(
            filesystem, "make", lambda _kind, _device, budget: budget.run(["/bin/sleep", "600"], cap=600)
        )
        signal.setitimer(signal.ITIMER_REAL, 3)
        try:
            with pytest.raises(OutOfTime):
                node.open()
            assert signal.getsignal(signal.SIGALRM) is alarm
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert node.left() == []

    def test_out_of_its_own_time(self, node: Any) -> None:
        with pytest.raises(NodeBroken):
            node.open(seconds=0.0)
        assert node.left() == []

    def test_undo_that_fails_makes_the_node_broken(self, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise ScratchTooLarge("no")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filesystem, "make", refuse)
            patch.setattr(crypt, "close", lambda *_: (_ for _ in ()).throw(NodeBroken("stuck")))
            with pytest.raises(NodeBroken, match="could not be undone: mapping: stuck"):
                node.open()
        assert node.journal.read(node.job).state == "filesystem"
        assert node.close().gone


class TestAgain:
    def test_a_requeued_job_after_a_clean_end(self, node: Any) -> None:
        for _ in range(2):
            check_ready(node, node.open())
            assert node.close().gone

    def test_a_requeued_job_after_no_end_at_all(self, node: Any) -> None:
        node.open()
        first = Path(node.names.mount_point).stat().st_ino
        (Path(node.names.mount_point) / "old").touch()
        info = node.open()
        check_ready(node, info)
        assert first

    def test_two_jobs_side_by_side(self, make_node: Any) -> None:
        one, two = make_node(), make_node()
        infos = [one.open(), two.open()]
        assert len({info.device for info in infos}) == 2
        assert one.close().gone
        check_ready(two, infos[1])

    def test_the_loop_device_goes_with_the_mapping(self, node: Any) -> None:
        """Autoclear: even a bare ``dmsetup remove`` leaves no loop device behind."""
        info = node.open()
        budget = Budget(120)
        filesystem.unmount(info.path, budget)
        crypt.close(node.names.mapper, budget)
        end = time.monotonic() + 120
        while any("loop" in item for item in node.left()) and time.monotonic() < end:
            time.sleep(0.05)
        assert not [item for item in node.left() if item.startswith("loop")]

    def test_nothing_of_ours_is_in_the_mount_table_after(self, node: Any) -> None:
        node.open()
        node.close()
        assert not [mount for mount in mounts() if mount.point.startswith(node.plan.mount_root)]
