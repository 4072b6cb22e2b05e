"""The submission path at native speed: how long slurmctld waits for a decision, and what that does to throughput.

A real slurmctld and decision daemon, no nodes. The times are taken inside slurmctld, by bench/submission.lua around the
installed filter; every kind of submission takes its turn with the others in one run. Run it as root in a throw-away
root that ``install.sh`` was run in: ``tests/testbed/suite.sh bench``.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import stub
from bench.measure import BenchError, machine, paired, shuffled, summary, write
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.pki import CA

USERS = 50_000
ROUNDS = 400
PYTHON_EVERY = 5
RELOADS = 800
BATCH = 40
BATCHES = 16
WARM_UP = 30
AT_ONCE = 4
TIMES = Path("/var/log/slurm/bench.tsv")
MEMBERS = Path(settings.RUN) / "snapshot/members.json"
TAG = "--extra='secure-slurm:class=phi;residency=eu;scratch=209715200'"
OPTIONS = {"noop": "", "untagged": "", "tagged": TAG, "reload": TAG, "python": ""}


class Head(Cluster):
    """The head node alone: slurmctld, the decision daemon and a members file; no directory, no Vault, no nodes."""

    def start(self) -> None:
        """Returns when slurmctld answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = CA(self.directory / "ca")
        self._write_files()
        shutil.copy(Path(__file__).parent / "submission.lua", "/etc/slurm/job_submit.lua")
        self._start_munge()
        self.tool("conf", "render")
        # root's own, so that root may write the file: the daemon trusts root as it does the reader of the directory
        self.make(str(MEMBERS.parent), "root", 0o750, group="secure-record")
        write_snapshot(MEMBERS, members(USERS))
        self.daemon("decisiond", "secure-decide")
        self.until(lambda: Path(f"{settings.RUN}/decision/decide.sock").exists(), "the decision daemon")
        self.command(["slurmctld"])
        self.until(lambda: "UP" in self.command(["scontrol", "ping"], check=False).stdout, "slurmctld")


def members(users: int) -> Snapshot:
    """Everybody in one group of the policy, every fifth in both; alice is one of them."""
    names = [f"user{number:06d}" for number in range(users - 1)] + ["alice"]
    groups = {
        "cn=phi-eu,ou=groups,dc=example,dc=org": Group("phi-eu", frozenset(names)),
        "cn=phi-us,ou=groups,dc=example,dc=org": Group("phi-us", frozenset(names[::5])),
    }
    return Snapshot(time.time(), "bench", groups)


def submit(head: Head, kinds: list[str]) -> dict[str, list[float]]:
    """Submit one job after the other as alice, and return what slurmctld wrote down, in seconds by kind.

    ``--test-only``: the whole way through the filter, but no job is made. BenchError unless each one was accepted.
    """
    TIMES.write_text("")
    lines = [
        f"sbatch --test-only --job-name=bench-{kind} {OPTIONS[kind]} --wrap=true >last 2>&1 || :" for kind in kinds
    ]
    head.as_user("alice", ["sh", head.script("alice", "submit.sh", "\n".join(lines) + "\n")], check=True, timeout=900)
    found: dict[str, list[float]] = {}
    for line in TIMES.read_text().splitlines():
        kind, answer, seconds = line.split("\t")
        if answer != "0":
            raise BenchError(f"a submission ({kind}) was refused\n{head.logs()}")
        found.setdefault(kind, []).append(float(seconds))
    if sum(map(len, found.values())) != len(kinds):
        last = Path("/home/alice/last").read_text()
        raise BenchError(f"{len(kinds)} submissions, of which slurmctld saw {found.keys()}: {last}\n{head.logs()}")
    return found


def decisions(head: Head) -> dict[str, list[float]]:
    """No-op plugin, filter with and without a tag, and a plugin that starts Python: in turns."""
    submit(head, ["noop", "untagged", "tagged", "python"] * (WARM_UP // 4))
    kinds: list[str] = []
    for turn in range(ROUNDS):
        kinds += shuffled(["noop", "untagged", "tagged"] + ["python"] * (turn % PYTHON_EVERY == 0), turn)
    return submit(head, kinds)


@contextlib.contextmanager
def members_replaced(every: float) -> Iterator[None]:
    """Replace the members file again and again, so that the daemon reads it while it is asked."""
    stop = threading.Event()
    content = MEMBERS.read_bytes()

    def replace() -> None:
        while not stop.wait(every):
            new = MEMBERS.with_suffix(".new")
            new.write_bytes(content)
            new.chmod(0o640)
            shutil.chown(new, "root", "secure-record")
            new.replace(MEMBERS)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def batch(head: Head, kind: str) -> float:
    """Seconds for a batch of real submissions, several at once; the jobs are held, so that nothing is scheduled."""
    TIMES.write_text("")
    line = f"seq {BATCH} | xargs -P{AT_ONCE} -I@ sbatch --hold --job-name=bench-{kind} {OPTIONS[kind]} --wrap=true"
    script = head.script("alice", "batch.sh", f"{line} >last 2>&1\n")
    begun = time.perf_counter()
    head.as_user("alice", ["sh", script], check=True, timeout=300)
    seconds = time.perf_counter() - begun
    if [line.split("\t")[1] for line in TIMES.read_text().splitlines()] != ["0"] * BATCH:
        raise BenchError(f"not every submission of a batch ({kind}) was accepted\n{head.logs()}")
    return seconds


def throughput(head: Head) -> dict[str, Any]:
    """Submissions a second with and without the filter, in turns."""
    times: dict[str, list[float]] = {"noop": [], "untagged": [], "tagged": []}
    for turn in range(BATCHES + 1):
        for kind in shuffled(list(times), turn):
            seconds = batch(head, kind)
            if turn:  # the first is for warming up
                times[kind].append(seconds)
    result: dict[str, Any] = {"batch": BATCH, "at_once": AT_ONCE, "noop_per_second": _rate(times["noop"])}
    for kind in ("untagged", "tagged"):
        # without over with: the share of the throughput that is left
        pairs = paired(times["noop"], times[kind])
        result[kind] = {"per_second": _rate(times[kind]), "ratio_to_noop": pairs["ratio"], "batches": pairs["pairs"]}
        result[kind] |= {name: pairs[name] for name in ("pair_ratio_p25", "pair_ratio_p75")}
    return result


def _rate(seconds: list[float]) -> float:
    return round(BATCH / sorted(seconds)[len(seconds) // 2], 1)


def measure() -> dict[str, Any]:
    """Everything, with one slurmctld."""
    with Head(PROCTRACK="proctrack/linuxproc") as head:
        times = decisions(head)
        with members_replaced(1.0):
            times |= submit(head, ["reload"] * RELOADS)
        rates = throughput(head)
        stubs = stub.measure(60)
    both = times["untagged"] + times["tagged"]
    kinds = {**times, "filter": both}
    result = {kind: summary(values) for kind, values in kinds.items()}
    return {
        **machine(),
        "users": USERS,
        "decision_ms": result,
        "ratio_filter_to_noop": round(result["filter"]["p50"] / result["noop"]["p50"], 1),
        "ratio_python_to_filter": round(result["python"]["p50"] / result["filter"]["p50"], 1),
        "throughput": rates,
        "stub": stubs,
    }


def main(arguments: list[str]) -> int:
    """``python3 -m bench.submission FILE``."""
    result = measure()
    write(arguments[0], result)
    for kind, found in result["decision_ms"].items():
        print(f"{kind:10} {found}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m bench.submission FILE")
    sys.exit(main(sys.argv[1:]))
