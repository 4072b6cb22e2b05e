"""The test cluster laid out like AWS ParallelCluster, with instances that come and go.

Slurm under ``/opt/slurm``, prolog.d and epilog.d with a vendor's ``90_`` scripts beside ours,
``nohold_on_prolog_fail``, and two cloud nodes. ResumeProgram and SuspendProgram are SlurmUser's, as ParallelCluster's
are; like those they ask somebody else for instances: here the :class:`Cloud`, which boots and ends them as root. An
instance is a slurmd with the suite's daemons in namespaces of its own, with a certificate as after enrolment; ending it
is SIGKILL to all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.testbed import settings
from tests.testbed.cluster import Cluster

CLOUD = ("n1", "n2")
STATIC = ("n3", "n4")
SLURM = Path("/opt/slurm")
SCRIPTS = SLURM / "etc/scripts"
ASKED = Path("/run/testbed/cloud")
CONF = Path("/etc/slurm/slurm.conf")
SITE = Path(settings.ETC) / "secure-slurm.yaml"
VENDOR = {"prolog": "90_pcluster_health_check_manager", "epilog": "90_pcluster_noop"}
HEALTHY = "#!/bin/sh\nexit 0\n"
SICK = "#!/bin/sh\necho the health check failed; exit 1\n"

# as ParallelCluster's programs: SlurmUser's, they tell slurmctld the address and leave the rest to somebody else
RESUME = f"""\
#!/bin/sh
for node in $(/opt/slurm/bin/scontrol show hostnames "$1"); do
  /opt/slurm/bin/scontrol update nodename="$node" nodeaddr={settings.ADDRESS}
  echo "$0" > {ASKED}/.new-$node && mv {ASKED}/.new-$node {ASKED}/resume-$node
done
"""
SUSPEND = RESUME.replace("resume-", "suspend-").replace(
    f'  /opt/slurm/bin/scontrol update nodename="$node" nodeaddr={settings.ADDRESS}\n', ""
)

# what is generated there and differs from the test cluster's, with times that a test can wait for
PCLUSTER = f"""\
SlurmctldParameters=idle_on_node_suspend,power_save_interval=1,power_save_min_interval=0,node_reg_mem_percent=75
ResumeProgram=/opt/slurm/etc/pcluster/resume
SuspendProgram=/opt/slurm/etc/pcluster/suspend
ResumeTimeout=@RESUME@
SuspendTimeout=3
SuspendTime=20
ResumeRate=0
SuspendRate=0
SuspendExcNodes={",".join(STATIC)}
BatchStartTimeout=180
PrivateData=cloud,jobs,usage
EnforcePartLimits=ALL
ReconfigFlags=KeepPartState
"""
SOCKETS = ("decision/decide.sock", "lifecycle/lifecycle.sock")
NUMBERS = itertools.count(1)


def like_parallelcluster(conf: str, resume_timeout: int) -> str:
    """slurm.conf of the test cluster, changed to that layout."""
    changes = {
        f"Prolog={settings.PREFIX}/hooks/prolog\n": f"Prolog={SCRIPTS}/prolog.d/*\n",
        f"Epilog={settings.PREFIX}/hooks/epilog\n": f"Epilog={SCRIPTS}/epilog.d/*\n",
        "SchedulerParameters=": "SchedulerParameters=nohold_on_prolog_fail,",
        "cred_expire=12\n": "cred_expire=120\n",
        "ReturnToService=2\n": "ReturnToService=1\n",
        "Port=[17001-17002] ": "Port=[17001-17002] State=CLOUD ",
    }
    for before, after in changes.items():
        assert conf.count(before) == 1, before
        conf = conf.replace(before, after)
    return PCLUSTER.replace("@RESUME@", str(resume_timeout)) + conf


class Instance(NamedTuple):
    """What was booted: its id, its first process, and its mount namespace's inode, by which all of it is found."""

    id: str
    process: subprocess.Popen[bytes]
    space: int


