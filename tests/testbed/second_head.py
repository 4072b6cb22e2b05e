"""A second SlurmctldHost for the test cluster: a slurmctld and the suite's daemons under another host name and address.

Both head nodes are on one kernel, the second in namespaces of its own (guest/head.sh). They share what Slurm makes head
nodes share, and lifecycle.state_dir; each has its own configuration, sockets, and daemons.
"""

from __future__ import annotations

import contextlib
import grp
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.testbed import settings
from tests.testbed.cluster import SLURMCTLD, STOP, Cluster
from tests.testbed.people import BIN, ENVIRONMENT, ClusterError, Result

NAME, ADDRESS = "head2", "10.99.0.2"
DAEMONS = {"ldapd": "secure-ldap", "decisiond": "secure-decide", "lifecycled": "secure-life", "glassd": "secure-glass"}
GROUPS = {"ldapd": "secure-record"}
SITE = Path(settings.ETC) / "secure-slurm.yaml"
OWN = Path("/run/testbed") / NAME


class SecondHead:
    """The second head node of a cluster that runs; :func:`two_heads` makes one."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._holder: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Its namespaces and configuration; nothing runs there yet."""
        cluster = self.cluster
        shutil.rmtree(OWN, ignore_errors=True)
        OWN.mkdir(parents=True)
        cluster.command(["cp", "-a", settings.ETC, f"{OWN}/etc"])
        site = SITE.read_text().replace(f'listen: "{settings.ADDRESS}', f'listen: "{ADDRESS}')
        cluster.write(OWN / "etc/secure-slurm.yaml", site)
        pair = cluster.ca.server(NAME, [NAME, ADDRESS], cluster.directory / "nodes")
        cluster.write(OWN / "etc/head/link.crt", pair.certificate.read_bytes())
        cluster.write(OWN / "etc/head/link.key", pair.private_key.read_bytes(), mode=0o400, owner="secure-life")
        script = Path(__file__).parent / "guest/head.sh"
        self._holder = subprocess.Popen(
            ["unshare", "-m", "-u", "--propagation", "private", "sh", str(script), NAME],
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        cluster.until(lambda: self._holder_is("sleep"), f"the namespaces of {NAME}")
        self.tool("conf", "render")

    def _holder_is(self, name: str) -> bool:
        if self._holder is None or self._holder.poll() is not None:
            raise ClusterError(f"{NAME} could not be set up")
        return Path(f"/proc/{self._holder.pid}/comm").read_text().strip() == name

    def close(self) -> None:
        """Stop what runs there; may be called again."""
        for name in list(self.daemons):
            self.stop_daemon(name)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(20)
            self._holder = None

    def _inside(self, argv: list[str]) -> list[str]:
        if self._holder is None:
            raise ClusterError(f"{NAME} is not open")
        spaces = f"/proc/{self._holder.pid}/ns"
        return ["nsenter", f"--mount={spaces}/mnt", f"--uts={spaces}/uts", *argv]

    def command(self, argv: list[str], *, check: bool = True) -> Result[str]:
        """Run a command there, as root."""
        return self.cluster.command(self._inside(argv), check=check)

    def tool(self, *words: str, check: bool = True) -> Result[str]:
        """``secure-slurm ...`` there."""
        return self.command([f"{BIN}/secure-slurm", *words], check=check)

    def daemon(self, name: str) -> None:
        """Start one of the suite's daemons there."""
        user = DAEMONS[name]
        group = GROUPS.get(name, user)
        groups = ",".join([group, *(one.gr_name for one in grp.getgrall() if user in one.gr_mem)])
        with Path(f"/var/log/{name}-{NAME}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                self._inside(
                    [
                        "setpriv",
                        f"--reuid={user}",
                        f"--regid={group}",
                        f"--groups={groups}",
                        f"{BIN}/secure-slurm-{name}",
                    ]
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**ENVIRONMENT, "PATH": "/usr/bin:/bin"},
            )

    def stop_daemon(self, name: str, *, kill: bool = False) -> None:
        """Stop one of them."""
        process = self.daemons.pop(name, None)
        if process is not None:
            process.kill() if kill else process.terminate()
            process.wait(STOP)

    def start(self) -> None:
        """Its daemons, in the order of the first head node's, and its slurmctld."""
        self.daemon("ldapd")
        self.until_there("snapshot/members.json")
        for name, socket in (("decisiond", "decision/decide"), ("lifecycled", "lifecycle/lifecycle"), ("glassd", "")):
            self.daemon(name)
            if socket:
                self.until_there(f"{socket}.sock")
        self.command(["slurmctld"])

    def until_there(self, path: str) -> None:
        """Wait for a file below its /run/secure-slurm."""
        self.cluster.until((OWN / "run" / path).exists, f"{path} on {NAME}")


