"""Nodes without a disk: scratch in memory, by the site's word and by the choice of ``auto``, and its ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_reaper import NO_EPILOG, TAG, gone_told, healed, idle_again, reap_kind, replaced, start
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node
from tests.testbed.people import BIN

Put = Callable[..., None]


@pytest.fixture
def put(clean: Cluster) -> Iterator[Put]:
    """Another ``scratch`` section for all nodes."""
    site = Path(settings.ETC) / "secure-slurm.yaml"
    before = site.read_text()

    def other(text: str, deadline: str = "45s") -> None:
        assert before.count("  backing: file\n") == before.count("  prolog_deadline: 45s\n") == 1
        changed = before.replace("  backing: file\n", text)
        clean.write(site, changed.replace("  prolog_deadline: 45s\n", f"  prolog_deadline: {deadline}\n"))
        clean.tool("conf", "render")

    yield other
    (Path(settings.ETC) / "scratch-store.json").unlink(missing_ok=True)
    clean.write(site, before)
    clean.tool("conf", "render")


def memory_of(job: int) -> list[str]:
    shown = Path("/sys/block").glob("loop*/loop/backing_file")
    return [str(path) for path in shown if f"/memfd:secure-n1-{job} " in path.read_text()]


def opened(cluster: Cluster, job: int) -> dict[str, Any]:
    text = cluster.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout
    return next(line for line in json.loads(text) if line["event"] == "scratch.open" and line["job"] == job)


def test_jobs_in_memory_their_epilog_and_the_reaper(clean: Cluster, put: Put) -> None:
    put("  backing: memory\n  limit: 300M\n")
    orphan = start(clean, "--wrap=sleep 600")
    with replaced(clean, "epilog", NO_EPILOG):
        clean.command(["scancel", str(orphan)])
        clean.wait_end(orphan)
    assert len(memory_of(orphan)) == 1
    job = start(clean, "--wrap=sleep 600")
    assert len(memory_of(job)) == 1
    assert clean.leftovers(job)["backing"] == []
    assert on_node("n1", ["findmnt", "-n", "-o", "SOURCE", f"/secure-scratch/{job}"]).strip().endswith(f"-{job}")
    assert opened(clean, job)["backing"] == "memory"
    assert "reason" not in opened(clean, job)
    status = on_node("n1", [f"{BIN}/secure-slurm", "node", "status", "--node", "n1", "--json"], check=False)
    assert any(line.startswith("loop: ") for each in json.loads(status)["jobs"] for line in each["there"])
    clean.command(["scancel", str(job)])
    clean.wait_gone(job)
    assert memory_of(job) == []
    assert len(memory_of(orphan)) == 1
    # a start takes no longer than its deadline: then the reaper need not wait longer either
    put("  backing: memory\n  limit: 300M\n", "11s")
    clean.until(lambda: reap_kind(orphan) == "healed", "the reaper", 120)
    clean.wait_gone(orphan, 60)
    assert memory_of(orphan) == []
    assert healed(clean, orphan)


def test_auto_refuses_until_it_has_chosen(clean: Cluster, put: Put) -> None:
    put(
        "  backing: auto\n  volume: /var/lib/secure-slurm\n  volume_group: vg.none\n  diskless: memory\n  limit: 300M\n"
    )
    job = clean.submit("alice", *TAG, "-w", "n1", "--wrap=echo ran")
    clean.until(lambda: "n1" in clean.drained(), "node n1 to drain", 90)
    assert "node store --prepare" in clean.drained() or "not been chosen" in clean.drained()
    # a cancellation that meets the requeue is lost
    clean.wait_state(job, "PENDING")
    clean.command(["scancel", str(job)])
    clean.wait_end(job)
    said = on_node("n1", [f"{BIN}/secure-slurm", "node", "store", "--prepare", "--node", "n1"])
    assert said.startswith("scratch lies on: memory (no volume group vg.none and nothing is mounted at")
    idle_again(clean)
    job = start(clean, "--wrap=sleep 600")
    assert len(memory_of(job)) == 1
    assert opened(clean, job)["backing"] == "memory"
    assert opened(clean, job)["reason"].startswith("auto: no volume group vg.none")
    clean.command(["scancel", str(job)])
    clean.wait_gone(job)
    clean.until(lambda: gone_told(clean, job), "the Epilog's last line")
    # run again, it has nothing to say, and mends what an earlier run that was cut short has not rendered
    hooks = Path(settings.ETC) / "hooks.json"
    rendered = hooks.read_text()
    clean.write(hooks, json.dumps(json.loads(rendered) | {"scratch": {"backing": "auto"}}))
    count = len(json.loads(clean.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout))
    on_node("n1", [f"{BIN}/secure-slurm", "node", "store", "--prepare", "--node", "n1"])
    assert len(json.loads(clean.tool("audit", "show", "--json", f"{settings.LOG}/node-n1").stdout)) == count
    assert hooks.read_text() == rendered
    clean.tool("audit", "verify", settings.LOG)
