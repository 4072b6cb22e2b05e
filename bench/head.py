"""The head node for the submission path: slurmctlds that differ in nothing but the plugin, and the decision daemon."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench import large
from slurm_hooks.snapshot import write_snapshot
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.pki import CA

MEMBERS = Path(settings.RUN) / "snapshot/members.json"
FILTER = f"{settings.PREFIX}/hooks/job_submit.lua"
NOOP = """\
function slurm_job_submit() return slurm.SUCCESS end
function slurm_job_modify() return slurm.SUCCESS end
return slurm.SUCCESS
"""
# what each slurmctld of the throughput runs as job_submit.lua; "plain" has no plugin at all
PLUGINS = {"plain": None, "noop": NOOP, "untagged": FILTER, "tagged": FILTER}


class Head(Cluster):
    """The head node alone: slurmctlds, the decision daemon and a members file; no directory, no Vault, no nodes."""

    def start(self) -> None:
        """Returns when every slurmctld answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = CA(self.directory / "ca")
        self._write_files()
        self.write(Path(settings.ETC) / "policy.yaml", large.policy())
        shutil.copy(Path(__file__).parent / "submission.lua", "/etc/slurm/job_submit.lua")
        self._start_munge()
        self.tool("conf", "render")
        # root's own, so that root may write the file: the daemon trusts root as it does the reader of the directory
        self.make(str(MEMBERS.parent), "root", 0o750, group="secure-record")
        write_snapshot(MEMBERS, large.members())
        self.daemon("decisiond", "secure-decide")
        os.setpriority(os.PRIO_PROCESS, self.daemons["decisiond"].pid, _niceness())
        self.until(lambda: Path(f"{settings.RUN}/decision/decide.sock").exists(), "the decision daemon")
        self.command(["slurmctld"])
        self.pids = {name: self._controller(number, name) for number, name in enumerate(PLUGINS, start=1)}
        for conf in ("/etc/slurm", *(folder(name) for name in PLUGINS)):
            ping = ["env", f"SLURM_CONF={conf}/slurm.conf", "scontrol", "ping"]
            self.until(lambda ping=ping: "UP" in self.command(ping, check=False).stdout, f"the slurmctld of {conf}")

    def _controller(self, number: int, name: str) -> int:
        """Another slurmctld, with a port and files of its own; its process id."""
        place, state = Path(folder(name)), f"/var/spool/slurmctld-{name}"
        text = Path("/etc/slurm/slurm.conf").read_text()
        for old, new in (
            ("/var/spool/slurmctld", state),
            ("slurmctld.pid", f"slurmctld-{name}.pid"),
            ("slurmctld.log", f"slurmctld-{name}.log"),
        ):
            text = text.replace(old, new)
        plugin = PLUGINS[name]
        if plugin is None:
            text = text.replace("JobSubmitPlugins=lua\n", "")
        self.make(state, "slurm", 0o755)
        self.write(place / "slurm.conf", f"{text}SlurmctldPort={6820 + number}\n")
        if plugin is not None:
            self.write(place / "job_submit.lua", Path(plugin).read_text() if plugin.startswith("/") else plugin)
        self.command(["slurmctld", "-f", str(place / "slurm.conf")])
        pid = Path(f"/run/slurm/slurmctld-{name}.pid")
        self.until(lambda: pid.exists() and pid.read_text().strip(), f"the slurmctld of {place}")
        return int(pid.read_text())


def _niceness() -> int:
    """What the daemon's unit says, for here is no systemd."""
    unit = Path(__file__).parents[1] / "conf/systemd/secure-slurm-decisiond.service"
    return next(int(line.removeprefix("Nice=")) for line in unit.read_text().splitlines() if line.startswith("Nice="))


def folder(name: str) -> str:
    return f"/etc/slurm-{name}"
