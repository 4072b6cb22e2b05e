"""Prolog and Epilog against the bare commands, on a real cluster with dm-crypt and OpenBao, inside the guest.

Grants and keys are made beforehand, as the lifecycle daemon makes them; what is measured is what a node does. The
measuring itself is bench/scratch_node.py, which runs in the namespace of node n1.
"""

from __future__ import annotations

import json
import pwd
import subprocess
import sys
import time
from typing import Any

from bench.measure import BenchError, machine, write
from bench.scratch_node import NODE, USER, WARM_UP
from conf.site import load_site
from keys import lifecycle_keys
from keys.grant import VERSION, Grant
from keys.names import new_incarnation, new_key_name
from keys.secret import Secret
from keys.vault import VaultSession
from keys.vault_head import VaultHead
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import slurmd_pid

ROUNDS = 20
SIZES = {"100M": 100 * 1024**2, "1T": 1024**4}
FIRST_JOB = 900_001
LIMIT = 900.0


def grant(job: int, size: int) -> Grant:
    """What the lifecycle daemon would write for this job, alone on the node."""
    return Grant(
        v=VERSION,
        incarnation=new_incarnation(),
        key=new_key_name(NODE, "test", str(job)),
        cluster="test",
        job=str(job),
        uid=str(pwd.getpwnam(USER).pw_uid),
        user=USER,
        nodes=NODE,
        restarts="0",
        scratch=str(size),
        klass="phi",
        residency="eu",
        datasets="",
        created=str(int(time.time())),
    )


def prepare(cluster: Cluster) -> dict[str, list[int]]:
    """Grants and keys in Vault for every job of the run; by size name: bytes, first job, last job."""
    site = load_site()
    session = VaultSession(
        site.vault.address,
        site.vault.ca_file,
        site.vault.timeout,
        token=Secret(cluster.bao.root_token.encode()),
    )
    sizes: dict[str, list[int]] = {}
    first = FIRST_JOB
    with VaultHead(session, transit_mount=site.vault.transit_mount, grants_mount=site.vault.grants_mount) as head:
        for name, size in SIZES.items():
            last = first + 3 * (ROUNDS + WARM_UP) - 1
            for job in range(first, last + 1):
                lifecycle_keys.create(head, [grant(job, size)], lambda: True)
            sizes[name] = [size, first, last]
            first = last + 1
    return sizes


def on_the_node(question: dict[str, Any]) -> dict[str, Any]:
    """Run bench/scratch_node.py where slurmd of the node runs."""
    pid = slurmd_pid(NODE)
    done = subprocess.run(
        [
            "nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--uts=/proc/{pid}/ns/uts",
            sys.executable, "-m", "bench.scratch_node",
        ],
        input=json.dumps(question), capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"on node {NODE}: {done.returncode}\n{done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout))


def measure() -> dict[str, Any]:
    """Start the cluster, make the keys, measure."""
    with Cluster(OVERCOMMIT="true") as cluster:
        # it would find grants of jobs that Slurm does not know, and end them
        cluster.stop_daemon("lifecycled")
        sizes = prepare(cluster)
        try:
            return {**machine(), **on_the_node({"rounds": ROUNDS, "sizes": sizes})}
        except BenchError as error:
            raise BenchError(f"{error}\n{cluster.logs()}") from None


def main(arguments: list[str]) -> int:
    """``python3 -m bench.scratch FILE``."""
    result = measure()
    write(arguments[0], result)
    for name, found in result["sizes"].items():
        print(f"{name}: prolog {found['prolog']['hook']}, epilog {found['epilog']['hook']}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m bench.scratch FILE")
    sys.exit(main(sys.argv[1:]))
