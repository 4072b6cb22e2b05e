"""A real slurmctld with eight real slurmds on one machine, asked for one thing: which nodes would it give a job?

The answer is an allocation, made and withdrawn (``salloc --immediate --no-shell``). ``sbatch --test-only`` would be
cheaper, but it reads a constraint by other code (job_req_node_filter) than the code that places jobs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

# name -> features; the nodes abroad mirror those at home, have features that look like home's, and are the scheduler's
# first choice by weight
_SHARED = {"1": "p-q", "2": "a,k=v,t3.micro", "3": "a,b,m+n", "4": "b,c,g:2"}
HOME = {f"e{number}": f"eu,{features}" for number, features in _SHARED.items()}
ABROAD = {f"u{number}": f"us,neu,eu-x,eu.1,{features}" for number, features in _SHARED.items()}
NODES = {**HOME, **ABROAD}
AT_ONCE = 4
# jobs share a node's processors, so that what one expression got does not stand in the way of the next
CPUS = 512
BATCH = 400

CONF = """\
ClusterName=test
SlurmctldHost=head
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/lib/slurm/d-%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MessageTimeout=100
MaxJobCount=50000
MinJobAge=2
"""

_GRANTED = re.compile(r"Granted job allocation (\d+)")
# everything else that salloc may say ("nodes are busy") is a fault of the rig, and must not pass for a refusal
_REFUSED = re.compile(
    r"Invalid (preferred )?feature specification|node configuration is not available|Required node not available"
)


class RigError(Exception):
    """Slurm did not come up, or said something that is neither yes nor no."""


class Answer(NamedTuple):
    """What slurmctld said to one job."""

    nodes: frozenset[str]  # empty: it would not start now
    words: str


class Controller:
    """Start and stop with ``with``; needs root, and a machine (or namespaces) where nobody else runs Slurm.

    ``changeable`` features are a node feature plugin's (node_features/helpers), and every node has them.
    """

    conf = CONF

    def __init__(self, changeable: str = "") -> None:
        self.changeable = changeable

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self) -> None:
        lines = []
        for number, (node, features) in enumerate(NODES.items()):
            lines.append(
                f"NodeName={node} NodeHostname=head NodeAddr=127.0.0.1 Port={17001 + number} CPUs={CPUS} "
                f"RealMemory=500 Feature={features} Weight={100 if node in HOME else 1}\n"
            )
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=60\n")
        if self.changeable:
            lines.append("NodeFeaturesPlugins=node_features/helpers\nRebootProgram=/bin/true\n")
            helper = Path("/etc/slurm/helper")
            helper.write_text(f"#!/bin/sh\nprintf '%s\\n' {self.changeable.replace(',', ' ')}\n")
            helper.chmod(0o755)
            helpers = [f"NodeName={node} Feature={self.changeable} Helper={helper}\n" for node in NODES]
            helper.with_name("helpers.conf").write_text("".join(helpers))
        Path("/etc/slurm/slurm.conf").write_text(self.conf + "".join(lines) + self.more())
        Path("/etc/slurm/cgroup.conf").write_text("CgroupPlugin=disabled\n")
        # another one's, of an earlier module: slurmctld takes the state of one cluster for no other
        for folder in ("/var/spool/slurmctld", "/var/lib/slurm"):
            shutil.rmtree(folder, ignore_errors=True)
        folders = {"slurm": ("/var/log/slurm", "/var/spool/slurmctld", "/var/lib/slurm", "/run/slurm")}
        for owner, paths in {**folders, "munge": ("/run/munge", "/var/lib/munge", "/var/log/munge")}.items():
            for path in paths:
                Path(path).mkdir(parents=True, exist_ok=True)
                shutil.chown(path, owner, owner)
                Path(path).chmod(0o755 if path != "/var/log/munge" else 0o700)
        run("runuser", "-u", "munge", "--", "munged", "--num-threads=4")
        self.prepare()
        run("slurmctld", "-c")
        for node in NODES:
            run("slurmd", "-N", node)
        until(lambda: self._idle() == set(NODES), "idle nodes")

    def more(self) -> str:
        """Further lines of slurm.conf."""
        return ""

    def prepare(self) -> None:
        """What has to run before slurmctld does; munge runs already."""

    def stop(self) -> None:
        """Stop what runs; may be called again, also after half a start."""
        for name in ("slurmd", "slurmctld", "munged"):
            # by its arguments: a slurmctld that was reconfigured has another name
            pattern = rf"^(/usr/sbin/)?{name}( |$)"
            subprocess.run(["pkill", "-f", pattern], check=False)
            # not the ended ones that nobody collects in a namespace like this
            until(lambda p=pattern: not run("pgrep", "-f", "-r", "D,R,S", p, check=False), f"{name} to end")  # type: ignore[misc]

    def version(self) -> str:
        """Slurm's own, such as ``24.11.5``."""
        return run("slurmctld", "-V").split()[-1]

    def _idle(self) -> set[str]:
        # not -t idle, which lists drained nodes too
        lines = run("sinfo", "-h", "-N", "-o", "%N %t", check=False).splitlines()
        return {line.split()[0] for line in lines if line.split()[1:] == ["idle"]}

    def only(self, nodes: Iterable[str]) -> None:
        """Drain every node but these."""
        wanted = set(nodes)
        away = set(NODES) - wanted
        if wanted - self._idle():
            run("scontrol", "update", f"NodeName={','.join(sorted(wanted - self._idle()))}", "State=RESUME")
        if away:
            run("scontrol", "update", f"NodeName={','.join(sorted(away))}", "State=DRAIN", "Reason=test")
        until(lambda: self._idle() == wanted, f"idle nodes {wanted}")

    def ask(self, jobs: Sequence[Sequence[str]]) -> list[Answer]:
        """The answer to each of these jobs' options, each as if it were alone."""
        answers: list[Answer] = []
        for start in range(0, len(jobs), BATCH):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                said = list(pool.map(_salloc, jobs[start : start + BATCH]))
            given = dict(line.split() for line in run("squeue", "-h", "-t", "R", "-o", "%A %N").splitlines())
            for number, words in said:
                if number and number not in given:
                    raise RigError(f"job {number} is not running: {run('scontrol', 'show', 'job', number)}")
                answers.append(Answer(expand(given[number]) if number else frozenset(), words))
            if given:
                run("scancel", "--state=RUNNING", "--user=root")
                until(lambda: not run("squeue", "-h").strip(), "the jobs to end")
        return answers


