"""The nodes' audit lines on the head node: complete when their machine is gone, refused when forged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit import chain
from audit.chain import Chain
from tests.cluster.test_revoke import all_connected, kill, restart
from tests.testbed import settings
from tests.testbed.cluster import Cluster
from tests.testbed.nodes import on_node

EU = ("--secure-class=phi", "--secure-residency=eu", "--secure-scratch=64M")
RECEIVED = Path(settings.LOG) / "lifecycle/nodes"


def trail(node: str, *, received: bool) -> Path:
    return (RECEIVED / node if received else Path(settings.LOG) / f"node-{node}") / f"{node}-node.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(path: Path, job: int) -> list[str]:
    return [line["event"] for line in lines(path) if line.get("job") == job]


def same(line: dict[str, Any], other: dict[str, Any], field: str) -> bool:
    return bool(line.get(field) == other[field])


def status(cluster: Cluster) -> dict[str, Any]:
    done = cluster.tool("status", "--json", check=False)
    return dict(json.loads(done.stdout)["lifecycle"]["segments"])


def told(cluster: Cluster, event: str) -> list[dict[str, Any]]:
    return [line for line in lines(Path(settings.LOG) / "lifecycle/head-lifecycle.jsonl") if line["event"] == event]


@pytest.fixture
def linked(clean: Cluster) -> Iterator[Cluster]:
    all_connected(clean)
    yield clean


def test_the_whole_story_is_held_when_the_machine_is_gone(linked: Cluster) -> None:
    job = linked.submit("alice", *EU, "--wrap=echo x > $SECURE_SCRATCH/data; sleep 2")
    linked.wait_end(job)
    assert linked.state(job) == "COMPLETED"
    (node,) = {line["node"] for line in linked_events(linked, job, "key.create")}
    linked.until(lambda: "scratch.gone" in events(trail(node, received=True), job), "the node's lines to arrive", 30)
    assert trail(node, received=True).read_bytes() == trail(node, received=False).read_bytes()

    # the instance is terminated: its daemons, and everything it has written
    kill(linked, node, "daemon")
    kill(linked, node, "hand")
    shutil.rmtree(f"{settings.LOG}/node-{node}")
    try:
        assert linked.tool("audit", "verify", settings.LOG).returncode == 0
        story = json.loads(linked.tool("audit", "show", "--json", "--job", str(job), settings.LOG).stdout)
        names = [line["event"] for line in story]
        # of the start that ran: one that Vault was late for was tried before it
        (ready,) = [line for line in story if line["event"] == "scratch.ready"]
        (made,) = [line for line in story if line["event"] == "key.create" and same(line, ready, "incarnation")]
        for event in ("start.judged", "scratch.gone"):
            assert [same(line, ready, "incarnation") for line in story if line["event"] == event].count(True) == 1
        assert [same(line, made, "key") for line in story if line["event"] == "key.delete"].count(True) == 1
        assert names.count("revocation.done") == 1

        # and Vault's own log says the same of its keys
        words = ("--json", "--vault-audit", str(linked.bao.audit_log), settings.LOG)
        found = json.loads(linked.tool("audit", "verify", *words, check=False).stdout)
        assert [gap for gap in found["gaps"] if gap["job"] == job] == []
        assert not [gap for gap in found["gaps"] if gap["kind"] in ("vault-damaged", "vault-other")]

        path = Path(f"/tmp/{job}.json")
        path.write_text(linked.tool("audit", "certificate", str(job)).stdout)
        public = Path("/tmp/certificates.pub")
        public.write_text(linked.tool("audit", "public-key").stdout)
        words = ("certificate", str(job), "--json", "--verify", str(path), "--public-key", str(public))
        (key,) = json.loads(linked.tool("audit", *words).stdout)["keys"]
        assert key["mapping"]["state"] == "absent"
        assert key["trail"]["arrived"]
        held = lines(trail(node, received=True))[-1]
        assert (key["trail"]["seq"], key["trail"]["hash"]) == (held["seq"], held["hash"])
    finally:
        linked.make(f"{settings.LOG}/node-{node}", "root", 0o755)
        on_node(node, ["sh", "/opt/tests/tests/testbed/guest/node_daemon.sh", node, "hand"])
        on_node(node, ["sh", "/opt/tests/tests/testbed/guest/node_daemon.sh", node, "daemon"])
        all_connected(linked)

    a_forged_chain(linked, job, node)
    a_successor(linked, job, node)


def a_forged_chain(linked: Cluster, job: int, node: str) -> None:
    # in this guest the successor has its predecessor's boot, which no machine has: that is a fork, and it is said
    before = trail(node, received=True).read_bytes()
    Chain(f"{settings.LOG}/node-{node}", "node", node).append(
        "scratch.gone", durable=True, job=job, node=node, evidence="another story"
    )
    linked.until(lambda: status(linked)["problems"], "the forged chain to be said", 60)
    (problem,) = status(linked)["problems"]
    assert (problem["node"], problem["trail"]) == (node, "node")
    assert "begins anew" in problem["why"]
    assert trail(node, received=True).read_bytes() == before
    refused = told(linked, "segment.refused")
    assert [(line["node"], line["rule"]) for line in refused] == [(node, "segment.fork")]
    done = linked.tool("status", check=False)
    assert done.returncode == 1
    assert f"BAD audit trails of the nodes: node {node}, node:" in done.stdout


def a_successor(linked: Cluster, job: int, node: str) -> None:
    # a machine of that name in another boot: a chain of its own, behind the one that is held
    shutil.rmtree(f"{settings.LOG}/node-{node}")
    linked.make(f"{settings.LOG}/node-{node}", "root", 0o755)
    successor = Chain(f"{settings.LOG}/node-{node}", "node", node)
    successor.boot = "22222222-2222-4222-8222-222222222222"
    successor.append("scratch.gone", durable=True, job=job, node=node, evidence="the successor's")
    restart(linked, node, "daemon")
    linked.until(lambda: events(trail(node, received=True), job) == ["scratch.gone"], "the successor's line", 60)
    (begun,) = told(linked, "segment.begun")
    assert (begun["node"], begun["trail"]) == (node, "node")
    assert status(linked)["problems"] == []
    assert linked.tool("audit", "verify", settings.LOG).returncode == 0


def linked_events(cluster: Cluster, job: int, event: str) -> list[dict[str, Any]]:
    return [line for line in told(cluster, event) if line.get("job") == job]


def test_lines_wait_for_a_head_node_that_is_away(linked: Cluster) -> None:
    linked.stop_daemon("lifecycled")
    try:
        hand = Chain(f"{settings.LOG}/node-n4", "hand", "n4")
        for _ in range(3):
            hand.append("hook.error", durable=True, hook="test", node="n4")
    finally:
        Path(f"{settings.RUN}/lifecycle/lifecycle.sock").unlink(missing_ok=True)
        linked.daemon("lifecycled", "secure-life")
    all_connected(linked)
    copy, own = RECEIVED / "n4/n4-hand.jsonl", Path(settings.LOG) / "node-n4/n4-hand.jsonl"
    linked.until(lambda: copy.exists() and copy.read_bytes() == own.read_bytes(), "what was written meanwhile", 60)
    assert linked.tool("audit", "verify", settings.LOG).returncode == 0


def test_an_export_is_signed_with_the_key_in_vault(
    linked: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, site = tmp_path / "audit", tmp_path / "secure-slurm.yaml"
    linked.make(str(folder / "lifecycle"), "root", 0o755)
    trail_of_old = Chain(folder / "lifecycle", "lifecycle", "head")
    for month in ("2022-01", "2022-02", "2022-03"):
        monkeypatch.setattr(chain, "_now", lambda month=month: f"{month}-10T12:00:00.000000Z")
        trail_of_old.append("vault.login", durable=True, result="ok")
    text = (Path(settings.ETC) / "secure-slurm.yaml").read_text()
    linked.write(site, text.replace(f"directory: {settings.LOG}", f"directory: {folder}"))
    public = tmp_path / "public.pem"
    public.write_text(linked.tool("audit", "public-key").stdout)
    words = ("--config", str(site), "audit")

    linked.tool(*words, "export", "--until", "2022-03-01", "--to", str(tmp_path / "out"))
    done = linked.tool(*words, "verify-export", str(tmp_path / "out"), "--public-key", str(public))
    assert "signature: good" in done.stdout
    # Vault away: it is said, and nothing else is different
    linked.bao.seal()
    try:
        done = linked.tool(*words, "export", "--until", "2022-03-01", "--to", str(tmp_path / "unsigned"))
    finally:
        linked.bao.unseal()
    assert "UNSIGNED: " in done.stdout
    assert (tmp_path / "unsigned/manifest.json").read_bytes() == (tmp_path / "out/manifest.json").read_bytes()
    refused = linked.tool(
        *words, "prune", "--exported", str(tmp_path / "unsigned"), "--public-key", str(public), check=False
    )
    assert refused.returncode != 0
    done = linked.tool(*words, "prune", "--exported", str(tmp_path / "out"), "--public-key", str(public), "--delete")
    assert "2 of 4 files deleted" in done.stdout
    assert linked.tool(*words, "verify", str(folder)).returncode == 0
