"""The hook server on a real node: with it and without it the hooks are the same, and its end is survived."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node

TAG = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=32M")
DOOR = Path(f"{settings.RUN}/node-n1/hookd")
LIB = Path(f"{settings.PREFIX}/lib")
DAEMON = str(Path(__file__).parents[1] / "testbed/guest/node_daemon.sh")
HELD = Path("/run/a-hook-is-to-wait")
WRITE = "            self._replace(folder, name, text)\n        return record\n"


def ready() -> set[str]:
    return {path.name for path in DOOR.glob("*.ask")}


def processes() -> dict[int, list[str]]:
    """Every process: its words."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return found


def found(cluster: Cluster, look: Callable[[], int], what: str) -> int:
    """The process that ``look`` finds, once there is one: a signal to 0 would be for everybody here."""
    pids: list[int] = []
    cluster.until(lambda: pids.append(look()) or pids[-1], what)
    return pids[-1]


def server() -> int:
    """The hook server of n1: who holds its lock."""
    for pid in processes():
        with contextlib.suppress(OSError):
            for each in Path(f"/proc/{pid}/fd").iterdir():
                if str(each.readlink()) == f"{DOOR}/lock":
                    return pid
    return 0


def stub(hook: str = "prolog") -> int:
    return next((pid for pid, words in processes().items() if f"{settings.PREFIX}/hooks/{hook}" in words), 0)


def worker() -> int:
    """The process of the server of n1 that runs a hook now: its pair of FIFOs has lost the one that is asked by."""
    for path in DOOR.glob("*.mine"):
        if not path.with_suffix(".ask").exists():
            return int(path.name.partition("-")[0])
    return 0


def start_server(cluster: Cluster) -> None:
    on_node("n1", ["sh", DAEMON, "n1", "hooks"])
    cluster.until(lambda: server() and len(ready()) >= 2, "the hook server of n1")


def kill_server(cluster: Cluster) -> None:
    os.kill(found(cluster, server, "the hook server"), signal.SIGKILL)
    cluster.until(lambda: not ready(), "the hook server to be gone")


@contextlib.contextmanager
def without_server(cluster: Cluster) -> Iterator[None]:
    kill_server(cluster)
    try:
        yield
    finally:
        start_server(cluster)


@contextlib.contextmanager
def held_at(cluster: Cluster, step: str) -> Iterator[None]:
    """A server whose hooks wait, as long as there is a file, when they have written this step into the journal."""
    module = LIB / "keys/journal.py"
    before = module.read_text()
    caches = {path: path.read_bytes() for path in module.parent.glob("__pycache__/journal.*")}
    changed = before.replace(
        WRITE,
        f"            self._replace(folder, name, text)\n        while record.state == {step!r} and os.path.exists("
        f"{str(HELD)!r}):\n            time.sleep(0.05)\n        return record\n",
    )
    assert changed != before
    kill_server(cluster)
    for path in caches:
        path.unlink()
    module.write_text(changed)
    HELD.touch()
    try:
        start_server(cluster)
        yield
    finally:
        HELD.unlink(missing_ok=True)
        module.write_text(before)
        for path in module.parent.glob("__pycache__/journal.*"):
            path.unlink()
        for path, data in caches.items():
            path.write_bytes(data)
        if server():
            kill_server(cluster)
        start_server(cluster)


def trail(cluster: Cluster, job: int) -> list[dict[str, Any]]:
    """What node n1 wrote of a job, without what differs between any two jobs."""
    text = cluster.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout
    own = {"seq", "time", "job", "key", "prev", "hash", "incarnation", "mapper", "evidence"}
    lines = [each for each in json.loads(text) if each.get("job") == job and each["writer"] == "node"]
    return [{name: value for name, value in line.items() if name not in own} for line in lines]


def one_job(cluster: Cluster) -> int:
    job = cluster.submit("alice", *TAG, "-w", "n1", "--wrap=test -w $SECURE_SCRATCH")
    assert cluster.wait_end(job, 120)["JobState"] == "COMPLETED"
    cluster.wait_gone(job)
    return job


def idle_again(cluster: Cluster) -> None:
    """Take back the drain that a killed Prolog rightly was."""
    cluster.command(["scontrol", "update", "NodeName=n1", "State=RESUME"], check=False)
    cluster.wait_idle("n1")


def taken_down(cluster: Cluster, job: int) -> None:
    """By the Epilog, or where Slurm runs none after a Prolog that was killed, by the reaper, which the timer starts."""
    cluster.command(["scancel", str(job)], check=False)
    idle_again(cluster)

    def gone() -> bool:
        on_node("n1", [f"{settings.PREFIX}/hooks/reaper", "n1"], check=False)
        left = cluster.leftovers(job)
        return not any(what for kind, what in left.items() if kind not in ("keys", "grants"))

    cluster.until(gone, "what the hook left to be taken down", 90)
    cluster.wait_gone(job, 60)


