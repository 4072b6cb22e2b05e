"""The test cluster as an installation has it: install.sh lays it out, and systemd, which is PID 1, runs its daemons.

One node, whose slurmd and daemons are in the guest's own namespaces: units have no others.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from slurm_hooks import wire
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.imds import Imds, Region, document, pin
from tests.testbed.people import ClusterError

NODE = "n1"
TOPS = ("/run/secure-slurm", "/var/lib/secure-slurm", "/var/log/secure-slurm")
HEAD = ("ldapd", "decisiond", "lifecycled", "requeued", "glassd", "enrold")
COMPUTE = ("noded", "handd", "hookd")
WATCHED = ("decisiond", "lifecycled", "glassd", "enrold", "noded", "handd", "hookd")
"""Those whose watchdog waits for a minute at most; :data:`SHORT` is as long as a busy machine may stand still."""
SHORT = "1min"
CERTIFICATE = f"/var/lib/secure-slurm/identity-{NODE}/node.crt"
INSTANCE = "i-00000000000000001"
REGION_NAME = settings.NODES[NODE]
REGION = Region(REGION_NAME)
ENROL = f"""\
enrol:
  listen: "{settings.ADDRESS}:6831"
  regions: [{REGION_NAME}]
  source: file
  instances: {settings.ETC}/instances
  ca_file: {settings.ETC}/link-ca.crt
