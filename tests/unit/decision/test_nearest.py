"""The nearest accepted request: true, small, found in bounded work, and never with less protection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.policy import DataClass, Dataset, Jurisdiction, Policy, Role
from conf.tag import Tag, parse_extra
from keys.secret import Secret
from slurm_hooks import engine, nearest
from slurm_hooks.explain import explain
from slurm_hooks.filters.verdict import Context
from slurm_hooks.fixes import BY_RULE, Change
from slurm_hooks.request import Submission

from .conftest import EU, make_policy, make_snapshot

SIGNER = engine.Signer("test", Secret(b"k" * 32), frozenset({0}))
Fields = dict[str, bytes]


def rich_policy() -> Policy:
    """The fixtures' policy, with every limit that a class can have."""
    policy = make_policy()
    strict = DataClass(
        name="strict",
        residency="required",
        scratch="required",
        default_scratch=2**30,
        max_scratch=2**40,
        max_nodes=4,
        max_time=7200.0,
        max_gpus=2,
        max_array=10,
        gres=("gpu",),
        work_dirs=("/data/phi",),
        output_dirs=("/data/phi",),
        environment="none",
    )
    role = Role(
        groups=(EU,),
        classes=("strict",),
        jurisdictions=("eu",),
        partitions=("phi",),
        accounts=("ukb",),
        qos=("normal",),
        reservations=("r1",),
        licenses=("matlab",),
    )
    return attrs.evolve(
        policy,
        classes=(*policy.classes, strict),
        roles={**policy.roles, "strict-eu": role},
        datasets={
            "ukb-2024": Dataset(klass="strict", residency=("eu",), roles=("strict-eu",)),
            "open-data": Dataset(klass="internal", residency=("eu", "us"), roles=("all",)),
        },
        jurisdictions={**policy.jurisdictions, "uk": Jurisdiction(feature="uk", regions=("eu-west-2",))},
    )


CONTEXT = Context(rich_policy(), make_snapshot(), now=1.8e9)
TAG = "secure-slurm:class=strict;residency=eu;scratch=1073741824"
GOOD_TEXTS = {
    "extra": TAG,
    "partition": "phi",
    "account": "ukb",
    "qos": "normal",
    "work_dir": "/data/phi/alice",
    "std_in": "/dev/null",
}
GOOD_NUMBERS = {"time_limit": 60, "min_nodes": 2, "max_nodes": 2, "mail_type": 0}


def asked(user: str = "alice", **more: str | int | None) -> Fields:
    texts: dict[str, str | None] = dict(GOOD_TEXTS)
    numbers: dict[str, int | None] = dict(GOOD_NUMBERS)
    session = more.pop("session", None)
    for name, value in more.items():
        if isinstance(value, int):
            numbers[name] = value
        else:
            texts[name] = value
    environment = {"PATH": "/bin"} if session else {}
    return Submission(uid=1001, user=user, texts=texts, numbers=numbers, environment=environment).fields()


def test_the_job_itself_is_allowed_and_needs_nothing() -> None:
    assert explain(asked(), CONTEXT).allowed
    assert nearest.nearest(asked(), CONTEXT) == ()


CASES: list[tuple[dict[str, str | int | None], list[tuple[str, str | None]]]] = [
    ({"extra": TAG.replace("strict", "strct")}, [("--secure-class", "strict")]),
    ({"extra": TAG.replace("residency=eu;", "")}, [("--secure-residency", "eu")]),
    ({"extra": TAG.replace("=eu", "=eu1")}, [("--secure-residency", "eu")]),
    ({"extra": TAG + "0000"}, [("--secure-scratch", "1T")]),
    ({"extra": "secure-slurm:class=raw;residency=eu", "partition": "open"}, [("--secure-scratch", "1G")]),
    ({"extra": "secure-slurm:class=bare;residency=us;scratch=5", "partition": "us"}, [("--secure-scratch", None)]),
    ({"extra": TAG.replace("class=strict;", "") + ";datasets=ukb2024"}, [("--secure-dataset", "ukb-2024")]),
    ({"extra": "secure-slurm:class=phi;scratch=1;datasets=ukb-2024"}, [("--secure-class", None)]),
    ({"features": "us"}, [("--constraint", None)]),
    ({"features": "a*2", "prefer": "us"}, [("--constraint", None), ("--prefer", None)]),
    ({"batch_features": "us"}, [("--batch", None)]),
    ({"partition": "us"}, [("--partition", "phi")]),
    ({"partition": "open,phi"}, [("--partition", "phi")]),
    ({"forced_sharing": None, "partition": None}, [("--partition", "phi")]),
    ({"min_nodes": 9, "max_nodes": 9}, [("--nodes", "4")]),
    ({"time_limit": 9999}, [("--time", "02:00:00")]),
    ({"time_limit": None}, [("--time", "02:00:00")]),
    ({"tres_per_job": "gres/gpu:3"}, [("--gpus", "2")]),
    ({"tres_per_node": "gres/gpu:3"}, [("--gpus-per-node", None)]),
    ({"tres_per_job": "gres/nvme"}, [("--gpus", None)]),
    ({"array_inx": "5-500%3"}, [("--array", "5-14%3")]),
    ({"work_dir": "/home/alice", "std_out": "/data/phi/x"}, [("--chdir", "/data/phi")]),
    ({"std_out": "/home/x"}, [("--output", "/data/phi/slurm-%j.out")]),
    ({"std_err": "/home/x"}, [("--error", "/data/phi/slurm-%j.err")]),
    ({"std_in": "/home/x"}, [("--input", None)]),
    ({"mail_user": "a@b", "mail_type": 3}, [("--mail-user", None), ("--mail-type", None)]),
    ({"container": "/c"}, [("--container", None)]),
    ({"burst_buffer": "x"}, [("--bb", None)]),
    ({"session": 1}, [("--export", "NONE")]),
    ({"clusters": "other"}, [("--clusters", None)]),
    ({"dependency": "expand:7"}, [("--dependency", None)]),
    ({"account": "else"}, [("--account", "ukb")]),
    ({"account": None}, [("--account", "ukb")]),
    ({"qos": "high"}, [("--qos", "normal")]),
    ({"reservation": "r2"}, [("--reservation", None)]),
    ({"licenses": "abaqus:2"}, [("--licenses", None)]),
    (
        {"partition": "us", "account": "else", "features": "us"},
        [("--constraint", None), ("--partition", "phi"), ("--account", "ukb")],
    ),
]


