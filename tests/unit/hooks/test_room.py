"""A disk that is full by itself, and a job that asks for more than there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from slurm_hooks import room
from slurm_hooks.hookenv import HookJob, read_job

MIB = 1024**2


def job(size: int | str) -> HookJob:
    return read_job({"SLURM_JOB_ID": "17", "SLURM_JOB_EXTRA": f"secure-slurm:class=phi;scratch={size}"})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A disk of 100 MiB, of which 90 MiB are taken and 5 MiB are to be kept free."""
    real = os.statvfs(tmp_path)
    fields = list(real)
    fields[0:5] = [MIB, MIB, 100, 10, 10]
    monkeypatch.setattr(room.os, "statvfs", lambda _: os.statvfs_result(fields))
    return {"backing": "file", "overcommit": False, "directory": str(tmp_path)}


def test_more_than_the_disk_has_is_the_jobs_fault(scratch: dict[str, Any]) -> None:
    assert not room.is_the_nodes_fault(scratch, job(96 * MIB))
    assert not room.is_the_nodes_fault(scratch, job(10**12))


def test_what_would_fit_on_the_empty_disk_is_the_nodes(scratch: dict[str, Any]) -> None:
    assert room.is_the_nodes_fault(scratch, job(95 * MIB))
    assert room.is_the_nodes_fault(scratch, job(20 * MIB))


def test_what_other_jobs_have_is_nobodys_fault(scratch: dict[str, Any]) -> None:
    other = Path(scratch["directory"], "n1-16.img")
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 40 * MIB)
    assert not room.is_the_nodes_fault(scratch, job(60 * MIB))
    assert room.is_the_nodes_fault(scratch, job(50 * MIB))
    # only files of ours count
    other.rename(other.with_name("a core dump"))
    assert room.is_the_nodes_fault(scratch, job(60 * MIB))


@pytest.mark.parametrize(
    "change", [{"backing": "lvm"}, {"backing": "block"}, {"overcommit": True}, {"directory": "/nowhere/at/all"}]
)
def test_of_what_cannot_be_told_nothing_is_said(scratch: dict[str, Any], change: dict[str, Any]) -> None:
    assert not room.is_the_nodes_fault(scratch | change, job(MIB))


def test_a_tag_that_cannot_be_read(scratch: dict[str, Any]) -> None:
    assert not room.is_the_nodes_fault(scratch, job("x"))


def test_what_the_sites_limit_keeps_from_a_job_is_not_the_nodes_fault(scratch: dict[str, Any]) -> None:
    """A node must not drain because other jobs have what the site gives."""
    assert room.is_the_nodes_fault(scratch | {"limit": 0}, job(50 * MIB))
    assert not room.is_the_nodes_fault(scratch | {"limit": 49 * MIB}, job(50 * MIB))
    with Path(scratch["directory"], "n1-16.img").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 40 * MIB)
    assert not room.is_the_nodes_fault(scratch | {"limit": 60 * MIB}, job(30 * MIB))
    assert room.is_the_nodes_fault(scratch | {"limit": 80 * MIB}, job(30 * MIB))
