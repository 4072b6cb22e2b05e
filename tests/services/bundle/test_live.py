"""Real Slurm on a machine that is laid out like ParallelCluster's: the filter comes from the bundle, an upgrade and an
uninstallation happen while jobs run.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.bundle.conftest import BUNDLE, Bucket, Keys, Machine

LIMIT = 120.0
"""Seconds for anything of Slurm's to happen."""
CONF = """\
ClusterName=test
SlurmctldHost=head
SlurmUser=slurm
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/lib/slurm/d
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MessageTimeout=100
JobSubmitPlugins=lua
PrologFlags=Alloc,DeferBatch
Prolog=/opt/slurm/etc/scripts/prolog.d/*
Epilog=/opt/slurm/etc/scripts/epilog.d/*
SchedulerParameters=nohold_on_prolog_fail
NodeName=head NodeAddr=10.99.0.1 CPUs=64 RealMemory=500
PartitionName=main Nodes=ALL Default=YES MaxTime=60
"""
# an address that is not loopback's, which Slurm wants to see; it is on no network
START = """
ip address add 10.99.0.1/32 dev lo; echo '10.99.0.1 head' > /etc/hosts
rm -rf /etc/slurm; ln -s /opt/slurm/etc /etc/slurm
mkdir -p /run/munge /run/slurm /var/log/slurm /var/spool/slurmctld /var/lib/slurm/d
chown munge: /run/munge /var/lib/munge /var/log/munge; chmod 700 /var/log/munge
chown slurm: /run/slurm /var/log/slurm /var/spool/slurmctld
key=/etc/munge/munge.key
[ -e $key ] || { head -c 1024 /dev/urandom > $key; chown munge: $key; chmod 400 $key; }
runuser -u munge -- munged --num-threads=2
"""


# What Slurm does at each job, endlessly: a hook that is not there, or is empty, or cannot import, is seen.
ROW = """\
P=/opt/secure-slurm
export SLURMD_NODENAME=head SLURM_JOB_PARTITION=x SLURM_JOB_ID=77 SLURM_JOB_UID=1 SLURM_JOB_GID=1
while [ ! -e /run/enough ]; do
  for hook in prolog epilog; do
    $P/hooks/$hook > /run/said.$1 2>&1 || echo "$hook $? $(cat /run/said.$1)" >> /run/broken
    tail -n 1 $P/hooks/$hook | grep -q "import main; sys.exit(main())" || echo "$hook: not whole" >> /run/broken
    # what the stub starts for a tagged job
    $P/venv/bin/python3 -IS -c "import sys; sys.path.insert(0, '$P/lib'); from slurm_hooks.$hook import main" \\
      > /run/said.$1 2>&1 || cat /run/said.$1 >> /run/broken
    echo x >> /run/rounds
  done
  [ $1 = 1 ] || $P/bin/secure-slurm conf check > /run/said.$1 2>&1 || cat /run/said.$1 >> /run/broken
done
touch /run/over.$1
"""


