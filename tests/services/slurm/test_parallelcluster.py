"""What ``parallelcluster render`` writes for Slurm, in a real slurmctld: laid out as ParallelCluster does, and taken.

ParallelCluster checks no setting's meaning: a wrong one would stop slurmctld, and with it the creation of the cluster.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from admin import main as command
from admin.doctor import doors_slurm
from admin.doctor.facts import ScratchPlace
from admin.doctor.judge_machine import scratch
from admin.doctor.scene import Scene
from admin.parallelcluster import facts
from conf.budget import complaints
from conf.policy import load_policy
from conf.render import render
from conf.site import load_site
from conf.yamlmarks import parse
from tests.services.slurm.controller import Controller, RigError, run, until
from tests.testbed.pcluster_examples import ROOT, copy_of

PREFIX = Path("/opt/slurm")
# slurm.conf.erb of the cookbook; the two includes come last, in this order
CONF = """\
ClusterName=hipaa-and-open
SlurmUser=slurm
SlurmctldPort=6820-6829
SlurmdPort=6818
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmctldParameters=idle_on_node_suspend,power_save_min_interval=30,node_reg_mem_percent=75
CommunicationParameters=NoAddrCache
SuspendProgram=/bin/true
ResumeProgram=/bin/true
ResumeTimeout=2100
SuspendTime=600
SuspendTimeout=120
Prolog=/opt/slurm/etc/scripts/prolog.d/*
Epilog=/opt/slurm/etc/scripts/epilog.d/*
EnforcePartLimits=ALL
ReturnToService=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
{own}
include slurm_parallelcluster.conf
include pcluster/custom_slurm_settings_include_file_slurm.conf
"""


class AsOnParallelCluster(Controller):
    """Its folders, its includes, cloud nodes; the settings, queues and features are a rendered configuration's."""

    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__()
        self.raw = raw

    def _start(self) -> None:
        etc = PREFIX / "etc"
        shutil.rmtree(etc, ignore_errors=True)
        (etc / "pcluster").mkdir(parents=True)
        own = "\n".join(f"{key}={value}" for key, value in facts.SLURM_CONF.items())
        (etc / "slurm.conf").write_text(CONF.format(own=own))
        lines = ["SlurmctldHost=head(127.0.0.1)"]
        for queue in self.raw["Scheduling"]["SlurmQueues"]:
            nodes = []
            for resource in queue["ComputeResources"]:
                name = f"{queue['Name']}-dy-{resource['Name']}-[1-{resource['MaxCount']}]"
                extra = " ".join(f"{key}={value}" for key, value in resource["CustomSlurmSettings"].items())
                lines.append(f"NodeName={name} CPUs=8 State=CLOUD Weight=1000 {extra}")
                nodes.append(name)
            extra = " ".join(f"{key}={value}" for key, value in queue.get("CustomSlurmSettings", {}).items())
            whole = "EXCLUSIVE" if queue.get("JobExclusiveAllocation") else "NO"
            lines.append(
                f"PartitionName={queue['Name']} Nodes={','.join(nodes)} OverSubscribe={whole} State=UP {extra}"
            )
        (etc / "slurm_parallelcluster.conf").write_text("\n".join(lines) + "\n")
        # as pcluster_custom_slurm_settings_include_file_generator.py writes an entry
        settings = self.raw["Scheduling"]["SlurmSettings"]["CustomSlurmSettings"]
        written = "".join(" ".join(f"{key}={value}" for key, value in entry.items()) + "\n" for entry in settings)
        (etc / "pcluster/custom_slurm_settings_include_file_slurm.conf").write_text(written)
        shutil.copy(ROOT / "conf/slurm/job_container.conf", etc)
        shutil.copy(ROOT / "slurm_hooks/job_submit.lua", etc)
        shutil.rmtree("/var/spool/slurmctld", ignore_errors=True)
        folders = {"slurm": ("/var/log/slurm", "/var/spool/slurmctld", "/run/slurm")}
        for owner, paths in {**folders, "munge": ("/run/munge", "/var/lib/munge", "/var/log/munge")}.items():
            for path in paths:
                Path(path).mkdir(parents=True, exist_ok=True)
                shutil.chown(path, owner, owner)
                Path(path).chmod(0o755 if path != "/var/log/munge" else 0o700)
        run("runuser", "-u", "munge", "--", "munged", "--num-threads=4")
        os.environ["SLURM_CONF"] = str(etc / "slurm.conf")
        run("slurmctld", "-c")
        until(lambda: "is UP" in run("scontrol", "ping", check=False), "slurmctld")

    def stop(self) -> None:
        super().stop()
        os.environ.pop("SLURM_CONF", None)


def rendered(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of an example, for a ParallelCluster with (about) the Slurm that is here; and what the action
    'head start' has 'conf render' write beside it.
    """
    folder.chmod(0o755)
    files = copy_of(name, folder)
    here = run("slurmctld", "-V").split()[-1]
    release = "25.11" if tuple(map(int, here.split(".")[:2])) >= (25, 11) else ".".join(here.split(".")[:2])
    files.edit("answers", "parallelcluster: 3.16.1", f"parallelcluster: 3.16.1\nslurm: {release}")
    words = ["--config", str(files.site), "parallelcluster", "render", "--answers", str(files.answers)]
    assert command.main([*words, "--policy", str(files.policy), "--out", str(folder / "out")]) == 0
    Path("/etc/secure-slurm").mkdir(exist_ok=True)
    render(str(files.site), str(files.policy), "/etc/secure-slurm")
    return parse((folder / f"out/{name}.yaml").read_bytes()).data


@pytest.fixture(scope="module")
def controller(throw_away_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsOnParallelCluster]:
    run("groupadd", "-f", "phi-researchers")
    # hooks that are not there keep slurmctld from starting, as the filter does
    run("sh", str(ROOT / "install.sh"), "--offline", "--role", "head", "--source", str(ROOT))
    with AsOnParallelCluster(rendered(tmp_path_factory.mktemp("rendered"), "hipaa-and-open")) as found:
        yield found
    # what an installation has made belongs to its accounts: the next module's daemons run as root
    for folder in ("/etc", "/run", "/var/lib", "/var/log"):
        shutil.rmtree(f"{folder}/secure-slurm", ignore_errors=True)


def settings() -> dict[str, str]:
    lines = (line.partition("=") for line in run("scontrol", "show", "config").splitlines())
    # a hook of which there may be several is "PrologSlurmctld[0]"
    return {key.strip().removesuffix("[0]"): value.strip() for key, _, value in lines}


def test_slurmctld_takes_every_setting(controller: AsOnParallelCluster) -> None:
    found = settings()
    for entry in controller.raw["Scheduling"]["SlurmSettings"]["CustomSlurmSettings"]:
        for key, value in entry.items():
            if key == "PrologFlags":
                assert {"contain", "deferbatch"} <= {each.lower() for each in found[key].split(",")}
            elif key != "PrologEpilogTimeout":
                assert sorted(found[key].lower().split(",")) == sorted(str(value).lower().split(","))
    assert found["Prolog"].startswith("/opt/slurm/etc/scripts/prolog.d/")
    assert found["SchedulerParameters"] == "nohold_on_prolog_fail"


def test_slurm_leaves_the_hooks_their_time(controller: AsOnParallelCluster) -> None:
    printed = run("scontrol", "show", "config")
    assert complaints(printed, 45.0, 60.0) == []
    assert complaints(printed, 61.0, 60.0)


def test_nodes_have_their_jurisdictions_feature(controller: AsOnParallelCluster) -> None:
    nodes = run("sinfo", "-h", "-N", "-o", "%N %f").splitlines()
    assert len(nodes) == 50 + 16 + 30 + 4
    assert {line.split()[1] for line in nodes} == {"us"}


def test_the_queue_that_demands_tags_gives_whole_nodes_to_its_group(controller: AsOnParallelCluster) -> None:
    hipaa = run("scontrol", "show", "partition", "hipaa")
    assert "OverSubscribe=EXCLUSIVE" in hipaa or "Exclusive=NODE" in hipaa, hipaa
    assert "AllowGroups=phi-researchers" in hipaa
    assert "OverSubscribe=NO" in run("scontrol", "show", "partition", "open")


@pytest.mark.parametrize(("node", "demanding"), [("open-dy-small-1", ()), ("hipaa-dy-gpu-4", ("hipaa",))])
def test_doctor_learns_by_slurm_whether_a_node_may_do_without_scratch(
    controller: AsOnParallelCluster, tmp_path: Path, node: str, demanding: tuple[str, ...]
) -> None:
    """Before slurmd has started, as the action 'compute configured' runs it."""
    tmp_path.chmod(0o755)
    files = copy_of("hipaa-and-open", tmp_path)
    files.edit("site", "/opt/slurm/bin", "/usr/bin")
    site, policy = load_site(str(files.site)), load_policy(str(files.policy))
    scene = Scene(frozenset({"compute"}), True, node, str(files.site), str(files.policy), site, policy)
    found = doors_slurm.node(scene)
    assert found.demanding == demanding
    nothing = ScratchPlace("scratch.backing auto", 0, 0, "nothing was chosen")
    assert scratch(nothing, found).state == ("fail" if demanding else "warn")


def test_the_filter_is_asked(controller: AsOnParallelCluster) -> None:
    """Its daemon does not run: nothing enters a queue that demands tags, and the open one is as the site file says."""
    with pytest.raises(RigError, match=r"secure-slurm"):
        run("sbatch", "-p", "hipaa", "--wrap=true")
    assert "Submitted" in run("sbatch", "-p", "open", "--wrap=true")


def test_what_hides_in_a_key_or_a_value_reaches_slurm(controller: AsOnParallelCluster) -> None:
    """Why the check looks into both (setting-hidden): ParallelCluster compares keys, and Slurm reads lines."""
    file = PREFIX / "etc/pcluster/custom_slurm_settings_include_file_slurm.conf"
    (PREFIX / "etc/more=y").write_text("Prolog=/usr/bin/true\n")
    before = file.read_text()
    try:
        # a second setting on a line of its own kind is none: nothing starts any more
        file.write_text(f"{before}KillOnBadExit=0 Prolog=/usr/bin/true\n")
        with pytest.raises(RigError, match="Parse error"):
            run("scontrol", "reconfigure")
        # {"Include /opt/slurm/etc/more": y}
        file.write_text(f"{before}Include {PREFIX}/etc/more=y\n")
        run("scontrol", "reconfigure")
        until(lambda: "= /usr/bin/true" in run("scontrol", "show", "config", check=False), "the hidden Prolog")
    finally:
        file.write_text(before)
        run("scontrol", "reconfigure")
        until(lambda: "/prolog.d/" in run("scontrol", "show", "config", check=False), "ParallelCluster's Prolog")


def test_without_the_filter_slurmctld_does_not_start(controller: AsOnParallelCluster) -> None:
    """Why the head node's action comes at OnNodeStart. The last test here: it stops the slurmctld of the others."""
    run("pkill", "-f", r"^(/usr/sbin/)?slurmctld( |$)")
    until(lambda: "is UP" not in run("scontrol", "ping", check=False), "slurmctld to end")
    (PREFIX / "etc/job_submit.lua").unlink()
    log = Path("/var/log/slurm/slurmctld.log")
    log.write_text("")
    run("slurmctld", check=False)
    until(lambda: "fatal: failed to initialize job_submit plugin" in log.read_text(), "its last word")
