"""A terminal inside a running test cluster (``make shell``), and what to try there."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.testbed.cluster import Cluster
from tests.testbed.people import BIN

WELCOME = """
A secure-slurm cluster is running: nodes n1 n2 (eu), n3 n4 (us); partitions main, phi (demands a tag, eu), us.

  su - alice     in the group phi-eu through a nested group: may use PHI in the EU
  su - carol     in phi-us: may use PHI in the US
  su - bob       in neither group
  su - oper      an operator who may use nothing (root, which you are now, is the admin)

Try, as alice:
  secure-sbatch --secure-class=phi --secure-residency=eu --secure-scratch=50M \\
    --wrap='findmnt $SECURE_SCRATCH; df -h $TMPDIR'
  squeue; cat slurm-*.out
and as root:
  dmsetup ls; secure-slurm audit verify /var/log/secure-slurm; secure-slurm why 1

Leave with 'exit' or Ctrl-D: the cluster is gone then, and nothing of it stays on this machine.
"""


def main() -> int:
    """Start, greet, hand over the terminal, stop."""
    print("starting the cluster (a few seconds) ...", flush=True)
    with Cluster(UNTAGGED="allow"):
        print(WELCOME, flush=True)
        environment = {**os.environ, "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "PS1": "head# "}
        return subprocess.run(["setsid", "-c", "bash", "--norc", "-i"], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
