"""The whole test cluster inside one guest: OpenBao, slapd, munge, slurmctld, four slurmds and the suite's daemons.

Usable by hand (``make shell``), by pytest (tests/cluster/conftest.py) and by the demo. Everything is real; the only
thing that differs from a cluster is that the four nodes share one kernel, each in its own mount namespace.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tests.testbed import settings
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA
from tests.testbed.slapd import Slapd

BIN = f"{settings.PREFIX}/bin"
ENVIRONMENT = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
Result = subprocess.CompletedProcess


class ClusterError(Exception):
    """Part of the test cluster did not come up; the text names its log."""


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


class Cluster:
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
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
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
        subprocess.run(["pkill", "-x", "slurmd"], check=False)
        subprocess.run(["pkill", "-x", "slurmctld"], check=False)
        for name in list(self.daemons):
            self.stop_daemon(name)
        subprocess.run(["pkill", "-f", "secure-slurm-noded"], check=False)
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
        self.make(f"{settings.RUN}/decision", "secure-decide", 0o2710, group="slurm")
        self.make(f"{settings.RUN}/lifecycle", "secure-life", 0o2710, group="slurm")
        self.make(f"{settings.RUN}/snapshot", "secure-ldap", 0o750, group="secure-record")
        self.make(f"{settings.LOG}/decision", "secure-decide", 0o755)
        self.make(f"{settings.LOG}/lifecycle", "secure-life", 0o755)
        self.make("/var/lib/secure-slurm/lifecycle", "secure-life", 0o755)
        self.make("/var/lib/secure-slurm/lifecycle/ended", "secure-life", 0o770, group="slurm")
        self.make("/var/lib/secure-slurm/scratch", "root", 0o700)
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
        token = self.directory / "admin-token"
        self.write(token, self.bao.root_token, mode=0o600)
        self.tool(
            "vault",
            "init",
            "--token-file",
            str(token),
            "--node-ca",
            str(self.ca.certificate),
            "--node-name",
            "n*",
            "--secret-id-out",
            f"{settings.ETC}/head/secret-id",
        )
        token.unlink()
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
        self.until(lambda: Path(f"{settings.RUN}/decision/decide.sock").exists(), "the decision daemon")
        self.until(lambda: Path(f"{settings.RUN}/lifecycle/lifecycle.sock").exists(), "the lifecycle daemon")

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
        for name, text in files.items():
            self.write(conf.with_name(f"{name}.conf"), text)
        try:
            self.start_slurm()
            yield
        finally:
            self.cancel_all()
            self.until(lambda: not self.command(["squeue", "-h", "-t", "R,CF,CG"]).stdout.strip(), "all jobs to end")
            self.stop_slurm()
            self.write(conf, before)
            for name in files:
                conf.with_name(f"{name}.conf").unlink()
            self.start_slurm()

    def stop_slurm(self) -> None:
        """Stop the nodes with their daemons, and slurmctld."""
        for name in ("slurmd", "slurmctld"):
            subprocess.run(["pkill", "-x", name], check=False)
            self.until(lambda n=name: self.command(["pgrep", "-x", n], check=False).returncode != 0, f"{name} to end")
        subprocess.run(["pkill", "-f", "secure-slurm-noded"], check=False)
        for node in settings.NODES:
            Path(f"{settings.RUN}/node-{node}/daemon/node.sock").unlink(missing_ok=True)

    def start_node(self, node: str) -> None:
        """One slurmd with its node daemon, in namespaces of their own."""
        script = Path(__file__).parent / "guest/node.sh"
        self.command(["unshare", "-m", "-u", "--propagation", "private", "sh", str(script), node])

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
        """Start one daemon as its own account."""
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
            process.wait(20)

    # -- doing things as people would ------------------------------------------------------------------------------

    def command(self, argv: list[str], *, check: bool = True, timeout: float = 120, **more: Any) -> Result[str]:
        """Run a command as root."""
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**ENVIRONMENT, **more.pop("env", {})},
            **{"stdin": subprocess.DEVNULL, "cwd": "/", **more},
        )
        if check and done.returncode:
            raise ClusterError(f"{argv} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def tool(self, *words: str, check: bool = True) -> Result[str]:
        """``secure-slurm ...`` as root."""
        return self.command([f"{BIN}/secure-slurm", *words], check=check)

    def as_user(self, user: str, argv: list[str], *, check: bool = False, **more: Any) -> Result[str]:
        """Run a command as a test user, in that user's home."""
        home = pwd.getpwnam(user).pw_dir
        environment = {"HOME": home, "USER": user, **more.pop("env", {})}
        if "input" in more:
            more["stdin"] = None
        return self.command(
            ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *argv],
            check=check,
            cwd=home,
            env=environment,
            **more,
        )

    def script(self, user: str, name: str, text: str) -> str:
        """A job script in a user's home; the path."""
        path = Path(pwd.getpwnam(user).pw_dir) / name
        self.write(path, text, mode=0o755, owner=user)
        return str(path)

    def submit(self, user: str, *words: str, command: str = "secure-sbatch", **more: Any) -> int:
        """Submit and return the job's id; a refusal raises ClusterError with what the user saw."""
        done = self.as_user(user, [command, *words], **more)
        number = done.stdout.strip().rsplit(" ", 1)[-1].split(";")[0]
        if done.returncode or not number.isdigit():
            raise ClusterError(f"{command} {words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return int(number)

    def cancel_all(self) -> None:
        """Cancel every job there is."""
        jobs = self.command(["squeue", "-h", "-o", "%A"]).stdout.split()
        if jobs:
            self.command(["scancel", *sorted(set(jobs))], check=False)

    # -- asking Slurm --------------------------------------------------------------------------------------------

    def job(self, number: int) -> dict[str, str]:
        """``scontrol show job`` as fields (values with spaces are cut; ask :meth:`admin_comment` for that one)."""
        text = self.command(["scontrol", "show", "job", str(number)], check=False).stdout
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def facts(self, number: int) -> dict[str, Any]:
        """The job as slurmctld's JSON has it."""
        answer = self.command(["scontrol", "--json", "show", "job", str(number)]).stdout
        return dict(json.loads(answer)["jobs"][0])

    def state(self, number: int) -> str:
        """``PENDING``, ``RUNNING``, ``COMPLETED`` ..., empty if Slurm has forgotten the job."""
        return self.job(number).get("JobState", "")

    def wait_state(self, number: int, *states: str, timeout: float = 90) -> dict[str, str]:
        """Wait until the job is in one of these states."""
        self.until(lambda: self.state(number) in states, f"job {number} to be {states}", timeout)
        return self.job(number)

    def wait_end(self, number: int, timeout: float = 90) -> dict[str, str]:
        """Wait until the job has ended and its nodes have run their Epilogs."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        found = self.wait_state(number, *ended, timeout=timeout)
        self.until(
            lambda: not self.command(["squeue", "-h", "-t", "CG", "-o", "%i"]).stdout.strip(), "Epilogs", timeout
        )
        return found

    def sinfo(self, state: str) -> list[str]:
        """The nodes in one state."""
        return self.command(["sinfo", "-h", "-N", "-t", state, "-o", "%N"], check=False).stdout.split()

    def drained(self) -> str:
        """Nodes out of service with their reasons; empty when all is well."""
        return self.command(["sinfo", "-h", "-R", "-o", "%N %E"]).stdout.strip()

    # -- asking the kernel and Vault -----------------------------------------------------------------------------

    def mappings(self) -> list[str]:
        """The dm-crypt mappings of secured jobs."""
        lines = self.command(["dmsetup", "ls", "--target", "crypt"]).stdout.splitlines()
        return [line.split()[0] for line in lines if line.startswith("secure-")]

    def leftovers(self, number: int) -> dict[str, list[str]]:
        """What of a job is still on the nodes or in Vault; every list is empty when it is gone."""
        tail = f"-{number}"
        backing = [str(p) for p in Path("/var/lib/secure-slurm").glob(f"scratch*/*{tail}.img")]
        loops = self.command(["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"]).stdout.splitlines()
        return {
            "mappings": [name for name in self.mappings() if name.endswith(tail)],
            "backing": backing,
            "loops": [line for line in loops if f"{tail}.img" in line],
            "journals": [
                str(p)
                for p in Path(settings.RUN).glob(f"node-*/journal/{number}.json")
                if json.loads(p.read_text())["state"] != "destroyed"
            ],
            "task": [str(p) for p in Path(settings.RUN).glob(f"node-*/task/{number}")],
            "keys": self.vault_keys(number),
            "grants": self.vault_grants(number),
        }

    def wait_gone(self, number: int, timeout: float = 45) -> None:
        """Wait until nothing of a job is left; ClusterError says what is."""
        end = time.monotonic() + timeout
        while any((left := self.leftovers(number)).values()):
            if time.monotonic() > end:
                raise ClusterError(f"left of job {number}: {left}\n{self.logs()}")
            time.sleep(0.2)

    def vault_keys(self, number: int) -> list[str]:
        """Transit keys of one job."""
        status, answer = self.bao.status("LIST", "secure-slurm-transit/keys")
        return (
            [key for key in answer.get("data", {}).get("keys", []) if f"_test-{number}-" in key]
            if status == 200
            else []
        )

    def vault_grants(self, number: int) -> list[str]:
        """Grants of one job, as ``node/job``."""
        found = []
        for node in settings.NODES:
            status, answer = self.bao.status("LIST", f"secure-slurm-grants/metadata/{node}")
            keys = answer.get("data", {}).get("keys", []) if status == 200 else []
            found += [f"{node}/{key}" for key in keys if key == str(number)]
        return found

    # -- small things --------------------------------------------------------------------------------------------

    def until(self, ready: Any, what: str, timeout: float = 60) -> None:
        """Poll until ``ready()`` is true; ClusterError names what did not come."""
        end = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > end:
                raise ClusterError(f"waited {timeout:.0f} s for {what}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every log, for a failure's message."""
        files = [*Path("/var/log").glob("*.log"), *Path("/var/log/slurm").glob("*.log")]
        return "\n".join(
            f"--- {file}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-6:]) for file in files
        )

    @staticmethod
    def write(path: Path, content: str | bytes, *, mode: int = 0o644, owner: str = "root", group: str = "") -> None:
        """A file with owner and mode set before its content is there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        entry = pwd.getpwnam(owner)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(descriptor, entry.pw_uid, grp.getgrnam(group).gr_gid if group else entry.pw_gid)
            os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)

    @staticmethod
    def make(path: str, owner: str, mode: int, group: str = "") -> None:
        """A folder with its owner and mode."""
        Path(path).mkdir(parents=True, exist_ok=True)
        shutil.chown(path, owner, group or owner)
        Path(path).chmod(mode)
