"""A policy beside what slurmctld answers: each finding with an occasion and without, and answers that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from admin import policy_nodes
from admin.main import main
from admin.policy_nodes import Cluster, Node, ask_slurm, compare
from conf.errors import BackendUnavailable
from conf.policy import DataClass, Dataset, Jurisdiction, Partition, Policy, Role
from keys.process import Completed, ProcessError

SHIPPED = Path(__file__).parents[3] / "conf/policy.yaml"


def make(**more: Any) -> Policy:
    policy = Policy(
        version=1,
        jurisdictions={
            "eu": Jurisdiction(feature="f-eu", regions=("eu-west-1",)),
            "us": Jurisdiction(feature="f-us", regions=("us-east-1",)),
        },
        classes=(
            DataClass(name="low", residency="optional", scratch="optional", exclusive_nodes=False),
            DataClass(name="high", residency="required", scratch="optional", exclusive_nodes=True),
        ),
        roles={"r": Role(groups=("cn=g",), classes=("low", "high"), jurisdictions=("eu",), partitions=("phi",))},
        partitions={"phi": Partition(demand_tag=True, least_class="high", jurisdiction="eu")},
    )
    return attrs.evolve(policy, **more)


def node(name: str, *partitions: str, features: tuple[str, ...] = ("f-eu", "ib")) -> Node:
    return Node(name, frozenset(features), frozenset(partitions))


def cluster(*nodes: Node, forced: tuple[str, ...] = ()) -> Cluster:
    return Cluster({name: name in forced for name in ("phi", "main", "other")}, nodes)


def found(policy: Policy, seen: Cluster) -> set[tuple[str, str, tuple[str | int, ...]]]:
    return {(each.severity, each.check, each.where) for each in compare(policy, seen)}


DATA = {"d": Dataset(klass="high", residency=("eu",), roles=("r",), paths=("/data/d",))}
OWNED = {
    "eu": Jurisdiction(feature="f-eu", regions=("eu-west-1",), file_systems=("fs-eu:/",)),
    "us": Jurisdiction(feature="f-us", regions=("us-east-1",)),
}


def test_a_cluster_that_is_as_the_policy_says() -> None:
    assert found(make(), cluster(node("n1", "phi"), node("n2", "main", features=("f-us",)))) == set()
    assert found(make(datasets=DATA), cluster(node("n1", "phi"), node("n2", "main", "other", features=()))) == set()


@pytest.mark.parametrize(
    ("policy", "seen", "finding"),
    [
        (
            make(),
            cluster(node("n1", "phi", "main")),
            ("warning", "slurm-node-shared", ("partitions", "phi")),
        ),
        (
            make(datasets=DATA),
            cluster(node("n1", "phi", "main")),
            ("error", "slurm-node-shared", ("partitions", "phi")),
        ),
        (
            make(jurisdictions=OWNED),
            cluster(node("n1", "phi", "main")),
            ("error", "slurm-node-shared", ("partitions", "phi")),
        ),
        (
            make(partitions={"ph": Partition()}),
            cluster(),
            ("error", "slurm-partition-missing", ("partitions", "ph")),
        ),
        (
            make(roles={"r": Role(groups=("g",), classes=("low",), jurisdictions=("eu",), partitions=("x", "phi"))}),
            cluster(),
            ("error", "slurm-partition-missing", ("roles", "r", "partitions", 0)),
        ),
        (
            make(classes=(DataClass(name="low", residency="optional", scratch="optional", partitions=("phi", "x")),)),
            cluster(),
            ("error", "slurm-partition-missing", ("classes", 0, "partitions", 1)),
        ),
        (
            make(),
            cluster(node("n1", "phi"), node("n2", "phi", features=("ib",))),
            ("error", "slurm-feature-missing", ("partitions", "phi", "jurisdiction")),
        ),
        (
            make(),
            cluster(node("n1", "phi", features=("f-us",))),
            ("error", "slurm-feature-foreign", ("partitions", "phi", "jurisdiction")),
        ),
        (
            make(partitions={"main": Partition(jurisdiction="us")}),
            cluster(node("n1", "main")),
            ("error", "slurm-feature-foreign", ("partitions", "main", "jurisdiction")),
        ),
        (
            make(),
            cluster(node("n1", "other", features=("f-us", "f-eu"))),
            ("error", "slurm-node-two-places", ("jurisdictions", "us", "feature")),
        ),
        (
            make(),
            cluster(node("n1", "phi"), forced=("phi",)),
            ("error", "slurm-sharing-forced", ("partitions", "phi")),
        ),
        (
            make(roles={"r": Role(groups=("g",), classes=("high",), jurisdictions=("eu",))}),
            cluster(node("n1", "phi"), forced=("other",)),
            ("error", "slurm-sharing-forced", ("classes",)),
        ),
    ],
)
def test_a_finding(policy: Policy, seen: Cluster, finding: tuple[str, str, tuple[str | int, ...]]) -> None:
    assert finding in found(policy, seen)
    assert all(each.message and each.advice for each in compare(policy, seen))


def test_forced_sharing_where_no_class_with_nodes_of_its_own_comes() -> None:
    assert found(make(), cluster(forced=("main",))) == set()
    bound = (
        DataClass(name="low", residency="optional", scratch="optional", exclusive_nodes=False),
        DataClass(name="high", residency="required", scratch="optional", partitions=("main",)),
    )
    assert ("error", "slurm-sharing-forced", ("partitions", "phi")) not in found(
        make(classes=bound), cluster(forced=("phi",))
    )


def test_many_nodes_are_counted() -> None:
    seen = cluster(*(node(f"n{number}", "phi", "main") for number in range(9)))
    (told,) = compare(make(), seen)
    assert "n0, n1, n2, n3, n4 and 4 more nodes" in told.message


PARTITIONS = b"""\
PartitionName=phi AllowGroups=ALL AllowAccounts=ALL Default=NO OverSubscribe=FORCE:2 OverTimeLimit=NONE State=UP