@pytest.mark.parametrize(("more", "changes"), CASES)
def test_what_would_help(more: dict[str, str | int | None], changes: list[tuple[str, str | None]]) -> None:
    if "time_limit" in more and more["time_limit"] is None:
        fields = {name: value for name, value in asked().items() if name != "time_limit"}
    else:
        fields = asked(**more)
    assert not explain(fields, CONTEXT).allowed
    assert nearest.nearest(fields, CONTEXT, seconds=60.0) == tuple(Change(*each) for each in changes)


@pytest.mark.parametrize(
    "fields",
    [
        # neither another place for the data, nor a weaker class
        asked(extra=TAG.replace("=eu", "=us")),
        asked(user="eve"),
        asked(user="\x1b"),
        asked(extra="secure-slurm:class=strict;x=y"),
        asked(comment="\x1b"),
        asked(extra=TAG + ";datasets=nothing-like-it"),
        asked(array_inx="x-500"),
        {},
        {"submit_uid": b"x"},
    ],
)
def test_where_nothing_helps(fields: Fields) -> None:
    assert nearest.nearest(fields, CONTEXT) is None


def test_without_members_nothing_helps() -> None:
    assert nearest.nearest(asked(features="us"), CONTEXT._replace(members=None)) is None


def test_a_stronger_class_where_the_partition_demands_it() -> None:
    policy = attrs.evolve(CONTEXT.policy, partitions={"phi": CONTEXT.policy.partitions["phi"]})
    roles = {name: attrs.evolve(role, partitions=("phi",)) for name, role in policy.roles.items()}
    context = CONTEXT._replace(policy=attrs.evolve(policy, roles=roles))
    found = nearest.nearest(asked(extra="secure-slurm:class=internal;residency=eu;scratch=1"), context)
    assert found == (Change("--secure-class", "phi"),)


def test_it_gives_up_after_so_many_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []
    real = nearest._refused
    monkeypatch.setattr(nearest, "_refused", lambda *each: walked.append(1) or real(*each))
    fields = asked(features="us", prefer="us", batch_features="us", account="else", qos="x", reservation="x")
    assert nearest.nearest(fields, CONTEXT, tries=10, seconds=60.0) is None
    assert len(walked) == 10
    walked.clear()
    assert nearest.nearest(fields, CONTEXT, seconds=0.0) is None
    assert len(walked) == 1
    walked.clear()
    assert len(nearest.nearest(fields, CONTEXT, seconds=60.0) or ()) == 6
    assert len(walked) <= nearest.MAX_TRIES


def test_every_rule_with_a_remedy_is_one_that_there_is() -> None:
    filters = Path(engine.__file__).parent / "filters"
    source = "".join(
        path.read_text(encoding="utf-8") for path in [*filters.glob("*.py"), filters.parent / "constraint.py"]
    )
    assert [rule for rule in BY_RULE if f'"{rule}"' not in source] == []


