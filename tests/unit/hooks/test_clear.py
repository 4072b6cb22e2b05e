"""A node that would leak is refused by rule and with advice; what cannot be told is a leak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf.errors import Refused
from keys import atrest
from slurm_hooks import clear
from slurm_hooks.prolog import NODE_FAULTS

SLURM = "JobContainerType=job_container/tmpfs\nPrologFlags=Contain,DeferBatch\n"
CONTAINER = "AutoBasePath=true\nBasePath=/var/job-tmp Dirs=/tmp,/var/tmp,/dev/shm InitScript={script}\n"
NONE: dict[str, Any] = {"swap": "allow", "core_dumps": "allow"}


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(core_pattern: str, core_uses_pid: str = "0") -> None:
        (tmp_path / "core_pattern").write_text(core_pattern + "\n")
        (tmp_path / "core_uses_pid").write_text(core_uses_pid + "\n")

    monkeypatch.setattr(clear, "KERNEL", str(tmp_path))
    return put


@pytest.fixture
def slurm(tmp_path: Path) -> Callable[..., str]:
    def put(conf: str = SLURM, container: str = CONTAINER) -> str:
        (tmp_path / "slurm.conf").write_text(conf)
        (tmp_path / "job_container.conf").write_text(container.format(script=clear.SCRIPT))
        return str(tmp_path / "slurm.conf")

    return put


def rules(node: dict[str, Any], mode: str = "none", slurm_conf: str = "/nonexistent") -> list[str]:
    found = list(clear.faults({"node": node, "private_tmp": {"phi": mode}}, "n1", ("phi",), slurm_conf))
    assert all(each.advice for each in found)
    assert {each.rule for each in found} <= clear.RULES
    return [each.rule for each in found]


def test_each_is_the_nodes_own_fault() -> None:
    assert clear.RULES <= NODE_FAULTS


def test_the_default_is_to_refuse(monkeypatch: pytest.MonkeyPatch, sysctl: Callable[..., None]) -> None:
    monkeypatch.setattr(atrest, "swap_faults", lambda: ["swap on /x: clear"])
    sysctl("core")
    found = [each.rule for each in clear.faults({"node": {}}, "n1", ("phi",), "/nonexistent")]
    assert found == ["node.swap", "node.core-dumps", "node.private-tmp"]
    with pytest.raises(Refused) as caught:
        clear.judge({"node": {}}, "n1", ("phi",), "/nonexistent")
    assert caught.value.rule == "node.swap"


def test_what_the_site_allows_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atrest, "swap_faults", lambda: pytest.fail("asked"))
    monkeypatch.setattr(clear, "KERNEL", "/nonexistent")
    assert rules(NONE) == []


class TestSwap:
    @pytest.mark.parametrize("value", ["refuse", "", "ALLOW", None, "no"])
    def test_anything_but_allow_refuses(self, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
        monkeypatch.setattr(atrest, "swap_faults", lambda: ["swap on /swapfile: sda1 is not encrypted"])
        assert rules(NONE | {"swap": value}) == ["node.swap"]

    def test_a_list_that_cannot_be_read_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atrest, "SWAPS", "/nonexistent")
        assert rules(NONE | {"swap": "refuse"}) == ["node.swap"]

    def test_none_or_encrypted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atrest, "swap_faults", list)
        assert rules(NONE | {"swap": "refuse"}) == []


class TestCoreDumps:
    STRICT = NONE | {"core_dumps": "refuse"}

    @pytest.mark.parametrize(
        "pattern",
        [
            "core",
            "core.%p",
            "%e.core",
            " /x",
            "@/run/dumps.socket",
            "|/usr/lib/systemd/systemd-coredump %P %u",
            "|/usr/share/apport/apport -p%p",
            "|",
            "| /bin/false",
            "|/bin/falsehood",
            "|/home/alice/bin/false",
            "|bin/false",
        ],
    )
    def test_what_may_keep_them_refuses(self, sysctl: Callable[..., None], pattern: str) -> None:
        sysctl(pattern)
        assert rules(self.STRICT) == ["node.core-dumps"]

    @pytest.mark.parametrize("pattern", ["|/bin/false", "|/usr/bin/true %p", "|/bin/true", ""])
    def test_what_keeps_nothing_does_not(self, sysctl: Callable[..., None], pattern: str) -> None:
        sysctl(pattern)
        assert rules(self.STRICT) == []

    def test_an_empty_pattern_with_the_process_id_makes_files(self, sysctl: Callable[..., None]) -> None:
        sysctl("", "1")
        assert rules(self.STRICT) == ["node.core-dumps"]

    def test_a_folder_is_judged_by_where_it_is(
        self, sysctl: Callable[..., None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        monkeypatch.setattr(atrest, "place_fault", lambda path: asked.append(path) or "clear")
        for pattern in ("/var/crash/%e/core", "/var/crash/core.%p", "/%e", "/core"):
            sysctl(pattern)
            assert rules(self.STRICT) == ["node.core-dumps"]
        assert asked == ["/var/crash", "/var/crash", "/", "/"]
        monkeypatch.setattr(atrest, "place_fault", lambda _: "")
        assert rules(self.STRICT) == []

    def test_not_knowing_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clear, "KERNEL", "/nonexistent")
        assert rules(self.STRICT) == ["node.core-dumps"]


class TestPrivateTmp:
    def test_on_the_scratch(self, slurm: Callable[..., str]) -> None:
        assert rules(NONE, "scratch", slurm()) == []
        assert rules(NONE, "scratch", slurm("NamespaceType=namespace/tmpfs\n")) == []

    @pytest.mark.parametrize(
        ("conf", "container"),
        [
            ("", CONTAINER),
            ("JobContainerType=job_container/none\n", CONTAINER),
            ("JobContainerType=job_container/cncu\n", CONTAINER),
            ("NamespaceType=namespace/linux\n", CONTAINER),
            (SLURM + "NamespaceType=namespace/linux\n", CONTAINER),
            (SLURM + "PrologFlags=RunInJob\n", CONTAINER),
            ("# " + SLURM, CONTAINER),
            (SLURM, ""),
            (SLURM, "BasePath=none Dirs=/tmp,/var/tmp,/dev/shm InitScript={script}\n"),
            (SLURM, "BasePath=/var/job-tmp InitScript={script}\n"),
            (SLURM, "BasePath=/var/job-tmp Dirs=/tmp,/dev/shm InitScript={script}\n"),
            (SLURM, "BasePath=/var/job-tmp Dirs=/tmp,/var/tmp InitScript={script}\n"),
            (SLURM, "BasePath=/var/job-tmp Dirs=/tmp,/var/tmp,/dev/shm\n"),
            (SLURM, "BasePath=/var/job-tmp Dirs=/tmp,/var/tmp,/dev/shm InitScript=/opt/other\n"),
            (SLURM, CONTAINER + "NodeName=n1 InitScript=/opt/other\n"),
            (SLURM, "NodeName=n2 " + CONTAINER.partition("\n")[2]),
            (SLURM + "Include /nonexistent\n", CONTAINER),
            (SLURM + "Include slurm.conf\n", CONTAINER),
        ],
    )
    def test_anything_else_refuses(self, slurm: Callable[..., str], conf: str, container: str) -> None:
        assert rules(NONE, "scratch", slurm(conf, container)) == ["node.private-tmp"]

    def test_no_configuration_at_all(self, slurm: Callable[..., str]) -> None:
        path = Path(slurm())
        path.with_name("job_container.conf").unlink()
        assert rules(NONE, "scratch", str(path)) == ["node.private-tmp"]
        path.unlink()
        assert rules(NONE, "scratch", str(path)) == ["node.private-tmp"]

    def test_encrypted_is_by_where_base_path_is(
        self, slurm: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own = "BasePath=/var/job-tmp/%n Dirs=/tmp,/var/tmp,/dev/shm\n"
        asked: list[str] = []
        monkeypatch.setattr(atrest, "place_fault", lambda path: asked.append(path) or "clear")
        assert rules(NONE, "encrypted", slurm(SLURM, own)) == ["node.private-tmp"]
        assert asked == ["/var/job-tmp/n1"]
        monkeypatch.setattr(atrest, "place_fault", lambda _: "")
        assert rules(NONE, "encrypted", slurm(SLURM, own)) == []
        assert rules(NONE, "encrypted", slurm(SLURM, "BasePath=/var/job-tmp\n")) == ["node.private-tmp"]

    def test_a_class_that_was_not_rendered_is_strict(self, slurm: Callable[..., str]) -> None:
        path = slurm("")
        found = list(clear.faults({"node": NONE, "private_tmp": {"low": "none"}}, "n1", ("phi",), path))
        assert [each.rule for each in found] == ["node.private-tmp"]

    def test_every_class_of_a_check_is_asked_once_for_each_way(self, slurm: Callable[..., str]) -> None:
        modes = {"a": "scratch", "b": "scratch", "c": "encrypted", "d": "none"}
        found = list(clear.faults({"node": NONE, "private_tmp": modes}, "n1", tuple(modes), slurm("")))
        assert len(found) == 2
