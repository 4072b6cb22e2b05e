"""An installation over the one that runs, and an uninstallation that must not be, while secured jobs run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed.cluster import Cluster

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
PREFIX = Path("/opt/secure-slurm")
SOURCE = Path("/src")


def running(cluster: Cluster, *words: str) -> int:
    job = cluster.submit("alice", *TAG, *words)
    cluster.wait_state(job, "RUNNING")
    cluster.until(lambda: cluster.leftovers(job)["task"], f"job {job} to have its scratch", 60)
    return job


def install(cluster: Cluster, source: Path) -> None:
    argv = ["sh", str(source / "install.sh"), "--offline", "--prefix", str(PREFIX), "--source", str(source)]
    cluster.command(argv, timeout=600)


@pytest.fixture
def later(cluster: Cluster, tmp_path: Path) -> Iterator[Path]:
    """The same of another version; afterwards the first is there again."""
    source = tmp_path / "later"
    for name in ("admin", "audit", "conf", "keys", "slurm_hooks", "submit", "requirements"):
        shutil.copytree(SOURCE / name, source / name)
    for name in ("install.sh", "uninstall.sh"):
        shutil.copy(SOURCE / name, source)
    version = source / "conf/version.py"
    version.write_text(version.read_text().replace('"0.1.0"', '"0.2.0"'))
    yield source
    install(cluster, SOURCE)


def test_secured_jobs_and_a_new_version(clean: Cluster, later: Path) -> None:
    first = running(clean, "--wrap=sleep 600")
    before = clean.vault_keys(first)
    assert len(before) == 1
    rendered = {path: path.read_bytes() for path in Path("/etc/secure-slurm").iterdir() if path.is_file()}
    install(clean, later)
    assert (PREFIX / "VERSION").read_text() == "0.2.0\n"
    assert {path: path.read_bytes() for path in Path("/etc/secure-slurm").iterdir() if path.is_file()} == rendered
    assert clean.state(first) == "RUNNING"
    assert clean.vault_keys(first) == before
    # the next job's hooks are of the new version; the first one's end is, too
    second = running(clean, "--wrap=sleep 600")
    for job in (second, first):
        clean.as_user("alice", ["scancel", str(job)])
        clean.wait_end(job)
        clean.wait_gone(job, 45)
    assert clean.drained() == ""


def test_no_uninstallation_while_a_secured_job_runs(clean: Cluster) -> None:
    job = running(clean, "--wrap=sleep 600")
    done = clean.command([str(PREFIX / "uninstall.sh")], check=False)
    assert done.returncode == 1
    assert "a job has encrypted scratch here" in done.stderr
    done = clean.command([str(PREFIX / "uninstall.sh"), "--purge"], check=False)
    assert done.returncode == 1
    assert (PREFIX / "lib").is_dir()
    assert clean.state(job) == "RUNNING"
    clean.as_user("alice", ["scancel", str(job)])
    clean.wait_end(job)
    clean.wait_gone(job, 45)
    # there is no udev here: of a mapping that the kernel itself removed, in an earlier module, the name would stay
    clean.command(["dmsetup", "mknodes"])
    # with the job gone there are still the lines of slurm.conf
    done = clean.command([str(PREFIX / "uninstall.sh")], check=False)
    assert done.returncode == 1
    assert "Slurm still runs the hooks" in done.stderr
