"""What holds for every job and every policy, by random trial.

No chain ever widens what a role allows; one more rule never allows more; whatever is unknown refuses.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conf.policy import Policy, Role, ended, load_policy
from keys.secret import Secret
from slurm_hooks import engine
from slurm_hooks.filters import chain
from slurm_hooks.filters.job import SubmitJob, from_fields
from slurm_hooks.filters.verdict import ALLOW, Allow, Context, Deny, Judge, Verdict
from tests.unit.policy.people import JOBS, NOW, SITE, snapshot

POLICY = load_policy(str(SITE))
CONTEXT = Context(POLICY, snapshot(), now=NOW)
SIGNER = engine.Signer("test", Secret(b"k" * 32), frozenset({0}))


def decide(fields: dict[str, Any], context: Context = CONTEXT) -> engine.Decision:
    return engine.decide_submit({name: value for name, value in fields.items() if value is not None}, context, SIGNER)


CLASSES = [each.name for each in POLICY.classes]
TAGS = st.builds(
    lambda *parts: b"secure-slurm:" + ";".join(part for part in parts if part).encode(),
    st.sampled_from(["", *(f"class={name}" for name in CLASSES)]),
    st.sampled_from(["", *(f"residency={name}" for name in POLICY.jurisdictions)]),
    st.sampled_from(["", "scratch=1G", "scratch=9T"]),
    st.sampled_from(
        ["", *(f"datasets={name}" for name in POLICY.datasets), "datasets=genomes,mri", "datasets=mri,swiss"]
    ),
)
VALUES: dict[str, st.SearchStrategy[bytes]] = {
    "extra": TAGS,
    "user_name": st.sampled_from([b"ann", b"bea", b"cem", b"dan", b"eva", b"fay", b"nobody"]),
    "partition": st.sampled_from([b"batch", b"phi", b"phi-gpu", b"uk", b"export", b"phi,phi-gpu", b"gpu"]),
    "account": st.sampled_from([b"clinic", b"ml", b"other"]),
    "qos": st.sampled_from([b"normal", b"express"]),
    "reservation": st.sampled_from([b"", b"night", b"day"]),
    "licenses": st.sampled_from([b"", b"matlab:1", b"ansys"]),
    "time_limit": st.sampled_from([b"0", b"60", b"2880", b"99999", b"4294967295"]),
    "max_nodes": st.sampled_from([b"1", b"4", b"5", b"17"]),
    "tres_per_job": st.sampled_from([b"", b"gres/gpu:8", b"gres/gpu:17", b"gres/tape:1"]),
    "array_inx": st.sampled_from([b"", b"0-9", b"0-999"]),
    "work_dir": st.sampled_from([b"/data/phi", b"/home/x", b"/data/phi/../x"]),
    "std_out": st.sampled_from([b"", b"out", b"/tmp/out"]),
    "mail_type": st.sampled_from([b"0", b"1"]),
    "container": st.sampled_from([b"", b"/bundle"]),
    "user_environment": st.just(b"1"),
    "features": st.sampled_from([b"", b"big", b"eu", b"us", b"a|b"]),
    "alloc_node": st.sampled_from([b"login1", b"n1", b"g1", b"x1"]),
    "dependency_uids": st.sampled_from([b"1001", b"1002", b"?"]),
}
REQUESTS = st.fixed_dictionaries({"base": st.sampled_from(sorted(JOBS))}, optional={**VALUES}).map(
    lambda drawn: {**JOBS[str(drawn.pop("base"))], **drawn}
)
"""Any of the jobs, with any of its fields another."""
ALLOWED = [name for name, job in sorted(JOBS.items()) if decide(job).allowed and decide(job).tag is not None]


@st.composite
def near_an_allowed_job(draw: st.DrawFn) -> dict[str, Any]:
    """A tagged job that is allowed, with two fields another at most: often enough it still is."""
    changed = draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, max_size=2))
    return {**JOBS[draw(st.sampled_from(ALLOWED))], **{name: draw(VALUES[name]) for name in changed}}


def roles_of(user: str, context: Context) -> Iterator[Role]:
    """The roles that a user holds, worked out in another way than the engine's."""
    assert context.members is not None
    groups = context.members.groups_of(user)
    today = datetime.datetime.fromtimestamp(context.now, datetime.UTC).date()

    def alive(role: Role) -> bool:
        return role.until is None or today <= role.until

    def reached(role: Role) -> Iterator[Role]:
        yield role
        for name in role.includes:
            if alive(context.policy.roles[name]):
                yield from reached(context.policy.roles[name])

    for role in context.policy.roles.values():
        if groups & set(role.groups) and alive(role):
            yield from reached(role)


