"""Put the parts of a benchmark run into one file, and show what is to be read of it. Standard library only.

    python3 -m bench.join DIRECTORY FILE

The parts are ``submission.json`` (native), ``scratch.json`` and ``revocation.json`` (guest) in DIRECTORY. One that is
missing is an error: half a result would be taken for a whole one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.measure import write

PARTS = ("submission", "scratch", "revocation")
MACHINE = ("slurm", "python", "cores", "kernel")


def join(parts: dict[str, dict[str, Any]], date: str) -> dict[str, Any]:
    """The whole result: the machine as the native part saw it, and the parts under their names.

    ``cores`` is the machine's, for the guest has one by nature; its own is in its part. ValueError when the parts are
    of different versions of Slurm or Python: they cannot be read together then.
    """
    native = parts["submission"]
    for name, part in parts.items():
        for what in ("slurm", "python"):
            if part[what] != native[what]:
                raise ValueError(f"{name} was measured with {what} {part[what]}, submission with {native[what]}")
    return {"date": date, **{name: native[name] for name in MACHINE if name != "kernel"}, **parts}


def table(result: dict[str, Any]) -> Iterator[str]:
    """What a reader wants to know, a line each."""
    yield f"{result['date']}  Slurm {result['slurm']}  Python {result['python']}  {result['cores']} cores"
    yield from _submission(result["submission"])
    yield from _scratch(result["scratch"])
    yield from _revocation(result["revocation"])


def _submission(part: dict[str, Any]) -> Iterator[str]:
    size = f"{part['users']} users, {part['roles']} roles, {part['datasets']} datasets"
    yield f"\nslurmctld waits for a decision, native (ms); {size:36}     n      p50      p99      max"
    words = {
        "noop": "plugin that does nothing",
        "untagged": "filter, job without a tag",
        "tagged": "filter, job with a tag",
        "datasets": "filter, tag with two datasets",
        "reload": "filter, tag, other members each second",
        "python": "plugin that starts Python",
    }
    for name, text in words.items():
        found = part["decision_ms"][name]
        yield f"  {text:76} {found['n']:6} {found['p50']:8.3f} {found['p99']:8.3f} {found['max']:8.3f}"
    ratios = part["ratio_filter_to_noop"], part["ratio_python_to_filter"]
    yield f"  filter / nothing: {ratios[0]}   Python / filter: {ratios[1]}   (p50)"
    rates = part["throughput"]
    yield f"\nsbatch, {rates['at_once']} at once, native{'':26}  per second   of no plugin's   head node, ms a job"
    names = {"plain": "no plugin", "noop": "plugin that does nothing", "untagged": "filter, job without a tag"}
    for name, text in {**names, "tagged": "filter, job with a tag"}.items():
        found = rates[name]
        yield (
            f"  {text:47} {found['per_second']:9.1f} {found['ratio_to_plain']:16.3f}"
            f" {found['head_node_ms_per_job']:21.3f}"
        )
    yield f"  {rates['trail']['decisions']} decisions in the trail, {rates['trail']['told']} of them told and not asked"
    yield "\ntargets"
    for name, target in part["targets"].items():
        met = "met" if target["met"] else "not met"
        yield f"  {name:30} target {target['target']:<6} reached {target['reached']:<8} {met}"
    yield f"\nthe Prolog before any work, native{'':31}   ours      base   ratio   (quarters of the pairs)"
    yield from _stub(part["stub"])


def _scratch(part: dict[str, Any]) -> Iterator[str]:
    yield f"\nencrypted scratch in the guest (ms){'':30}   ours      bare   ratio   (quarters of the pairs)"
    for size, found in part["sizes"].items():
        yield _pair(f"{size} Prolog, whole", found["prolog"]["hook"])
        yield _pair(f"{size}   open_scratch alone", found["prolog"]["open_scratch"])
        for part_of, text in (
            ("node_daemon_ms", "grant and data key from the node daemon"),
            ("python_with_imports_ms", "start of Python and imports, without the server"),
        ):
            yield f"  {size}   {text:{57 - len(size)}} {found['prolog'][part_of]['p50']:9.2f}"
        yield _pair(f"{size} Epilog, whole", found["epilog"]["hook"])
        yield _pair(f"{size}   close_scratch alone", found["epilog"]["close_scratch"])
    yield f"\nthe Prolog before any work, guest{'':32}   ours      base   ratio   (quarters of the pairs)"
    yield from _stub(part["stub"])


def _revocation(part: dict[str, Any]) -> Iterator[str]:
    yield f"\nfrom the start of the command, in the guest (s){'':26}  runs      p50      max"
    words = {
        "blocked": "until a dd in the job writes nothing",
        "refused": "until Vault refuses the key",
        "command": "until all have confirmed",
        "resumed": "until it writes again, from the start of resume",
    }
    for name, each in part["seconds"].items():
        for what, found in each.items():
            text = f"{name}: {words[what]}"
            yield f"  {text:70} {found['runs']:5} {found['p50']:8.3f} {found['max']:8.3f}"
    for name, target in part["targets"].items():
        met = "met" if target["met"] else "not met"
        yield f"  {name:30} target {target['target']:<6} reached {target['reached']:<8} {met}"


def _stub(found: dict[str, Any]) -> Iterator[str]:
    yield _pair("Prolog, job not secured, to /bin/true", found["stub"])
    yield _pair("Epilog, job not secured, to /bin/true", found["epilog_stub"])
    yield _pair("sh -c :, to /bin/true", found["sh"])
    yield _pair("python3 -IS, to /bin/true", found["python"])
    yield _pair("python3 -IS and the Prolog's imports, to /bin/true", found["python_with_imports"])


def _pair(text: str, found: dict[str, Any]) -> str:
    middle = f"({found['pair_ratio_p25']} to {found['pair_ratio_p75']})"
    return f"  {text:60} {found['ours_ms']:9.2f} {found['base_ms']:9.2f} {found['ratio']:7.2f}   {middle}"


def main(arguments: list[str]) -> int:
    """Read, join, write, show. 1 when a part is missing or does not fit."""
    folder, target = Path(arguments[0]), arguments[1]
    try:
        parts = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in PARTS}
        result = join(parts, datetime.now(UTC).isoformat(timespec="seconds"))
    except (OSError, ValueError) as error:
        print(f"bench: no result: {error}", file=sys.stderr)
        return 1
    write(target, result)
    print("\n".join(table(result)))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python3 -m bench.join DIRECTORY FILE")
    sys.exit(main(sys.argv[1:]))
