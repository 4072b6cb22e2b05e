"""Tear-down on a real kernel: from every point that a set-up can get to, whoever holds what, as often as one likes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.errors import SecureSlurmError
from keys.process import Budget, program, run
from keys.scratch import crypt, filesystem, teardown, volume
from keys.scratch.errors import JobEnded, NodeBroken, ScratchLeft
from keys.scratch.mounts import mounts
from keys.scratch.teardown import close_scratch

STEPS = ("planned", "backing", "loop", "mapping", "filesystem", "mount", "ready")


@contextlib.contextmanager
def until_holders_are_named() -> Iterator[None]:
    """The time of a tear-down is over as soon as it knows who holds the scratch, however long that takes."""
    search = teardown.end_holders
    with pytest.MonkeyPatch.context() as patch:

        def end_holders(*arguments: Any, **options: Any) -> Any:
            ended = search(*arguments, **options)
            if ended.complete and ended.others:
                patch.setattr(Budget, "left", lambda _: 0.0)
            return ended

        patch.setattr(teardown, "end_holders", end_holders)
        yield


@pytest.fixture
def patient_unmount(monkeypatch: pytest.MonkeyPatch) -> None:
    """For where nothing is to be wiped: one that takes long is waited for."""
    monkeypatch.setattr(teardown, "_UNMOUNT", 120.0)


def ended(process: Any) -> bool:
    try:
        return process.wait(120) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        return False


class TestPlain:
    @pytest.mark.usefixtures("patient_unmount")
    def test_everything_goes_and_is_told(self, node: Any) -> None:
        node.open()
        record = node.journal.read(node.job)
        report = node.close()
        assert report.gone
        assert not report.wiped
        assert (report.killed, report.problems) == ([], [])
        assert report.removed == [
            f"mount: {node.names.mount_point}",
            f"mount point: {node.names.mount_point}",
            f"mapping: {node.names.mapper}",
            f"file: {node.names.path}",
        ]
        assert (report.key_name, report.incarnation) == (record.key_name, record.incarnation)
        after = node.journal.read(node.job)
        assert (after.state, after.wrapped_key) == ("destroyed", "")

    def test_twice(self, node: Any) -> None:
        node.open()
        assert node.close().removed
        again = node.close()
        assert again.gone
        assert again.removed == []
        assert again.problems == []

    def test_of_a_job_that_never_was(self, node: Any) -> None:
        report = node.close()
        assert report.gone
        assert report.found == []
        assert node.journal.read(node.job) is None

    def test_another_job_is_left_alone(self, make_node: Any) -> None:
        one, two = make_node(), make_node()
        one.open()
        info = two.open()
        (Path(info.path) / "data").write_bytes(b"kept")
        one.close()
        assert (Path(info.path) / "data").read_bytes() == b"kept"
        assert two.journal.read(two.job).state == "ready"


class TestAfterAKill:
    """A Prolog that was killed runs no handler: the Epilog gets what it left."""

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("kind", ["file", "lvm", "block"])
    def test_before_each_step(self, make_node: Any, in_child: Any, request: Any, kind: str, step: str) -> None:
        if kind != "file" and step == "loop":
            return  # there is no such step
        where = {"lvm": {"volume_group": "volume_group"}, "block": {"device": "disk"}}.get(kind, {})
        node = make_node(backing=kind, **{name: request.getfixturevalue(fixture) for name, fixture in where.items()})
        write = node.journal.write

        def killed(record: Any) -> Any:
            written = write(record)
            if record.state == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return written

        node.journal.write = killed
        assert in_child(node.open) == -signal.SIGKILL
        node.journal.write = write
        assert node.journal.read(node.job).state == step
        report = node.close()
        assert report.gone
        assert node.left() == []
        assert node.journal.read(node.job).state == "destroyed"
        node.open()
        assert node.close().gone

    def test_before_the_mapping_the_loop_device_is_gone_by_itself(self, node: Any, in_child: Any) -> None:
        write = node.journal.write
        node.journal.write = lambda record: os._exit(9) if record.state == "mapping" else write(record)
        assert in_child(node.open) == 9
        end = time.monotonic() + 120
        while [item for item in node.left() if item.startswith("loop")] and time.monotonic() < end:
            time.sleep(0.05)
        assert node.left() == [f"file: {node.names.path}"]
        node.journal.write = write

    @pytest.mark.parametrize("cut", ["suspend", "message", "load"])
    def test_in_the_middle_of_a_wipe(self, node: Any, cut: str) -> None:
        node.open()
        dmsetup, name = program("dmsetup"), node.names.mapper
        run([dmsetup, "suspend", "--noflush", "--nolockfs", name], timeout=120)
        if cut != "suspend":
            run([dmsetup, "message", name, "0", "key", "wipe"], timeout=120)
        if cut == "load":
            size = crypt.find(name).sectors  # type: ignore[union-attr]
            run([dmsetup, "load", name, "--table", f"0 {size} error"], timeout=120)
        report = node.close()
        assert report.gone
        assert report.wiped


class TestBeforeALateStart:
    """slurmd was killed, its Prolog was not: it may get to its set-up when the Epilog has come and gone."""

    def test_that_had_written_nothing(self, node: Any) -> None:
        node.journal.claim_incarnation(node.job, "a" * 32)
        assert node.close().found == []
        with pytest.raises(JobEnded):
            node.open_claimed("a" * 32)
        assert node.left() == []
        node.open()
        assert node.close().gone

    @pytest.mark.parametrize("step", STEPS)
    def test_that_is_under_way(self, node: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The Epilog does not get the lock; then either it finds what is there, or set-up undoes itself."""
        write, reports = node.journal.write, []

        def close_meanwhile(record: Any) -> Any:
            written = write(record)
            if record.state == step and not reports:
                reports.append(None)
                monkeypatch.setattr(teardown, "_LOCK_PATIENCE", 0.0)
                with contextlib.suppress(ScratchLeft):
                    reports.append(node.close())
            return written

        monkeypatch.setattr(node.journal, "write", close_meanwhile)
        if step == "ready":
            node.open()
        else:
            with pytest.raises(SecureSlurmError):
                node.open()
        assert reports
        assert node.left() == []