PartitionName=main AllowGroups=ALL Default=YES OverSubscribe=NO State=UP Nodes=n[1-4]
PartitionName=FORCE OverSubscribe=YES:4
"""
NODES = {"nodes": [{"name": "n1", "features": ["eu", "us"], "active_features": ["eu"], "partitions": ["phi"]}]}


class Answers:
    """scontrol with these answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, partitions: object = PARTITIONS, nodes: object = NODES) -> None:
        self.answers = {"partitions": partitions, "nodes": nodes}
        self.asked: list[list[str]] = []
        monkeypatch.setattr(policy_nodes, "run", self.run)

    def run(self, argv: list[str], **_: object) -> Completed:
        self.asked.append(argv)
        answer = self.answers[argv[-1]]
        if isinstance(answer, Exception):
            raise answer
        return Completed(0, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), b"")


def test_slurms_answers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    assert ask_slurm("/opt/slurm/bin") == Cluster(
        {"phi": True, "main": False, "FORCE": False}, (Node("n1", frozenset({"eu", "us"}), frozenset({"phi"})),)
    )
    assert [argv[0] for argv in answers.asked] == ["/opt/slurm/bin/scontrol"] * 2


@pytest.mark.parametrize(
    "answer",
    [
        ProcessError("scontrol failed"),
        b"",
        b"null",
        b"[]",
        b"{}",
        {"nodes": None},
        {"nodes": [1]},
        {"nodes": [{"name": "n1"}]},
        {"nodes": [{"name": "n1", "features": 1, "active_features": [], "partitions": []}]},
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_an_answer_that_is_none(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    Answers(monkeypatch, nodes=answer)
    with pytest.raises(BackendUnavailable):
        ask_slurm("/usr/bin")


@pytest.mark.parametrize(
    "answer", [ProcessError("no"), b"", b"\n", b"No partitions in the system", b"PartitionName=phi\n"]
)
def test_no_partitions(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    Answers(monkeypatch, partitions=answer)
    with pytest.raises(BackendUnavailable):
        ask_slurm("/usr/bin")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    text = (SHIPPED.parent / "secure-slurm.yaml").read_text()
    for name, content in (("secure-slurm.yaml", text), ("policy.yaml", SHIPPED.read_text())):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o644)
    return tmp_path


def test_the_command(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Answers(monkeypatch)
    words = ["--config", str(site / "secure-slurm.yaml"), "policy", "check", "--slurm", str(site / "policy.yaml")]
    assert main(words) == 1
    shown = capsys.readouterr().out
    line = SHIPPED.read_text().split("\n").index("  phi: {demand_tag: true, least_class: phi, jurisdiction: eu}") + 1
    assert f"policy.yaml:{line}:" in shown
    assert "(slurm-feature-foreign)" in shown
    assert "(slurm-sharing-forced)" in shown
    assert "(slurm-node-two-places)" in shown
    assert main([*words, "--json"]) == 1
    assert {each["check"] for each in json.loads(capsys.readouterr().out)["findings"]} >= {"slurm-node-two-places"}
    Answers(monkeypatch, nodes=ProcessError("no slurmctld"))
    assert main(words) == 4