@given(near_an_allowed_job())
def test_what_is_allowed_is_covered_by_one_role(fields: dict[str, Any]) -> None:
    decision = decide(fields)
    assume(decision.allowed and decision.tag is not None)
    assert decision.tag is not None
    job = chain.mutate_job(from_fields({name: value for name, value in fields.items() if value is not None}), CONTEXT)
    assert isinstance(job, SubmitJob)
    places = {decision.tag.residency} if decision.tag.residency else set(POLICY.jurisdictions)
    covering = [
        role
        for role in roles_of(str(job.user_name), CONTEXT)
        if decision.tag.klass in role.classes
        and (places <= set(role.jurisdictions) or decision.tag.residency is None)
        and (role.partitions is None or set(job.partitions) <= set(role.partitions))
        and (role.accounts is None or job.string("account") in role.accounts)
        and (role.qos is None or job.string("qos") in role.qos)
    ]
    assert covering
    for name in POLICY.with_included(decision.tag.datasets):
        dataset = POLICY.datasets[name]
        assert not ended(dataset.until, NOW)
        assert decision.tag.residency in POLICY.places_of(dataset)
        assert POLICY.at_least(decision.tag.klass, dataset.klass)
        assert {POLICY.roles[role].groups for role in dataset.roles} & {role.groups for role in covering}


@given(near_an_allowed_job())
def test_what_is_allowed_keeps_to_its_class(fields: dict[str, Any]) -> None:
    decision = decide(fields)
    assume(decision.allowed and decision.tag is not None)
    assert decision.tag is not None
    data_class = POLICY.data_class(decision.tag.klass)
    assert data_class is not None
    final = {**fields, **decision.changes}
    if data_class.max_time is not None:
        assert 0 < int(final["time_limit"]) * 60 <= data_class.max_time
    if data_class.max_nodes is not None:
        assert int(final["max_nodes"]) <= data_class.max_nodes
    if data_class.residency == "required":
        assert decision.tag.residency is not None
        constraint = final["features"]
        shown = constraint.decode() if isinstance(constraint, bytes) else constraint
        assert shown.endswith(POLICY.jurisdictions[decision.tag.residency].feature)
    if data_class.exclusive_nodes:
        assert final["shared"] == "0"


def denying(rule: str, when: str) -> Judge:
    def judge(job: SubmitJob, _context: Context) -> Verdict:
        return Deny(rule, "no") if when in str(sorted(job.strings.items())) else ALLOW

    return judge


@given(REQUESTS, st.sampled_from(["phi", "eu", "ann", "batch", "zzz"]), st.integers(0, len(chain.SUBMIT_JUDGES)))
def test_one_more_rule_never_allows_more(fields: dict[str, Any], when: str, place: int) -> None:
    job = chain.mutate_job(from_fields({name: value for name, value in fields.items() if value is not None}), CONTEXT)
    assume(isinstance(job, SubmitJob))
    assert isinstance(job, SubmitJob)
    judges = list(chain.SUBMIT_JUDGES)
    before = chain.judge_job(job, CONTEXT, judges)
    judges.insert(place, denying("test.rule", when))
    after = chain.judge_job(job, CONTEXT, judges)

    assert isinstance(before, Allow) or isinstance(after, Deny)


