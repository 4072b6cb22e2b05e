"""Instance store taken over and given back: real LVM on disks of our own, laid out as ParallelCluster lays it out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from admin import store_look, store_ready, store_take, store_unit
from conf.errors import Refused
from conf.site import Scratch
from keys.process import Budget, ProcessError, program, run
from keys.scratch import loop, volume
from keys.scratch.errors import NodeBroken, ScratchLeft, ScratchTooLarge
from keys.scratch.mounts import below, mounts
from tests.cluster.scratch.conftest import loop_device
from tests.cluster.scratch.test_setup import use

MIB = 1024**2
GROUP = "vg.01"
LINK = "nvme-Amazon_EC2_NVMe_Instance_Storage_AWS"
MODEL = "Amazon EC2 NVMe Instance Storage        \n"


def lvm(*words: str) -> str:
    return run(volume.command(*words), timeout=120).stdout.decode()


class Vendor(NamedTuple):
    """A node as ParallelCluster leaves it: two striped drives, one volume over all of them, mounted and open to all."""

    drives: list[str]
    point: Path
    said: list[dict[str, Any]]

    def note(self, **fields: Any) -> None:
        self.said.append(fields)

    def results(self) -> list[str]:
        return [each["result"] for each in self.said]

    def mounted(self) -> bool:
        return os.path.ismount(self.point)

    def volumes(self) -> list[str]:
        return lvm("lvs", "--noheadings", "-o", "lv_name", GROUP).split()


class ById:
    """What udev and sysfs say of drives: loop devices have neither link nor model."""

    def __init__(self, base: Path) -> None:
        self.links, self.models = base / "by-id", base / "models"
        self.links.mkdir()
        self.models.mkdir()
        self.where = f"{self.models}/{{major}}:{{minor}}"

    def link(self, number: int | str, device: str, model: str | None = MODEL) -> None:
        (self.links / f"{LINK}{number}").symlink_to(device)
        if model is not None:
            self.model(device).write_text(model)

    def model(self, device: str) -> Path:
        number = Path(device).stat().st_rdev
        return Path(self.where.format(major=os.major(number), minor=os.minor(number)))


@pytest.fixture
def by_id(base: Path, monkeypatch: pytest.MonkeyPatch) -> ById:
    made = ById(base)
    monkeypatch.setattr(store_look, "BY_ID", str(made.links))
    monkeypatch.setattr(store_look, "MODELS", made.where)
    return made


@pytest.fixture
def unit(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The unit as it is on a node, enabled; systemctl changes the links itself where systemd is not the init."""
    path = Path(store_unit.SYSTEM) / store_unit.NAME
    path.write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n")
    run([program("systemctl"), "--quiet", "enable", store_unit.NAME], timeout=120)
    yield path
    run([program("systemctl"), "--quiet", "disable", store_unit.NAME], timeout=120)
    shutil.rmtree(f"{path}.d", ignore_errors=True)
    path.unlink()


@pytest.fixture
def vendor(base: Path, by_id: ById, unit: Path) -> Iterator[Vendor]:
    drives = []
    for number in (1, 2):
        drives.append(loop_device(base / f"nvme{number}", 128 * MIB))
        by_id.link(number, drives[-1])
    lvm("pvcreate", "--yes", *drives)
    lvm("vgcreate", "--yes", GROUP, *drives)
    # what setup-ephemeral-drives.sh does
    lvm("lvcreate", "--yes", "-i", "2", "-I", "64", "-l", "100%FREE", "-n", "lv_ephemeral", GROUP)
    device = volume.node_path(f"{GROUP}/lv_ephemeral")
    run([program("mkfs.ext4"), "-q", device], timeout=120)
    point = base / "scratch"
    point.mkdir(mode=0o755)
    run([program("mount"), "-t", "ext4", "-o", "noatime,nodiratime", device, str(point)], timeout=120)
    point.chmod(0o1777)
    yield Vendor(drives, point, [])
    for mount in below(str(base), mounts()):
        if mount.point != str(base):
            subprocess.run([program("umount"), mount.point], check=False)
    subprocess.run(volume.command("vgremove", "--yes", "--force", GROUP), check=False, capture_output=True)
    for drive in drives:
        loop.detach(drive)


def is_enabled() -> str:
    return subprocess.run(
        [program("systemctl"), "is-enabled", store_unit.NAME], capture_output=True, text=True, check=False
    ).stdout.strip()