def _salloc(options: Sequence[str]) -> tuple[str, str]:
    done = subprocess.run(
        ["/usr/bin/salloc", "--immediate", "--no-shell", "--time=50", *options],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"},
    )
    granted = _GRANTED.search(done.stderr)
    if granted:
        return granted[1], done.stderr
    if not _REFUSED.search(done.stderr):
        raise RigError(f"{options}: {done.returncode} {done.stdout}{done.stderr}")
    return "", done.stderr


def expand(text: str) -> frozenset[str]:
    """``e[1-3],u1`` as names."""
    names = set()
    for letter, many, one in re.findall(r"([eu])(?:\[([0-9,-]+)\]|(\d))", text):
        for part in (many or one).split(","):
            first, _, last = part.partition("-")
            names |= {f"{letter}{number}" for number in range(int(first), int(last or first) + 1)}
    return frozenset(names)


def run(*argv: str, check: bool = True) -> str:
    """The output of a command; RigError when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RigError(f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def until(ready: Callable[[], bool], what: str) -> None:
    """Poll until ``ready()``; RigError says what did not come, and what slurmctld wrote last."""
    end = time.monotonic() + 180
    while not ready():
        if time.monotonic() > end:
            log = Path("/var/log/slurm/slurmctld.log")
            raise RigError(f"waited for {what}\n" + (log.read_text(errors="replace")[-3000:] if log.exists() else ""))
        time.sleep(0.05)
