"""A real accounting for tests: MariaDB, slurmdbd, slurmctld with the installed filter, and two nodes that run jobs.

It needs root and a throw-away root of the test bed, where ``install.sh`` lays the suite out; no hooks run, as nothing
here is about a job's start.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Self

from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.people import ClusterError
from tests.testbed.pki import CA

SERVER = "/usr/sbin/mariadbd"
PORT = 3306
NODES = ("n1", "n3")
"""One in each jurisdiction; the other nodes of the test cluster stay down."""
MEMBERS = Path(settings.RUN) / "snapshot/members.json"

_TABLES = ("mariadb_system_tables.sql", "mariadb_performance_tables.sql", "mariadb_system_tables_data.sql")
_OPTIONS = (
    "--no-defaults",
    "--user=root",
    "--innodb-undo-tablespaces=0",
    "--innodb-buffer-pool-size=64M",
    # slurmdbd refuses to go on with it (26.05)
    "--innodb-snapshot-isolation=OFF",
)
_DBD = """\
AuthType=auth/munge
DbdHost=head
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
"""
_SLURM = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=head
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
"""


class Database:
    """MariaDB on 127.0.0.1 with an empty database for slurmdbd."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.password = secrets.token_hex(16)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        data = self.directory / "data"
        # of an earlier module of the same tests
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True)
        # what mariadb-install-db does; that one needs the client's package
        tables = "".join((Path("/usr/share/mariadb") / name).read_text() for name in _TABLES)
        subprocess.run(
            [SERVER, *_OPTIONS, "--bootstrap", f"--datadir={data}", f"--log-error={self.directory}/bootstrap.log"],
            input=f"create database mysql;\nuse mysql;\n{tables}",
            text=True,
            check=True,
            timeout=120,
        )
        init = self.directory / "init.sql"
        init.touch(mode=0o600)
        init.write_text(
            "CREATE DATABASE slurm_acct_db;\n"
            f"CREATE USER slurm@'127.0.0.1' IDENTIFIED BY '{self.password}';\n"
            "GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';\n"
        )
        self._process = subprocess.Popen(
            [
                *(SERVER, *_OPTIONS, f"--datadir={data}", f"--socket={self.directory}/socket"),
                *("--bind-address=127.0.0.1", f"--port={PORT}", "--skip-name-resolve"),
                *(f"--log-error={self.directory}/error.log", f"--init-file={init}"),
            ],
            stdin=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while not _listens():
            if self._process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise ClusterError((self.directory / "error.log").read_text(errors="replace"))
            time.sleep(0.05)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)


class Accounting(Cluster):
    """Start and stop with ``with``. ``members`` says who is in which group of the test cluster's policy."""

    def __init__(self, members: dict[str, list[str]]) -> None:
        super().__init__(PROCTRACK="proctrack/linuxproc")
        self.members = members

    def start(self) -> None:
        """Returns when two nodes are idle and slurmdbd knows the cluster."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.command(["sh", "/src/install.sh", "--offline", "--prefix", settings.PREFIX, "--source", "/src"])
        self.ca = CA(self.directory / "ca")
        # another test's slurmctld had another cluster id
        shutil.rmtree("/var/spool/slurmctld", ignore_errors=True)
        self._write_files()
        self._start_munge()
        database = self._services.enter_context(Database(self.directory / "database"))
        dbd = Path("/etc/slurm/slurmdbd.conf")
        self.write(dbd, _DBD.format(port=PORT, password=database.password), mode=0o600, owner="slurm")
        self.command(["slurmdbd"])
        self._services.callback(self._stop_dbd)
        self.until(lambda: self.command(["sacctmgr", "-n", "show", "cluster"], check=False).returncode == 0, "slurmdbd")
        self.command(["sacctmgr", "-i", "add", "cluster", "test"])
        self.tool("conf", "render")
        self.make(str(MEMBERS.parent), "root", 0o750, group="secure-record")
        groups = {
            f"cn={name},ou=groups,dc=example,dc=org": Group(name, frozenset(who)) for name, who in self.members.items()
        }
        write_snapshot(MEMBERS, Snapshot(time.time(), "test", groups))
        self.daemon("decisiond", "secure-decide")
        self.until(lambda: Path(f"{settings.RUN}/decision/decide.sock").exists(), "the decision daemon")
        self.command(["slurmctld"])
        self.until(lambda: "UP" in self.command(["scontrol", "ping"], check=False).stdout, "slurmctld")
        for node in NODES:
            self.command(["slurmd", "-N", node])
        self.until(lambda: set(NODES) <= set(self.sinfo("idle")), f"idle nodes {NODES}")

    def _write_files(self) -> None:
        super()._write_files()
        lines = [
            line.replace(" Feature=", " Gres=gpu:a100:4 Feature=")
            for line in self._filled(settings.SLURM).splitlines()
            if not line.startswith(("Prolog", "Epilog", "TaskProlog"))
        ]
        slurm = Path("/etc/slurm")
        self.write(slurm / "slurm.conf", "\n".join(lines) + "\n" + _SLURM)
        # slurmd wants a file for each GPU, and looks at none of them
        for number in range(4):
            self.write(Path(f"/var/lib/slurm/gpu{number}"), "")
        self.write(slurm / "gres.conf", "Name=gpu Type=a100 File=/var/lib/slurm/gpu[0-3]\n")
        self.write(slurm / "cgroup.conf", "CgroupPlugin=disabled\n")

    def _stop_dbd(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.command(["kill", str(int(Path("/run/slurm/slurmdbd.pid").read_text()))], check=False)
        self.until(
            lambda: self.command(["pgrep", "-x", "-r", "D,R,S", "slurmdbd"], check=False).returncode != 0,
            "slurmdbd to end",
        )

    def sacct(self, *words: str) -> str:
        """What ``sacct`` prints of today's jobs of everybody."""
        options = ["--allusers", "--allocations", "--starttime=now-1days"]
        return self.command(["sacct", *options, *words], errors="surrogateescape").stdout

    def wait_nothing_left(self) -> None:
        """Until every job has ended."""
        self.until(lambda: not self.command(["squeue", "-h", "-o", "%i"]).stdout.strip(), "all jobs to end")

    def wait_accounted(self, **states: int) -> None:
        """Until this many jobs are in each state there: slurmctld sends it later, the record with a job's end."""
        self.until(
            lambda: Counter(self.sacct("-n", "-P", "-o", "state").split()) == Counter(states), f"{states} in sacct"
        )


def _listens() -> bool:
    try:
        socket.create_connection(("127.0.0.1", PORT), timeout=5).close()
    except OSError:
        return False
    return True