"""
SHOWN = (
    "ActiveState,SubState,Result,MainPID,NRestarts,StatusText,Type,ExecMainStatus,"
    "WatchdogUSec,WatchdogTimestampMonotonic"
)


class Shown(NamedTuple):
    """What systemd says of a unit."""

    active: str
    pid: int
    restarts: int
    status: str
    all: dict[str, str]


class Supervised(Cluster):
    """Needs systemd as PID 1 (tests/testbed/guest/systemd.sh)."""

    def __init__(self) -> None:
        super().__init__()
        self.told = ""
        self.folders: dict[str, os.stat_result] = {}
        self.imds = Imds()
        self.imds.answer = REGION.sign(document(instanceId=INSTANCE, privateIp=settings.ADDRESS))

    def start(self) -> None:
        """As Cluster, after install.sh has run under systemd (tests/testbed/guest/systemd_tests.sh)."""
        self.told = Path("/run/installed").read_text()
        # before the bed makes what is missing of them
        found = (path for top in TOPS for path in Path(top).rglob("*") if path.is_dir())
        self.folders = {str(path): path.stat() for path in found}
        self._services.enter_context(self.imds)
        super().start()

    def _write_files(self) -> None:
        """As Cluster; and the node has no certificate: it enrols, as the instance that the site says it is."""
        super()._write_files()
        etc = Path(settings.ETC)
        self.write(etc / "place", settings.NODES[NODE] + "\n")
        site = self._filled(settings.SITE) + ENROL
        for before, after in (
            ("  proof: file ", f"{self._ec2()}  proof: file "),
            (f"{settings.ETC}/node/%n", "/var/lib/secure-slurm/identity-%n/node"),
            (f"link.key\n  ca_file: {settings.ETC}/ca.crt", f"link.key\n  ca_file: {settings.ETC}/link-ca.crt"),
        ):
            assert before in site, before
            site = site.replace(before, after)
        self.write(etc / "secure-slurm.yaml", site)
        self.write(etc / "instances", f"{NODE} {INSTANCE}\n")
        pin(etc / "ec2", REGION_NAME, REGION)
        pair = self.ca.server("enrol", ["head", settings.ADDRESS], self.directory / "nodes")
        self.write(etc / "enrol.crt", pair.certificate.read_bytes())
        self.write(etc / "enrol.key", pair.private_key.read_bytes(), mode=0o400, owner="secure-enrol")

    def _ec2(self) -> str:
        return (
            f"  ec2: {{certificates: {settings.ETC}/ec2, account: '123456789012', endpoint: '{self.imds.endpoint}'}}\n"
        )

    def init_vault(self) -> None:
        """As Cluster, with a CA of Vault's for the nodes."""
        token, nodes_ca = self.directory / "admin-token", self.directory / "nodes-ca.crt"
        etc = Path(settings.ETC)
        self.write(token, self.bao.root_token, mode=0o600)
        self.tool(
            *("vault", "init", "--token-file", str(token), "--node-name", "n*"),
            *("--secret-id-out", f"{etc}/head/secret-id", "--enrol-secret-id-out", f"{etc}/enrol-secret-id"),
            *("--node-ca-out", str(nodes_ca)),
        )
        token.unlink()
        for name in ("role-id", "secret-id"):
            shutil.chown(etc / "head" / name, "secure-life", "secure-life")
        self.write(etc / "link-ca.crt", self.ca.certificate.read_text() + nodes_ca.read_text())

    def start_daemons(self) -> None:
        """The command that install.sh names, word by word. slurmctld runs by then: requeued waits for its answer."""
        self.tool("conf", "render")
        self.command(["systemd-run", "--quiet", "--unit=testbed-slurmctld", "slurmctld", "-D"])
        self.until(lambda: "UP" in self.command(["scontrol", "ping"], check=False).stdout, "slurmctld")
        (line,) = [line for line in self.told.splitlines() if "systemctl enable --now" in line]
        for name in (*HEAD, *COMPUTE):
            folder = Path(f"/run/systemd/system/secure-slurm-{name}.service.d")
            folder.mkdir(parents=True)
            watchdog = f"WatchdogSec={SHORT}\n" if name in WATCHED else ""
            (folder / "testbed.conf").write_text(f"[Service]\nTimeoutStartSec=10min\n{watchdog}")
        self.command(["systemctl", "daemon-reload"])
        # the guest's kernel has nftables without tables: test_units.py asks that unit for less
        words = [word for word in line.partition(". ")[2].split() if word != "secure-slurm-imds"]
        done = self.command(words, timeout=600, check=False)
        if done.returncode:
            said = self.command(["journalctl", "--no-pager", "-o", "cat", "-u", "secure-slurm-*"]).stdout
            raise ClusterError(f"{done.stderr}\n{said}")

        self.until(Path(CERTIFICATE).exists, "the node to be enrolled")
        self.until(lambda: "yet" not in self.members(), "the decision daemon to have read the members")

    def members(self) -> str:
        """What the decision daemon says of them."""
        answer = wire.exchange(f"{settings.RUN}/decision/decide.sock", {"verb": "status"}, timeout=60)
        return answer["members"].decode()

    def start_slurm(self) -> None:
        """One slurmd, in a unit of its own, for it is nobody's child."""
        self.command(
            ["systemd-run", "--quiet", "--unit=testbed-slurmd", "--property=Delegate=yes", "slurmd", "-D", "-N", NODE]
        )
        self.wait_idle(NODE)

    def stop(self) -> None:
        """What systemd runs, and then the services."""
        units = [f"secure-slurm-{name}.service" for name in (*HEAD, *COMPUTE)]
        self.command(["systemctl", "stop", "testbed-slurmd", "testbed-slurmctld"], check=False)
        self.command(["systemctl", "stop", "secure-slurm-glassd.socket", *units], check=False, timeout=300)
        super().stop()

    def decides(self) -> bool:
        """As systemd says."""
        return self.show("decisiond").active == "active"

    def show(self, name: str) -> Shown:
        """One of our services."""
        text = self.command(["systemctl", "show", f"--property={SHOWN}", f"secure-slurm-{name}.service"]).stdout
        found = dict(line.split("=", 1) for line in text.splitlines())
        return Shown(
            found["ActiveState"], int(found["MainPID"]), int(found["NRestarts"]), found["StatusText"], found
        )  # fmt: skip

    def journal(self, name: str) -> str:
        """What systemd and the daemon itself have said."""
        return self.command(["journalctl", "--no-pager", "-o", "cat", "-u", f"secure-slurm-{name}.service"]).stdout

    def until_all(self, names: tuple[str, ...], ready: Callable[[str], bool], what: str, timeout: float) -> None:
        """Wait for several units at once."""
        end = time.monotonic() + timeout
        while left := [name for name in names if not ready(name)]:
            if time.monotonic() > end:
                said = "\n".join(f"--- {name}: {self.show(name)}\n{self.journal(name)[-2000:]}" for name in left)
                raise AssertionError(f"waited {timeout:.0f} s for {what}: {left}\n{said}")
            time.sleep(0.5)

    def command_line(self, pid: int) -> str:
        """Of a process."""
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
