"""The submission path at native speed: how long slurmctld waits for a decision, and what that does to throughput.

Real slurmctlds and the decision daemon, no nodes, a policy and members as of a large site (bench/large.py). The times
are taken inside slurmctld, by bench/submission.lua around the installed filter. The throughput is taken by sbatch, from
slurmctlds that differ in nothing but the plugin, one of them without any. Everything takes its turn with the others in
one run. Run it as root in a throw-away root that ``install.sh`` was run in: ``tests/testbed/suite.sh bench``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import large, stub
from bench.head import MEMBERS, PLUGINS, Head, folder
from bench.measure import BenchError, machine, paired, shuffled, summary, write
from slurm_hooks.snapshot import write_snapshot
from tests.testbed import settings

TARGET_P99_MS = 1.0
TARGET_THROUGHPUT = 0.97
ROUNDS = 400
PYTHON_EVERY = 5
RELOADS = 800
BATCH = 160
BATCHES = 24
SETTLE = 0.1
"""Seconds after each batch: what a daemon does for it afterwards must not burden the next one."""
WARM_UP = 30
AT_ONCE = 4
TIMES = Path("/var/log/slurm/bench.tsv")
TAG = "--extra='secure-slurm:class=phi;residency=eu;scratch=209715200'"
DATASETS = "--extra='secure-slurm:class=phi;residency=eu;scratch=209715200;datasets=data-007,data-499'"
OPTIONS = {"noop": "", "untagged": "", "tagged": TAG, "datasets": DATASETS, "reload": TAG, "python": ""}


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
    """No-op plugin, filter with and without a tag, and a plugin that starts Python: in turns.

    The daemon was always asked about a tagged job less than a second ago, so the filter itself lets untagged ones pass.
    """
    submit(head, ["noop", "untagged", "tagged", "datasets", "python"] * (WARM_UP // 5))
    kinds: list[str] = []
    for turn in range(ROUNDS):
        kinds += shuffled(["noop", "untagged", "tagged", "datasets"] + ["python"] * (turn % PYTHON_EVERY == 0), turn)
    return submit(head, kinds)


@contextlib.contextmanager
def members_replaced(every: float) -> Iterator[None]:
    """Replace the members file again and again by one that differs, so that the daemon reads it while it is asked."""
    stop = threading.Event()
    both = []
    for turn in (1, 2):
        write_snapshot(MEMBERS, large.members(turn))
        both.append(MEMBERS.read_bytes())

    def replace() -> None:
        for content in itertools.cycle(both):
            if stop.wait(every):
                return
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
    lines = [
        f"export SLURM_CONF={folder(kind)}/slurm.conf",
        f"seq {BATCH} | xargs -P{AT_ONCE} -I@ "
        f"sbatch --hold --job-name=bench {OPTIONS.get(kind, '')} --wrap=true >last 2>&1",
    ]
    script = head.script("alice", "batch.sh", "\n".join(lines) + "\n")
    begun = time.perf_counter()
    head.as_user("alice", ["sh", script], check=True, timeout=300)
    seconds = time.perf_counter() - begun
    said = Path("/home/alice/last").read_text().splitlines()
    if len(said) != BATCH or not all(line.startswith("Submitted batch job") for line in said):
        raise BenchError(f"not every submission of a batch ({kind}) was accepted: {said[:5]}\n{head.logs()}")
    time.sleep(SETTLE)
    return seconds


def throughput(head: Head) -> dict[str, Any]:
    """Submissions a second without any plugin, with one that does nothing, and with the filter: in turns."""
    times: dict[str, list[float]] = {kind: [] for kind in PLUGINS}
    spent = dict.fromkeys(PLUGINS, 0.0)
    daemon = head.daemons["decisiond"].pid
    before_all = len(_lines())
    for turn in range(BATCHES + 1):
        for kind in shuffled(list(PLUGINS), turn):
            before = _processor(head.pids[kind]) + _processor(daemon)
            seconds = batch(head, kind)
            if turn:  # the first is for warming up
                times[kind].append(seconds)
                spent[kind] += _processor(head.pids[kind]) + _processor(daemon) - before
    result: dict[str, Any] = {"batch": BATCH, "at_once": AT_ONCE, "trail": trail(head, before_all)}
    for kind in PLUGINS:
        # without over with: the share of the throughput that is left
        pairs = paired(times["plain"], times[kind])
        shares = [plain / ours for plain, ours in zip(times["plain"], times[kind], strict=True)]
        result[kind] = {
            "per_second": _rate(times[kind]),
            "ratio_to_plain": round(statistics.median(shares), 3),
            "batches": pairs["pairs"],
            "pair_ratio_p25": pairs["pair_ratio_p25"],
            "pair_ratio_p75": pairs["pair_ratio_p75"],
            "head_node_ms_per_job": round(spent[kind] / BATCH / BATCHES * 1000, 3),
        }
    return result


def trail(head: Head, before: int) -> dict[str, int]:
    """How many decisions stand in the audit trail since ``before`` lines, and how many of them were told, not asked.

    BenchError unless there is one for each submission, and the chain is whole: what is not written is fast.
    """
    lines = _lines()[before:]
    expected = 2 * BATCH * (BATCHES + 1)
    if len(lines) != expected or any(line["event"] != "decision" for line in lines):
        raise BenchError(f"{expected} decisions, and {len(lines)} lines in the trail\n{head.logs()}")
    head.tool("audit", "verify")
    return {"decisions": len(lines), "told": sum(line["verb"] == "note" for line in lines)}


def _lines() -> list[dict[str, Any]]:
    (path,) = Path(settings.LOG, "decision").glob("*-decision.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rate(seconds: list[float]) -> float:
    return round(BATCH / statistics.median(seconds), 1)


def targets(result: dict[str, Any]) -> dict[str, Any]:
    """What the figures were to be, and whether they are: the decision's p99, and the throughput by kind of job."""
    worst = max(result["decision_ms"][kind]["p99"] for kind in ("untagged", "tagged", "datasets"))
    rates = {kind: result["throughput"][kind]["ratio_to_plain"] for kind in ("untagged", "tagged")}
    return {
        "p99_ms": {"target": TARGET_P99_MS, "reached": worst, "met": worst <= TARGET_P99_MS},
        **{
            f"throughput_{kind}": {"target": TARGET_THROUGHPUT, "reached": rate, "met": rate >= TARGET_THROUGHPUT}
            for kind, rate in rates.items()
        },
    }