class TestWithoutItsJournal:
    def test_missing(self, node: Any) -> None:
        node.open()
        node.journal.remove(node.job)
        assert node.close().gone

    @pytest.mark.parametrize("text", [b"", b"{", b'{"v": 1}', b"\xff\xfe", b"[]", b"x" * 100_000])
    def test_garbled(self, node: Any, text: bytes) -> None:
        node.open()
        (Path(node.plan.run_dir) / "journal" / f"{node.job}.json").write_bytes(text)
        report = node.close()
        assert report.gone
        assert "damaged" in report.problems[0]
        assert node.journal.read(node.job).state == "destroyed"

    def test_folder_of_somebody_else(self, node: Any) -> None:
        node.open()
        os.chown(Path(node.plan.run_dir) / "journal", node.uid, 0)
        report = node.close()
        assert report.gone
        assert report.problems

    def test_run_directory_gone(self, node: Any) -> None:
        node.open()
        shutil.rmtree(node.plan.run_dir)
        assert node.close().gone

    def test_that_names_a_file_of_others(self, node: Any, base: Path) -> None:
        """A journal is believed only where it says what we would have said."""
        node.open()
        victim = base / "victim"
        victim.write_bytes(b"precious")
        record = node.journal.read(node.job)
        node.journal.write(record._replace(backing_path=str(victim)))
        report = node.close()
        assert victim.read_bytes() == b"precious"
        assert "none of ours" in " ".join(report.problems)

    def test_after_the_configuration_changed(self, node: Any, base: Path) -> None:
        """The journal still knows the places of before."""
        node.open()
        old = node.names
        config = node.config | {"directory": str(base / "elsewhere"), "mount_root": str(base / "elsewhere-mnt")}
        assert close_scratch(node.journal, node.job, config).gone
        assert node.left() == []
        assert not os.path.lexists(old.path)

    @pytest.mark.parametrize(
        "config", [{}, {"backing": "tape"}, {"backing": "file", "directory": "x", "mount_root": "/m"}]
    )
    def test_and_without_a_configuration_it_says_so(self, node: Any, config: dict[str, str]) -> None:
        with pytest.raises(NodeBroken):
            close_scratch(node.journal, node.job, config)