NARROWER = [
    {"classes": ("open",)},
    {"jurisdictions": ("eu",)},
    {"partitions": ("phi",)},
    {"accounts": ("clinic",)},
    {"qos": ("normal",)},
    {"reservations": ("night",)},
    {"licenses": ("matlab",)},
    {"until": datetime.date(2020, 1, 1)},
    {"includes": ()},
]


@given(REQUESTS, st.sampled_from(sorted(POLICY.roles)), st.sampled_from(NARROWER))
def test_a_narrower_role_never_allows_more(fields: dict[str, Any], name: str, change: dict[str, Any]) -> None:
    role = POLICY.roles[name]
    for key, value in change.items():
        old = getattr(role, key)
        if key != "until" and old is not None:
            change = {key: tuple(word for word in old if word in value) or ("-",)}
    narrower = attrs.evolve(POLICY, roles={**POLICY.roles, name: attrs.evolve(role, **change)})

    assert decide(fields).allowed or not decide(fields, CONTEXT._replace(policy=narrower)).allowed


LIMITS: list[dict[str, Any]] = [
    {"max_nodes": 1},
    {"max_time": 60.0},
    {"max_gpus": 1},
    {"max_array": 1},
    {"gres": ("gpu",)},
    {"partitions": ("phi",)},
    {"work_dirs": ("/data/phi",)},
    {"output_dirs": ("/data/phi",)},
    {"mail": "refuse"},
    {"containers": "refuse"},
    {"environment": "nil"},
    {"residency": "required"},
    {"max_scratch": 2**30},
]


@given(REQUESTS, st.sampled_from(CLASSES), st.sampled_from(LIMITS))
def test_a_stricter_class_never_allows_more(fields: dict[str, Any], name: str, change: dict[str, Any]) -> None:
    def stricter(policy: Policy) -> Policy:
        classes = [attrs.evolve(each, **change) if each.name == name else each for each in policy.classes]
        return attrs.evolve(policy, classes=tuple(classes))

    looser = {"max_nodes", "max_time", "max_gpus", "max_array", "max_scratch", "gres", "partitions"}
    old = getattr(POLICY.data_class(name), next(iter(change)))
    # only where it is stricter than what is there
    assume(next(iter(change)) not in looser or old is None or isinstance(old, int | float))
    assume(not isinstance(old, tuple))
    assume(not (isinstance(old, int | float) and old <= next(iter(change.values()))))

    assert decide(fields).allowed or not decide(fields, CONTEXT._replace(policy=stricter(POLICY))).allowed


JUNK = st.binary(max_size=40)


@pytest.mark.parametrize(
    "field",
    [
        "extra",
        "partition",
        "user_name",
        "account",
        "qos",
        "licenses",
        "reservation",
        "array_inx",
        "tres_per_job",
        "work_dir",
        "std_out",
        "dependency_uids",
        "features",
    ],
)
@given(value=JUNK)
def test_any_text_is_decided(field: str, value: bytes) -> None:
    decision = decide({**JOBS["phi"], field: value})

    assert decision.rule != "engine.error"
    assert decision.rule


@given(st.sampled_from(["time_limit", "max_nodes", "min_nodes", "num_tasks", "mail_type"]), JUNK)
def test_a_number_that_is_none_refuses(field: str, value: bytes) -> None:
    decision = decide({**JOBS["phi"], field: value})

    assert decision.allowed <= (value.isdigit())


@given(st.text(alphabet="abc-0", min_size=1, max_size=8), st.sampled_from(["class", "residency", "datasets"]))
def test_an_unknown_name_refuses(name: str, key: str) -> None:
    known = {"class": CLASSES, "residency": list(POLICY.jurisdictions), "datasets": list(POLICY.datasets)}[key]
    assume(name not in known)
    others = "" if key == "class" else "class=phi;"

    assert not decide({**JOBS["phi"], "extra": f"secure-slurm:{others}{key}={name}".encode()}).allowed
