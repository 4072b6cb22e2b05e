"""The whole test cluster inside one guest: OpenBao, slapd, munge, slurmctld, four slurmds and the suite's daemons.

Usable by hand (``make shell``), by pytest (tests/cluster/conftest.py) and by the demo. Everything is real; the only
thing that differs from a cluster is that the four nodes share one kernel, each in its own mount namespace.
"""

from __future__ import annotations

import contextlib
import grp
import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from conf.errors import EXIT_BACKEND
from tests.testbed import settings
from tests.testbed.openbao import OpenBao
from tests.testbed.people import BIN, TRIES, ClusterError, People
from tests.testbed.pki import CA
from tests.testbed.slapd import Slapd

SLURMD, SLURMCTLD = "^slurmd ", "^slurmctld"
STOP = 60
"""Seconds for a daemon to end: what it asks of a slurmctld that may be gone takes 20 s until it is given up."""


@contextlib.contextmanager
def syslog_to(file: Path) -> Iterator[None]:
    """A syslog daemon of sorts: what the hooks say goes to ``file``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, file.open("ab", buffering=0) as log:
        Path("/dev/log").unlink(missing_ok=True)
        listening.bind("/dev/log")
        Path("/dev/log").chmod(0o666)

        def copy() -> None:
            while line := listening.recv(8192):
                log.write(line + b"\n")

        thread = threading.Thread(target=copy, daemon=True)
        thread.start()
        try:
            yield
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"", "/dev/log")
            thread.join(5)


def with_own_tmp(conf: str) -> str:
    """slurm.conf, by which each job has its own /tmp: the plugin has another name from Slurm 25.11 on."""
    version = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    new = tuple(map(int, version.split(".")[:2])) >= (25, 11)
    plugin = "NamespaceType=namespace/tmpfs" if new else "JobContainerType=job_container/tmpfs"
    assert conf.count("PrologFlags=Alloc,DeferBatch") == 1
    return conf.replace("PrologFlags=Alloc,DeferBatch", f"PrologFlags=Contain,DeferBatch\n{plugin}")


class Cluster(People):
    """Start with ``with Cluster() as cluster``; a failure anywhere stops what runs already.

    ``options`` replaces ``@NAME@`` in the site and Slurm files: UNTAGGED, BACKING, OVERCOMMIT, PROCTRACK.
    """

    def __init__(self, **options: str) -> None:
        self.options = {
            "UNTAGGED": "refuse",
            "BACKING": "file",
            "OVERCOMMIT": "false",
            "PROCTRACK": "proctrack/cgroup",
            **options,
        }
        self.directory = Path("/run/testbed")
        self.daemons = {}
        self._services = contextlib.ExitStack()
        self.bao: OpenBao
        self.slapd: Slapd
        self.ca: CA

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- start and stop ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything, in parallel where it can be; returns with four idle nodes and all daemons answering."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._services.enter_context(syslog_to(Path("/var/log/syslog.log")))
        self.ca = CA(self.directory / "ca")
        self._write_files()
        self.bao = OpenBao(self.directory / "bao", self.ca, address=settings.ADDRESS, port=settings.VAULT_PORT)
        self.slapd = self._services.enter_context(
            Slapd(
                self.directory / "slapd",
                self.ca,
                settings.ADDRESS,
                settings.LDAP_PORT,
                names=["ldap.test"],
                settings="loglevel 0",
            )
        )
        self.write(Path(settings.ETC) / "ldap/password", self.slapd.reader_password, mode=0o400, owner="secure-ldap")
        with ThreadPoolExecutor(4) as pool:
            started = [pool.submit(part) for part in (self._start_vault, self._fill_directory, self._start_munge)]
            for part in started:
                part.result()
        self.start_daemons()
        self.start_slurm()

    def stop(self) -> None:
        """Stop what runs; may be called again, also after half a start."""
        subprocess.run(["pkill", "-f", SLURMD], check=False)
        subprocess.run(["pkill", "-f", SLURMCTLD], check=False)
        self.stop_daemons()
        subprocess.run(["pkill", "-f", "secure-slurm-(noded|handd|hookd)"], check=False)
        self._services.close()
        subprocess.run(["pkill", "-x", "munged"], check=False)

    def _write_files(self) -> None:
        etc = Path(settings.ETC)
        etc.mkdir(mode=0o755, exist_ok=True)
        self.write(etc / "secure-slurm.yaml", self._filled(settings.SITE))
        self.write(etc / "policy.yaml", settings.POLICY)
        shutil.copy(self.ca.certificate, etc / "ca.crt")
        self.write(etc / "record.key", secrets.token_bytes(32), mode=0o640, group="secure-record")
        for folder, owner in (("head", "secure-life"), ("node", "secure-node"), ("ldap", "secure-ldap")):
            (etc / folder).mkdir(mode=0o755, exist_ok=True)
            os.chown(etc / folder, 0, grp.getgrnam(owner).gr_gid)
        pair = self.ca.server("head", ["head", settings.ADDRESS], self.directory / "nodes")
        self.write(etc / "head/link.crt", pair.certificate.read_bytes())
        self.write(etc / "head/link.key", pair.private_key.read_bytes(), mode=0o400, owner="secure-life")
        (etc / "places").mkdir(exist_ok=True)
        self.write(etc / "place", "")
        for node, region in settings.NODES.items():
            self.write(etc / "places" / node, region + "\n")
            pair = self.ca.client(node, self.directory / "nodes")
            self.write(etc / "node" / f"{node}.crt", pair.certificate.read_bytes())
            self.write(etc / "node" / f"{node}.key", pair.private_key.read_bytes(), mode=0o400, owner="secure-node")
            self.make(f"{settings.RUN}/node-{node}", "root", 0o755)
            self.make(f"{settings.RUN}/node-{node}/daemon", "secure-node", 0o755)
            self.make(f"{settings.LOG}/node-{node}", "root", 0o755)
            self.make(f"/var/lib/secure-slurm/node-{node}", "root", 0o700)
        self.make(f"{settings.RUN}/decision", "secure-decide", 0o2710, group="slurm")
        self.make(f"{settings.RUN}/lifecycle", "secure-life", 0o2710, group="slurm")
        self.make(f"{settings.RUN}/snapshot", "secure-ldap", 0o750, group="secure-record")
        self.make(f"{settings.LOG}/decision", "secure-decide", 0o755)
        self.make(f"{settings.LOG}/lifecycle", "secure-life", 0o755)
        self.make("/var/lib/secure-slurm/lifecycle", "secure-life", 0o755)
        self.make("/var/lib/secure-slurm/lifecycle/ended", "secure-life", 0o770, group="slurm")
        self.make("/var/lib/secure-slurm/lifecycle/running", "secure-life", 0o2750, group="secure-record")
        self.make("/var/lib/secure-slurm/lifecycle/revoked", "secure-life", 0o2750, group="secure-record")
        self.make("/var/lib/secure-slurm/scratch", "root", 0o700)
        self.make(f"{settings.RUN}/glass", "secure-glass", 0o2750, group="secure-break-glass")
        self.make("/var/lib/secure-slurm/break-glass", "secure-glass", 0o2750, group="secure-record")
        for person in settings.GLASS:
            self.command(["usermod", "-a", "-G", "secure-break-glass", person])
        slurm = Path("/etc/slurm")
        self.write(slurm / "slurm.conf", self._filled(settings.SLURM))
        self.write(slurm / "cgroup.conf", settings.CGROUP)
        shutil.copy(f"{settings.PREFIX}/hooks/job_submit.lua", slurm / "job_submit.lua")
        for folder in ("/var/log/slurm", "/var/spool/slurmctld", "/var/lib/slurm", "/run/slurm"):
            self.make(folder, "slurm", 0o755)

    def _filled(self, text: str) -> str:
        for name, value in self.options.items():
            text = text.replace(f"@{name}@", value)
        return text

    def _start_vault(self) -> None:
        self._services.enter_context(self.bao)
        self.init_vault()

    def init_vault(self) -> None:
        """Set the server up, by the site file, as an admin does once."""
        token = self.directory / "admin-token"
        self.write(token, self.bao.root_token, mode=0o600)
        words = ("--token-file", str(token), "--node-ca", str(self.ca.certificate), "--node-name", "n*")
        out = f"{settings.ETC}/head/secret-id"
        # several servers may have no leader for a moment; it may be repeated
        for _ in range(TRIES):
            done = self.tool("vault", "init", *words, "--secret-id-out", out, check=False)
            if done.returncode != EXIT_BACKEND:
                break
        token.unlink()
        if done.returncode:
            raise ClusterError(f"vault init ended with {done.returncode}: {done.stderr}")
        for name in ("role-id", "secret-id"):
            shutil.chown(f"{settings.ETC}/head/{name}", "secure-life", "secure-life")

    def _fill_directory(self) -> None:
        self.slapd.add(settings.DIRECTORY)

    def _start_munge(self) -> None:
        self.make("/run/munge", "munge", 0o755)
        self.make("/var/lib/munge", "munge", 0o711)
        self.make("/var/log/munge", "munge", 0o700)
        self.command(["runuser", "-u", "munge", "--", "munged"])

    def start_daemons(self) -> None:
        """Render, read the directory once, and start the head node's daemons."""
        self.tool("conf", "render")
        self.daemon("ldapd", "secure-ldap", group="secure-record")
        self.until(lambda: Path(f"{settings.RUN}/snapshot/members.json").exists(), "the membership snapshot")
        self.daemon("decisiond", "secure-decide")
        self.daemon("lifecycled", "secure-life")
        self.daemon("requeued", "slurm")
        self.daemon("glassd", "secure-glass")
        self.until(lambda: Path(f"{settings.RUN}/decision/decide.sock").exists(), "the decision daemon")
        self.until(lambda: Path(f"{settings.RUN}/lifecycle/lifecycle.sock").exists(), "the lifecycle daemon")
        self.until(lambda: Path(f"{settings.RUN}/glass/glass.sock").exists(), "the break-glass daemon")

    def start_slurm(self) -> None:
        """slurmctld and the four nodes."""
        self.command(["slurmctld"])
        self.until(lambda: "UP" in self.command(["scontrol", "ping"], check=False).stdout, "slurmctld")
        for node in settings.NODES:
            self.start_node(node)
        self.wait_idle()

    @contextlib.contextmanager
    def other_slurm(self, change: Callable[[str], str], **files: str) -> Iterator[None]:
        """Slurm restarted with a changed slurm.conf and further files (``job_container="..."``), then back again."""
        conf = Path("/etc/slurm/slurm.conf")
        before = conf.read_text()
        self.stop_slurm()
        self.write(conf, change(before))
        others = {conf.with_name(f"{name}.conf"): text for name, text in files.items()}
        earlier = {path: path.read_text() if path.exists() else None for path in others}
        for path, text in others.items():
            self.write(path, text)
        try:
            self.start_slurm()
            yield
        finally:
            self.cancel_all()
            self.until(lambda: not self.command(["squeue", "-h", "-t", "R,CF,CG"]).stdout.strip(), "all jobs to end")
            self.stop_slurm()
            self.write(conf, before)
            for path, old in earlier.items():
                path.unlink() if old is None else self.write(path, old)
            self.start_slurm()

    def stop_slurm(self) -> None:
        """Stop the nodes with their daemons, and slurmctld."""
        # by their arguments: after `scontrol reconfigure` they have executed themselves anew and are called "exe"
        for name in (SLURMD, SLURMCTLD):
            subprocess.run(["pkill", "-f", name], check=False)
            self.until(lambda n=name: self.command(["pgrep", "-f", n], check=False).returncode != 0, f"{name} to end")
        subprocess.run(["pkill", "-f", "secure-slurm-(noded|handd|hookd)"], check=False)
        # what it knows of the nodes' states would outlive a changed slurm.conf
        for state in Path("/var/spool/slurmctld").glob("node_state*"):
            state.unlink()
        for node in settings.NODES:
            Path(f"{settings.RUN}/node-{node}/daemon/node.sock").unlink(missing_ok=True)

    def start_node(self, node: str, *options: str) -> None:
        """One slurmd with its node daemon, in namespaces of their own."""
        script = Path(__file__).parent / "guest/node.sh"
        self.command(["unshare", "-m", "-u", "--propagation", "private", "sh", str(script), node, *options])

    def wait_idle(self, *nodes: str) -> None:
        """Wait until these nodes (all by default) are idle and their daemons listen."""
        wanted = set(nodes or settings.NODES)
        self.until(lambda: wanted <= set(self.sinfo("idle")), f"idle nodes {sorted(wanted)}")
        for node in wanted:
            self.until(
                lambda n=node: Path(f"{settings.RUN}/node-{n}/daemon/node.sock").exists(), f"the daemon of {node}"
            )

    # -- daemons of the suite ------------------------------------------------------------------------------------

    def daemon(self, name: str, user: str, group: str = "") -> None:
        """Start one daemon as its own account; ClusterError if there is one already, which nobody would ever stop."""
        if name in self.daemons and self.daemons[name].poll() is None:
            raise ClusterError(f"{name} runs already")
        groups = [g.gr_gid for g in grp.getgrall() if user in g.gr_mem]
        log = Path(f"/var/log/{name}.log").open("ab")  # noqa: SIM115  the child keeps it
        self.daemons[name] = subprocess.Popen(
            [f"{BIN}/secure-slurm-{name}"],
            user=user,
            group=group or user,
            extra_groups=groups,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        )

    def stop_daemon(self, name: str, *, kill: bool = False) -> None:
        """Stop one daemon, politely or with SIGKILL."""
        process = self.daemons.pop(name, None)
        if process is not None:
            process.kill() if kill else process.terminate()
            process.wait(STOP)

    def stop_daemons(self, *, kill: bool = False) -> None:
        """Stop the head node's daemons, the last that was started first."""
        for name in reversed(list(self.daemons)):
            self.stop_daemon(name, kill=kill)