class Cluster:
    """One slurmctld and one slurmd on a machine."""

    def __init__(self, machine: Machine, bucket: Bucket) -> None:
        self.machine = machine
        self.bucket = bucket

    def until(self, script: str, what: str) -> None:
        """Wait for a command that succeeds."""
        end = time.monotonic() + LIMIT
        while self.machine.run("sh", "-c", script).code != 0:
            assert time.monotonic() < end, f"{what}: {self.machine.sh('tail -n 40 /var/log/slurm/*.log')}"
            time.sleep(0.2)

    def submit(self, *options: str) -> str:
        """The number of a job that was accepted."""
        return self.machine.sh(f"sbatch --parsable --output=/dev/null {' '.join(options)}").strip()

    def state(self, job: str) -> str:
        return self.machine.sh(f"scontrol show job {job} | sed -n 's/.*JobState=\\([A-Z]*\\).*/\\1/p'").strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, keys: Keys, made: Path, site_source: Path) -> Iterator[Cluster]:
    # the version of Slurm in Debian 12 is older than what the filter is for
    site = tmp_path_factory.mktemp("live") / "site"
    shutil.copytree(site_source, site)
    text = (site / "secure-slurm.yaml").read_text()
    assert "untagged_when_down: refuse" in text
    (site / "secure-slurm.yaml").write_text(text.replace("untagged_when_down: refuse", "untagged_when_down: allow"))
    bucket = Bucket(tmp_path_factory.mktemp("live") / "out", keys, made, site)
    machine = Machine(BUNDLE / "trixie", bucket.folder)
    # as on a disk, where a folder takes another's place in one step; an overlay cannot
    machine.sh("mount -t tmpfs -o mode=755 tmpfs /opt")
    machine.put("/opt/slurm/etc/slurm.conf", CONF)
    machine.put("/opt/slurm/etc/cgroup.conf", "CgroupPlugin=disabled\n")
    for kind in ("prolog", "epilog"):
        machine.put(f"/opt/slurm/etc/scripts/{kind}.d/90_pcluster_vendor", f"#!/bin/sh\necho x >> /run/vendor-{kind}\n")
        machine.sh(f"chmod 755 /opt/slurm/etc/scripts/{kind}.d/*")
    machine.sh(START)
    yield Cluster(machine, bucket)
    machine.stop()


def test_slurmctld_does_not_start_without_the_filter(cluster: Cluster) -> None:
    """Why OnNodeStart has to bring it."""
    machine = cluster.machine
    done = machine.run("timeout", "120", "slurmctld", "-D", "-c")
    assert done.code not in (0, 124)
    assert "job_submit.lua" in machine.sh("cat /var/log/slurm/slurmctld.log") + done.err


def test_it_starts_with_the_bundles(cluster: Cluster) -> None:
    machine = cluster.machine
    # ParallelCluster writes slurm.conf after OnNodeStart: nothing may wait for a slurmctld
    machine.sh("mv /opt/slurm/etc/slurm.conf /root/")
    done = machine.action("head", "start", cluster.bucket.offer())
    assert done.code == 0, done
    machine.sh("mv /root/slurm.conf /opt/slurm/etc/")
    assert not machine.there("/usr/lib/x86_64-linux-gnu/lua/5.4/socket")
    machine.sh("slurmctld -c && slurmd")
    cluster.until("sinfo -h -o %t | grep -qx idle", "an idle node")
    done = machine.action("head", "configured", cluster.bucket.offer())
    assert done.code == 0, done
    links = machine.sh("readlink /opt/slurm/etc/scripts/prolog.d/99* /opt/slurm/etc/scripts/epilog.d/99*").split()
    assert links == ["/opt/secure-slurm/hooks/prolog", "/opt/secure-slurm/hooks/epilog"]
    job = cluster.submit("--wrap=true")
    cluster.until(f"scontrol show job {job} | grep -q JobState=COMPLETED", "the first job")
    assert machine.sh("cat /run/vendor-prolog /run/vendor-epilog").split() == ["x", "x"]


def test_the_filter_is_in_force(cluster: Cluster) -> None:
    """It asks a daemon, which cannot answer here: a tagged job is refused."""
    done = cluster.machine.run("sbatch", "--extra=secure-slurm:class=phi", "--wrap=true")
    assert done.code != 0
    assert "secure-slurm" in done.err