def measure() -> dict[str, Any]:
    """Everything, with one decision daemon."""
    with Head(PROCTRACK="proctrack/linuxproc") as head:
        times = decisions(head)
        with members_replaced(1.0):
            times |= submit(head, ["reload"] * RELOADS)
        rates = throughput(head)
        stubs = stub.measure(60)
    kinds = {**times, "filter": times["untagged"] + times["tagged"] + times["datasets"]}
    result = {kind: summary(values) for kind, values in kinds.items()}
    found = {
        **machine(),
        "users": large.USERS,
        "roles": large.ROLES,
        "datasets": large.DATASETS,
        "decision_ms": result,
        "ratio_filter_to_noop": round(result["filter"]["p50"] / result["noop"]["p50"], 1),
        "ratio_python_to_filter": round(result["python"]["p50"] / result["filter"]["p50"], 1),
        "throughput": rates,
        "stub": stubs,
    }
    return {**found, "targets": targets(found)}


def main(arguments: list[str]) -> int:
    """``python3 -m bench.submission FILE``."""
    result = measure()
    write(arguments[0], result)
    for kind, found in result["decision_ms"].items():
        print(f"{kind:10} {found}")
    for kind in PLUGINS:
        print(f"{kind:10} {result['throughput'][kind]}")
    for name, target in result["targets"].items():
        print(f"{name:20} {target}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 -m bench.submission FILE")
    sys.exit(main(sys.argv[1:]))
