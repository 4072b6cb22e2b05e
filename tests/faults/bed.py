"""The test cluster made ready for faults: a door in the installed packages, a proxy before Vault, small disks.

Everything is put back when the ``with`` block ends, for the suites that come after it on the same cluster.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.vaultproxy import VaultProxy
from tests.testbed import settings
from tests.testbed.cluster import SLURMCTLD, Cluster
from tests.testbed.nodes import slurmd_pid

FAULTS = Path("/run/faults")
LIB = Path(settings.PREFIX) / "lib"
ARMED = (
    "keys/journal.py",
    "keys/scratch/teardown.py",
    "keys/vault_head.py",
    "slurm_hooks/prolog.py",
    "slurm_hooks/epilog_slurmctld.py",
)
DOOR_LINE = "\nimport _fault_door; _fault_door.arm(__name__, globals())\n"
PROXY_PORT = 8199
DISKS = Path("/run/fault-disks")
NODE, HEAD = "node", "head"
FOLDERS = {
    NODE: (
        "/var/lib/secure-slurm/scratch-n1",
        "/var/lib/secure-slurm/node-n1",
        f"{settings.LOG}/node-n1",
    ),
    HEAD: ("/var/lib/secure-slurm/lifecycle", f"{settings.LOG}/lifecycle"),
}
SIZES = {NODE: "160m", HEAD: "24m"}

# what the site file has, and what faults need: Vault behind the proxy
SITE = {r"address: https://\S+": f"address: https://{settings.ADDRESS}:{PROXY_PORT}"}
# and where there are hundreds of them, shorter waits
HURRIED = {
    r"start_deadline: \S+": "start_deadline: 25s",
    r"prolog_deadline: \S+": "prolog_deadline: 25s",
    r"timeout: 10s": "timeout: 4s",
    r"confirm_within: 15s": "confirm_within: 10s",
}
HOOKS_MAY_TAKE = {True: 45, False: 120}
"""Seconds (PrologEpilogTimeout) after which Slurm kills a hook that hangs: hurried, or not."""


class FaultBed:
    """A cluster that faults can be brought into. Use :func:`fault_bed`."""

    def __init__(self, cluster: Cluster, proxy: VaultProxy) -> None:
        self.cluster = cluster
        self.proxy = proxy

    # -- the door ------------------------------------------------------------------------------------------------

    def plan(self, step: str, act: str) -> str:
        """Have the next process that reaches ``step`` struck; the plan's name."""
        name = uuid.uuid4().hex
        Cluster.write(FAULTS / "plan.json", f'{{"id": "{name}", "step": "{step}", "act": "{act}"}}')
        return name

    def fired(self, name: str) -> int:
        """The process that was struck, 0 if none was yet."""
        with contextlib.suppress(OSError, ValueError):
            return int((FAULTS / "fired" / name).read_text().split()[0])
        return 0

    def fired_on(self, name: str) -> str:
        """The node whose hook was struck; "" for what is none of a node's."""
        return (FAULTS / "fired" / name).read_text().partition(" ")[2]

    def go(self, name: str) -> None:
        """Those who wait at the step go on; nobody else is struck."""
        (FAULTS / "plan.json").unlink(missing_ok=True)
        (FAULTS / "go" / name).touch()

    # -- services ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def trouble(self, fault: str) -> Iterator[None]:
        """A service in trouble, and well again afterwards."""
        if fault == "Vault sealed":
            self.cluster.bao.seal()
        elif fault == "LDAP away":
            self.cluster.slapd.stop()
            self.cluster.daemons["ldapd"].send_signal(signal.SIGHUP)  # who asks it now
        else:
            self.proxy.set(fault)
        try:
            yield
        finally:
            if fault == "Vault sealed":
                self.cluster.bao.unseal()
            elif fault == "LDAP away":
                self.cluster.slapd.start()
            else:
                self.proxy.set("")

    def restart_head_daemon(self) -> None:
        """As systemd does after it was killed."""
        self.cluster.stop_daemon("lifecycled", kill=True)
        Path(f"{settings.RUN}/lifecycle/lifecycle.sock").unlink(missing_ok=True)
        self.cluster.daemon("lifecycled", "secure-life")
        self.cluster.until(Path(f"{settings.RUN}/lifecycle/lifecycle.sock").exists, "the lifecycle daemon")

    def restart_slurmctld(self, *, before_wait: Callable[[], None]) -> None:
        """Ended as by its unit and started again. ``before_wait`` is called when it has been told to end."""
        cluster = self.cluster
        cluster.command(["pkill", "-f", SLURMCTLD], check=False)
        before_wait()
        gone = ["pgrep", "-f", SLURMCTLD]
        cluster.until(lambda: cluster.command(gone, check=False).returncode != 0, "slurmctld to end", 120)
        cluster.command(["slurmctld"])
        cluster.until(lambda: "UP" in cluster.command(["scontrol", "ping"], check=False).stdout, "slurmctld")

    def restart_slurmd(self, *, before_wait: Callable[[], None]) -> None:
        """n1's slurmd ended as by its unit and started again in the same namespaces, its daemons left alone."""
        pid = slurmd_pid("n1")
        handles = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "uts")]
        try:
            os.kill(pid, signal.SIGTERM)
            before_wait()
            self.cluster.until(lambda: not Path(f"/proc/{pid}").exists(), "slurmd to end", 150)
            mnt, uts = handles
            self.cluster.command(
                ["nsenter", f"--mount=/proc/self/fd/{mnt}", f"--uts=/proc/self/fd/{uts}", "slurmd", "-N", "n1"],
                pass_fds=handles,
            )
        finally:
            for handle in handles:
                os.close(handle)

    # -- machines ------------------------------------------------------------------------------------------------

    def reboot_node(self) -> None:
        """n1 goes down as when its power fails, and comes up with its disks, another boot id and nothing else."""
        cluster = self.cluster
        # as the cluster's own watch does with an instance that is gone; else slurmctld waits for SlurmdTimeout, and if
        # the node is back sooner it does not look at what became of a job that had just begun
        cluster.command(["scontrol", "update", "NodeName=n1", "State=DOWN", "Reason=reboot"])
        here = Path(f"/proc/{slurmd_pid('n1')}/ns/mnt").stat().st_ino
        self._kill_all(lambda pid: Path(f"/proc/{pid}/ns/mnt").stat().st_ino == here)

        def no_mapping() -> bool:
            left = [name for name in cluster.mappings() if name.startswith("secure-n1-")]
            for name in left:
                if (
                    cluster.command(["dmsetup", "info", "-c", "--noheadings", "-o", "suspended", name]).stdout.strip()
                    == "Suspended"
                ):
                    cluster.command(["dmsetup", "wipe_table", "--noflush", "--nolockfs", name], check=False)
                    cluster.command(["dmsetup", "resume", name], check=False)
                cluster.command(["dmsetup", "remove", name], check=False)
            return not left

        cluster.until(no_mapping, "the kernel to have no mapping of n1")
        for loop in cluster.command(["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"]).stdout.splitlines():
            device, _, file = loop.partition(" ")
            if "/n1-" in file:
                cluster.command(["losetup", "-d", device], check=False)
        run = Path(f"{settings.RUN}/node-n1")
        shutil.rmtree(run)
        cluster.make(str(run), "root", 0o755)
        cluster.make(f"{run}/daemon", "secure-node", 0o755)
        cluster.write(cluster.directory / "boot-n1", f"{uuid.uuid4()}\n")
        cluster.start_node("n1", "-b")
        self.reap("--once")
        cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"], check=False)
        cluster.until(lambda: not cluster.drained(), "n1 to be up", 60)

    def reboot_head(self) -> None:
        """The head node goes down and comes up: our daemons are cut off, slurmctld is ended and saves its state."""
        cluster = self.cluster
        cluster.stop_daemons(kill=True)
        self.restart_slurmctld(before_wait=lambda: None)
        for folder in ("decision", "lifecycle", "snapshot", "glass"):
            for entry in Path(f"{settings.RUN}/{folder}").iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        cluster.start_daemons()

    @staticmethod
    def _kill_all(wanted: Callable[[int], bool]) -> None:
        for _ in range(200):
            found = False
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if wanted(int(folder.name)) and " Z " not in (folder / "stat").read_text()[:64]:
                        found = True
                        os.kill(int(folder.name), signal.SIGKILL)
            if not found:
                return
            time.sleep(0.05)
        raise TimeoutError("processes of n1 do not die")

    def reap(self, *words: str, node: str = "n1") -> None:
        """The timer of a node strikes; returns when its reaper has ended."""
        started = self.timer(node, *words)
        if started is not None:
            started.wait(150)

    def timer(self, node: str, *words: str) -> subprocess.Popen[bytes] | None:
        """The timer of a node strikes; the reaper that it started, None if the node is down."""
        with contextlib.suppress(LookupError):
            pid = slurmd_pid(node)
            inside = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--uts=/proc/{pid}/ns/uts"]
            return subprocess.Popen(
                [*inside, f"{settings.PREFIX}/hooks/reaper", node, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return None

    # -- disks ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def full(self, disk: str) -> Iterator[None]:
        """The disk of n1 or of the head's daemons is full to the last byte, and later no longer."""
        ballast = DISKS / disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)
        free = os.statvfs(DISKS / disk).f_bavail
        assert free == 0, f"{disk}: {free} blocks are free: {os.strerror(errno.ENOSPC)} is not what they will see"
        try:
            yield
        finally:
            ballast.unlink()


@contextlib.contextmanager
def fault_bed(cluster: Cluster, *, hurried: bool) -> Iterator[FaultBed]:
    """Make a running cluster ready for faults, and put everything back. ``hurried``: with shorter waits than it has, on
    a machine that does nothing else.
    """
    pair = cluster.ca.server("vault-proxy", [settings.ADDRESS, "vault.test"], cluster.directory / "proxy")
    proxy = VaultProxy((settings.ADDRESS, PROXY_PORT), (settings.ADDRESS, settings.VAULT_PORT), pair)
    site, conf = Path(settings.ETC) / "secure-slurm.yaml", Path("/etc/slurm/slurm.conf")
    site_before, conf_before = site.read_text(), conf.read_text()
    for folder, mode in ((FAULTS, 0o755), (FAULTS / "fired", 0o1777), (FAULTS / "go", 0o755)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
    site_text = site_before
    for pattern, text in (SITE | (HURRIED if hurried else {})).items():
        site_text, count = re.subn(pattern, text, site_text)
        assert count == 1, pattern
    conf_text = re.sub(r"PrologEpilogTimeout=\d+", f"PrologEpilogTimeout={HOOKS_MAY_TAKE[hurried]}", conf_before)
    # a job that was requeued waits for its time, and that this has come is no event for slurmctld
    conf_text = conf_text.replace("bf_interval=5", "bf_interval=5,sched_interval=2")
    with proxy:
        _down(cluster)
        try:
            cluster.write(site, site_text)
            cluster.write(conf, conf_text)
            _mount()
            _arm()
            _up(cluster)
            yield FaultBed(cluster, proxy)
        finally:
            (FAULTS / "plan.json").unlink(missing_ok=True)
            cluster.cancel_all()
            _down(cluster)
            _disarm()
            _unmount()
            cluster.write(site, site_before)
            cluster.write(conf, conf_before)
            (cluster.directory / "boot-n1").unlink(missing_ok=True)
            _up(cluster)


def _down(cluster: Cluster) -> None:
    running = ["squeue", "-h", "-t", "R,CF,CG", "-o", "%i"]
    cluster.until(lambda: not cluster.command(running, check=False).stdout.strip(), "all jobs to end", 120)
    cluster.stop_slurm()
    cluster.stop_daemons()


def _up(cluster: Cluster) -> None:
    cluster.start_daemons()
    cluster.start_slurm()


def _mount() -> None:
    """The folders of n1 and of the head's daemons move to small file systems, with what is in them."""
    for disk, folders in FOLDERS.items():
        top = DISKS / disk
        top.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"mode=755,size={SIZES[disk]}", "tmpfs", str(top))
        for number, folder in enumerate(folders):
            Path(folder).mkdir(mode=0o700, exist_ok=True)
            _run("cp", "-a", folder, str(top / str(number)))
            _run("mount", "--bind", str(top / str(number)), folder)


def _unmount() -> None:
    for disk, folders in FOLDERS.items():
        top = DISKS / disk
        for number, folder in enumerate(folders):
            _run("umount", folder)
            # in place, so that the folder itself keeps its owner, and what was deleted is gone
            for entry in Path(folder).iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            _run("cp", "-a", f"{top / str(number)}/.", folder)
        _run("umount", str(top))


def _arm() -> None:
    shutil.copy(Path(__file__).with_name("door.py"), LIB / "_fault_door.py")
    for name in ARMED:
        with (LIB / name).open("a") as file:
            file.write(DOOR_LINE)
    _compile()


def _disarm() -> None:
    for name in ARMED:
        path = LIB / name
        path.write_text(path.read_text().replace(DOOR_LINE, ""))
    _compile()
    (LIB / "_fault_door.py").unlink()


def _compile() -> None:
    # the installed caches are not checked against their sources (install.sh)
    files = [str(LIB / name) for name in (*ARMED, "_fault_door.py")]
    _run(
        f"{settings.PREFIX}/venv/bin/python3", "-I", "-m", "compileall", "-q", "-f",
        "--invalidation-mode", "unchecked-hash", *files,
    )  # fmt: skip


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)