ANYTHING = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["min_nodes", "max_nodes", "time_limit", "mail_type"], st.sampled_from([0, 1, 5, 2**32 - 1])),
        **dict.fromkeys(["std_out", "std_in", "work_dir"], st.sampled_from(["/data/phi/x", "/data/phi/../x", "x", ""])),
        **dict.fromkeys(["account", "qos", "reservation", "licenses"], st.sampled_from(["ukb", "normal", "r1", "x"])),
        **dict.fromkeys(["tres_per_job", "tres_per_node", "tres_per_task"], st.sampled_from(["gres/gpu:2", "gres/x"])),
        "array_inx": st.sampled_from(["1-9", "1-99%2", "x"]),
        "container": st.just("/c"),
        "burst_buffer": st.just("x"),
        "session": st.just(1),
        "extra": st.sampled_from([TAG, TAG + ";datasets=ukb-2024", "secure-slurm:datasets=ukb-2024", "x"]),
        "partition": st.sampled_from(["phi", "us", "phi,open"]),
    },
)


@settings(deadline=None, max_examples=300)
@given(ANYTHING, st.sampled_from(["alice", "bob"]))
def test_the_explanation_is_the_engines_decision(more: dict[str, str | int | None], user: str) -> None:
    fields = asked(user, **more)
    found = explain(fields, CONTEXT)
    decided = engine.decide_submit(fields, CONTEXT, SIGNER)
    assert (found.allowed, found.rule, found.message, found.advice) == (
        decided.allowed,
        decided.rule,
        decided.message,
        decided.advice,
    )
    assert dict(found.changes) == {name: text for name, text in decided.changes.items() if name != "admin_comment"}


REQUESTS = st.fixed_dictionaries(
    {
        "class": st.sampled_from(["phi", "internal", "raw", "bare", "strict", "ph", "none"]),
        "residency": st.sampled_from([None, "eu", "us", "e", "fr"]),
        "scratch": st.sampled_from([None, 1, 2**30, 2**45]),
        "datasets": st.sampled_from([(), ("ukb-2024",), ("open-data",), ("ukb",)]),
        "user": st.sampled_from(["alice", "bob", "eve", "", "\x1b[2J", "a b"]),
        "partition": st.sampled_from([None, "phi", "us", "lab", "open", "us,phi", "x" * 9000, "\udcff"]),
        "features": st.sampled_from([None, "us", "big", "a*2", "\x1b", "big&" * 3000]),
        "work_dir": st.sampled_from([None, "/home/x"]),
    }
)


@settings(deadline=None, max_examples=200)
@given(REQUESTS)
def test_what_is_called_accepted_is_accepted_and_protects_as_much(each: dict[str, Any]) -> None:
    klass, residency, datasets = each["class"], each["residency"], each["datasets"]
    tag = Tag(klass, residency, each["scratch"], datasets)
    others = {name: each[name] for name in ("partition", "features", "work_dir")}
    fields = asked(each["user"], extra=tag.to_extra(), **others)
    decided = engine.decide_submit(fields, CONTEXT, SIGNER)
    assert explain(fields, CONTEXT).allowed == decided.allowed
    found = nearest.nearest(fields, CONTEXT, seconds=60.0)
    if found is None or decided.allowed:
        return
    made = applied(fields, found)
    better = engine.decide_submit(made, CONTEXT, SIGNER)
    assert better.allowed, (found, better)
    policy = CONTEXT.policy
    assert better.tag is not None
    if policy.data_class(klass):
        assert policy.at_least(better.tag.klass, klass)
    if residency in policy.jurisdictions:
        assert better.tag.residency == residency
    assert len(better.tag.datasets) >= len(datasets)


FIELD = {"--partition": "partition", "--constraint": "features", "--chdir": "work_dir", "--output": "std_out"}
FIELD |= {"--account": "account", "--qos": "qos"}
IN_TAG = {"--secure-class": "klass", "--secure-residency": "residency"}


def applied(fields: Fields, changes: tuple[Change, ...]) -> Fields:
    """The changes as a person makes them: on the command line, without looking at how they were found."""
    made = dict(fields)
    for option, value in changes:
        if option.startswith("--secure-"):
            tag = parse_extra(made["extra"].decode())
            if option == "--secure-scratch":
                size = None if value is None else {"1G": 2**30, "1T": 2**40, "100G": 100 * 2**30}[value]
                tag = tag._replace(scratch=size)
            elif option == "--secure-dataset":
                tag = tag._replace(datasets=tuple((value or "").split(",")))
            else:
                tag = tag._replace(**{IN_TAG[option]: value if option == "--secure-residency" else value or ""})
            made["extra"] = tag.to_extra().encode()
        elif option in {"--nodes", "--time"}:
            names = ("min_nodes", "max_nodes") if option == "--nodes" else ("time_limit",)
            made |= dict.fromkeys(names, b"4" if option == "--nodes" else b"120")
        elif value is None:
            made = {name: each for name, each in made.items() if name.removesuffix(".cut") != FIELD[option]}
        else:
            made[FIELD[option]] = value.encode()
            made.pop(f"{FIELD[option]}.cut", None)
    return made
