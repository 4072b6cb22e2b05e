"""A real hook server with real stubs in a folder of its own; the hooks themselves only note how they were started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STUBS = ROOT / "slurm_hooks" / "stubs"
JOB = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_UID": "1001",
    "SLURM_JOB_GID": "1001",
    "SLURM_JOB_USER": "alice",
    "SLURM_JOB_PARTITION": "phi",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_RESTART_COUNT": "1",
    "SLURM_CLUSTER_NAME": "test",
    "SLURM_CONF": "/etc/slurm.conf",
    "SLURMD_NODENAME": "n1",
    "SLURM_JOB_EXTRA": "secure-slurm:class=phi",
    "SLURM_JOB_WORK_DIR": "/home/alice",
    "SLURM_JOB_STDIN": "/dev/null",
    "SLURM_JOB_STDOUT": "/home/alice/o-%j.txt",
    "SLURM_JOB_STDERR": "/home/alice/e-%j.txt",
}
PYTHON = 42
"""What the stub ends with when it started Python itself."""

# what stands in the place of the hooks: each does what the job's id asks for
HOOK = """
import os, sys, time
def main():
    here = {folder!r}
    with open(here + "/{name}.ran", "ab") as file:
        file.write(b"".join(os.fsencode(k) + b"=" + os.fsencode(v) + b"\\0" for k, v in sorted(os.environ.items())))
    with open(here + "/state", "w") as file:
        file.write(f"{{os.getcwd()}} {{os.umask(0o077):04o}} {{os.getpid()}}")
    job = os.environ["SLURM_JOB_ID"]
    print("on stdout of", job)
    print("on stderr: a\\\\n  b $(x) *", file=sys.stderr)
    while os.path.exists(here + "/wait"):
        time.sleep(0.02)
    if job == "13":
        raise ValueError("unlucky")
    if job == "99":
        os.kill(os.getpid(), 9)
    return 1 if job == "11" else 0
"""
SERVER = """
import sys
sys.path[:0] = [{folder!r} + "/lib", {root!r}]
import types
for name in ("prolog", "protected", "epilog"):
    module = types.ModuleType("slurm_hooks." + name)
    text = open({folder!r} + "/" + name + ".py").read()
    code = compile(text, name, "exec")
    exec(code, module.__dict__)
    sys.modules["slurm_hooks." + name] = module
    import slurm_hooks
    setattr(slurm_hooks, name, module)
from slurm_hooks import hookd, hookslot
if {lib!r}:
    real = hookslot.sources
    hookslot.sources = lambda: real() | {{{lib!r}: hookslot._mark({lib!r})}}
hookd.LOCKED = 0.5
door = hookd.open_door({folder!r})
server = hookd.Server(door, hookd.lock(door))
server.sweep()
server.run()
server.close()
sys.exit(7 if server.stale else 0)
"""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.door = folder / "hookd"
        self.source = folder / "a_module.py"
        self.source.write_text("# the first version\n")
        self.server: subprocess.Popen[bytes] | None = None
        (folder / "hooks").mkdir()
        (folder / "venv/bin").mkdir(parents=True)
        python = folder / "venv/bin/python3"
        python.write_text(
            f"#!/bin/sh\ncat /proc/$$/environ > '{folder}/environ'\nls /proc/$$/fd > '{folder}/fds'\nexit {PYTHON}\n"
        )
        python.chmod(0o755)
        (folder / "hooks.sh").write_text(
            f"SECURE_PARTITIONS='|phi|'\nRUN_DIR='{folder}'\nPROTECTED=''\nPROTECTED_SOURCES=''\n"
        )
        for name in ("prolog", "epilog", "hookd.sh"):
            text = (STUBS / name).read_text().replace("@PREFIX@", str(folder))
            (folder / "hooks" / name).write_text(text.replace("/etc/secure-slurm/hooks.sh", f"{folder}/hooks.sh"))
        for name in ("prolog", "protected", "epilog"):
            (folder / f"{name}.py").write_text(HOOK.format(folder=str(folder), name=name))

    def start(self) -> None:
        """The server, with its processes ready."""
        code = SERVER.format(folder=str(self.folder), root=str(ROOT), lib=str(self.source))
        self.server = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, start_new_session=True)
        self.until(lambda: len(self.ready()) >= 4)

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.server is not None
        self.server.send_signal(number)
        return self.server.wait(30)

    def ready(self) -> list[Path]:
        return list(self.door.glob("*.ask"))

    def stub(
        self, hook: str = "prolog", environ: Mapping[str, str] = JOB, shell: str = "sh", **more: str
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [shell, str(self.folder / "hooks" / hook)],
            env={**environ, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(
        self, hook: str = "prolog", environ: Mapping[str, str] = JOB, shell: str = "sh", **more: str
    ) -> tuple[int, bytes, bytes]:
        process = self.stub(hook, environ, shell, **more)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def ran(self, hook: str = "prolog") -> dict[str, str] | None:
        """The environment of the hook in the server, if it was called there."""
        path = self.folder / f"{hook}.ran"
        if not path.exists():
            return None
        return dict(pair.split("=", 1) for pair in os.fsdecode(path.read_bytes()).split("\0")[:-1])

    def worker(self) -> int:
        """The process that runs the hook."""
        self.until((self.folder / "state").exists)
        self.until(lambda: len((self.folder / "state").read_text().split()) == 3)
        return int((self.folder / "state").read_text().split()[2])

    @staticmethod
    def until(true: Callable[[], object], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end
            time.sleep(0.02)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    # pytest's folders are 0700 and ours
    made = World(tmp_path)
    yield made
    if made.server is not None and made.server.poll() is None:
        made.server.kill()
        made.server.wait(30)
