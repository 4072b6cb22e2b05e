"""Whose a device is: a job's, by the mapping's name and maker, or somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from keys.scratch.blockdevice import _job_mapping


def holder(folder: Path, name: str, uuid: str) -> str:
    (folder / "dm").mkdir()
    (folder / "dm" / "name").write_text(name + "\n")
    (folder / "dm" / "uuid").write_text(uuid + "\n")
    return str(folder)


@pytest.mark.parametrize("name", ["secure-n1-7", "secure-rack-2.node-17-4294967295"])
def test_a_mapping_of_a_job(tmp_path: Path, name: str) -> None:
    assert _job_mapping(holder(tmp_path, name, f"CRYPT-PLAIN-{name}")) == name


@pytest.mark.parametrize(
    ("name", "uuid"),
    [
        ("", ""), ("secure-n1-7", ""), ("secure-n1-7", "CRYPT-PLAIN-secure-n1-8"), ("secure-n1-7", "LVM-x"),
        ("secure-n1-7", "CRYPT-LUKS2-0-secure-n1-7"), ("secure-n1", "CRYPT-PLAIN-secure-n1"),
        ("secure-n1-07", "CRYPT-PLAIN-secure-n1-07"), ("swap", "CRYPT-PLAIN-swap"), ("secure-n1-7x",
        "CRYPT-PLAIN-secure-n1-7x"),
    ],
)  # fmt: skip
def test_anything_else(tmp_path: Path, name: str, uuid: str) -> None:
    assert _job_mapping(holder(tmp_path, name, uuid)) == ""


def test_no_mapping_at_all(tmp_path: Path) -> None:
    assert _job_mapping(str(tmp_path)) == ""
