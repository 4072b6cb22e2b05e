"""A machine as bundle/in_root.sh makes one: an overlay over a root; mounts, processes and network of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

IN_ROOT = Path("/src/bundle/in_root.sh")
READY = 120.0
"""Seconds for a machine to be there."""
PATH = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Done(NamedTuple):
    """How a command on a machine ended."""

    code: int
    out: str
    err: str


class Bare:
    """It has no network but loopback. What it shares with the tests is ``/out``; ``binds`` are seen and not changed."""

    def __init__(self, root: Path, shared: Path, *, name: str = "head", binds: str = "") -> None:
        self.shared = shared
        shared.mkdir(exist_ok=True)
        ready = f".ready-{name}"
        (shared / ready).unlink(missing_ok=True)
        argv = [IN_ROOT, root, shared, "sh", "-c", f"touch /out/{ready}; exec sleep infinity"]
        self.process = subprocess.Popen(
            [str(each) for each in argv],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "BINDS": binds, "GUEST_NAME": name},
        )
        end = time.monotonic() + READY
        while not (shared / ready).exists():
            assert self.process.poll() is None and time.monotonic() < end, "the machine does not come up"
            time.sleep(0.02)
        # unshare(1) has one child: the first process of the machine's own process namespace
        children = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True)
        self.first = children.stdout.split()[0]

    def argv(self, *argv: str) -> list[str]:
        """The command line that runs ``argv`` in there."""
        enter = ["nsenter", "-t", self.first, "-m", "-p", "-n", "-u", "-r", "-w"]
        return [*enter, "env", "-i", "HOME=/root", "LC_ALL=C.UTF-8", f"PATH={PATH}", *argv]

    def run(self, *argv: str, timeout: float = 300) -> Done:
        """Run it to its end, whatever that is."""
        done = subprocess.run(
            self.argv(*argv), capture_output=True, text=True, check=False, timeout=timeout, stdin=subprocess.DEVNULL
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def sh(self, script: str, timeout: float = 300) -> str:
        """Run a script that must not fail; what it printed."""
        done = self.run("sh", "-euc", script, timeout=timeout)
        assert done.code == 0, f"{script}\n{done.out}{done.err}"
        return done.out

    def there(self, path: str) -> bool:
        """Whether it has such a file or folder."""
        return self.run("test", "-e", path).code == 0

    def put(self, path: str, text: str) -> None:
        """Write a file in there."""
        subprocess.run(
            self.argv("sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1"', "_", path),
            input=text,
            text=True,
            check=True,
            timeout=60,
        )

    def stop(self) -> None:
        """End all of it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
