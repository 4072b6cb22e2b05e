"""The sh stubs as install.sh renders them, run by a real sh with a Python that only notes how it was started."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conf import surroundings
from slurm_hooks import mounts

STUBS = Path(__file__).parents[3] / "slurm_hooks" / "stubs"
# what each hands on, beside PATH and LC_ALL
HANDED_ON = {
    "prolog": [
        *("SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_GID"),
        *("SLURM_JOB_USER", "SLURM_JOB_NODELIST", "SLURM_JOB_RESTART_COUNT", "SLURM_JOB_EXTRA"),
        *("SLURM_JOB_WORK_DIR", "SLURM_JOB_STDIN", "SLURM_JOB_STDOUT", "SLURM_JOB_STDERR"),
    ],
    "epilog": ["SLURMD_NODENAME", "SLURM_JOB_ID", "SLURM_JOB_UID"],
    "prolog_slurmctld": [
        *("SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_NODELIST", "SLURM_JOB_RESTART_COUNT"),
    ],
    "epilog_slurmctld": ["SLURM_JOB_ID", "SLURM_JOB_NODELIST"],
}
HOOKS = list(HANDED_ON)
JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_UID": "1001",
    "SLURM_JOB_GID": "1001",
    "SLURM_JOB_USER": "alice",
    "SLURM_JOB_PARTITION": "open",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_RESTART_COUNT": "1",
    "SLURM_CLUSTER_NAME": "test",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_WORK_DIR": "/home/alice",
    "SLURM_JOB_STDIN": "/dev/null",
    "SLURM_JOB_STDOUT": "/home/alice/o-%j.txt",
    "SLURM_JOB_STDERR": "/home/alice/e-%j.txt",
}
TAG = {"SLURM_JOB_EXTRA": "secure-slurm:class=phi"}
# The shell's own /proc/environ is what it was started with, before any shell adds a variable.
PYTHON = """\
#!/bin/sh
cat /proc/$$/environ > '{folder}/environ'
cat /proc/$$/cmdline > '{folder}/cmdline'
readlink /proc/$$/cwd > '{folder}/cwd'
umask > '{folder}/umask'
exit 42
"""
STARTED = 42


class Started(NamedTuple):
    environ: dict[str, str]
    argv: list[str]
    cwd: str
    umask: str


class Installed:
    """The stubs below a prefix of their own, with the machine's hooks.sh in the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "node-n1"
        (folder / "venv" / "bin").mkdir(parents=True)
        python = folder / "venv" / "bin" / "python3"
        python.write_text(PYTHON.format(folder=folder))
        python.chmod(0o755)
        self.configure()
        for name in (*HOOKS, "task_prolog"):
            done = subprocess.run(
                ["sed", f"s|@PREFIX@|{folder}|g", str(STUBS / name)], check=True, capture_output=True, text=True
            )
            assert done.stdout.count("/etc/secure-slurm/hooks.sh") == 1
            here = done.stdout.replace("/etc/secure-slurm/hooks.sh", f"{folder}/hooks.sh")
            (folder / name).write_text(here.replace("/proc/self/mountinfo", f"{folder}/mountinfo"))
            (folder / name).chmod(0o755)

    def configure(self, partitions: str = "|phi|", run_dir: str = "node-%n", **more: str) -> None:
        values = {"SECURE_PARTITIONS": partitions, "RUN_DIR": f"{self.folder}/{run_dir}", **more}
        (self.folder / "hooks.sh").write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))

    def mounted(self, *lines: str) -> None:
        root = "22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw"
        (self.folder / "mountinfo").write_text("".join(f"{line}\n" for line in (root, *lines)))

    def run(self, hook: str, *environs: dict[str, str], shell: str | None = None) -> subprocess.CompletedProcess[bytes]:
        environ = {name: value for each in environs for name, value in each.items()}
        argv = [str(self.folder / hook)]
        return subprocess.run(
            [shell, *argv] if shell else argv, env=environ, capture_output=True, check=False, timeout=60
        )

    def started(self) -> Started | None:
        if not (self.folder / "environ").exists():
            return None
        pairs = os.fsdecode((self.folder / "environ").read_bytes()).split("\0")[:-1]
        argv = os.fsdecode((self.folder / "cmdline").read_bytes()).split("\0")[:-1]
        cwd, umask = ((self.folder / name).read_text().strip() for name in ("cwd", "umask"))
        return Started(dict(pair.split("=", 1) for pair in pairs), argv[1:], cwd, umask)

    def everything(self) -> set[str]:
        return {str(path) for path in self.folder.rglob("*")}


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


