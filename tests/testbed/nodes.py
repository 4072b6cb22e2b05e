"""Looking at a node of the test cluster from inside: commands in the mount namespace of its slurmd."""

from __future__ import annotations

import subprocess
from pathlib import Path


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


def on_node(node: str, argv: list[str], *, check: bool = True) -> str:
    """What a command prints when root runs it on that node."""
    done = subprocess.run(
        ["nsenter", f"--mount=/proc/{slurmd_pid(node)}/ns/mnt", f"--uts=/proc/{slurmd_pid(node)}/ns/uts", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    if check and done.returncode:
        raise RuntimeError(f"{node}: {argv}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