def test_an_upgrade_disturbs_no_job(cluster: Cluster) -> None:
    """One job runs through it, and the hooks of many others begin at every moment of it."""
    machine = cluster.machine
    long = cluster.submit("--time=10", "'--wrap=sleep 600'")
    cluster.until(f"scontrol show job {long} | grep -q JobState=RUNNING", "the long job")
    newer = cluster.bucket.newer("0.2.0")
    machine.put("/run/row", ROW)
    machine.sh("for n in 1 2; do setsid sh /run/row $n </dev/null >/dev/null 2>&1 & done")
    jobs = [cluster.submit("--wrap=true") for _ in range(3)]
    done = machine.action("head", "configured", cluster.bucket.offer(newer))
    assert done.code == 0, done
    jobs += [cluster.submit("--wrap=true") for _ in range(3)]
    machine.sh("touch /run/enough")
    assert machine.version() == "0.2.0"
    for job in jobs:
        cluster.until(f"scontrol show job {job} | grep -q JobState=COMPLETED", f"job {job}")
    assert cluster.state(long) == "RUNNING"
    assert machine.sh("sinfo -h -o %t").strip() in ("mix", "alloc")
    cluster.until("[ -e /run/over.1 ] && [ -e /run/over.2 ]", "the rows to end")
    assert not machine.there("/run/broken"), machine.sh("cat /run/broken")
    assert int(machine.sh("wc -l < /run/rounds")) > 10
    machine.sh(f"scancel {long}")
    cluster.until(f"scontrol show job {long} | grep -q JobState=CANCELLED", "the long job to end")
    assert machine.sh("sinfo -h -o %t").strip() in ("idle", "comp")


def test_slurm_names_the_hooks_still(cluster: Cluster) -> None:
    """An uninstallation now would drain the node at its next job."""
    machine = cluster.machine
    done = machine.run("/opt/secure-slurm/uninstall.sh")
    assert done.code == 1
    assert "Slurm still runs /opt/slurm/etc/scripts/prolog.d/99_secure_slurm" in done.err
    machine.sh("rm /opt/slurm/etc/scripts/*.d/99_secure_slurm")
    line = "PrologSlurmctld=/opt/secure-slurm/hooks/prolog_slurmctld"
    machine.sh(f"cd /opt/slurm/etc && cp slurm.conf slurm.conf.good && echo {line} >> slurm.conf")
    done = machine.run("/opt/secure-slurm/uninstall.sh")
    assert done.code == 1
    assert "take their lines out of /etc/slurm/slurm.conf first" in done.err
    # the plugin for each job's /tmp, by the file that the action has put there
    plugin = "JobContainerType=job_container/tmpfs"
    machine.sh(f"cd /opt/slurm/etc && cp slurm.conf.good slurm.conf && echo {plugin} >> slurm.conf")
    done = machine.run("/opt/secure-slurm/uninstall.sh")
    assert done.code == 1
    assert "take their lines out of /etc/slurm/job_container.conf first" in done.err
    machine.sh("cd /opt/slurm/etc; mv slurm.conf.good slurm.conf; sed -i /JobSubmitPlugins/d slurm.conf")
    done = machine.run("/opt/secure-slurm/uninstall.sh")
    assert done.code == 1
    assert "slurmctld still asks /etc/slurm/job_submit.lua" in done.err
    machine.sh("rm /opt/slurm/etc/job_submit.lua")
    assert machine.version() == "0.2.0"


def test_off_again_and_jobs_run(cluster: Cluster) -> None:
    machine = cluster.machine
    before = machine.sh("cd /etc/secure-slurm && sha256sum *.yaml record.key")
    machine.sh("mkdir -p /var/log/secure-slurm/decision && echo '{}' > /var/log/secure-slurm/decision/x.jsonl")
    done = machine.run("/opt/secure-slurm/uninstall.sh")
    assert done.code == 0, done
    assert not machine.there("/opt/secure-slurm")
    assert not machine.there("/usr/local/bin/secure-sbatch")
    assert machine.sh("cd /etc/secure-slurm && sha256sum *.yaml record.key") == before
    assert machine.there("/var/log/secure-slurm/decision/x.jsonl")
    machine.sh("scontrol shutdown; sleep 1; slurmctld; slurmd")
    cluster.until("sinfo -h -o %t | grep -qx idle", "an idle node")
    job = cluster.submit("--wrap=true")
    cluster.until(f"scontrol show job {job} | grep -q JobState=COMPLETED", "a job without secure-slurm")
