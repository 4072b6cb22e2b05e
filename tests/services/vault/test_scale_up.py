"""A hundred instances at once, against a real OpenBao: they enrol, one job starts on all, and each gets its key.

What reaches Vault at a time is bounded: by the enrolment daemon's threads, by the workers that make one job's keys, and
on the nodes, which cannot know of each other, by a random pause before the login (slurm_hooks/spread.py).
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from conf.policy import load_policy
from conf.site import Site
from keys import lifecycle_keys
from keys.grant import Grant
from keys.names import new_key_name
from keys.vault_head import VaultHead
from slurm_hooks.enrolling import Desk
from slurm_hooks.enrolserver import AT_ONCE
from slurm_hooks.noded import NodeDaemon
from tests.services.vault.conftest import patiently
from tests.testbed.enrol_world import Cluster, Machine
from tests.testbed.openbao import OpenBao
from tests.testbed.pki import CA

COUNT = 100
MOST = 18
"""Requests for one node's share of a job, from its enrolment to the end of its key."""
NODES = [f"n{number}" for number in range(1, COUNT + 1)]
POLICY = """\
version: 1
jurisdictions: {eu: {feature: eu, regions: [eu-central-1]}}
classes: [{name: phi, residency: required, scratch: required, default_scratch: 1G, max_scratch: 1T}]
roles: {phi-eu: {groups: ["cn=phi-eu,ou=groups,dc=example"], classes: [phi], jurisdictions: [eu]}}
partitions: {phi: {demand_tag: true, jurisdiction: eu}}
"""


class Crowd:
    """How many are in one place at a time, at most, and how many in all had there what they came for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = self.most = self.all = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*words: Any, **more: Any) -> Any:
            with self.inside():
                got = act(*words, **more)
            if getattr(got, "status_code", 200) == 200:
                with self._lock:
                    self.all += 1
            return got

        return counted


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ca: CA) -> Iterator[Cluster]:
    with OpenBao(tmp_path_factory.mktemp("bao-scale"), ca) as bao:
        made = Cluster(bao, tmp_path_factory.mktemp("cluster"))
        assert made.init() == 0
        yield made


def at_once(act: Callable[[Any], Any], what: list[Any]) -> list[Any]:
    """All of them at the same moment; what each got."""
    gate = threading.Barrier(len(what))

    def one(each: Any) -> Any:
        gate.wait(120)
        return act(each)

    with ThreadPoolExecutor(len(what)) as pool:
        return list(pool.map(one, what))


def requests(bao: OpenBao) -> list[dict[str, Any]]:
    """Every request that Vault was asked, by its own audit log; what the test itself asks as root is not counted."""
    lines = map(json.loads, bao.audit_log.read_text().splitlines())
    return [line for line in lines if line["type"] == "request" and "root" not in line["auth"].get("policies", [])]


def grant(node: str) -> Grant:
    return Grant(
        **{"v": "1", "incarnation": "ab" * 16, "key": new_key_name(node, "test", "17"), "cluster": "test"},
        **{"job": "17", "uid": "1001", "user": "alice", "nodes": ",".join(NODES), "restarts": "0"},
        **{"scratch": "1073741824", "klass": "phi", "residency": "eu", "datasets": "", "created": "1790000000"},
    )


def proved(machine: Machine) -> Site:
    """With the same document as for the enrolment."""
    run = machine.folder / "run"
    (run / "daemon").mkdir(parents=True)
    site = machine.site
    return attrs.evolve(site, node=attrs.evolve(site.node, proof="ec2", run_dir=str(run)))


def test_a_hundred_nodes(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, written, logins = Crowd(), Crowd(), Crowd()
    monkeypatch.setattr(Desk, "_answer", judged.around(Desk._answer))
    monkeypatch.setattr(VaultHead, "write_grant", written.around(VaultHead.write_grant))
    cluster.means(**{node: f"i-{number:017x}" for number, node in enumerate(NODES, 1)})
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "policy.yaml").chmod(0o644)
    policy = load_policy(str(tmp_path / "policy.yaml"))
    vault = cluster.world.bao
    before = len(requests(vault))
    with ExitStack() as stack:
        stack.enter_context(cluster.serving())
        machines = [
            stack.enter_context(Machine(cluster, tmp_path / node, node, f"i-{number:017x}"))
            for number, node in enumerate(NODES, 1)
        ]
        assert at_once(lambda machine: patiently(machine.enrolment.once).node, machines) == NODES
        assert judged.most <= AT_ONCE
        assert judged.all >= COUNT

        grants = [grant(node) for node in NODES]
        with cluster.world.head() as head:
            lifecycle_keys.create(head, grants, lambda: True)
            assert written.most <= lifecycle_keys.WORKERS

            daemons = [NodeDaemon(proved(machine), policy, machine.node) for machine in machines]
            for daemon in daemons:
                session = daemon._vault.session
                session._login = logins.around(session._login)
                stack.callback(daemon.close)
            asked = {
                "job": b"17",
                "uid": b"1001",
                "cluster": b"test",
                "restarts": b"0",
                "nodes": ",".join(NODES).encode(),
            }

            def opened(daemon: NodeDaemon) -> dict[str, bytes | str]:
                return patiently(lambda: daemon._open({**asked, "node": daemon.node.encode()}))

            answers = at_once(opened, daemons)

            assert [answer["verdict"] for answer in answers] == ["allow"] * COUNT
            assert [answer["grant.key"] for answer in answers] == [each.key for each in grants]
            assert len({answer["plaintext"] for answer in answers}) == COUNT
            assert logins.all == COUNT
            assert all(daemon._vault.session.has_token for daemon in daemons)
            ended = lifecycle_keys.destroy(head, "17", NODES)
        assert all(one.done for one in ended)
    asked = requests(vault)[before:]
    seconds = Counter(line["time"][:19] for line in asked)
    # enrolment, key, grant, login, the Prolog's questions, and the end: nobody asks again and again
    assert len(asked) <= MOST * COUNT
    kinds = Counter((line["request"]["operation"], line["request"]["path"].split("/")[0]) for line in asked)
    print(f"\nat a time: {judged.most} enrolments, {written.most} grants, {logins.most} logins of {COUNT}")
    print(f"Vault was asked {len(asked)} times in {len(seconds)} s, {max(seconds.values())} times in one: {kinds}")