class Cloud:
    """Boots and ends instances as it is asked to. ``boots``: which were booted, oldest first.

    ``broken`` nodes boot instances that are not green; those of ``held`` nodes are not booted yet.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.instances: dict[str, Instance] = {}
        self.boots: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.held: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Cloud:
        shutil.rmtree(ASKED, ignore_errors=True)
        self.cluster.make(str(ASKED), "slurm", 0o755)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(60)
        for node in list(self.instances):
            self.terminate(node)

    def _serve(self) -> None:
        while not self._stop.wait(0.1):
            for asked in sorted(ASKED.glob("[rs]*-n*")):
                verb, _, node = asked.name.partition("-")
                if verb == "resume" and node in self.held:
                    continue
                asked.unlink(missing_ok=True)
                if verb == "suspend":
                    (ASKED / f"resume-{node}").unlink(missing_ok=True)
                self.boot(node) if verb == "resume" else self.terminate(node)

    def boot(self, node: str) -> str:
        """An instance for a node; its id."""
        self.terminate(node)
        instance = f"i-{next(NUMBERS):017x}"
        cluster = self.cluster
        identity(cluster, node, instance)
        # the fault that doctor sees: no jurisdiction has that region
        place = "nowhere-1" if node in self.broken else settings.NODES[node]
        cluster.write(Path(settings.ETC) / "places" / node, f"{place}\n")
        cluster.write(cluster.directory / f"boot-{node}", f"{uuid.uuid4()}\n")
        script = Path(__file__).parent / "guest/cloud_node.sh"
        spaces = ["unshare", "-m", "-u", "--propagation", "private"]
        with Path(f"/var/log/cloud-{node}.log").open("ab") as log:
            booted = subprocess.Popen(
                [*spaces, "sh", str(script), node], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        here = _space("self")
        cluster.until(lambda: booted.poll() is not None or _space(booted.pid) not in (here, 0), "a mount namespace")
        self.instances[node] = Instance(instance, booted, _space(booted.pid))
        self.boots.append((node, instance))
        return instance

    def terminate(self, node: str) -> None:
        """As EC2 does: at once, and nobody on it hears of it. What its disk and memory held is gone."""
        instance = self.instances.pop(node, None)
        if instance is None:
            return
        cluster = self.cluster
        cluster.until(lambda: not _kill_all(instance.space), f"everything on {node} to be dead")
        instance.process.wait(60)
        cluster.until(lambda: not self._mappings(node), f"the mappings of {node} to go with its machine")
        for loop in cluster.command(["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"]).stdout.splitlines():
            device, _, file = loop.partition(" ")
            if f"/{node}-" in file:
                cluster.command(["losetup", "-d", device], check=False)
        shutil.rmtree(f"{settings.RUN}/node-{node}")
        shutil.rmtree(f"/var/lib/secure-slurm/node-{node}")
        if (scratch := Path(f"/var/lib/secure-slurm/scratch-{node}")).exists():
            shutil.rmtree(scratch)
        cluster.make(f"{settings.RUN}/node-{node}", "root", 0o755)
        cluster.make(f"{settings.RUN}/node-{node}/daemon", "secure-node", 0o755)
        cluster.make(f"/var/lib/secure-slurm/node-{node}", "root", 0o700)

    def _mappings(self, node: str) -> list[str]:
        left = [name for name in self.cluster.mappings() if name.startswith(f"secure-{node}-")]
        for name in left:
            self.cluster.command(["dmsetup", "remove", name], check=False)
        return left


def lay_out(cluster: Cluster) -> None:
    """``/opt/slurm`` as on a head node of ParallelCluster, after our action has put ours beside the vendor's."""
    for name in ("bin", "sbin"):
        (SLURM / name).parent.mkdir(parents=True, exist_ok=True)
        if not (SLURM / name).is_symlink():
            (SLURM / name).symlink_to(f"/usr/{name}")
    for kind, vendor in VENDOR.items():
        cluster.write(SCRIPTS / f"{kind}.d" / vendor, HEALTHY, mode=0o755)
        ours = SCRIPTS / f"{kind}.d/99_secure_slurm"
        ours.unlink(missing_ok=True)
        ours.symlink_to(f"{settings.PREFIX}/hooks/{kind}")
    cluster.write(SLURM / "etc/pcluster/resume", RESUME, mode=0o755)
    cluster.write(SLURM / "etc/pcluster/suspend", SUSPEND, mode=0o755)


