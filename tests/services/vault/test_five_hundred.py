"""Five hundred starts at once, against the real lifecycle daemon and a real OpenBao: all answered, none lost or double.

They come as from PrologSlurmctld: as SlurmUser, by the code of the hook, each on a connection of its own. While they
wait, what ends does not wait for them, and what the daemon needs is bounded.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from conf.policy import load_policy
from keys.secret import Secret
from slurm_hooks import record, wire
from slurm_hooks.admission import AT_ONCE, MOST_WAITING
from slurm_hooks.lifecycled import THREADS
from slurm_hooks.membership import Group
from slurm_hooks.record import Record
from slurm_hooks.snapshot import Snapshot, write_snapshot
from tests.testbed.need import need
from tests.testbed.vault_world import World

OUTSIDE = Path(__file__).parents[3]
GROUP = "cn=phi-eu,ou=groups,dc=example"
POLICY = f"""\
version: 1
jurisdictions: {{eu: {{feature: eu, regions: [eu-central-1]}}}}
classes: [{{name: phi, residency: required, scratch: required, default_scratch: 1G, max_scratch: 1T}}]
roles: {{phi-eu: {{groups: ["{GROUP}"], classes: [phi], jurisdictions: [eu]}}}}
partitions: {{phi: {{demand_tag: true, jurisdiction: eu}}}}
"""
MORE = """\
controller: {{record_key: {folder}/record.key, break_glass_dir: {folder}/glass}}
lifecycle: {{socket: {folder}/lifecycle.sock, state_dir: {folder}/state, start_deadline: 10m}}
audit: {{directory: {folder}/log}}
"""
KEY = b"k" * 32
EXTRA = "secure-slurm:class=phi;residency=eu;scratch=1073741824"
NODES = 40

CLIENT = """\
import json, sys, threading, time
from slurm_hooks import patience, wire
path, timeout = sys.argv[1], float(sys.argv[2])
print("ready", flush=True)
lock = threading.Lock()
def ask(request):
    try:
        said = patience.ask(lambda: wire.exchange(path, request, timeout=timeout), time.monotonic() + timeout)
        answer = {name: value.decode() for name, value in said.items()}
    except Exception as error:
        answer = {"verdict": "none", "message": repr(error)}
    with lock:
        print(json.dumps([request["job"], request["verb"], answer["verdict"], answer.get("message", "")]), flush=True)
threading.stack_size(256 * 1024)
threads = [threading.Thread(target=ask, args=(json.loads(line),)) for line in sys.stdin]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def start(job: int) -> dict[str, str]:
    decided = Record("test", 1001, "alice", "phi", "eu", 2**30, "ab" * 8, "cd" * 16, int(time.time()))
    return {
        **{"verb": "start", "job": str(job), "uid": "1001", "user_id": "1001", "restarts": "0", "het_job_id": "0"},
        **{"nodes": node(job), "since": str(time.monotonic_ns()), "job.extra": EXTRA, "job.features": "eu"},
        **{"job.partition": "phi", "job.admin_comment": record.sign(decided, Secret(KEY))},
        **{"job.time_limit": "60", "job.num_tasks": "1", "job.user_name": "alice", "job.cluster": "test"},
    }


def end(job: int) -> dict[str, str]:
    return {"verb": "ended", "job": str(job), "nodes": node(job)}


def node(job: int) -> str:
    return f"n{1 + job % NODES}"


