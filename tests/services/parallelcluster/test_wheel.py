"""The wheel, as ``pip install`` of the tree makes it at an admin's desk: it works where there is no checkout.

Built by the setuptools that ParallelCluster's own environment has, so that nothing has to be fetched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed.need import need
from tests.testbed.pcluster_examples import NAMES, ROOT

PYTHON = "/venv/parallelcluster/bin/python3"
ROOMS = ("admin", "audit", "conf", "keys", "slurm_hooks", "submit")
BUILD = "import os, sys; os.chdir(sys.argv[1]); from setuptools.build_meta import build_wheel; build_wheel(sys.argv[2])"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, in a folder of its own."""
    need(PYTHON)
    work = tmp_path_factory.mktemp("wheel")
    # the tests' umask is not the admin's: what others may write is not read as configuration
    os.umask(0o022)
    for folder in (work, work.parent):
        folder.chmod(0o755)
    for name in ROOMS:
        shutil.copytree(ROOT / name, work / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, work / "tree")
    built = [PYTHON, "-I", "-B", "-c", BUILD, str(work / "tree"), str(work)]
    done = subprocess.run(built, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(work / "tree")
    (wheel,) = work.glob("*.whl")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(work / "there"),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=300)
    return work / "there"


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command that pip made, without the checkout on the path."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [str(installed / "bin/secure-slurm"), *words]
    return subprocess.run(argv, cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("name", NAMES)
def test_it_renders_its_own_examples(installed: Path, tmp_path: Path, name: str) -> None:
    shipped = installed / "conf/parallelcluster"
    site = shipped / "sites" / name
    words = ["--config", str(site / "secure-slurm.yaml"), "parallelcluster", "render", "--out", str(tmp_path)]
    done = run(installed, *words, "--policy", str(site / "policy.yaml"), "--answers", str(site / "answers.yaml"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / f"{name}.yaml").read_bytes() == (shipped / f"{name}.yaml").read_bytes()


def test_it_has_all_that_is_no_python(installed: Path) -> None:
    """Templates, units, policies of Vault, the custom action, the filter, the hooks."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(ROOT)
                assert (installed / name).read_bytes() == path.read_bytes(), name


def test_its_templates_have_no_way_out(installed: Path) -> None:
    templates = sorted(str(path) for path in (installed / "conf/cloudformation").glob("*.yaml"))
    assert len(templates) == 3
    done = run(installed, "parallelcluster", "vpc-check", *templates)
    assert (done.returncode, "0 findings" in done.stdout) == (0, True), done.stdout