@contextlib.contextmanager
def vendors(cluster: Cluster, kind: str, text: str) -> Iterator[None]:
    """The vendor's script says something else for a while."""
    path = SCRIPTS / f"{kind}.d" / VENDOR[kind]
    cluster.write(path, text, mode=0o755)
    try:
        yield
    finally:
        cluster.write(path, HEALTHY, mode=0o755)


@contextlib.contextmanager
def cloud(cluster: Cluster, *, resume_timeout: int = 120) -> Iterator[Cloud]:
    """The cluster laid out so, and then again as it was."""
    conf, site = CONF.read_text(), SITE.read_text()
    lay_out(cluster)
    cluster.stop_slurm()
    # slurm.conf is where ParallelCluster has it; the distribution's binaries look into /etc
    cluster.write(SLURM / "etc/slurm.conf", like_parallelcluster(conf, resume_timeout))
    CONF.unlink()
    CONF.symlink_to(SLURM / "etc/slurm.conf")
    _use(cluster, site.replace("slurm_bin: /usr/bin", "slurm_bin: /opt/slurm/bin"))
    try:
        with Cloud(cluster) as made:
            # by the name that stop_slurm looks for
            cluster.command(["slurmctld"], env={"PATH": "/opt/slurm/sbin:/usr/sbin:/usr/bin:/sbin:/bin"})
            cluster.until(lambda: "UP" in cluster.command(["scontrol", "ping"], check=False).stdout, "slurmctld")
            for node in STATIC:
                cluster.start_node(node)
            cluster.wait_idle(*STATIC)
            yield made
            cluster.cancel_all()
            cluster.until(lambda: not cluster.command(["squeue", "-h"]).stdout.strip(), "all jobs to end")
    finally:
        cluster.stop_slurm()
        CONF.unlink()
        cluster.write(CONF, conf)
        for node in CLOUD:
            identity(cluster, node, "")
            cluster.write(Path(settings.ETC) / "places" / node, settings.NODES[node] + "\n")
            (cluster.directory / f"boot-{node}").unlink(missing_ok=True)
        _use(cluster, site)
        # an uninstallation is refused while these are here
        shutil.rmtree(SCRIPTS)
        cluster.start_slurm()


def _use(cluster: Cluster, site: str) -> None:
    """Another site file: rendered, and the head node's daemons started anew."""
    cluster.write(SITE, site)
    for name in ("decisiond", "lifecycled", "requeued"):
        cluster.stop_daemon(name)
    for name in SOCKETS:
        (Path(settings.RUN) / name).unlink(missing_ok=True)
    cluster.tool("conf", "render")
    cluster.daemon("decisiond", "secure-decide")
    cluster.daemon("lifecycled", "secure-life")
    cluster.daemon("requeued", "slurm")
    for name in SOCKETS:
        cluster.until((Path(settings.RUN) / name).exists, f"{name} to be there")


def identity(cluster: Cluster, node: str, instance: str) -> None:
    """The node's certificate, as after the instance's enrolment; "" for one that was made by hand."""
    pair = cluster.ca.client(node, cluster.directory / "nodes", instance=instance)
    keys = Path(settings.ETC) / "node"
    cluster.write(keys / f"{node}.crt", pair.certificate.read_bytes())
    cluster.write(keys / f"{node}.key", pair.private_key.read_bytes(), mode=0o400, owner="secure-node")


def _space(pid: int | str) -> int:
    try:
        return Path(f"/proc/{pid}/ns/mnt").stat().st_ino
    except OSError:
        return 0


def _kill_all(space: int) -> bool:
    """Kill every process in a mount namespace; whether there was one."""
    found = False
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if _space(folder.name) == space and " Z " not in (folder / "stat").read_text()[:64]:
                found = True
                os.kill(int(folder.name), signal.SIGKILL)
    return found