class Client:
    """Every request at the same time, in a process of SlurmUser's; the answers as they come.

    The process is ready when this returns, and asks when it is told what; at once, where ``requests`` are given.
    """

    def __init__(self, socket: Path, requests: Sequence[dict[str, str]] = ()) -> None:
        self.answers: list[list[str]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(socket), "600"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user="slurm",
            group="slurm",
            cwd="/",
            env={"PYTHONPATH": str(OUTSIDE), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if requests:
            self.ask(requests)

    def ask(self, requests: Sequence[dict[str, str]]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("".join(json.dumps(each) + "\n" for each in requests))
        self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.answers.append(json.loads(line))

    def join(self) -> list[list[str]]:
        self._reader.join()
        assert self._process.wait() == 0
        return self.answers


class Daemon:
    """secure-slurm-lifecycled, as a process, with a folder for all that it has."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.folder = Path(tempfile.mkdtemp(prefix="five-hundred-"))
        self.folder.chmod(0o755)
        for name in ("state/ended", "state/running", "state/revoked", "log/lifecycle", "members"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "record.key").write_bytes(KEY)
        (self.folder / "record.key").chmod(0o600)
        (self.folder / "policy.yaml").write_text(POLICY)
        load_policy(str(self.folder / "policy.yaml"))
        members = self.folder / "members/members.json"
        write_snapshot(members, Snapshot(time.time(), "test", {GROUP: Group("phi-eu", frozenset({"alice"}))}))
        shutil.chown(members, "secure-ldap")
        site = self.folder / "secure-slurm.yaml"
        text = world.site_file.read_text().replace("base: dc=example", f"base: dc=example, snapshot: {members}")
        site.write_text(text + MORE.format(folder=self.folder))
        self.log = self.folder / "daemon.log"
        self.socket = self.folder / "lifecycle.sock"
        code = "import sys; from slurm_hooks.lifecycled import main; sys.exit(main())"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "--config", str(site), "--policy", str(self.folder / "policy.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PYTHONPATH": str(OUTSIDE), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            )

    def __enter__(self) -> Self:
        while not self.socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        # SlurmUser's group, which the folder gives it on a head node
        shutil.chown(self.socket, group="slurm")
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.folder)

    def report(self) -> dict[str, Any]:
        return dict(json.loads(wire.exchange(str(self.socket), {"verb": "status"}, timeout=300)["report"]))

    def needs(self) -> dict[str, int]:
        """What it takes now: threads, resident memory in kB, open connections to Vault, open files."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(line.split(":", 1) for line in text.splitlines())
        lines = [line.split() for line in Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]]
        vault = f"{self.world.bao.port:04X}"
        return {
            "threads": int(found["Threads"]),
            "kilobytes": int(found["VmRSS"].split()[0]),
            "vault": sum(line[2].endswith(f":{vault}") and line[3] == "01" for line in lines),
            "files": len(list(Path(f"/proc/{self.process.pid}/fd").iterdir())),
        }

    def held(self) -> tuple[Counter[int], Counter[int]]:
        """How many keys and grants of each job there are in Vault."""
        answer = self.world.bao.status("LIST", "secure-slurm-transit/keys")[1]
        keys = [name for name in answer.get("data", {}).get("keys", []) if "_test-" in name]
        grants: Counter[int] = Counter()
        for number in range(1, NODES + 1):
            found = self.world.bao.status("LIST", f"secure-slurm-grants/metadata/n{number}")[1]
            grants.update(map(int, found.get("data", {}).get("keys", [])))
        return Counter(int(name.split("_test-")[1].split("-")[0]) for name in keys), grants


@pytest.fixture
def daemon(own_world: World) -> Iterator[Daemon]:
    need("scontrol", root=True)
    with Daemon(own_world) as running:
        yield running


def test_five_hundred_starts_at_once(daemon: Daemon) -> None:
    (first,) = Client(daemon.socket, [start(7)]).join()
    assert first[:3] == ["7", "start", "allow"], first
    before, peak = daemon.needs(), Counter[str]()
    jobs = range(1000, 1500)
    ending, asked, left = Client(daemon.socket), False, -1
    began = time.monotonic()
    client = Client(daemon.socket, [start(job) for job in jobs])
    while len(client.answers) < len(jobs):
        assert daemon.process.poll() is None, daemon.log.read_text()[-3000:]
        peak |= Counter(daemon.needs())
        if not asked and len(client.answers) > 20:
            # a job ends in the middle of it
            ending.ask([end(7)])
            asked = True
        if ending.answers and left < 0:
            left = len(jobs) - len(client.answers)
        time.sleep(0.05)
    took = time.monotonic() - began
    answers = client.join()
    assert [answer[:3] for answer in ending.join()] == [["7", "ended", "allow"]]
    assert left > 0, "what ended waited for all that start"
    assert Counter(verdict for _, _, verdict, _ in answers) == {"allow": len(jobs)}, answers[:3]
    once = dict.fromkeys(jobs, 1)
    assert daemon.held() == (once, once)
    told = daemon.report()["starts"]
    assert (told["active"], told["waiting"], told["turned_away"]) == (0, 0, 0)
    check_bounds(before, peak)
    print(f"\n500 starts in {took:.1f} s; {left} still waited when the job that ended was done; {dict(peak)}")
    ends = Client(daemon.socket, [end(job) for job in jobs]).join()
    assert Counter(verdict for _, _, verdict, _ in ends) == {"allow": len(jobs)}
    assert daemon.held() == ({}, {})


def test_more_than_may_wait_are_told_to_ask_again(daemon: Daemon) -> None:
    jobs = range(2000, 2000 + AT_ONCE + MOST_WAITING + 250)
    before, peak = daemon.needs(), Counter[str]()
    client = Client(daemon.socket, [start(job) for job in jobs])
    while len(client.answers) < len(jobs):
        assert daemon.process.poll() is None, daemon.log.read_text()[-3000:]
        peak |= Counter(daemon.needs())
        time.sleep(0.05)
    answers = client.join()
    assert Counter(verdict for _, _, verdict, _ in answers) == {"allow": len(jobs)}, answers[:3]
    once = dict.fromkeys(jobs, 1)
    assert daemon.held() == (once, once)
    assert daemon.report()["starts"]["turned_away"] > 0
    check_bounds(before, peak)
    print(f"\n{len(jobs)} starts; {daemon.report()['starts']}; {dict(peak)}")


def check_bounds(before: dict[str, int], peak: Counter[str]) -> None:
    # a thread of its own for each node of a start (one here) beside the pool's, and asyncio's own for files and Slurm
    assert peak["threads"] <= THREADS + AT_ONCE + 4 + 40
    assert peak["vault"] <= 2 * THREADS
    assert peak["kilobytes"] - before["kilobytes"] < 128 * 1024
    assert peak["files"] < 1024