def slurmctlds() -> dict[str, int]:
    """The host name and process of each slurmctld that runs, by the UTS namespace that it is in."""
    found = {}
    done = subprocess.run(["pgrep", "-f", "-r", "D,R,S", SLURMCTLD], capture_output=True, text=True, check=False)
    for pid in map(int, done.stdout.split()):
        name = subprocess.run(
            ["nsenter", f"--uts=/proc/{pid}/ns/uts", "hostname"], capture_output=True, text=True, check=False
        )
        if name.returncode == 0:
            found.setdefault(name.stdout.strip(), pid)
    return found


def kill_slurmctld(cluster: Cluster, host: str, number: int = signal.SIGKILL) -> None:
    """As a crash does, with its script daemon."""
    cluster.until(lambda: _signalled(host, number), f"slurmctld on {host} to end")


def _signalled(host: str, number: int) -> bool:
    pid = slurmctlds().get(host)
    if pid is not None:
        subprocess.run(["kill", f"-{number}", str(pid)], check=False)
        time.sleep(0.5)
    return host not in slurmctlds()


def restart_daemons(cluster: Cluster) -> None:
    """The first head node's, as a changed site file wants it."""
    cluster.stop_daemons()
    cluster.start_daemons()


@contextlib.contextmanager
def two_heads(cluster: Cluster, change: Callable[[str], str] = lambda conf: conf) -> Iterator[SecondHead]:
    """The cluster with a second SlurmctldHost that stands by, and afterwards as it was."""

    def conf(before: str) -> str:
        more = f"SlurmctldHost={NAME}\nSlurmctldTimeout=10\nCommunicationParameters=NoCtldInAddrAny\n"
        return change(before.replace("SlurmctldHost=head\n", f"SlurmctldHost=head\n{more}"))

    with contextlib.ExitStack() as stack:
        address = [f"{ADDRESS}/24", "dev", "dummy0"]
        cluster.command(["ip", "addr", "add", *address])
        stack.callback(cluster.command, ["ip", "addr", "del", *address], check=False)
        _rewritten(stack, cluster, Path("/etc/hosts"), lambda text: f"{text}{ADDRESS} {NAME}\n")
        stack.callback(restart_daemons, cluster)
        _rewritten(stack, cluster, SITE, lambda text: text.replace("[head]", f"[head, {NAME}]"))
        restart_daemons(cluster)
        second = SecondHead(cluster)
        stack.callback(second.close)
        with cluster.other_slurm(conf):
            second.open()
            second.start()
            cluster.until(lambda: len(slurmctlds()) == 2, "both slurmctlds")
            yield second


def _rewritten(stack: contextlib.ExitStack, cluster: Cluster, path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text()
    stack.callback(cluster.write, path, before)
    cluster.write(path, change(before))


def status(where: Any) -> dict[str, Any]:
    """What ``secure-slurm status`` says on a head node."""
    return dict(json.loads(where.tool("status", "--json", check=False).stdout)["lifecycle"])