class TestRefusals:
    @pytest.mark.usefixtures("by_id")
    def test_no_group(self) -> None:
        with pytest.raises(Refused) as caught:
            store_take.take_over("vg-none", "", lambda **_: pytest.fail("it was begun"))
        assert caught.value.rule == "store.no-group"

    def test_without_the_word_nothing_is_changed(self, vendor: Vendor) -> None:
        with pytest.raises(Refused, match="destroys what is in it") as caught:
            store_take.take_over(GROUP, "", vendor.note)
        assert caught.value.rule == "store.volume"
        assert vendor.mounted()
        assert vendor.said == []
        assert is_enabled() == "enabled"

    def test_one_drive_that_is_not_instance_store_is_enough(self, vendor: Vendor, by_id: ById) -> None:
        """A volume group that somebody extended by a network volume: what is on that must not go."""
        (by_id.links / f"{LINK}2").rename(by_id.links / "nvme-Amazon_Elastic_Block_Store_vol2")
        with pytest.raises(Refused) as caught:
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert caught.value.rule == "store.not-instance-store"
        assert vendor.drives[1] in str(caught.value)
        assert vendor.mounted()
        with pytest.raises(Refused):
            store_take.release(GROUP, vendor.note)
        assert vendor.said == []

    def test_a_link_that_the_drives_own_model_gives_the_lie(self, vendor: Vendor, by_id: ById) -> None:
        by_id.model(vendor.drives[0]).write_text("Amazon Elastic Block Store              \n")
        by_id.model(vendor.drives[1]).unlink()
        with pytest.raises(Refused) as caught:
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert caught.value.rule == "store.not-instance-store"
        assert all(drive in str(caught.value) for drive in vendor.drives)

    @pytest.mark.parametrize("what", ["bind", "second"])
    def test_shown_elsewhere_as_well(self, vendor: Vendor, base: Path, what: str) -> None:
        (vendor.point / "data").mkdir()
        other = base / "other"
        other.mkdir()
        words = (
            ["--bind", str(vendor.point / "data")] if what == "bind" else [volume.node_path(f"{GROUP}/lv_ephemeral")]
        )
        run([program("mount"), *words, str(other)], timeout=120)
        with pytest.raises(Refused, match=str(other)) as caught:
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert caught.value.rule == "store.busy"
        assert (vendor.mounted(), os.path.ismount(other)) == (True, True)
        assert vendor.said == []

    @pytest.mark.parametrize("what", ["swap", "mapping", "another device"])
    def test_the_volume_itself_in_use(
        self, vendor: Vendor, what: str, disk: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = volume.node_path(f"{GROUP}/lv_ephemeral")
        end = ["true"]
        run([program("umount"), str(vendor.point)], timeout=120)
        if what == "swap":
            run([program("mkswap"), device], timeout=120)
            run([program("swapon"), device], timeout=120)
            end = ["swapoff", device]
        elif what == "mapping":
            run([program("dmsetup"), "create", "theirs", "--table", f"0 2048 linear {device} 0"], timeout=120)
            end = ["dmsetup", "remove", "theirs"]
        else:
            monkeypatch.setattr(volume, "node_path", lambda _: disk)
        try:
            with pytest.raises(Refused, match=r"is in use|another device's") as caught:
                store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
            assert caught.value.rule == "store.busy"
            assert vendor.volumes() == ["lv_ephemeral"]
            assert is_enabled() == "enabled"
        finally:
            run([program(end[0]), *end[1:]], timeout=120)

    @pytest.mark.parametrize("what", ["mounted", "extended"])
    def test_changed_while_it_is_taken_over(
        self, vendor: Vendor, base: Path, disk: str, monkeypatch: pytest.MonkeyPatch, what: str
    ) -> None:
        (vendor.point / "data").write_text("precious")
        other = base / "other"
        other.mkdir()
        stop = store_unit.stop

        def meanwhile() -> bool:
            if what == "mounted":
                run([program("mount"), volume.node_path(f"{GROUP}/lv_ephemeral"), str(other)], timeout=120)
            else:
                lvm("vgextend", "--yes", GROUP, disk)
            return stop()

        monkeypatch.setattr(store_unit, "stop", meanwhile)
        try:
            with pytest.raises(Refused) as caught:
                store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        finally:
            subprocess.run(volume.command("vgreduce", GROUP, disk), check=False, capture_output=True)
        assert caught.value.rule == {"mounted": "store.busy", "extended": "store.not-instance-store"}[what]
        assert (vendor.point / "data").read_text() == "precious"
        assert is_enabled() == "enabled"
        assert vendor.results() == ["begun", "failed"]

    @pytest.mark.parametrize("how", ["cwd", "file"])
    def test_a_file_system_in_use(self, vendor: Vendor, hold: Any, how: str) -> None:
        code = f"os.chdir({str(vendor.point)!r})" if how == "cwd" else f"f = open({str(vendor.point / 'f')!r}, 'w')"
        hold(code)
        with pytest.raises(Refused) as caught:
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert caught.value.rule == "store.busy"
        assert vendor.mounted()
        assert vendor.volumes() == ["lv_ephemeral"]
        assert is_enabled() == "enabled"
        assert vendor.results() == ["begun", "failed"]

    def test_another_namespace_that_shows_it_has_it_mounted_again(self, vendor: Vendor, hold: Any) -> None:
        """A container that began before: unmounting it here does not reach it, and its files must not go."""
        hold("pass", wrap=(program("unshare"), "--mount", "--propagation", "private"))
        (vendor.point / "data").write_text("precious")
        with pytest.raises(Refused, match="in use") as caught:
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert caught.value.rule == "store.busy"
        assert vendor.mounted()
        assert (vendor.point / "data").read_text() == "precious"
        assert is_enabled() == "enabled"

    def test_somebody_elses_volume(self, vendor: Vendor) -> None:
        store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        lvm("lvcreate", "--yes", "-L", "16M", "-n", "data", GROUP)
        vendor.said.clear()
        with pytest.raises(Refused) as caught:
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert caught.value.rule == "store.foreign"
        with pytest.raises(Refused) as caught:
            store_take.release(GROUP, vendor.note)
        assert caught.value.rule == "store.in-use"
        assert vendor.volumes() == ["data"]
        assert vendor.said == []


class TestTakeOver:
    def test_all_of_it_and_again(self, vendor: Vendor) -> None:
        done = store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert [line.split()[0] for line in done] == ["unmounted", "setup-ephemeral.service", "removed"]
        assert not vendor.mounted()
        assert vendor.volumes() == []
        assert vendor.point.stat().st_mode & 0o7777 == 0o755
        assert vendor.results() == ["begun", "taken"]
        assert vendor.said[-1]["bytes"] > 200 * MIB
        assert is_enabled() == "disabled"
        drop_in = Path(f"{store_unit.SYSTEM}/{store_unit.NAME}.d/50-secure-slurm.conf")
        assert f"ConditionPathExists=!{drop_in}" in drop_in.read_text()
        vendor.said.clear()
        assert store_take.take_over(GROUP, "lv_ephemeral", vendor.note) == []
        assert store_take.take_over(GROUP, "", vendor.note) == []
        assert vendor.said == []

    def test_a_unit_that_somebody_enabled_again(self, vendor: Vendor) -> None:
        store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        run([program("systemctl"), "--quiet", "enable", store_unit.NAME], timeout=120)
        assert store_take.take_over(GROUP, "", vendor.note) == ["setup-ephemeral.service is kept from running"]
        assert is_enabled() == "disabled"

    def test_a_step_that_fails_undoes_those_before_it(self, vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
        run([program("mount"), "-o", "remount,nosuid,nodev", str(vendor.point)], timeout=120)
        before = [mount for mount in mounts() if mount.point == str(vendor.point)]
        assert {"nosuid", "nodev", "noatime"} <= set(before[0].options.split(","))
        real = volume.command

        def broken(name: str, *words: str) -> list[str]:
            return [program("false")] if name == "lvremove" else real(name, *words)

        monkeypatch.setattr(volume, "command", broken)
        with pytest.raises(NodeBroken):
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert [mount for mount in mounts() if mount.point == str(vendor.point)] == before
        assert is_enabled() == "enabled"
        assert vendor.results() == ["begun", "failed"]

    @pytest.mark.parametrize("before", ["stop", "_lvm", "_close_folder"])
    def test_killed_in_between_and_run_again(self, vendor: Vendor, before: str, in_child: Callable[..., int]) -> None:
        def killed() -> None:
            module: Any = store_unit if before == "stop" else store_take
            setattr(module, before, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            store_take.take_over(GROUP, "lv_ephemeral", vendor.note)

        assert in_child(killed) == -signal.SIGKILL
        store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        assert not vendor.mounted()
        assert vendor.volumes() == []
        assert is_enabled() == "disabled"

    def test_a_job_on_it_and_the_group_given_back(
        self, vendor: Vendor, make_node: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        node = make_node(backing="lvm", volume_group=GROUP)
        info = node.open()
        found = store_take.look(GROUP)
        assert [(each.name, each.ours) for each in found.volumes] == [(node.names.mapper, True)]
        assert store_take.take_over(GROUP, "", vendor.note) == []
        with pytest.raises(Refused) as caught:
            store_take.release(GROUP, vendor.note)
        assert caught.value.rule == "store.in-use"
        # a job that starts after the look: LVM removes no group that has volumes
        with monkeypatch.context() as patch:
            patch.setattr(store_take, "look", lambda name: store_look.group(name)._replace(volumes=()))  # type: ignore[union-attr]
            with pytest.raises(NodeBroken, match="vgremove failed"):
                store_take.release(GROUP, vendor.note)
        assert vendor.volumes() == [node.names.mapper]
        use(info)
        assert node.close().gone
        vendor.said.clear()
        store_take.release(GROUP, vendor.note)
        assert vendor.results() == ["begun", "released"]
        assert store_look.group(GROUP) is None
        assert is_enabled() == "enabled"
        assert not Path(f"{store_unit.SYSTEM}/{store_unit.NAME}.d").exists()
        vendor.said.clear()
        assert store_take.release(GROUP, vendor.note) == []
        # the drives are blank, as setup-ephemeral-drives.sh expects of them
        lvm("pvcreate", "--yes", *vendor.drives)

    def test_volumes_are_striped_where_there_is_room_and_made_without_where_not(
        self, vendor: Vendor, make_node: Any
    ) -> None:
        store_take.take_over(GROUP, "lv_ephemeral", vendor.note)
        striped = make_node(backing="lvm", volume_group=GROUP, striped=True)
        striped.open()

        def stripes(node: Any) -> str:
            return lvm("lvs", "--noheadings", "-o", "stripes", f"{GROUP}/{node.names.mapper}").strip()

        assert stripes(striped) == "2"
        lvm("lvcreate", "--yes", "-L", "80M", "-n", "data", GROUP, vendor.drives[0])
        uneven = make_node(backing="lvm", volume_group=GROUP, striped=True)
        uneven.open()
        assert stripes(uneven) == "1"
        full = make_node(backing="lvm", volume_group=GROUP, striped=True)
        with pytest.raises(ScratchTooLarge):
            full.open()
        assert full.left() == []
        assert striped.close().gone
        assert uneven.close().gone

    def test_what_never_was_taken_over_is_not_given_back(self, vendor: Vendor) -> None:
        assert store_take.release(GROUP, vendor.note) == []
        assert vendor.mounted()
        assert vendor.said == []

    def test_a_volume_with_the_name_of_a_jobs_that_was_not_made_for_one(
        self, make_node: Any, volume_group: str
    ) -> None:
        node = make_node(backing="lvm", volume_group=volume_group)
        lvm("lvcreate", "--yes", "-L", "16M", "-n", node.names.mapper, "--addtag", "not-secure-slurm", volume_group)
        with pytest.raises(NodeBroken, match="already"):
            node.open()
        with pytest.raises(NodeBroken, match="has not the tag"):
            volume.remove(node.names.path, Budget(120))
        with pytest.raises(ScratchLeft, match="has not the tag"):
            node.close()
        assert volume.exists(node.names.path, Budget(120))

    @pytest.mark.usefixtures("unit")
    def test_drives_with_a_partition_table(self, base: Path, by_id: ById) -> None:
        """As older versions of ParallelCluster have it: the physical volume is a partition of the drive."""
        with (base / "disk").open("wb") as file:
            file.truncate(128 * MIB)
            # one partition of LVM's type from 1 MiB to the end (a master boot record)
            file.seek(446)
            file.write(struct.pack("<B3sB3sII", 0, bytes(3), 0x8E, bytes(3), 2048, 128 * MIB // 512 - 2048))
            file.seek(510)
            file.write(b"\x55\xaa")
        argv = [program("losetup"), "-P", "-f", "--show", str(base / "disk")]
        device = run(argv, timeout=120).stdout.decode().strip()
        try:
            by_id.link(1, device)
            by_id.link("1-part1", f"{device}p1", None)
            assert list(store_look.drives().values()) == [f"{LINK}1"]
            lvm("pvcreate", "--yes", f"{device}p1")
            lvm("vgcreate", "--yes", GROUP, f"{device}p1")
            assert store_take.look(GROUP).strange == ()
            lvm("vgremove", "--yes", GROUP)
        finally:
            loop.detach(device)


class TestAuto:
    def site(self, **values: Any) -> Scratch:
        return Scratch(backing="auto", **values)

    def test_the_group_comes_first(self, vendor: Vendor) -> None:
        scratch = self.site(volume_group=GROUP, take_over="lv_ephemeral", diskless="memory", limit=64 * MIB)
        assert store_ready.choose(scratch).backing == "lvm"
        ready = store_ready.prepare(scratch, vendor.note)
        assert (ready.backing, ready.bytes > 200 * MIB) == ("lvm", True)
        assert "2 instance store drives" in ready.why
        assert store_ready.problem(scratch, "lvm") == ""

    @pytest.mark.usefixtures("vendor")
    def test_a_group_that_is_not_instance_store_is_no_diskless_node(self, by_id: ById) -> None:
        for link in by_id.links.iterdir():
            link.unlink()
        with pytest.raises(Refused) as caught:
            store_ready.choose(self.site(volume_group=GROUP, diskless="memory", limit=MIB))
        assert caught.value.rule == "store.not-instance-store"

    def test_drives_that_nobody_made_a_group_of_are_no_diskless_node(self, by_id: ById, disk: str) -> None:
        by_id.link(1, disk)
        with pytest.raises(Refused, match="1 drives of instance store lie idle"):
            store_ready.choose(self.site(volume_group="vg.none", diskless="memory", limit=MIB))

    @pytest.mark.usefixtures("by_id")
    def test_a_volume_then_memory_then_no(self, base: Path) -> None:
        common = {"volume_group": "vg.none", "directory": str(base / "store")}
        assert store_ready.choose(self.site(**common, volume=str(base))).backing == "file"
        away = {**common, "volume": str(base / "away")}
        assert store_ready.choose(self.site(**away, diskless="memory", limit=MIB)).backing == "memory"
        with pytest.raises(Refused) as caught:
            store_ready.choose(self.site(**away))
        assert caught.value.rule == "store.none"


class TestCommand:
    def test_take_over_by_the_command_is_on_the_trail(self, vendor: Vendor, base: Path, by_id: ById) -> None:
        """As the node's set-up calls it, with a site file and a trail of its own."""
        site = base / "site.yaml"
        (base / "log/node-n1").mkdir(parents=True)
        site.write_text(SITE.format(log=base / "log", group=GROUP))
        code = (
            "import sys; from admin import store_look; from admin.main import main;"
            f"store_look.BY_ID = {str(by_id.links)!r}; store_look.MODELS = {by_id.where!r};"
            "sys.exit(main(sys.argv[1:]))"
        )
        words = ["python3", "-c", code, "--config", str(site), "node", "store", "--node", "n1"]

        def call(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*words, *more], capture_output=True, text=True, check=False)

        shown = call("--show", "--json")
        assert shown.returncode == 1
        assert json.loads(shown.stdout)["group"]["volumes"][0]["mounts"] == [str(vendor.point)]
        assert "is still there" in json.loads(shown.stdout)["problem"]
        refused = call("--take-over")
        assert refused.returncode == 1
        assert "destroys what is in it" in refused.stderr
        prepared = call("--prepare")
        assert prepared.returncode == 0, prepared.stderr
        assert "scratch lies on: lvm" in prepared.stdout
        assert call("--take-over", "--remove", "lv_ephemeral").stdout == f"nothing to do: {GROUP} is the jobs'\n"
        lines = [json.loads(line) for line in (base / "log/node-n1/n1-node.jsonl").read_text().splitlines()]
        assert [(line["event"], line["result"]) for line in lines] == [("node.store", "begun"), ("node.store", "taken")]
        verified = subprocess.run(
            ["python3", "-m", "admin.main", "--config", str(site), "audit", "verify", str(base / "log/node-n1")],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert verified.returncode == 0, verified.stdout + verified.stderr


SITE = """version: 1
cluster: {{name: test, head_nodes: [head]}}
vault: {{address: "https://vault.test:8200", ca_file: /etc/ca.crt}}
ldap:
  flavour: openldap
  uris: ["ldaps://ldap.test"]
  ca_file: /etc/ca.crt
  bind_dn: cn=x,dc=example,dc=org
  bind_password_file: /etc/x
  base: dc=example,dc=org
scratch: {{backing: lvm, volume_group: {group}, take_over: lv_ephemeral}}
audit: {{directory: {log}}}
"""


@pytest.mark.usefixtures("by_id")
def test_an_empty_machine_has_no_group() -> None:
    assert store_look.drives() == {}
    assert store_look.group("vg-none") is None


def test_lvm_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ProcessError("it failed")

    monkeypatch.setattr(store_look, "run", broken)
    with pytest.raises(Exception, match="LVM does not answer"):
        store_look.group("vg-none")