def without(name: str) -> dict[str, str]:
    return {each: value for each, value in JOB.items() if each != name}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"SLURM_JOB_EXTRA": ""},
        {"SLURM_JOB_EXTRA": "a note"},
        {"SLURM_JOB_EXTRA": "secure_slurm"},
        {"SLURM_JOB_PARTITION": ""},
        {"SLURM_JOB_PARTITION": "ph"},
        {"SLURM_JOB_PARTITION": "*"},
        {"SLURM_JOB_PARTITION": "ph?"},
        {"SLURM_JOB_PARTITION": "[p]hi"},
        {"SLURM_JOB_EXTRA": "*", "SLURM_JOB_COMMENT": "secure-slurm"},
    ],
    ids=str,
)
def test_an_unmarked_job_starts_no_python(installed: Installed, hook: str, more: dict[str, str]) -> None:
    done = installed.run(hook, JOB, more)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert installed.started() is None


@pytest.mark.parametrize("hook", ["prolog", "prolog_slurmctld", "epilog_slurmctld"])
def test_a_job_without_any_variable_is_unmarked(installed: Installed, hook: str) -> None:
    assert installed.run(hook).returncode == 0
    assert installed.started() is None


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "more", [TAG, {"SLURM_JOB_EXTRA": "x secure-slurm y\nz"}, {"SLURM_JOB_PARTITION": "phi"}], ids=str
)
def test_a_marked_job_starts_its_hook(installed: Installed, hook: str, more: dict[str, str]) -> None:
    assert installed.run(hook, JOB, more).returncode == STARTED

    started = installed.started()
    assert started is not None
    *python, program = started.argv
    assert python == [f"{installed.folder}/venv/bin/python3", "-IS", "-c"]
    assert program.replace("'", '"').split("; ") == [
        "import sys",
        f'sys.path.insert(0, "{installed.folder}/lib")',
        f"from slurm_hooks.{hook} import main",
        "sys.exit(main())",
    ]
    assert (started.cwd, started.umask) == ("/", "0077")


@pytest.mark.parametrize("hook", HOOKS)
def test_nothing_but_the_closed_list_is_handed_on(installed: Installed, hook: str) -> None:
    hostile = {
        **{"LD_PRELOAD": "/x.so", "PYTHONPATH": "/x", "PYTHONSTARTUP": "/x", "BASH_ENV": "/x", "ENV": "/x", "IFS": "/"},
        **{
            "PATH": "/evil",
            "LC_ALL": "evil",
            "HOME": "/x",
            "SLURM_JOB_COMMENT": "x",
            "SLURM_JOB_NAME": "x",
            "marked": "1",
        },
        **{
            "SECURE_PARTITIONS": "||",
            "SLURM_ARRAY_JOB_ID": "3",
            "SSL_CERT_FILE": "/x",
            "VAULT_TOKEN": "t",
            "PS4": "$(id)",
        },
    }
    assert installed.run(hook, JOB, TAG, hostile).returncode == STARTED

    started = installed.started()
    assert started is not None
    fixed = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    assert started.environ == {**fixed, **{name: {**JOB, **TAG}[name] for name in HANDED_ON[hook]}}


@pytest.mark.parametrize("hook", HOOKS)
def test_what_slurm_did_not_say_is_empty(installed: Installed, hook: str) -> None:
    least = {"SLURM_JOB_PARTITION": "phi", "SLURM_JOB_ID": "17"}
    assert installed.run(hook, least).returncode == STARTED

    started = installed.started()
    assert started is not None
    given = {name: value for name, value in started.environ.items() if name not in ("PATH", "LC_ALL")}
    expected = {**dict.fromkeys(HANDED_ON[hook], ""), "SLURM_JOB_ID": "17"}
    if "SLURM_JOB_RESTART_COUNT" in expected:
        expected["SLURM_JOB_RESTART_COUNT"] = "0"
    assert given == expected


