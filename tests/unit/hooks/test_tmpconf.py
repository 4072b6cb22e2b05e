"""slurm.conf and job_container.conf as Slurm reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import BackendUnavailable
from slurm_hooks import tmpconf


def read(folder: Path, conf: str, container: str = "", node: str = "n1") -> tmpconf.TmpConf:
    (folder / "slurm.conf").write_text(conf)
    (folder / "job_container.conf").write_text(container)
    return tmpconf.read(str(folder / "slurm.conf"), node)


def test_the_last_value_wins_whatever_the_case(tmp_path: Path) -> None:
    found = read(tmp_path, "jobContainerTYPE=job_container/none\nJOBCONTAINERTYPE=Job_Container/TmpFS # not this\n")
    assert found.plugin == "job_container/tmpfs"
    assert read(tmp_path, "JobContainerType=job_container/tmpfs\nJobContainerType=job_container/none").plugin == ""
    assert read(tmp_path, "#JobContainerType=job_container/tmpfs\nX=JobContainerType=job_container/tmpfs").plugin == ""


def test_lines_that_go_on_and_files_that_are_included(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("PrologFlags=contain,RunInJob\ninclude third.conf\n")
    (tmp_path / "third.conf").write_text("NamespaceType=namespace/tmpfs")
    found = read(tmp_path, "A=b \\\n JobContainerType=job_container/none\nInclude  more.conf\n")
    assert (found.plugin, found.flags) == ("namespace/tmpfs", {"contain", "runinjob"})


def test_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "more.conf").write_text("include slurm.conf\n")
    with pytest.raises(BackendUnavailable, match="again"):
        read(tmp_path, "Include more.conf\n")


def test_the_lines_for_this_node(tmp_path: Path) -> None:
    conf = "JobContainerType=job_container/tmpfs\n"
    container = (
        "AutoBasePath=true\n"
        'BasePath="/var/%n/tmp" Dirs=/tmp\n'
        "NodeName=n[2-3] BasePath=/other dirs=/tmp/,/var/tmp InitScript=/opt/x\n"
    )
    assert read(tmp_path, conf, container) == ("job_container/tmpfs", {""}, "/var/n1/tmp", {"/tmp"}, "")
    assert read(tmp_path, conf, container, "n3")[2:] == ("/other", {"/tmp", "/var/tmp"}, "/opt/x")
    assert read(tmp_path, conf, "BasePath=/x")[3] == {"/tmp", "/dev/shm"}
    with pytest.raises(BackendUnavailable):
        read(tmp_path, conf, "NodeName=n[2- BasePath=/x\n")


def test_a_plugin_without_the_file_is_not_looked_up(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("")
    assert tmpconf.read(str(tmp_path / "slurm.conf"), "n1").base == ""


def test_blanks_where_slurm_takes_them(tmp_path: Path) -> None:
    """parse_config.c: on either side of the sign, in quotes, and a tab behind Include."""
    (tmp_path / "more.conf").write_text("PrologFlags\t= Contain,RunInJob\n")
    conf = 'Include\tmore.conf\n\nJobContainerType = job_container/tmpfs SlurmctldHost="a b = c"\n'
    container = "BasePath = /secure InitScript =/opt/x\nNodeName = n[1-2] BasePath= none\n"
    found = read(tmp_path, conf, container)
    assert (found.plugin, found.flags) == ("job_container/tmpfs", {"contain", "runinjob"})
    # switched off on this node alone
    assert (found.base, found.script) == ("none", "/opt/x")
    assert read(tmp_path, conf, container, "n3").base == "/secure"
