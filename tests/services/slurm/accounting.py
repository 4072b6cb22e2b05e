"""slurmdbd with a cluster, accounts and people: without it Slurm has no operators, accounts or QOS."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.services.slurm.controller import run, until
from tests.testbed.accounting import PORT, Database

SLURMDBD = """\
AuthType=auth/munge
DbdHost=head
SlurmUser=slurm
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=slurm
StoragePass={password}
LogFile=/var/log/slurm/slurmdbd.log
PidFile=/run/slurm/slurmdbd.pid
"""
SLURM_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=head
AccountingStorageEnforce=associations,qos
"""
CONTENT = """\
account lab
account other
qos high
qos low
user alice account=lab qoslevel=normal,high,low
user alice account=other qoslevel=normal,high,low
user bob account=lab
user oper account=lab adminlevel=Operator
"""


def start(services: ExitStack, folder: Path) -> None:
    """Returns when everybody is known; ``services`` ends it."""
    database = services.enter_context(Database(folder))
    conf = Path("/etc/slurm/slurmdbd.conf")
    conf.touch(mode=0o600)
    conf.write_text(SLURMDBD.format(port=PORT, password=database.password))
    shutil.chown(conf, "slurm", "slurm")
    services.callback(_end)
    _begin()
    run("sacctmgr", "-i", "add", "cluster", "test")
    # one that was there before its cluster does not find the root of its accounts, and may die of that (24.11.5)
    _end()
    _begin()
    for line in CONTENT.splitlines():
        run("sacctmgr", "-i", "add", *line.split())


def _begin() -> None:
    run("slurmdbd")
    asked = ["sacctmgr", "-n", "show", "cluster"]
    until(lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, "slurmdbd")


def _end() -> None:
    subprocess.run(["pkill", "-x", "slurmdbd"], check=False)
    until(lambda: not run("pgrep", "-x", "-r", "D,R,S", "slurmdbd", check=False), "slurmdbd to end")