@contextlib.contextmanager
def watched() -> Iterator[set[str]]:
    """Every process of the server that is ready at some time meanwhile."""
    seen, over = set(ready()), threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.update(ready())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def test_the_same_job_with_and_without_it(clean: Cluster) -> None:
    clean.until(lambda: len(ready()) >= 2, "the hook server of n1")
    with watched() as seen:
        first = one_job(clean)
    # one that was made ready after the Prolog may have been the Epilog's
    clean.until(lambda: len(seen - ready()) >= 2, "Prolog and Epilog to have gone through the server", 10)
    with without_server(clean):
        second = one_job(clean)
    lines = trail(clean, first)
    assert [line["event"] for line in lines][-1] == "scratch.gone"
    assert trail(clean, second) == lines
    clean.tool("audit", "verify", settings.LOG)


def test_no_user_reaches_it(clean: Cluster) -> None:
    clean.until(lambda: len(ready()) >= 2, "the hook server of n1")
    name = sorted(ready())[0].removesuffix(".ask")
    tries = (
        f"ls {DOOR}",
        f"echo x > {DOOR}/{name}.ask",
        f"cat {DOOR}/{name}.say",
        f"touch {DOOR}/{name}.mine",
        f"mkfifo {DOOR}/x.ask",
        f"ln -s /tmp {DOOR}/x",
        f"mv {DOOR} {DOOR}.x",
        f"kill -9 {server()}",
        f"ls /proc/{server()}/fd/",
    )
    for each in tries:
        done = clean.as_user("alice", ["sh", "-c", each])
        assert done.returncode != 0, each
        assert "ermitted" in done.stderr or "ermission" in done.stderr, done.stderr
    assert f"{name}.ask" in ready()
    one_job(clean)


def test_the_server_is_killed_in_mid_prolog(clean: Cluster) -> None:
    with held_at(clean, "filesystem"):
        job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=test -w $SECURE_SCRATCH")
        hook = found(clean, worker, "a hook in the server")
        kill_server(clean)
        assert Path(f"/proc/{hook}").exists()
        HELD.unlink()
        assert clean.wait_end(job, 120)["JobState"] == "COMPLETED"
    clean.wait_gone(job)
    assert clean.drained() == ""


@pytest.mark.parametrize("step", ["backing", "mount"])
def test_a_stub_is_killed_in_mid_prolog(clean: Cluster, step: str) -> None:
    """As when slurmd's PrologEpilogTimeout has passed: what ran for it ends, and the Epilog takes down what it left."""
    with held_at(clean, step):
        job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=true")
        hook = found(clean, worker, "a hook in the server")
        clean.until(lambda: clean.leftovers(job)["journals"], "its journal", 60)
        os.kill(found(clean, stub, "the stub"), signal.SIGKILL)
        clean.until(lambda: not Path(f"/proc/{hook}").exists(), "the hook to end with it", 30)
        HELD.unlink()
        clean.until(lambda: clean.state(job) in ("PENDING", "FAILED", "CANCELLED"), "the job to be back", 90)
    taken_down(clean, job)


def test_the_process_of_a_prolog_is_killed(clean: Cluster) -> None:
    with held_at(clean, "mapping"):
        job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=true")
        hook = found(clean, worker, "a hook in the server")
        clean.until(lambda: clean.leftovers(job)["journals"], "its journal", 60)
        os.kill(hook, signal.SIGKILL)
        HELD.unlink()
        clean.until(lambda: clean.state(job) in ("PENDING", "FAILED", "CANCELLED"), "the job to be back", 90)
    taken_down(clean, job)


def test_another_version_on_the_disk(clean: Cluster) -> None:
    """The first hook after an upgrade starts Python, and the server itself anew; nobody has to remember to."""
    clean.until(lambda: len(ready()) >= 2, "the hook server of n1")
    pid, before = server(), ready()
    module = LIB / "keys/scratch/plan.py"
    text = module.read_bytes()
    new = module.with_suffix(".new")
    new.write_bytes(text)
    new.rename(module)
    first = one_job(clean)
    clean.until(lambda: len(ready()) >= 2 and not before & ready(), "a server of that version")
    assert server() == pid
    second = one_job(clean)
    assert trail(clean, second) == trail(clean, first)


def test_a_hook_from_another_mount_namespace_does_without_it(clean: Cluster) -> None:
    """What the server would unmount is not what such an Epilog sees."""
    clean.until(lambda: len(ready()) >= 2, "the hook server of n1")
    before = ready()
    environment = {"SLURM_JOB_ID": "999077", "SLURMD_NODENAME": "n1", "SLURM_JOB_EXTRA": "secure-slurm:class=phi"}
    words = [f"{name}={value}" for name, value in environment.items()]
    clean.command(["env", *words, f"{settings.PREFIX}/hooks/epilog"])
    # claimed, and not asked: the server takes such a process back
    assert len(before - ready()) <= 1
    (line,) = [each for each in trail(clean, 999077) if each["event"] == "scratch.gone"]
    assert line["node"] == "n1"
    clean.until(lambda: len(ready()) >= 2, "the hook server of n1")
