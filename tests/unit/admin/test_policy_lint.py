"""secure-slurm policy check: each finding with an occasion and without, and what a role can use against the engine."""

from __future__ import annotations

import datetime
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
from conf.policy import BreakGlass, DataClass, Dataset, Jurisdiction, Partition, Policy, Role, load_policy
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


NOW = datetime.datetime(2026, 6, 15, 12, tzinfo=datetime.UTC).timestamp()
DAY = datetime.date(2026, 6, 15)
DAYS = datetime.timedelta(days=1)


def dataset(**more: Any) -> Dataset:
    return attrs.evolve(Dataset(klass="high", residency=("eu",), roles=("all",)), **more)


def classes(**more: Any) -> tuple[DataClass, ...]:
    low, high = make({}).classes
    return low, attrs.evolve(high, **more)


def with_all(**more: Any) -> Policy:
    return attrs.evolve(make({"all": role()}, {"p": EU}), **more)


def sharing(**more: tuple[str, ...]) -> dict[str, Jurisdiction]:
    return {
        name: attrs.evolve(each, file_systems=more.get(name, ()), adequate=more.get(f"{name}_adequate", ()))
        for name, each in make({}).jurisdictions.items()
    }


@pytest.mark.parametrize(
    ("policy", "finding"),
    [
        (make({"all": role(until=DAY - DAYS)}), ("warning", "role-ended", ("roles", "all", "until"))),
        (make({"all": role(until=DAY - DAYS)}), ("error", "all-ended", ("roles",))),
        (make({"all": role(until=DAY)}), ("warning", "role-ends", ("roles", "all", "until"))),
        (make({"all": role(until=DAY + 29 * DAYS)}), ("warning", "role-ends", ("roles", "all", "until"))),
        (
            with_all(datasets={"d": dataset(until=DAY - DAYS)}),
            ("warning", "dataset-ended", ("datasets", "d", "until")),
        ),
        (
            with_all(datasets={"d": dataset(until=DAY + DAYS)}),
            ("warning", "dataset-ends", ("datasets", "d", "until")),
        ),
        (
            attrs.evolve(
                make({"all": role(), "r": role(groups=(H,), classes=("low",))}),
                datasets={"d": dataset(roles=("all", "r"))},
            ),
            ("warning", "dataset-role-class", ("datasets", "d", "roles", 1)),
        ),
        (
            attrs.evolve(make({"all": role(jurisdictions=("us",))}), datasets={"d": dataset()}),
            ("error", "dataset-unusable", ("datasets", "d")),
        ),
        (
            attrs.evolve(make({"all": role(classes=("low",))}), datasets={"d": dataset()}),
            ("error", "dataset-unusable", ("datasets", "d")),
        ),
        (
            # the partition of the role is in another place than the data
            attrs.evolve(make({"all": role(partitions=("p",))}, {"p": EU}), datasets={"d": dataset(residency=("us",))}),
            ("error", "dataset-unusable", ("datasets", "d")),
        ),
        (
            # each is usable, both together nowhere
            attrs.evolve(
                make({"all": role(partitions=("p",)), "r": role(groups=(H,), partitions=("q",))}, {"p": EU}),
                datasets={"d": dataset(includes=("e",)), "e": dataset(roles=("r",))},
            ),
            ("error", "dataset-unusable", ("datasets", "d")),
        ),
        (
            with_all(classes=classes(partitions=("p", "q")), roles={"all": role(partitions=("p",))}),
            ("warning", "class-partition-unreached", ("classes", 1, "partitions", 1)),
        ),
        (
            with_all(classes=classes(default_time=60.0)),
            ("warning", "class-time-open", ("classes", 1, "default_time")),
        ),
        (
            with_all(classes=classes(output_dirs=("/data",))),
            ("warning", "class-output-alone", ("classes", 1, "output_dirs")),
        ),
        (
            with_all(classes=classes(output_dirs=("/data/out",), work_dirs=("/data",))),
            ("warning", "class-output-elsewhere", ("classes", 1, "output_dirs")),
        ),
        (with_all(shadow={"limit.time": DAY}), ("warning", "rule-in-shadow", ("shadow", "limit.time"))),
        (
            with_all(shadow={"limit.time": DAY - DAYS}),
            ("warning", "rule-in-shadow-ended", ("shadow", "limit.time")),
        ),
        (
            with_all(break_glass=BreakGlass(requesters=(G,), approvers=(G,), longest=60.0)),
            ("warning", "break-glass-one-group", ("break_glass", "approvers")),
        ),
        (
            with_all(break_glass=BreakGlass(requesters=(G,), approvers=("cn=a\\zb,dc=x",), longest=60.0)),
            ("error", "group-unreadable", ("break_glass", "approvers", 0)),
        ),
        (
            attrs.evolve(
                make({"all": role(jurisdictions=("eu",))}, {"p": EU}), jurisdictions=sharing(eu_adequate=("us",))
            ),
            ("warning", "adequate-unreached", ("jurisdictions", "eu", "adequate", 0)),
        ),
        (
            with_all(
                jurisdictions=sharing(eu=("/home",), us=("/home",)), datasets={"d": dataset(paths=("/x", "/home/d"))}
            ),
            ("warning", "dataset-path-shared", ("datasets", "d", "paths", 1)),
        ),
        (
            make({"all": role(includes=("r",)), "r": role(groups=(H,), classes=("low",))}),
            ("warning", "role-include-idle", ("roles", "all", "includes", 0)),
        ),
        (
            make(
                {
                    "all": role(),
                    "a": role(groups=(H,), classes=("low",), includes=("b", "c")),
                    "b": role(groups=("cn=i",), jurisdictions=("eu",), includes=("c",)),
                    "c": role(groups=("cn=j",), jurisdictions=("us",)),
                }
            ),
            ("warning", "role-include-idle", ("roles", "a", "includes", 1)),
        ),
        (
            make({"all": role(), "a": role(groups=(H,), classes=("low",), includes=("b",)), "b": role(classes=())}),
            ("warning", "role-include-idle", ("roles", "a", "includes", 0)),
        ),
        (
            with_all(
                datasets={
                    "d": dataset(includes=("e", "f")),
                    "e": dataset(includes=("f",)),
                    "f": dataset(),
                }
            ),
            ("warning", "dataset-include-idle", ("datasets", "d", "includes", 1)),
        ),
    ],
)
def test_a_finding_about_data_limits_and_dates(policy: Policy, finding: tuple[str, str, tuple[str | int, ...]]) -> None:
    found = lint(policy, now=NOW)
    assert finding in {(each.severity, each.check, each.where) for each in found}
    assert all(each.advice and each.message for each in found)