class TestHeld:
    """Something of the job still uses the scratch. The key goes first, then the holders, then the rest."""

    @pytest.mark.parametrize(
        "code",
        [
            "os.chdir({path!r})",
            "f = open({path!r} + '/data', 'wb'); f.write(b'x' * 1000000); f.flush()",
            "f = open({path!r} + '/data', 'wb'); f.write(b'x' * 10000); f.flush()\n"
            "import mmap; m = mmap.mmap(os.open({path!r} + '/data', os.O_RDWR), 4096); f.close(); os.closerange(3, 99)",
            "os.chdir({path!r}); open('gone', 'w').close(); f = open('gone'); os.unlink('gone'); os.chdir('/')",
            "import threading, ctypes\n"
            "def stray():\n"
            "    ctypes.CDLL(None).unshare(0x200); os.chdir({path!r}); time.sleep(600)\n"
            "threading.Thread(target=stray, daemon=True).start(); time.sleep(1)",
        ],
        ids=["cwd", "open file", "mapped file", "deleted file", "a thread's own cwd"],
    )
    @pytest.mark.parametrize("kind", ["ext4", "xfs"])
    def test_by_a_process_of_the_job(self, make_node: Any, hold: Any, kind: str, code: str) -> None:
        node = make_node(filesystem=kind, size_bytes=320 * 1024**2)
        info = node.open()
        process = hold(code.format(path=info.path))
        report = node.close(uid=node.uid)
        assert ended(process)
        assert report.gone
        assert report.wiped
        assert len(report.killed) == 1
        assert str(process.pid) in report.killed[0]

    def test_the_user_is_known_without_being_told(self, node: Any, hold: Any) -> None:
        process = hold("pass", cwd=node.open().path)
        node.journal.remove(node.job)
        assert node.close().gone
        assert ended(process)

    def test_by_one_that_runs_from_it(self, node: Any) -> None:
        info = node.open()
        tool = Path(info.path) / "tool"
        shutil.copy("/bin/sleep", tool)
        process = subprocess.Popen([str(tool), "600"], cwd="/", user=node.uid, group=node.gid)
        report = node.close()
        assert ended(process)
        assert report.wiped

    def test_by_one_that_writes_all_the_time(self, node: Any, hold: Any) -> None:
        info = node.open()
        code = (
            f"f = open({info.path!r} + '/data', 'wb')\n"
            "if os.fork() == 0:\n"
            "  while True: f.write(b'x' * 65536); f.seek(0)"
        )
        process = hold(code)
        assert node.close().gone
        assert ended(process)

    def test_by_the_kernel_with_too_much_left_to_write(self, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the key it need not be written."""
        info = node.open()
        monkeypatch.setattr(teardown, "_UNMOUNT", 0.05)
        with (Path(info.path) / "data").open("wb") as file:
            for _ in range(40):
                file.write(os.urandom(1024**2))
        report = node.close()
        assert report.gone
        assert report.wiped
        assert report.killed == []

    def test_the_key_is_gone_before_anybody_is_killed(
        self, node: Any, hold: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        process = hold("pass", cwd=node.open().path)
        tables: list[str] = []
        real = teardown.end_holders

        def watch(*arguments: Any, **options: Any) -> Any:
            tables.append(node.table())
            assert process.poll() is None
            return real(*arguments, **options)

        monkeypatch.setattr(teardown, "end_holders", watch)
        node.close()
        assert [table.split()[2] for table in tables] == ["error"]

    def test_other_processes_of_the_user_live_on(self, node: Any, hold: Any) -> None:
        info = node.open()
        bystander, holder = hold("pass"), hold("pass", cwd=info.path)
        node.close()
        assert ended(holder)
        assert bystander.poll() is None

    def test_another_job_of_the_same_user_lives_on(self, make_node: Any, hold: Any) -> None:
        one, two = make_node(), make_node()
        first, second = hold("pass", cwd=one.open().path), hold("pass", cwd=two.open().path)
        one.close()
        assert ended(first)
        assert second.poll() is None
        assert two.close().gone

    def test_by_somebody_else_the_key_is_gone_all_the_same(self, node: Any, hold: Any) -> None:
        """An admin's shell is not killed; the node reports what is left, and a later tear-down finishes."""
        process = hold("pass", uid=0, cwd=node.open().path)
        with until_holders_are_named(), pytest.raises(ScratchLeft, match="its key has been wiped") as caught:
            node.close()
        report = caught.value.report
        assert process.poll() is None
        assert report.wiped
        assert not report.gone
        assert any(str(process.pid) in line for line in report.holders)
        assert node.table().split()[2] == "error"
        assert node.journal.read(node.job).state == "ready"
        process.kill()
        process.wait()
        assert node.close().gone

    def test_by_a_setuid_program_of_the_user(self, node: Any, hold: Any) -> None:
        """Its effective user is root, its real user is the job's."""
        info = node.open()
        process = hold(f"os.chdir({info.path!r}); os.setresuid({node.uid}, 0, 0)", uid=0)
        assert node.close().gone
        assert ended(process)

    @pytest.mark.usefixtures("patient_unmount")
    def test_by_a_mount_inside_it(self, node: Any) -> None:
        info = node.open()
        inner = Path(info.path) / "inner"
        inner.mkdir()
        run([program("mount"), "-t", "tmpfs", "tmpfs", str(inner)], timeout=120)
        report = node.close()
        assert report.gone
        assert not report.wiped

    def test_by_a_mount_inside_it_on_a_way_that_is_swapped_for_a_link(
        self, node: Any, base: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process of the job that lives on may do this between root's look and root's act."""
        folder, victim = Path(node.open().path) / "folder", base / "victim"
        for mounted in (folder / "inner", victim / "inner"):
            mounted.mkdir(parents=True)
            run([program("mount"), "-t", "tmpfs", "tmpfs", str(mounted)], timeout=120)
        real = filesystem.unmount

        def swap(*arguments: Any, **options: Any) -> None:
            if not folder.is_symlink():
                folder.rename(folder.with_name("moved"))
                folder.symlink_to(victim)
            real(*arguments, **options)

        monkeypatch.setattr(filesystem, "unmount", swap)
        report = node.close()
        assert [mount.point for mount in mounts() if mount.point == str(victim / "inner")], "root unmounted another's"
        assert report.gone
        monkeypatch.undo()
        filesystem.unmount(str(victim / "inner"), Budget(120))

    def test_by_a_bind_mount_elsewhere(self, node: Any, base: Path) -> None:
        info = node.open()
        (base / "elsewhere").mkdir()
        run([program("mount"), "--bind", info.path, str(base / "elsewhere")], timeout=120)
        assert node.close().gone
        assert not [mount for mount in mounts() if mount.point == str(base / "elsewhere")]

    def test_mounted_over_twice(self, node: Any) -> None:
        info = node.open()
        run([program("mount"), "-t", "tmpfs", "tmpfs", info.path], timeout=120)
        assert node.close().gone


UNSHARE = ("/usr/bin/unshare", "--mount", "--propagation", "private")


class TestOtherNamespaces:
    """Slurm's own plugins, services and containers have mount namespaces, with copies of our mount in them."""

    @pytest.mark.usefixtures("patient_unmount")
    def test_a_copy_that_nobody_uses(self, node: Any, hold: Any) -> None:
        node.open()
        process = hold("pass", wrap=UNSHARE)
        report = node.close()
        assert report.gone
        assert process.poll() is None, "a bystander with a copy of the mount is not killed"
        assert not report.wiped

    def test_a_copy_with_a_process_of_the_job_in_it(self, node: Any, hold: Any) -> None:
        info = node.open()
        process = hold(f"os.chdir({info.path!r}); os.setgid({node.gid}); os.setuid({node.uid})", wrap=UNSHARE)
        report = node.close()
        assert ended(process)
        assert report.gone
        assert report.wiped

    def test_a_copy_at_another_place(self, node: Any, hold: Any, base: Path) -> None:
        """A container that shows the scratch as /data: removing the mount point does not reach it."""
        info = node.open()
        (base / "data").mkdir()
        code = (
            "import ctypes\n"
            f"source, target = {info.path.encode()!r}, {str(base / 'data').encode()!r}\n"
            "assert ctypes.CDLL(None).mount(source, target, 0, 4096, 0) == 0\n"
            f"os.setgid({node.gid}); os.setuid({node.uid})"
        )
        process = hold(code, wrap=UNSHARE)
        report = node.close()
        assert ended(process)
        assert report.gone

    def test_a_rootless_container_of_the_user(self, node: Any, hold: Any) -> None:
        """Its processes may have user ids that are not the job's; its user namespace is."""
        info = node.open()
        code = (
            "import ctypes\n"
            f"os.chdir({info.path!r}); os.setgid({node.gid}); os.setuid({node.uid})\n"
            "assert ctypes.CDLL(None).unshare(0x10000000) == 0\n"
        )
        process = hold(code, uid=0)
        report = node.close()
        assert ended(process)
        assert report.gone

    def test_a_namespace_that_only_a_file_keeps_is_named_and_the_key_is_gone(self, node: Any, base: Path) -> None:
        """No process to be found, and a copy that removing the mount point does not reach."""
        info = node.open()
        kept, data = base / "kept", base / "data"
        kept.touch()
        data.mkdir()
        run([program("mount"), "--make-private", str(base)], timeout=120)
        words = [*UNSHARE[:1], f"--mount={kept}", *UNSHARE[2:], program("mount"), "--bind", info.path, str(data)]
        run(words, timeout=120)
        with until_holders_are_named(), pytest.raises(ScratchLeft, match="its key has been wiped") as caught:
            node.close()
        assert caught.value.report.holders == [f"namespace kept by {kept} (mounted in it)"]
        assert node.table().split()[2] == "error"
        run([program("umount"), str(kept)], timeout=120)
        assert node.close().gone

    def test_from_another_namespace_than_the_mounts(self, node: Any, in_child: Any) -> None:
        """A reaper that runs as a service does not see slurmd's mount; removing the mount point takes it off there."""
        import ctypes

        def set_up_apart() -> None:
            libc = ctypes.CDLL(None)
            assert libc.unshare(0x20000) == 0
            assert libc.mount(b"none", b"/", None, 0x4000 | (1 << 18), None) == 0
            node.open()

        assert in_child(set_up_apart) == 0
        assert crypt.find(node.names.mapper) is None or not [m for m in mounts() if m.point == node.names.mount_point]
        report = node.close()
        assert report.gone


class TestDeadServer:
    """A file system whose server does not answer any more, as NFS or FUSE: whoever looks at it waits."""

    @pytest.fixture
    def dead(self, node: Any) -> Iterator[Callable[[Path], None]]:
        """Mounts one, and stops its server when told; it goes on at the end."""
        servers: list[tuple[Path, subprocess.Popen[str]]] = []

        def mount(point: Path) -> Callable[[], None]:
            subprocess.run(["modprobe", "fuse"], check=False)
            words = ["-m", "tests.testbed.fuse", str(point), "dead", "fuse.dead", f"rw:{node.uid}"]
            server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
            servers.append((point, server))
            assert server.stdout is not None
            assert server.stdout.readline() == "mounted\n"
            return lambda: server.send_signal(signal.SIGSTOP)

        yield mount
        for point, server in servers:
            server.kill()
            server.wait()
            # where a bystander is still in it, the folder it is on must go all the same
            subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)

    def test_inside_the_scratch_with_the_jobs_process_in_it(self, node: Any, hold: Any, dead: Any) -> None:
        info = node.open()
        inner = Path(info.path) / "inner"
        inner.mkdir()
        stop = dead(inner)
        inside, other = hold("pass", cwd=str(inner)), hold("pass", cwd=info.path)
        stop()
        report = node.close(uid=node.uid)
        assert ended(inside)
        assert ended(other)
        assert report.gone
        assert report.wiped

    def test_elsewhere_with_a_process_that_holds_both(self, node: Any, hold: Any, dead: Any, base: Path) -> None:
        """Its file there is asked about before the one on the scratch, and never answers."""
        info = node.open()
        elsewhere = base / "dead"
        elsewhere.mkdir()
        stop = dead(elsewhere)
        code = f"f = open({info.path!r} + '/data', 'w')"
        process, other = hold(code, cwd=str(elsewhere)), hold("pass", cwd=info.path)
        stop()
        report = node.close(uid=node.uid)
        assert ended(process)
        assert ended(other)
        assert report.gone

    def test_a_bystander_on_it_lives_on(self, node: Any, hold: Any, dead: Any, base: Path) -> None:
        info = node.open()
        elsewhere = base / "dead"
        elsewhere.mkdir()
        stop = dead(elsewhere)
        bystander, holder = hold("pass", cwd=str(elsewhere)), hold("pass", cwd=info.path)
        stop()
        report = node.close(uid=node.uid)
        assert ended(holder)
        assert bystander.poll() is None
        assert report.gone


class TestStuck:
    def test_the_volume_group_that_does_not_answer_counts_as_left(self, make_node: Any, base: Path) -> None:
        node = make_node(backing="lvm", volume_group="nosuchgroup")
        with pytest.raises(ScratchLeft, match="unknown"):
            node.close()

    def test_a_foreign_mapping_is_not_touched(self, node: Any) -> None:
        run([program("dmsetup"), "create", node.names.mapper, "--table", "0 8192 zero"], timeout=120)
        with pytest.raises(ScratchLeft, match="not ours"):
            node.close(patience=2.0)
        assert node.table().split()[2] == "zero"
        run([program("dmsetup"), "remove", node.names.mapper], timeout=120)

    def test_a_folder_in_place_of_the_backing_file(self, node: Any) -> None:
        Path(node.names.path).mkdir(parents=True)
        Path(node.plan.directory).chmod(0o700)
        with pytest.raises(ScratchLeft):
            node.close()
        Path(node.names.path).rmdir()

    def test_something_in_the_mount_point_is_kept_and_told(self, node: Any) -> None:
        point = Path(node.names.mount_point)
        point.mkdir(parents=True)
        point.parent.chmod(0o755)
        (point / "file").touch()
        with pytest.raises(ScratchLeft, match="mount point"):
            node.close()
        assert (point / "file").exists()
        shutil.rmtree(point)

    def test_a_symlink_in_place_of_the_backing_file_is_removed_and_not_followed(self, node: Any, base: Path) -> None:
        (base / "victim").write_bytes(b"precious")
        Path(node.plan.directory).mkdir(mode=0o700)
        Path(node.names.path).symlink_to(base / "victim")
        assert node.close().gone
        assert (base / "victim").read_bytes() == b"precious"


def test_wipe_key_on_its_own(node: Any) -> None:
    """After it the kernel has no key, nobody waits, and a second wipe has nothing to do."""
    info = node.open()
    (Path(info.path) / "data").write_bytes(b"x" * 10_000_000)
    budget = Budget(120)
    assert crypt.wipe_key(node.names.mapper, budget)
    assert node.table().split()[2] == "error"
    assert crypt.find(node.names.mapper).suspended is False  # type: ignore[union-attr]
    assert not crypt.wipe_key(node.names.mapper, budget)
    with pytest.raises(OSError, match="Input/output error"):
        Path(node.names.device).read_bytes()
    assert not crypt.wipe_key("secure-n1-999999", budget)


def test_volumes_with_dashes_have_the_right_device(volume_group: str) -> None:
    assert (
        volume.node_path(f"{volume_group}/secure-n1-5")
        == f"/dev/mapper/{volume_group.replace('-', '--')}-secure--n1--5"
    )
