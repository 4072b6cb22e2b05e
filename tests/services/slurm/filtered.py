"""The same Slurm with the real filter and the real decision daemon, and somebody at each of its doors.

There is no Prolog: a job with a tag and a record runs like any other, so that a running one can be changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot
from tests.services.slurm import accounting
from tests.services.slurm.controller import Controller, RigError, until
from tests.testbed.people import TRIES, UNDECIDED

T = TypeVar("T")
TAG = "secure-slurm:class=phi;residency=eu;scratch=33554432"
ETC, RUN, LOG = Path("/etc/secure-slurm"), Path("/run/secure-slurm"), Path("/var/log/secure-slurm")
SITE = f"""\
version: 1
cluster: {{name: test, head_nodes: [head], slurm_user: slurm}}
controller: {{socket: {RUN}/decide.sock, deadline: 1s, record_key: {ETC}/record.key}}
vault: {{address: "https://vault.test:8200", ca_file: {ETC}/ca.crt}}
ldap:
  flavour: openldap
  uris: ["ldaps://ldap.test"]
  ca_file: {ETC}/ca.crt
  bind_dn: cn=x,dc=example,dc=org
  bind_password_file: {ETC}/password
  base: dc=example,dc=org
  max_age: 12h
  snapshot: {RUN}/members.json
audit: {{directory: {LOG}}}
"""
GROUP = "cn=phi-eu,ou=groups,dc=example,dc=org"
POLICY = f"""\
version: 1
jurisdictions:
  eu: {{feature: eu, regions: [eu-central-1]}}
  us: {{feature: us, regions: [us-east-1]}}
classes:
  - {{name: internal, residency: optional, scratch: optional, max_scratch: 1G, exclusive_nodes: false}}
  - name: phi
    residency: required
    scratch: required
    default_scratch: 32M
    max_scratch: 1G
    exclusive_nodes: false
    max_nodes: 3
    max_time: 30m
    max_gpus: 3
    gres: [gpu]
    work_dirs: [/data/phi]
    output_dirs: [/data/phi]
    mail: owner
roles:
  phi-eu:
    groups: ["{GROUP}"]
    classes: [internal, phi]
    jurisdictions: [eu]
    partitions: [main, phi, us]
    accounts: [lab]
    qos: [normal, high]
    reservations: [mine]
    licenses: [foo]
partitions:
  phi: {{demand_tag: true, least_class: phi, jurisdiction: eu}}
  us: {{jurisdiction: us}}
