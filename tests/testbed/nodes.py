"""Looking at a node of the test cluster from inside: commands in the mount namespace of its slurmd."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

TRIES = 6


def slurmd_pid(node: str) -> int:
    """The process id of a node's slurmd."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"slurmd") and b"-N" in words and node.encode() in words:
            return int(folder.name)
    raise LookupError(f"no slurmd of node {node} runs")


def run_on_node(node: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """A command that root runs on that node."""
    for _ in range(TRIES):
        within = f"/proc/{slurmd_pid(node)}/ns"
        words = ["nsenter", f"--mount={within}/mnt", f"--uts={within}/uts", *argv]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=180)
        # a slurmd that reconfigures leaves its place to another process
        if "nsenter: cannot open" not in done.stderr:
            break
        time.sleep(1)
    return done


def on_node(node: str, argv: list[str], *, check: bool = True) -> str:
    """What a command prints when root runs it on that node."""
    done = run_on_node(node, argv)
    if check and done.returncode:
        raise RuntimeError(f"{node}: {argv}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
