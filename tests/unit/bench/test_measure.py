"""The arithmetic of the benchmarks, and that half a run is not taken for a whole one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import join, large, submission
from bench.measure import BenchError, in_turns, paired, percentile, summary, timed
from conf.policy import load_policy

MACHINE = {"slurm": "24.11.5", "python": "3.13.5", "cores": 2, "kernel": "6.12"}
PAIR = {"pairs": 12, "ours_ms": 2.0, "base_ms": 1.0, "ratio": 2.0, "pair_ratio_p25": 1.5, "pair_ratio_p75": 2.5}
TIMES = {"n": 10, "p50": 1.0, "p99": 2.0, "max": 3.0}
STUB = dict.fromkeys(("stub", "epilog_stub", "sh", "python", "python_with_imports"), PAIR)
RATE = {"per_second": 90.0, "ratio_to_plain": 0.9, "batches": 10, "head_node_ms_per_job": 1.0}
SUBMISSION = {
    **MACHINE,
    "users": 50000,
    "roles": 200,
    "datasets": 500,
    "decision_ms": dict.fromkeys(("noop", "untagged", "tagged", "datasets", "reload", "python", "filter"), TIMES),
    "ratio_filter_to_noop": 100.0,
    "ratio_python_to_filter": 10.0,
    "throughput": {
        "batch": 40,
        "at_once": 4,
        "trail": {"decisions": 2, "told": 1},
        **dict.fromkeys(("plain", "noop", "untagged", "tagged"), RATE),
    },
    "targets": {"p99_ms": {"target": 1.0, "reached": 2.0, "met": False}},
    "stub": STUB,
}
SIZE = {
    "prolog": {"hook": PAIR, "open_scratch": PAIR, "node_daemon_ms": TIMES, "python_with_imports_ms": TIMES},
    "epilog": {"hook": PAIR, "close_scratch": PAIR},
}
SCRATCH = {**MACHINE, "cores": 1, "sizes": {"100M": SIZE, "1T": SIZE}, "stub": STUB}

SECONDS = {"p50": 0.2, "max": 0.4, "runs": 10}
REVOCATION = {
    **MACHINE,
    "cores": 1,
    "seconds": {"revoke": {"blocked": SECONDS}, "freeze": {"blocked": SECONDS, "resumed": SECONDS}},
    "targets": {"revoke blocked": {"target": 1.0, "reached": 0.4, "met": True}},
}


def run_join(folder: Path, **parts: dict[str, Any]) -> int:
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    return join.main([str(folder), str(folder / "bench.json")])


def test_a_missing_part_is_no_result(tmp_path: Path) -> None:
    assert run_join(tmp_path, submission=SUBMISSION) == 1
    assert run_join(tmp_path, submission=SUBMISSION, scratch=SCRATCH) == 1
    assert not (tmp_path / "bench.json").exists()


def test_parts_of_different_versions_are_not_joined(tmp_path: Path) -> None:
    parts = {"submission": SUBMISSION, "scratch": SCRATCH, "revocation": REVOCATION}
    for name in ("scratch", "revocation"):
        assert run_join(tmp_path, **{**parts, name: {**parts[name], "slurm": "26.05.5"}}) == 1


def test_the_whole_names_machine_and_date_and_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_join(tmp_path, submission=SUBMISSION, scratch=SCRATCH, revocation=REVOCATION) == 0
    result = json.loads((tmp_path / "bench.json").read_text())
    assert {name: result[name] for name in ("slurm", "python", "cores")} == {
        "slurm": "24.11.5",
        "python": "3.13.5",
        "cores": 2,
    }
    assert result["date"].startswith("20")
    said = capsys.readouterr().out
    assert "1T Prolog, whole" in said
    assert "freeze: until it writes again, from the start of resume" in said


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 0.99), percentile(values, 0.5), percentile(values, 1)) == (99, 50, 100)
    assert percentile([3.0], 0.01) == 3
    with pytest.raises(ValueError, match="percentile"):
        percentile([], 0.5)


def test_a_summary_is_in_milliseconds() -> None:
    assert summary([0.001, 0.003, 0.002]) == {"n": 3, "p50": 2.0, "p99": 3.0, "max": 3.0}


def test_a_ratio_is_of_medians_and_its_spread_of_pairs() -> None:
    found = paired([2.0, 4.0, 6.0, 40.0], [1.0, 2.0, 4.0, 10.0])
    assert (found["ours_ms"], found["base_ms"], found["ratio"]) == (5000, 3000, 1.67)
    assert (found["pair_ratio_p25"], found["pair_ratio_p75"]) == (1.5, 2.0)


def test_series_of_different_lengths_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="same length"):
        paired([1.0], [1.0, 2.0])


def test_every_act_has_its_turn_in_every_round_and_in_changing_order() -> None:
    seen = ""

    def act(name: str) -> float:
        nonlocal seen
        seen += name
        return float(len(seen))

    found = in_turns(20, {"a": lambda: act("a"), "b": lambda: act("b"), "c": lambda: act("c")})
    rounds = [seen[at : at + 3] for at in range(0, 60, 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert {each[0] for each in rounds} == set("abc")
    assert sorted(found["a"] + found["b"] + found["c"]) == list(range(1, 61))


def test_a_command_that_fails_has_no_time() -> None:
    with pytest.raises(BenchError, match="ended with 3: why"):
        timed(["/bin/sh", "-c", "echo why; exit 3"])
    assert timed(["/bin/true"]) > 0


def test_the_large_site_is_as_large_as_the_page_says(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(large.policy())
    policy = load_policy(str(path))
    members = large.members()

    assert (len(policy.roles), len(policy.datasets)) == (200, 500)
    assert policy.groups() <= set(members.groups)
    assert len(members.groups) == 200
    assert len(members.groups_of("alice")) == 4
    assert members.groups != large.members(1).groups
    assert sum(1 for number in range(50_000) if members.groups_of(f"user{number:06d}")) == 49_999


def test_a_target_is_met_or_not() -> None:
    times = {"untagged": {"p99": 0.2}, "tagged": {"p99": 1.1}, "datasets": {"p99": 0.9}}
    rates = {"untagged": {"ratio_to_plain": 0.98}, "tagged": {"ratio_to_plain": 0.8}}
    found = submission.targets({"decision_ms": times, "throughput": rates})

    assert {name: (each["reached"], each["met"]) for name, each in found.items()} == {
        "p99_ms": (1.1, False),
        "throughput_untagged": (0.98, True),
        "throughput_tagged": (0.8, False),
    }