"""
CONF_LUA = f'return {{socket="{RUN}/decide.sock", deadline=5, untagged_when_down="refuse", demand={{phi=true}}}}\n'
MORE = f"""\
{accounting.SLURM_CONF}JobSubmitPlugins=lua
Licenses=foo:9,bar:9
GresTypes=gpu
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
PartitionName=phi Nodes=e[1-4] MaxTime=60
PartitionName=us Nodes=u[1-4] MaxTime=60
"""
RESERVATION = "ReservationName=mine Users=alice StartTime=now+1days Duration=9 Nodes=e4"
PROMPT = b"scontrol: "


class Person:
    """One user's ``scontrol``, which reads command after command: a process for each would take most of the time."""

    def __init__(self, user: str, decided: Callable[[Callable[[], str]], str]) -> None:
        self._decided = decided
        self._process = subprocess.Popen(
            ["/usr/sbin/runuser", "-u", user, "--", "scontrol"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        )
        self._until_prompt()
        self.says("oneliner")

    def says(self, command: str) -> str:
        """What scontrol answers to a command; empty if it has nothing against it."""
        return self._decided(lambda: self._said(command))

    def _said(self, command: str) -> str:
        if self._process.stdin is None:
            raise RigError("scontrol has no input")
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        # the library that reads the line echoes it
        return self._until_prompt().partition("\n")[2].strip()

    def leave(self) -> None:
        """End it."""
        self._process.communicate(b"quit\n", timeout=30)

    def _until_prompt(self) -> str:
        found = b""
        while not found.endswith(PROMPT):
            if self._process.stdout is None or not (part := os.read(self._process.stdout.fileno(), 65536)):
                raise RigError(f"scontrol ended: {found!r}")
            found += part
        return found.removesuffix(PROMPT).decode()


class Filtered(Controller):
    """Use with ``with``. ``people`` are alice, who owns the jobs, bob, oper, who is Slurm's operator, and root."""

    people: dict[str, Person]
    release: str

    def more(self) -> str:
        """The filter, accounting, and two partitions beside ``main``."""
        return MORE

    def prepare(self) -> None:
        """Files, database and daemon."""
        self._services = ExitStack()
        accounting.start(self._services, Path("/var/lib/slurm/accounting"))
        for folder in (ETC, RUN, LOG / "decision"):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in ("/data/phi", "/data/open"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder).chmod(0o1777)
        (ETC / "secure-slurm.yaml").write_text(SITE)
        (ETC / "policy.yaml").write_text(POLICY)
        (ETC / "record.key").write_bytes(b"k" * 32)
        (ETC / "record.key").chmod(0o600)
        (ETC / "job_submit.conf.lua").write_text(CONF_LUA)
        shutil.copy(Path(__file__).parents[3] / "slurm_hooks/job_submit.lua", "/etc/slurm/job_submit.lua")
        group = Group("phi-eu", frozenset({"alice"}))
        write_snapshot(RUN / "members.json", Snapshot(time.time(), "test", {GROUP: group}))
        log = Path("/var/log/slurm/decisiond.log").open("wb")  # noqa: SIM115  the daemon's, for as long as it runs
        argv = [sys.executable, "-m", "slurm_hooks.decisiond", f"--config={ETC}/secure-slurm.yaml"]
        self._daemon = subprocess.Popen(
            [*argv, f"--policy={ETC}/policy.yaml", "--snapshot-user=root", "--lifecycle-user=root"],
            stdout=log,
            stderr=log,
        )
        until(lambda: self._daemon.poll() is not None or (RUN / "decide.sock").exists(), "the decision daemon")
        if self._daemon.poll() is not None:
            raise RigError(Path("/var/log/slurm/decisiond.log").read_text())

    def __enter__(self) -> Filtered:
        super().__enter__()
        self.release = self.version()
        self.people = {name: Person(name, self.decided) for name in ("alice", "bob", "oper", "root")}
        answer = self.people["root"].says(f"create {RESERVATION}")
        if "created" not in answer:
            raise RigError(answer)
        return self

    def stop(self) -> None:
        """Everything, also after half a start."""
        for person in getattr(self, "people", {}).values():
            person.leave()
        super().stop()
        if hasattr(self, "_daemon"):
            self._daemon.terminate()
            self._daemon.wait(30)
        if hasattr(self, "_services"):
            self._services.close()
        # root's here, and in the way of whoever sets them up as they should be
        for folder in (ETC, RUN, LOG):
            shutil.rmtree(folder, ignore_errors=True)

    def decided(self, ask: Callable[[], T]) -> T:
        """What ``ask`` gets; what a daemon that was late refused is asked again, as the user is told to."""
        for _ in range(TRIES):
            got = ask()
            if self._daemon.poll() is not None or not any(word in str(got) for word in UNDECIDED):
                break
            time.sleep(2)
        return got

    def submit(self, *options: str, extra: str = TAG) -> str:
        """A job of alice's in /data/phi; its id."""
        given = [f"--extra={extra}"] if extra else []
        words = [
            "sbatch",
            "--parsable",
            "--chdir=/data/phi",
            "--time=30",
            "--account=lab",
            "--qos=normal",
            *given,
            *options,
        ]
        done = self.decided(
            lambda: subprocess.run(
                ["runuser", "-u", "alice", "--", *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        )
        if done.returncode:
            raise RigError(done.stderr)
        return done.stdout.split(";")[0].strip()

    def facts(self, job: str) -> list[dict[str, str]]:
        """What slurmctld has of a job, or of each record of an array."""
        shown = self.people["root"].says(f"show job {job}")
        return [_pairs(line) for line in shown.splitlines() if line.startswith("JobId=")]


def rule(answer: str) -> str:
    """The filter's rule in what scontrol says; empty: the filter refused nothing."""
    found = re.search(r"\(rule ([a-z.-]+)\)", answer)
    return found[1] if found else ""


def _pairs(line: str) -> dict[str, str]:
    words = [word.partition("=") for word in line.split(" ") if "=" in word]
    return {key: value for key, _, value in words}