def test_what_uses_the_whole_model_soundly_has_no_findings() -> None:
    policy = attrs.evolve(
        make(
            {
                "all": role(until=DAY + 31 * DAYS, accounts=("a",)),
                "r": role(groups=(H,), classes=("high",), jurisdictions=("eu",), includes=("s",)),
                "s": role(groups=("cn=i",), classes=("low",)),
            },
            {"p": EU},
        ),
        classes=classes(partitions=("p",), default_time=60.0, max_time=90.0, work_dirs=("/d/x",), output_dirs=("/d",)),
        datasets={
            "d": dataset(paths=("/data/d",), includes=("e",), until=DAY + 31 * DAYS),
            "e": dataset(klass="low", residency=("eu", "us")),
        },
        jurisdictions=sharing(eu=("/home", "/eu"), us=("/home",), eu_adequate=("us",)),
        break_glass=BreakGlass(requesters=(G, H), approvers=(G,), longest=60.0),
    )
    assert lint(policy, now=NOW) == []
    # without a moment no date has passed
    assert lint(attrs.evolve(policy, roles={"all": role(until=datetime.date(2020, 1, 1))}, datasets={})) == []


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"accounts": ("a",)}, {"accounts": ("b",)}),
        ({}, {"qos": ("b",)}),
        ({"licenses": ("a",)}, {"licenses": ()}),
        ({"reservations": ("a",)}, {"reservations": ("b", "c")}),
        ({}, {"until": DAY}),
        ({"until": DAY + DAYS}, {"until": DAY}),
        ({"includes": ("c",)}, {}),
    ],
)
def test_a_role_that_another_does_not_cover(less: dict[str, Any], more: dict[str, Any]) -> None:
    roles = {"a": role(classes=("low",), **less), "b": role(**more), "c": role(groups=(H,), jurisdictions=("eu",))}
    assert not [each for each in lint(make(roles)) if each.check == "role-covered" and each.where == ("roles", "a")]


def test_a_role_that_a_dataset_or_a_role_names_is_not_too_much() -> None:
    roles = {"all": role(), "r": role(classes=("high",))}
    assert ("warning", "role-covered", ("roles", "r")) in checks(make(roles))
    assert checks(attrs.evolve(make(roles), datasets={"d": dataset(roles=("r",))})) == set()


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
@given(one=ROLES, p=PARTITIONS, q=PARTITIONS, bound=st.sampled_from([None, ("p",), ("q", "free"), ("p", "q")]))
def test_what_a_role_can_use_is_what_the_engine_allows(
    one: Role, p: Partition, q: Partition, bound: tuple[str, ...] | None
) -> None:
    policy = attrs.evolve(make({"r": one}, {"p": p, "q": q}), classes=classes(partitions=bound))
    expected = {(each.klass, each.residency, each.partition or "free") for each in uses(one, policy)}
    allowed = set()
    for klass in ("low", "high"):
        for residency in ("eu", "us", None):
            for partition in ("p", "q", "free"):
                tag = {"class": klass, **({"residency": residency} if residency else {})}
                job = trial.Trial(tag=tag, texts={"partition": partition})
                if trial.decide(job, policy, trial.members(trial.USER, [G]), now=0.0).allowed:
                    allowed.add((klass, residency, partition))
    assert expected == allowed


def test_a_lost_snapshot_refuses_a_trial() -> None:
    job = trial.Trial(tag={"class": "low"}, texts={"partition": "free"})
    assert trial.decide(job, make({"r": role()}), None, now=0.0).rule == "rbac.snapshot"


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
    names = ("policy_lint", "policy_lint_data", "policy_lint_groups", "policy_nodes")
    source = "".join((SHIPPED.parents[1] / f"admin/{name}.py").read_text() for name in names)
    # the second argument of each Finding
    known = set(re.findall(r'"(?:error|warning)"(?: if \w+ else "warning")?,\s+"([a-z-]+)"', source))
    known |= {"role-ended", "role-ends", "dataset-ended", "dataset-ends", "rule-in-shadow", "rule-in-shadow-ended"}
    assert len(known) == 37
    assert {word for word in known if f"| `{word}` |" not in page} == set()
