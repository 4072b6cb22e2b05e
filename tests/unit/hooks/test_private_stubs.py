"""The two stubs around a job's own /tmp, run by a real sh: the InitScript's, and TaskProlog's look at its mounts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.hooks.test_stubs import JOB, STARTED, STUBS, Installed

SCRATCH = "138 137 254:0 / {root}/17 rw,nosuid,nodev - ext4 /dev/mapper/secure-n1-17 rw"
TMP = "144 135 254:0 /.private-ff/_tmp /tmp rw,nosuid,nodev - ext4 /dev/mapper/secure-n1-17 rw"
VAR_TMP = "145 125 254:0 /.private-ff/_var_tmp /var/tmp rw,nosuid,nodev - ext4 /dev/mapper/secure-n1-17 rw"
NODES_TMP = "30 22 0:31 / /tmp rw - tmpfs tmpfs rw"
FACTS = "SECURE_CLASS=phi\nSECURE_SCRATCH=/secure-scratch/17\n"
SHELLS = [None, *filter(None, [shutil.which("bash")])]


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    made = Installed(tmp_path)
    text = (STUBS / "private_tmp").read_text().replace("@PREFIX@", str(tmp_path))
    (tmp_path / "private_tmp").write_text(text.replace("/etc/secure-slurm/hooks.sh", f"{tmp_path}/hooks.sh"))
    (tmp_path / "private_tmp").chmod(0o755)
    made.configure(MOUNT_ROOT=f"{tmp_path}/scratch", PRIVATE_TMP="|phi|high|")
    (tmp_path / "scratch").mkdir()
    (made.run_dir / "task").mkdir(parents=True)
    (made.run_dir / "task" / "17").write_text(FACTS)
    return made


def task(installed: Installed, *lines: str, shell: str | None = None) -> subprocess.CompletedProcess[bytes]:
    installed.mounted(*(line.format(root=f"{installed.folder}/scratch") for line in lines))
    return installed.run("task_prolog", JOB, shell=shell)


class TestTask:
    @pytest.mark.parametrize("shell", SHELLS)
    def test_with_both_on_the_scratch_gets_its_facts(self, installed: Installed, shell: str | None) -> None:
        done = task(installed, SCRATCH, NODES_TMP, TMP, VAR_TMP, shell=shell)
        assert done.returncode == 0, done.stderr
        assert done.stdout == b"export SECURE_CLASS=phi\nexport SECURE_SCRATCH=/secure-scratch/17\n"

    @pytest.mark.parametrize("shell", SHELLS)
    @pytest.mark.parametrize(
        "lines",
        [
            (),
            (SCRATCH,),
            (SCRATCH, TMP),
            (SCRATCH, VAR_TMP),
            (TMP, VAR_TMP),
            (SCRATCH, NODES_TMP, VAR_TMP),
            # something of the node's was mounted over it
            (SCRATCH, TMP, VAR_TMP, NODES_TMP),
            # another job's scratch
            (SCRATCH.replace("254:0", "254:1"), TMP, VAR_TMP),
            (SCRATCH.replace("/17 ", "/18 "), TMP, VAR_TMP),
            (SCRATCH, TMP.replace(" /tmp ", " /tmp/x "), VAR_TMP),
        ],
    )
    def test_without_it_does_not_run(self, installed: Installed, lines: tuple[str, ...], shell: str | None) -> None:
        done = task(installed, *lines, shell=shell)
        assert done.returncode == 1
        assert b"export" not in done.stdout
        assert done.stdout.startswith(b"print secure-slurm: ")
        assert b"secure-slurm node check" in done.stdout

    def test_without_a_mount_table_it_does_not_run(self, installed: Installed) -> None:
        assert installed.run("task_prolog", JOB).returncode == 1

    @pytest.mark.parametrize("klass", ["low", "ph", "h", "*", "phi|high", ""])
    def test_of_a_class_that_asks_for_nothing_runs(self, installed: Installed, klass: str) -> None:
        (installed.run_dir / "task" / "17").write_text(f"SECURE_CLASS={klass}\n")
        assert task(installed).returncode == (1 if klass == "phi|high" else 0)

    def test_what_was_rendered_before_asks_for_nothing(self, installed: Installed) -> None:
        installed.configure(MOUNT_ROOT=f"{installed.folder}/scratch")
        assert task(installed).returncode == 0
        # and a job's environment cannot add to what was rendered, nor take from it
        assert installed.run("task_prolog", JOB, {"PRIVATE_TMP": "|phi|"}).returncode == 1
        installed.configure(MOUNT_ROOT=f"{installed.folder}/scratch", PRIVATE_TMP="|phi|")
        assert installed.run("task_prolog", JOB, {"PRIVATE_TMP": "", "MOUNT_ROOT": "/"}).returncode == 1


class TestInitScript:
    ENVIRON = JOB | {
        "SLURM_JOB_MOUNTPOINT_SRC": "/base/17/.17",
        "PYTHONPATH": "/x",
        "PATH": "/evil",
    }

    def test_a_job_without_scratch_costs_a_shell(self, installed: Installed) -> None:
        done = installed.run("private_tmp", self.ENVIRON)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert installed.started() is None

    def test_a_job_with_scratch_starts_python_with_a_closed_list(self, installed: Installed) -> None:
        (installed.folder / "scratch" / "17").mkdir()
        assert installed.run("private_tmp", self.ENVIRON).returncode == STARTED
        started = installed.started()
        assert started is not None
        assert started.environ == {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "SLURMD_NODENAME": "n1",
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_MOUNTPOINT_SRC": "/base/17/.17",
        }
        assert (started.cwd, started.umask) == ("/", "0077")
        assert "from slurm_hooks.privatetmp import main" in started.argv[-1]

    @pytest.mark.parametrize("number", ["", "x", "17x", "../17", "1 7", "-1"])
    def test_what_is_no_job_id_is_refused(self, installed: Installed, number: str) -> None:
        assert installed.run("private_tmp", self.ENVIRON | {"SLURM_JOB_ID": number}).returncode == 1

    def test_without_its_configuration_it_fails(self, installed: Installed) -> None:
        (installed.folder / "hooks.sh").unlink()
        assert installed.run("private_tmp", self.ENVIRON).returncode != 0
