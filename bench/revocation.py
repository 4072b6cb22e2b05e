"""How long a revocation takes on a real cluster, inside the guest: from the start of the command to its effect.

``blocked``: nothing is written to the job's scratch any more (a ``dd`` in it writes all the time). ``refused``: Vault
does not give the job's data key to anybody. ``command``: every node and Vault have confirmed. With ``revoke`` for good,
with ``--freeze``, and for that the way back: ``resumed``, until the ``dd`` writes again.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import BenchError, machine, write

if TYPE_CHECKING:
    from tests.testbed.cluster import Cluster

RUNS = 10
TARGETS = {"blocked": 1.0, "refused": 2.0}
"""Seconds, of the greatest of all runs."""
PATIENCE = 60.0
NOT_YET = 4
"""How ``revoke`` and ``resume`` end when not everybody has confirmed yet; what it took is measured all the same."""


class Watch:
    """When a job's writing came to its end, and when Vault refused its key."""

    def __init__(self, job: int, refused: Callable[[], bool]) -> None:
        self._stat = next(
            entry / "stat"
            for entry in Path("/sys/block").glob("dm-*")
            if (entry / "dm/name").read_text().strip().endswith(f"-{job}")
        )
        self._ask = refused
        self.last_write = time.monotonic()
        self.refused = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._look, self._ask_vault)]
        for thread in self._threads:
            thread.start()

    def sectors(self) -> str:
        """Sectors written since the mapping was made (Documentation/block/stat.rst)."""
        return self._stat.read_text().split()[6]

    def wait_refused(self) -> None:
        """Until Vault has refused, and then as long as a late write could still come."""
        end = time.monotonic() + PATIENCE
        while not self.refused:
            if time.monotonic() > end:
                raise BenchError("Vault gives the key of a job that was revoked")
            time.sleep(0.02)
        time.sleep(0.5)
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _look(self) -> None:
        before = ""
        while not self._over.is_set():
            now = self.sectors()
            if now != before:
                before, self.last_write = now, time.monotonic()
            time.sleep(0.005)

    def _ask_vault(self) -> None:
        while not self.refused:
            if self._ask():
                self.refused = time.monotonic()
            time.sleep(0.02)


def rounds(cluster: Cluster, start: Callable[[], int], runs: int = RUNS, *, freeze: bool = False) -> dict[str, Any]:
    """Revoke ``runs`` jobs, one after another; ``start`` gives one that writes. Seconds: p50 and max of each part."""
    found: dict[str, list[float]] = {name: [] for name in ("blocked", "refused", "command", "resumed")}
    for _ in range(runs):
        job = start()
        watch = Watch(job, _refused(cluster, job, freeze=freeze))
        time.sleep(0.5)
        begun = time.monotonic()
        _tool(cluster, "revoke", "--job", str(job), *(["--freeze"] if freeze else []))
        found["command"].append(time.monotonic() - begun)
        watch.wait_refused()
        found["blocked"].append(watch.last_write - begun)
        found["refused"].append(watch.refused - begun)
        if freeze:
            found["resumed"].append(_resumed(cluster, watch, job))
        cluster.command(["scancel", str(job)])
        cluster.wait_end(job)
        cluster.wait_gone(job)
    return {
        name: {"p50": round(statistics.median(values), 3), "max": round(max(values), 3), "runs": len(values)}
        for name, values in found.items()
        if values
    }


def _refused(cluster: Cluster, job: int, *, freeze: bool) -> Callable[[], bool]:
    """Whether Vault refuses: a new data key when the key is to go, the wrapped one when it is to be locked."""
    (key,) = cluster.vault_keys(job)
    path, body = f"secure-slurm-transit/datakey/plaintext/{key}", {"bits": 512}
    if freeze:
        node = cluster.job(job)["NodeList"]
        record = json.loads(Path(f"/run/secure-slurm/node-{node}/journal/{job}.json").read_text())
        path, body = f"secure-slurm-transit/decrypt/{key}", {"ciphertext": record["wrapped_key"]}
    return lambda: cluster.bao.status("POST", path, body)[0] == 400


def _resumed(cluster: Cluster, watch: Watch, job: int) -> float:
    before, begun = watch.sectors(), time.monotonic()
    argv = ["/opt/secure-slurm/bin/secure-slurm", "resume", "--job", str(job)]
    resuming = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    while watch.sectors() == before:
        if time.monotonic() - begun > PATIENCE:
            raise BenchError(f"job {job} does not go on")
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    if resuming.wait(PATIENCE) not in (0, NOT_YET):
        raise BenchError(f"resuming job {job} ended with {resuming.returncode}")
    return seconds


def _tool(cluster: Cluster, *words: str) -> None:
    done = cluster.tool(*words, check=False)
    if done.returncode not in (0, NOT_YET):
        raise BenchError(f"secure-slurm {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")


def measure() -> dict[str, Any]:
    """Start the cluster, revoke and freeze."""
    # a test's helpers, which need pytest: not at the head, for tests import this module
    from tests.cluster.test_revoke import EU, all_connected, writing  # noqa: PLC0415
    from tests.testbed.cluster import Cluster  # noqa: PLC0415

    with Cluster() as cluster:
        all_connected(cluster)
        found = {
            name: rounds(cluster, lambda: writing(cluster, "alice", *EU), freeze=name == "freeze")
            for name in ("revoke", "freeze")
        }
    targets = {
        f"{name} {what}": {"target": most, "reached": found[name][what]["max"], "met": found[name][what]["max"] <= most}
        for name in found
        for what, most in TARGETS.items()
    }
    return {**machine(), "seconds": found, "targets": targets}


def main(arguments: list[str]) -> int:
    """``python3 -m bench.revocation FILE``."""
    result = measure()
    write(arguments[0], result)
    print(json.dumps(result["seconds"]))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m bench.revocation FILE")
    sys.exit(main(sys.argv[1:]))