HOSTILE = [
    "secure-slurm a b  c ",
    "secure-slurm '; touch {canary}; '",
    'secure-slurm "; touch {canary}; "',
    "secure-slurm $(touch {canary}) `touch {canary}` ${{IFS}}",
    "secure-slurm\ntouch {canary}\n",
    "secure-slurm * ? [a-z]* ~ {{a,b}}",
    "secure-slurm \\ \\n \\' & | > {canary} < # !",
    "secure-slurm\t\x1b[2J\x07\x7f\udcff ñ",
    "-S secure-slurm",
    "A=B secure-slurm LD_PRELOAD=/x",
    "secure-slurm " + "x" * 60_000,
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("shell", [None, *filter(None, [shutil.which("bash")])])
def test_a_hostile_value_arrives_as_it_is_and_is_never_run(
    installed: Installed, hook: str, number: int, shell: str | None
) -> None:
    """ParallelCluster's /bin/sh is bash, Debian's is dash."""
    canary = installed.folder / "canary"
    value = HOSTILE[number].format(canary=canary)
    names = [name for name in HANDED_ON[hook] if name not in ("SLURM_JOB_ID", "SLURMD_NODENAME")]
    before = installed.everything()

    done = installed.run(
        hook, JOB, dict.fromkeys(names, value), {"SLURM_JOB_EXTRA": value, "SLURM_JOB_PARTITION": value}, shell=shell
    )

    assert done.returncode == STARTED, done.stderr
    assert done.stderr == b""
    started = installed.started()
    assert started is not None
    assert {name: started.environ[name] for name in names} == dict.fromkeys(names, value)
    written = {str(installed.folder / name) for name in ("environ", "cmdline", "cwd", "umask")}
    assert installed.everything() - before == written


@pytest.mark.parametrize("hook", HOOKS)
def test_without_its_configuration_a_hook_fails(installed: Installed, hook: str) -> None:
    (installed.folder / "hooks.sh").unlink()

    assert installed.run(hook, JOB).returncode != 0
    assert installed.run(hook, JOB, TAG).returncode != 0
    assert installed.started() is None


@pytest.mark.parametrize("hook", HOOKS)
def test_with_half_a_configuration_a_hook_fails(installed: Installed, hook: str) -> None:
    """`set -u`: a variable that is missing is not an empty one."""
    (installed.folder / "hooks.sh").write_text("")

    assert installed.run(hook, JOB).returncode != 0
    assert installed.started() is None


@pytest.mark.parametrize("hook", HOOKS)
def test_where_no_partition_demands_a_tag(installed: Installed, hook: str) -> None:
    for none in ("|", ""):
        installed.configure(partitions=none)
        assert installed.run(hook, JOB).returncode == 0
        assert installed.run(hook, JOB, {"SLURM_JOB_PARTITION": "phi"}).returncode == 0
    assert installed.run(hook, JOB, TAG).returncode == STARTED


@pytest.mark.parametrize("hook", HOOKS)
def test_every_partition_of_several(installed: Installed, hook: str) -> None:
    installed.configure(partitions="|phi|raw|")
    for name in ("phi", "raw"):
        assert installed.run(hook, JOB, {"SLURM_JOB_PARTITION": name}).returncode == STARTED
    for name in ("hi", "aw", "PHI", "raw "):
        assert installed.run(hook, JOB, {"SLURM_JOB_PARTITION": name}).returncode == 0


def nfs(point: str, source: str = "srv:/x", fstype: str = "nfs4", optional: str = "shared:3 ") -> str:
    return f"36 22 0:41 / {point} rw,relatime {optional}- {fstype} {source} rw,vers=4.2"


PROTECTED = {
    "datasets": {"/data/ukb": "ukb", "/data/two": "two"},
    "owned": {"fs-1.efs.example:/": "eu", "/shared/eu": "eu", "//cifs/share": "eu"},
}
HERE = [
    nfs("/data/ukb"),
    nfs("/data/ukb", "/dev/sdb1", "ext4"),
    nfs("/data/ukb", "/dev/sdb1", "xfs", ""),
    nfs("/data/two/a/b\\040c"),
    nfs("/data/two/a", fstype="ext4"),
    nfs("/data"),
    nfs("/data", fstype="fuse.sshfs"),
    nfs("/data", fstype="autofs", source="auto.data"),
    nfs("/anywhere", "fs-1.efs.example:/"),
    nfs("/anywhere", "fs-1.efs.example:", optional="shared:1 master:2 "),
    nfs("/anywhere", "//cifs/share", "cifs"),
    nfs("/", "fs-1.efs.example:/"),
    nfs("/shared"),
    nfs("/shared/eu/x", fstype="lustre"),
]
NOT_HERE = [
    nfs("/home"),
    nfs("/data2"),
    nfs("/data/ukb2"),
    nfs("/data/uk"),
    nfs("/x/data/ukb"),
    nfs("/data", "/dev/sdb1", "ext4"),
    nfs("/data", "/dev/sdb1", "xfs"),
    nfs("/data/ukb", "tmpfs", "tmpfs"),
    nfs("/data/*"),
    nfs("/*"),
    nfs("/data/ukb|/data/two"),
    nfs("/anywhere", "fs-1.efs.example:/sub"),
    nfs("/anywhere", "*"),
    nfs("/anywhere", ""),
    nfs("/"),
]


def protect(installed: Installed) -> None:
    values = surroundings.in_bars(PROTECTED["datasets"], PROTECTED["owned"])
    installed.configure(**values)


@pytest.mark.parametrize("shell", [None, *filter(None, [shutil.which("bash")])])
@pytest.mark.parametrize("line", HERE)
def test_an_untagged_job_beside_protected_data_starts_the_python_that_looks_closer(
    installed: Installed, line: str, shell: str | None
) -> None:
    protect(installed)
    installed.mounted(nfs("/home"), line)
    assert installed.run("prolog", JOB, shell=shell).returncode == STARTED
    started = installed.started()
    assert started is not None
    assert "from slurm_hooks.protected import main" in started.argv[-1]
    # the same file by the same rules: what the stub passes on is what Python finds
    assert mounts.exposed(mounts.read(str(installed.folder / "mountinfo")), PROTECTED["datasets"], PROTECTED["owned"])
    # a tagged job goes the usual way
    assert installed.run("prolog", JOB, TAG).returncode == STARTED
    started = installed.started()
    assert started is not None
    assert "from slurm_hooks.prolog import main" in started.argv[-1]


@pytest.mark.parametrize("shell", [None, *filter(None, [shutil.which("bash")])])
@pytest.mark.parametrize("line", NOT_HERE)
def test_an_untagged_job_beside_other_mounts_starts_no_python(
    installed: Installed, line: str, shell: str | None
) -> None:
    protect(installed)
    installed.mounted(nfs("/home"), line)
    done = installed.run("prolog", JOB, shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert installed.started() is None
    assert not mounts.exposed(
        mounts.read(str(installed.folder / "mountinfo")), PROTECTED["datasets"], PROTECTED["owned"]
    )


def test_a_mountinfo_that_cannot_be_read_is_looked_at_by_python(installed: Installed) -> None:
    protect(installed)
    assert installed.run("prolog", JOB).returncode == STARTED
    installed.configure(PROTECTED="", PROTECTED_TOPS="", PROTECTED_SOURCES="")
    assert installed.run("prolog", JOB).returncode == 0


NAMES = st.sampled_from(["data", "ukb", "two", "ukb2", "shared", "eu", "x", "*", "a\\040b"])
POINTS = st.lists(NAMES, max_size=4).map(lambda names: "/" + "/".join(names))
SOURCES = st.sampled_from(["fs-1.efs.example:/", "fs-1.efs.example:", "srv:/x", "//cifs/share", "none", "", "a\\040b"])
TYPES = st.sampled_from(
    ["nfs4", "ext4", "xfs", "btrfs", "tmpfs", "autofs", "fuse.sshfs", "overlay", "devtmpfs", "proc"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(POINTS, SOURCES, TYPES), max_size=4))
def test_the_stub_never_finds_less_than_python(installed: Installed, found: list[tuple[str, str, str]]) -> None:
    protect(installed)
    installed.mounted(*(nfs(*each) for each in found))
    exposed = mounts.exposed(
        mounts.read(str(installed.folder / "mountinfo")), PROTECTED["datasets"], PROTECTED["owned"]
    )
    if exposed is not None:
        assert installed.run("prolog", JOB).returncode == STARTED


JOBS = ["", "x", "-1", "17x", "1 7", "17\n", "../17", "17/../18", "$(id)", "*", "1.5", "\u0661"]


@pytest.mark.parametrize("job", JOBS, ids=repr)
@pytest.mark.parametrize("marked", [{}, TAG, {"SLURM_JOB_PARTITION": "phi"}], ids=str)
def test_the_epilog_refuses_what_is_no_job(installed: Installed, job: str, marked: dict[str, str]) -> None:
    assert installed.run("epilog", JOB, marked, {"SLURM_JOB_ID": job}).returncode == 1
    assert installed.started() is None


def test_the_epilog_refuses_without_a_job(installed: Installed) -> None:
    assert installed.run("epilog", without("SLURM_JOB_ID")).returncode == 1


@pytest.mark.parametrize("more", [{}, {"SLURM_JOB_EXTRA": "changed by its user"}], ids=str)
@pytest.mark.parametrize("run_dir", ["node-%n", "node-n1", "a/%n/b"])
def test_the_epilog_of_a_job_with_a_journal_runs_whatever_its_tag(
    installed: Installed, more: dict[str, str], run_dir: str
) -> None:
    installed.configure(run_dir=run_dir)
    journal = installed.folder / run_dir.replace("%n", "n1") / "journal"
    journal.mkdir(parents=True)
    (journal / "18.json").touch()
    assert installed.run("epilog", JOB, more).returncode == 0
    (journal / "17.json").touch()
    assert installed.run("epilog", JOB, more).returncode == STARTED


def facts(installed: Installed, text: str, job: str = "17") -> None:
    folder = installed.run_dir / "task"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / job).write_text(text)


LINES = "SECURE_CLASS=phi\nSECURE_RESIDENCY=eu\nSECURE_SCRATCH=/secure-scratch/17\nTMPDIR=/secure-scratch/17/tmp\n"


@pytest.mark.parametrize("shell", [None, *filter(None, [shutil.which("bash")])])
def test_a_task_gets_its_jobs_facts(installed: Installed, shell: str | None) -> None:
    facts(installed, LINES)
    facts(installed, "SECURE_CLASS=other\n", job="18")

    done = installed.run("task_prolog", JOB, {"SECURE_CLASS": "phi"}, shell=shell)

    assert done.returncode == 0
    assert done.stdout.decode() == "".join(f"export {line}\n" for line in LINES.splitlines())


@pytest.mark.parametrize("shell", [None, *filter(None, [shutil.which("bash")])])
def test_a_line_is_exported_as_it_is(installed: Installed, shell: str | None) -> None:
    lines = [r"A=a\nb\c", "B=$(touch canary) `id` *", "C=  two  spaces  ", "-n", "D='\"%s%n"]
    facts(installed, "\n".join(lines) + "\n")

    done = installed.run("task_prolog", JOB, shell=shell)

    assert done.stdout.decode() == "".join(f"export {line}\n" for line in lines)


@pytest.mark.parametrize("name", ["SECURE_CLASS", "SECURE_RESIDENCY", "SECURE_SCRATCH_SIZE"])
def test_a_task_that_asks_for_a_tag_without_a_grant_is_refused(installed: Installed, name: str) -> None:
    facts(installed, LINES, job="18")

    done = installed.run("task_prolog", JOB, {name: "phi"})

    assert (done.returncode, done.stdout) == (1, b"")
    assert b"nothing here is protected" in done.stderr
    assert b"secure-sbatch" in done.stderr


def test_what_a_task_asks_for_is_shown_and_never_run(installed: Installed) -> None:
    value = f"$(touch {installed.folder}/canary) `touch {installed.folder}/canary` * '"

    done = installed.run("task_prolog", JOB, {"SECURE_CLASS": value})

    assert done.returncode == 1
    assert value.encode() in done.stderr
    assert not (installed.folder / "canary").exists()


@pytest.mark.parametrize("more", [{}, {"SECURE_CLASS": ""}, {"SECURE_SCRATCH": "/x"}], ids=str)
def test_a_task_that_asks_for_nothing_is_left_alone(installed: Installed, more: dict[str, str]) -> None:
    done = installed.run("task_prolog", JOB, more)

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_task_without_the_configuration_does_not_run(installed: Installed) -> None:
    (installed.folder / "hooks.sh").unlink()

    assert installed.run("task_prolog", JOB).returncode != 0


@pytest.mark.parametrize("words", [["n1"], ["n1", "--once"], ["a b; touch x"]], ids=str)
def test_the_reaper_starts_with_its_words_and_an_empty_environment(installed: Installed, words: list[str]) -> None:
    text = (STUBS / "reaper").read_text().replace("@PREFIX@", str(installed.folder))
    (installed.folder / "reaper").write_text(text)

    done = subprocess.run(
        ["sh", str(installed.folder / "reaper"), *words],
        env={"SLURM_CONF": "/etc/slurm.conf", "PYTHONPATH": "/tmp", "LD_PRELOAD": "", "BASH_ENV": "/tmp/x"},
        check=False,
        timeout=60,
    )

    assert done.returncode == STARTED
    started = installed.started()
    assert started is not None
    assert set(started.environ) == {"PATH", "LC_ALL", "SLURM_CONF"}
    assert "-IS" in started.argv
    assert started.argv[-len(words) :] == words
    assert started.cwd == "/"
    assert started.umask == "0077"
