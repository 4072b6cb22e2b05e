"""secure-slurm node store without LVM: who may, what LVM reports, the links of the unit. Real LVM: tests/cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from admin import store_cmd, store_look, store_ready, store_take, store_unit
from admin.main import main
from conf import store
from conf.errors import BackendUnavailable, InternalError, Refused
from conf.site import Scratch
from keys.journal import Journal, Record
from keys.scratch import volume

LINK = "nvme-Amazon_EC2_NVMe_Instance_Storage_AWS1"


@pytest.fixture(autouse=True)
def _nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(volume, "command", lambda name, *words: [f"/{name}", *words])
    monkeypatch.setattr(store_take, "run", lambda argv, **_: pytest.fail(f"it ran {argv}"))
    monkeypatch.setattr(store_look, "BY_ID", str(tmp_path / "by-id"))
    (tmp_path / "by-id").mkdir()


Lvm = Callable[..., None]


@pytest.fixture
def lvm(monkeypatch: pytest.MonkeyPatch) -> Lvm:
    """What LVM says of one group."""

    def say(*volumes: tuple[str, str], groups: int = 1, physical: tuple[str, ...] = ("/dev/null",)) -> None:
        lvs = [
            {"lv_name": name, "lv_size": "100", "lv_kernel_major": "-1", "lv_kernel_minor": "-1", "lv_tags": tags}
            for name, tags in volumes
        ]
        said: dict[str, Any] = {
            "/vgs": {"vg": [{"vg_size": "100", "vg_free": "0"}] * groups},
            "/pvs": {"pv": [{"pv_name": each} for each in physical]},
            "/lvs": {"lv": lvs},
        }
        answers = {key: json.dumps({"report": [value]}).encode() for key, value in said.items()}
        monkeypatch.setattr(store_look, "run", lambda argv, **_: SimpleNamespace(stdout=answers[argv[0]]))

    return say


def rule_of(act: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value.rule


def never(**fields: object) -> None:
    pytest.fail(f"the trail was told of {fields}")


def test_only_root(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(store_cmd.os, "geteuid", lambda: 1000)
    assert main(["node", "store"]) == 1
    assert "only root" in capsys.readouterr().err


def test_the_word_is_for_taking_over_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_cmd.os, "geteuid", lambda: 0)
    assert main(["node", "store", "--remove", "lv_ephemeral"]) == 2
    assert main(["node", "store", "--release", "--remove", "lv_ephemeral"]) == 2


@pytest.mark.parametrize("group", ["a b", "vg.01 || vg_size>0", "-x", "vg/lv", "é", "x" * 64])
def test_what_is_no_name_of_a_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    monkeypatch.setattr(store_cmd.os, "geteuid", lambda: 0)
    monkeypatch.setattr(store_cmd, "load_site", lambda _: SimpleNamespace(scratch=Scratch()))
    assert main(["node", "store", "--take-over", "--node", "n1", f"--group={group}"]) == 2
    assert "is not the name of a volume group" in capsys.readouterr().err


class TestLook:
    def test_no_group(self, lvm: Lvm) -> None:
        lvm(groups=0)
        assert store_look.group("vg.01") is None
        assert rule_of(lambda: store_take.look("vg.01")) == "store.no-group"

    def test_two_groups_of_one_name(self, lvm: Lvm) -> None:
        lvm(groups=2)
        assert rule_of(lambda: store_take.look("vg.01")) == "store.group"

    @pytest.mark.parametrize("path", ["[unknown]", "/dev/null", "/nowhere", ""])
    def test_what_is_no_drive_is_no_instance_store(self, lvm: Lvm, path: str) -> None:
        """A drive that is missing, no block device, or none of those that udev names."""
        lvm(physical=(path,))
        assert rule_of(lambda: store_take.look("vg.01")) == "store.not-instance-store"

    def test_a_group_of_nothing(self, lvm: Lvm) -> None:
        lvm(physical=())
        assert rule_of(lambda: store_take.look("vg.01")) == "store.not-instance-store"

    def test_links_to_what_is_no_drive(self, tmp_path: Path) -> None:
        for number, target in enumerate(("/dev/null", "/nowhere", str(tmp_path))):
            (tmp_path / f"by-id/{LINK}{number}").symlink_to(target)
        assert store_look.drives() == {}

    @pytest.mark.parametrize("model", [None, "", "Amazon Elastic Block Store\n", "Amazon EC2 NVMe Instance Storage\n"])
    def test_the_drives_own_word(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None) -> None:
        monkeypatch.setattr(store_look, "MODELS", f"{tmp_path}/{{major}}:{{minor}}")
        if model is not None:
            (tmp_path / "259:1").write_text(model)
        assert store_look._model_fits(os.makedev(259, 1)) is bool(model and "Instance" in model)

    @pytest.mark.parametrize("text", [b"", b"{}", b'{"report": []}', b'{"report": [{}]}', b"[1]", b"\xff"])
    def test_a_report_that_is_none(self, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
        monkeypatch.setattr(store_look, "run", lambda *_, **__: SimpleNamespace(stdout=text))
        with pytest.raises(BackendUnavailable):
            store_look.group("vg.01")

    @pytest.mark.parametrize(
        ("name", "tags", "ours"),
        [
            ("secure-n1-7", "secure-slurm", True), ("secure-n1-7", "a,secure-slurm", True), ("secure-n1-7", "", False),
            ("secure-n1-7", "not-secure-slurm", False), ("data", "secure-slurm", False),
        ],
    )  # fmt: skip
    def test_whose_volume(self, lvm: Lvm, name: str, tags: str, ours: bool) -> None:
        lvm((name, tags))
        found = store_look.group("vg.01")
        assert found is not None
        assert [each.ours for each in found.volumes] == [ours]

    def test_a_partitions_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = tmp_path / "devices/nvme1n1"
        (disk / "nvme1n1p1").mkdir(parents=True)
        (disk / "dev").write_text("259:0\n")
        (disk / "nvme1n1p1/partition").write_text("1\n")
        (tmp_path / "block").mkdir()
        (tmp_path / "block/259:1").symlink_to(disk / "nvme1n1p1")
        (tmp_path / "block/259:0").symlink_to(disk)
        monkeypatch.setattr(store_look, "SYSFS", str(tmp_path / "block"))
        assert store_look.whole(os.makedev(259, 1)) == os.makedev(259, 0)
        assert store_look.whole(os.makedev(259, 0)) == os.makedev(259, 0)


class TestTakeOver:
    @pytest.fixture(autouse=True)
    def _instance_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store_look, "_number", lambda _: 5)
        monkeypatch.setattr(store_look, "drives", lambda: {5: LINK})
        monkeypatch.setattr(store_unit, "stopped", lambda: False)
        monkeypatch.setattr(store_take, "running_steps", lambda: {})

    @pytest.mark.parametrize("word", ["", "lv_home", "lv_ephemeral "])
    def test_another_word(self, lvm: Lvm, word: str) -> None:
        lvm(("lv_ephemeral", ""))
        assert rule_of(lambda: store_take.take_over("vg.01", word, never)) == "store.volume"

    @pytest.mark.parametrize("name", ["home", "lv_ephemeral2", "secure-n1-7"])
    def test_a_foreign_volume(self, lvm: Lvm, name: str) -> None:
        lvm(("lv_ephemeral", ""), (name, ""))
        assert rule_of(lambda: store_take.take_over("vg.01", "lv_ephemeral", never)) == "store.foreign"

    @pytest.mark.parametrize("steps", [{5: 7}, {5: None}])
    def test_jobs_on_the_machine(self, lvm: Lvm, monkeypatch: pytest.MonkeyPatch, steps: dict[int, int | None]) -> None:
        monkeypatch.setattr(store_take, "running_steps", lambda: steps)
        lvm(("lv_ephemeral", ""))
        assert rule_of(lambda: store_take.take_over("vg.01", "lv_ephemeral", never)) == "store.busy"

    def test_a_trail_that_cannot_be_written(self, lvm: Lvm) -> None:
        lvm(("lv_ephemeral", ""))

        def full(**_: object) -> None:
            raise BackendUnavailable("the disk is full")

        with pytest.raises(BackendUnavailable):
            store_take.take_over("vg.01", "lv_ephemeral", full)

    def test_release_with_jobs(self, lvm: Lvm) -> None:
        lvm(("secure-n1-7", "secure-slurm"))
        assert rule_of(lambda: store_take.release("vg.01", never)) == "store.in-use"


class TestUnit:
    @pytest.fixture
    def system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "system"
        (folder / "multi-user.target.wants").mkdir(parents=True)
        folder.chmod(0o755)
        monkeypatch.setattr(store_unit, "SYSTEM", str(folder))
        monkeypatch.setattr(store_unit, "RUNNING", str(tmp_path / "not-running"))
        link = folder / f"multi-user.target.wants/{store_unit.NAME}"

        def systemctl(word: str, _: str) -> None:
            link.unlink() if word == "disable" else link.symlink_to(folder / store_unit.NAME)

        monkeypatch.setattr(store_unit, "_systemctl", systemctl)
        return folder

    def enable(self, system: Path) -> None:
        (system / store_unit.NAME).write_text("[Service]\n")
        (system / f"multi-user.target.wants/{store_unit.NAME}").symlink_to(system / store_unit.NAME)

    def test_a_machine_without_it(self, system: Path) -> None:
        assert store_unit.stopped()
        assert not store_unit.stop()
        assert not store_unit.give_back()

    def test_there_and_back(self, system: Path) -> None:
        self.enable(system)
        assert not store_unit.stopped()
        assert store_unit.stop()
        assert store_unit.stopped()
        assert not store_unit.stop()
        assert store_unit.give_back()
        assert not store_unit.stopped()
        assert sorted(path.name for path in system.iterdir()) == ["multi-user.target.wants", store_unit.NAME]

    def test_what_was_disabled_stays_disabled(self, system: Path) -> None:
        (system / store_unit.NAME).write_text("[Service]\n")
        assert store_unit.stop()
        assert store_unit.give_back()
        assert list((system / "multi-user.target.wants").iterdir()) == []

    def test_one_that_does_not_let_itself_be_disabled(self, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.enable(system)
        monkeypatch.setattr(store_unit, "_systemctl", lambda *_: None)
        with pytest.raises(InternalError, match="still enabled"):
            store_unit.stop()


class TestAuto:
    def site(self, tmp_path: Path, **scratch: object) -> Any:
        node = SimpleNamespace(run_dir=str(tmp_path / "run"), state_dir=str(tmp_path / "state"))
        return SimpleNamespace(node=node, scratch=Scratch(backing="auto", **scratch))  # type: ignore[arg-type]

    @pytest.fixture
    def with_scratch(self, tmp_path: Path) -> Journal:
        (tmp_path / "run").mkdir(mode=0o755)
        journal = Journal(str(tmp_path / "run"), "n1", str(tmp_path / "state"))
        journal.write(
            Record(7, "n1", 1001, "planned", mapper="secure-n1-7", backing="lvm", backing_path="vg.01/secure-n1-7")
        )
        return journal

    def test_another_choice_under_jobs(self, tmp_path: Path, with_scratch: Journal) -> None:
        site = self.site(tmp_path, volume_group="vg.01")
        assert rule_of(lambda: store_cmd._refuse_under_jobs(site, "n1", "lvm", "file")) == "store.in-use"
        store_cmd._refuse_under_jobs(site, "n1", "lvm", "lvm")
        store_cmd._refuse_under_jobs(site, "n1", "", "lvm")

    def test_when_they_are_gone(self, tmp_path: Path, with_scratch: Journal) -> None:
        record = with_scratch.read(7)
        assert record is not None
        with_scratch.write(record._replace(state="destroyed"))
        with_scratch.settled(7)
        store_cmd._refuse_under_jobs(self.site(tmp_path, volume_group="vg.01"), "n1", "lvm", "file")

    def test_a_choice_is_told_and_rendered_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And again when its reason is another, or when an earlier run was cut short before it rendered."""
        tmp_path.chmod(0o755)
        ready = store_ready.Ready("memory", "no volume group vg.01", 5)
        hooks, said = "auto", []

        def render(*_: object) -> None:
            nonlocal hooks
            hooks = "memory"
            said.append("rendered")

        monkeypatch.setattr(store_cmd, "HOOKS_JSON", str(tmp_path / "hooks.json"))
        monkeypatch.setattr(store_cmd, "_rendered", lambda: hooks)
        monkeypatch.setattr(store_cmd.render, "render", render)
        for module, name in ((store_ready, "choose"), (store_ready, "prepare")):
            monkeypatch.setattr(module, name, lambda *_: ready)
        site = self.site(tmp_path, volume_group="vg.01")

        def prepare() -> list[str]:
            said.clear()
            arguments: Any = SimpleNamespace(config="site.yaml", json=False)
            assert store_cmd._prepare(arguments, site, "n1", lambda **told: said.append(told["result"])) == 0
            return list(said)

        assert prepare() == ["chosen", "rendered"]
        assert prepare() == []
        hooks = "auto"
        assert prepare() == ["rendered"]
        ready = ready._replace(why="nothing is mounted at /scratch")
        assert prepare() == ["chosen", "rendered"]
        assert store.read(str(tmp_path)) == ("memory", "nothing is mounted at /scratch")
        assert "scratch lies on: memory" in capsys.readouterr().out

    def test_a_folder_that_a_user_took(self, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "scratch").chmod(0o1777)
        (tmp_path / "scratch/ours").symlink_to(tmp_path)
        scratch = Scratch(directory=str(tmp_path / "scratch/ours"))
        with pytest.raises(InternalError):
            store_ready.prepare(scratch, never)

    def test_the_folder_is_made_for_its_owner_alone(self, tmp_path: Path) -> None:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "scratch").chmod(0o1777)
        scratch = Scratch(directory=str(tmp_path / "scratch/ours"), limit=4096)
        ready = store_ready.prepare(scratch, never)
        assert (ready.backing, ready.bytes) == ("file", 4096)
        assert (tmp_path / "scratch/ours").stat().st_mode & 0o7777 == 0o700
        assert store_ready.prepare(scratch, never) == ready

    def test_the_volume_is_not_mounted(self, tmp_path: Path) -> None:
        scratch = Scratch(directory=str(tmp_path / "ours"), volume=str(tmp_path))
        with pytest.raises(InternalError, match="nothing is mounted"):
            store_ready.prepare(scratch, never)
        assert not (tmp_path / "ours").exists()

    def test_a_group_that_is_not_there_or_not_taken_over_is_a_problem(self, lvm: Lvm) -> None:
        scratch = Scratch(backing="lvm", volume_group="vg.01")
        lvm(groups=0)
        assert "there is no volume group vg.01" in store_ready.problem(scratch, "lvm")
        lvm(("lv_ephemeral", ""))
        assert "is still there" in store_ready.problem(scratch, "lvm")
        lvm()
        assert store_ready.problem(scratch, "lvm") == ""

    def test_a_problem_is_told_without_an_exception(self, lvm: Lvm) -> None:
        lvm(groups=0)
        assert "nothing that scratch could lie on" in store_ready.problem(
            Scratch(backing="auto", volume_group="vg.01"), ""
        )


def test_the_choice_is_read_back(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / store.NAME).write_text(store.text("memory", "no volume group vg.01"))
    (tmp_path / store.NAME).chmod(0o644)
    assert store.read(str(tmp_path)) == ("memory", "no volume group vg.01")
    assert store.read(str(tmp_path / "nowhere")) == ("", "")
