"""secure-slurm policy check: each finding with an occasion and without, and what a role can use against the engine."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admin.main import main
from admin.policy_lint import lint, uses
from conf.policy import DataClass, Jurisdiction, Partition, Policy, Role, load_policy
from slurm_hooks import trial
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot, write_snapshot

SHIPPED = Path(__file__).parents[3] / "conf/policy.yaml"
G = "cn=g,dc=example"
H = "cn=h,dc=example"


def make(roles: dict[str, Role], partitions: dict[str, Partition] | None = None) -> Policy:
    return Policy(
        version=1,
        jurisdictions={
            "eu": Jurisdiction(feature="eu", regions=("eu-west-1",)),
            "us": Jurisdiction(feature="us", regions=("us-east-1",)),
        },
        classes=(
            DataClass(name="low", residency="optional", scratch="optional"),
            DataClass(name="high", residency="required", scratch="optional"),
        ),
        roles=roles,
        partitions=partitions or {},
        hash="ab" * 32,
    )


def role(*, groups: tuple[str, ...] = (G,), partitions: tuple[str, ...] | None = None, **more: Any) -> Role:
    return attrs.evolve(
        Role(groups=groups, classes=("low", "high"), jurisdictions=("eu", "us"), partitions=partitions), **more
    )


EU = Partition(demand_tag=True, least_class="high", jurisdiction="eu")


def checks(policy: Policy, members: Snapshot | None = None) -> set[tuple[str, str, tuple[str | int, ...]]]:
    return {(each.severity, each.check, each.where) for each in lint(policy, members)}


def test_a_sound_policy_has_no_findings() -> None:
    assert checks(make({"all": role()}, {"p": EU, "q": Partition(jurisdiction="us")})) == set()


@pytest.mark.parametrize(
    ("policy", "finding"),
    [
        (
            make({"all": role(), "r": role(groups=(H,), jurisdictions=("us",), partitions=("p",))}, {"p": EU}),
            ("error", "role-unusable", ("roles", "r")),
        ),
        (
            make({"all": role(), "r": role(groups=(H,), classes=("low",), partitions=("p",))}, {"p": EU}),
            ("error", "role-unusable", ("roles", "r")),
        ),
        (
            make({"all": role(), "r": role(groups=(H,), partitions=("p",))}, {"p": EU}),
            ("warning", "role-word-unusable", ("roles", "r", "jurisdictions", 1)),
        ),
        (
            make({"all": role(), "r": role(groups=(H,), partitions=("p",))}, {"p": EU}),
            ("warning", "role-word-unusable", ("roles", "r", "classes", 0)),
        ),
        (
            make({"all": role(), "r": role(groups=(H,), jurisdictions=("us",), partitions=("p", "q"))}, {"p": EU}),
            ("warning", "role-word-unusable", ("roles", "r", "partitions", 0)),
        ),
        (make({"r": role(classes=("low",))}), ("warning", "class-unused", ("classes", 1, "name"))),
        (make({"r": role(jurisdictions=("eu",))}), ("warning", "jurisdiction-unused", ("jurisdictions", "us"))),
        (make({"r": role(classes=("low",))}, {"p": EU}), ("error", "partition-unreachable", ("partitions", "p"))),
        (
            make({"r": role(jurisdictions=("us",))}, {"p": EU}),
            ("error", "partition-unreachable", ("partitions", "p")),
        ),
        (make({"r": role(partitions=("q",))}, {"p": EU}), ("error", "partition-unreachable", ("partitions", "p"))),
        (
            make({"r": role()}, {"p": Partition(demand_tag=True)}),
            ("warning", "partition-any-class", ("partitions", "p")),
        ),
        (
            make({"all": role(), "r": role(groups=(H,), partitions=("secrte",))}, {"secret": EU}),
            ("warning", "partition-unnamed", ("roles", "r", "partitions", 0)),
        ),
        (make({"a": role(), "b": role(partitions=("q",))}), ("warning", "role-covered", ("roles", "b"))),
        (make({"a": role(), "b": role()}), ("warning", "role-covered", ("roles", "b"))),
        (
            make({"a": role(classes=("low",)), "b": role(groups=(G, H))}),
            ("warning", "role-covered", ("roles", "a")),
        ),
        (make({"r": role(groups=("cn=a\\zb,dc=x",))}), ("error", "group-unreadable", ("roles", "r", "groups", 0))),
        (
            make({"r": role(groups=(G, "CN=g, dc=EXAMPLE"))}),
            ("warning", "group-spelling", ("roles", "r", "groups", 1)),
        ),
    ],
)
def test_a_finding(policy: Policy, finding: tuple[str, str, tuple[str | int, ...]]) -> None:
    assert finding in checks(policy)
    assert all(each.advice and each.message for each in lint(policy))


def test_of_two_equal_roles_only_the_later_is_too_much() -> None:
    assert checks(make({"a": role(), "b": role()})) == {("warning", "role-covered", ("roles", "b"))}


def test_roles_of_other_groups_or_places_are_not_covered() -> None:
    roles = {"a": role(jurisdictions=("eu",)), "b": role(jurisdictions=("us",)), "c": role(groups=(H,))}
    assert checks(make(roles)) == set()


@pytest.mark.parametrize(
    ("group", "finding"),
    [
        (Group("g", frozenset(), missing=True), "group-missing"),
        (Group("g", frozenset()), "group-empty"),
        (None, "group-unknown"),
        (Group("g", frozenset({"alice"})), None),
    ],
)
def test_groups_are_compared_with_the_members(group: Group | None, finding: str | None) -> None:
    members = Snapshot(
        1.0, "test", {"cn=h,dc=example": Group("h", frozenset()), **({"CN=G,DC=example": group} if group else {})}
    )
    found = {each[1] for each in checks(make({"r": role()}), members)}
    assert found == ({finding} if finding else set())


ROLES = st.builds(
    role,
    classes=st.sampled_from([("low",), ("high",), ("low", "high")]),
    jurisdictions=st.sampled_from([("eu",), ("us",), ("eu", "us")]),
    partitions=st.sampled_from([None, ("p",), ("q",), ("p", "q"), ("free",)]),
)
PARTITIONS = st.one_of(
    st.builds(Partition, jurisdiction=st.sampled_from([None, "eu", "us"])),
    st.builds(
        Partition,
        demand_tag=st.just(True),
        least_class=st.sampled_from([None, "low", "high"]),
        jurisdiction=st.sampled_from([None, "eu", "us"]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(one=ROLES, p=PARTITIONS, q=PARTITIONS)
def test_what_a_role_can_use_is_what_the_engine_allows(one: Role, p: Partition, q: Partition) -> None:
    policy = make({"r": one}, {"p": p, "q": q})
    expected = {(each.klass, each.residency, each.partition or "free") for each in uses(one, policy)}
    allowed = set()
    for klass in ("low", "high"):
        for residency in ("eu", "us", None):
            for partition in ("p", "q", "free"):
                tag = {"class": klass, **({"residency": residency} if residency else {})}
                job = trial.Trial(tag=tag, texts={"partition": partition})
                if trial.decide(job, policy, trial.members(trial.USER, [G])).allowed:
                    allowed.add((klass, residency, partition))
    assert expected == allowed


def test_a_lost_snapshot_refuses_a_trial() -> None:
    job = trial.Trial(tag={"class": "low"}, texts={"partition": "free"})
    assert trial.decide(job, make({"r": role()}), None).rule == "rbac.snapshot"


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(SHIPPED.read_text())
    path.chmod(0o644)
    return path


def test_the_shipped_policy_is_clean(policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", "--strict", str(policy_file)]) == 0
    assert capsys.readouterr().out == "0 errors, 0 warnings\n"


def test_findings_have_their_line_and_strict_makes_errors(
    policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = policy_file.read_text().replace(", least_class: phi", "")
    policy_file.write_text(text)
    line = text.split("\n").index("  phi: {demand_tag: true, jurisdiction: eu}") + 1
    assert main(["policy", "check", str(policy_file)]) == 0
    shown = capsys.readouterr().out
    assert f"{policy_file}:{line}:3: warning: the partition 'phi' takes a tag of any class" in shown
    assert "    add 'least_class', for example phi\n" in shown
    assert shown.endswith("0 errors, 1 warnings\n")
    assert main(["policy", "check", "--strict", "--json", str(policy_file)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["errors"], told["warnings"]) == (1, 0)
    assert told["findings"][0]["line"] == line
    assert told["findings"][0]["check"] == "partition-any-class"


def test_errors_are_exit_1(policy_file: Path) -> None:
    policy_file.write_text(policy_file.read_text().replace("jurisdictions: [eu]\n", "jurisdictions: [us]\n"))
    assert main(["policy", "check", str(policy_file)]) == 1


def test_the_members_file_is_read(policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {dn: Group("x", frozenset(), missing=True) for dn in load_policy(str(policy_file)).groups()}
    members = policy_file.with_name("members.json")
    write_snapshot(members, Snapshot(time.time() - 1e6, "test", groups))
    assert main(["policy", "check", str(policy_file), "--members", str(members)]) == 1
    shown = capsys.readouterr().out
    assert "(group-missing)" in shown
    assert shown.endswith("2 errors, 0 warnings\n")


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"version": 1, "groups": {}}'])
def test_a_members_file_that_cannot_be_used_is_exit_3(
    content: bytes | None, policy_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = policy_file.with_name("members.json")
    if content is not None:
        members.write_bytes(content)
    assert main(["policy", "check", str(policy_file), "--members", str(members)]) == 3
    assert str(members) in capsys.readouterr().err


def test_a_broken_policy_is_exit_3_with_every_mistake(policy_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy_file.write_text(policy_file.read_text().replace("[phi]", "[phy]"))
    assert main(["policy", "check", str(policy_file)]) == 3
    assert "unknown class 'phy' (did you mean 'phi'?)" in capsys.readouterr().err
    assert main(["policy", "check", str(policy_file.with_name("none.yaml"))]) == 3


def test_every_check_is_explained() -> None:
    page = (SHIPPED.parents[1] / "docs/policy.md").read_text()
    source = (SHIPPED.parents[1] / "admin/policy_lint.py").read_text()
    known = {word for word in re.findall(r'"((?:role|class|jurisdiction|partition|group)-[a-z-]+)"', source)}
    assert len(known) == 13
    assert all(f"| `{word}` |" in page for word in known)
