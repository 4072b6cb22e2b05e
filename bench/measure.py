"""Numbers from repeated measurements: summaries, ratios of what was measured side by side, and one way to write them.

Machines that run this are small and shared. So nothing is compared that was not measured in turns in the same run, and
what is to be read is the ratio; the milliseconds say what one machine did on one day. Standard library only.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE = 120.0
"""Seconds for one command that is measured: more than a hook's own deadline."""


class BenchError(Exception):
    """What was measured did not do what it should have done, so its time says nothing."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0 to 1) of all values do not exceed (nearest rank)."""
    if not values or not 0 < share <= 1:
        raise ValueError("a percentile needs values and a share above 0 and up to 1")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def summary(seconds: Sequence[float]) -> dict[str, float | int]:
    """``n`` and, in milliseconds, ``p50``, ``p99`` and ``max``."""
    return {
        "n": len(seconds),
        "p50": _ms(statistics.median(seconds)),
        "p99": _ms(percentile(seconds, 0.99)),
        "max": _ms(max(seconds)),
    }


def paired(ours: Sequence[float], base: Sequence[float]) -> dict[str, float | int]:
    """Two series measured in turns, in seconds: medians in ms, their ratio, and the middle half of the pairs' ratios.

    A load that comes and goes hits both members of a pair, so the spread of the pairs' ratios tells how far the one
    number can be trusted.
    """
    if len(ours) != len(base) or not ours:
        raise ValueError("pairs need two series of the same length")
    ratios = [mine / other for mine, other in zip(ours, base, strict=True)]
    return {
        "pairs": len(ours),
        "ours_ms": _ms(statistics.median(ours)),
        "base_ms": _ms(statistics.median(base)),
        "ratio": round(statistics.median(ours) / statistics.median(base), 2),
        "pair_ratio_p25": round(percentile(ratios, 0.25), 2),
        "pair_ratio_p75": round(percentile(ratios, 0.75), 2),
    }


def in_turns(rounds: int, acts: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Call each act once a round, in an order that changes, and collect the seconds that it returns."""
    found: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(rounds):
        for name in shuffled(list(acts), turn):
            found[name].append(acts[name]())
    return found


def shuffled(names: Sequence[str], turn: int) -> list[str]:
    """One round's order, the same in every run. Were it fixed, one act would always come after the largest."""
    return random.Random(turn).sample(names, len(names))  # noqa: S311 - nobody gains by guessing it


def timed(argv: Sequence[str], *, env: Mapping[str, str] | None = None, data: bytes | None = None) -> float:
    """Seconds from starting a command to its end. BenchError when it does not end with 0."""
    begun = time.perf_counter()
    done = subprocess.run(
        list(argv),
        env=dict(env or {}),
        input=data,
        stdin=subprocess.DEVNULL if data is None else None,
        capture_output=True,
        check=False,
        timeout=DEADLINE,
        cwd="/",
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")[-500:]
        raise BenchError(f"{argv[0]} ended with {done.returncode}: {said}")
    return seconds


def machine() -> dict[str, Any]:
    """Where this runs: versions of Python and Slurm, the processors that may be used, the kernel."""
    slurm = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=False, timeout=DEADLINE).stdout
    return {
        "slurm": slurm.strip().rsplit(" ", 1)[-1],
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
    }


def write(path: str, result: Mapping[str, Any]) -> None:
    """Write a result as JSON."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _ms(seconds: float) -> float:
    # a tenth of a microsecond: below it the clock itself is all there is
    return round(seconds * 1000, 4)
