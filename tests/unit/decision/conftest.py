from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from conf.policy import DataClass, Jurisdiction, Partition, Policy, Role
from keys.secret import Secret
from slurm_hooks import engine, record
from slurm_hooks.filters.verdict import Context
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot

EU = "cn=phi-eu,ou=groups,dc=example,dc=org"
ALL = "cn=researchers,ou=groups,dc=example,dc=org"
EXTRA = "secure-slurm:class=phi;residency=eu;scratch=1073741824"

Fields = dict[str, bytes]
Decide = Callable[..., engine.Decision]


def make_policy() -> Policy:
    gib = 2**30
    return Policy(
        version=1,
        jurisdictions={
            "eu": Jurisdiction(feature="eu", regions=("eu-central-1",)),
            "us": Jurisdiction(feature="us", regions=("us-east-1",)),
        },
        classes=(
            DataClass(
                name="internal", residency="optional", scratch="optional", max_scratch=100 * gib, exclusive_nodes=False
            ),
            DataClass(
                name="phi", residency="required", scratch="required", default_scratch=gib, max_scratch=1024 * gib
            ),
            DataClass(name="raw", residency="optional", scratch="required", max_scratch=gib),
            DataClass(name="bare", residency="optional", scratch="optional"),
        ),
        roles={
            "all": Role(groups=(ALL,), classes=("internal", "raw", "bare"), jurisdictions=("eu", "us")),
            "phi-eu": Role(groups=(EU,), classes=("phi",), jurisdictions=("eu",), partitions=("phi", "open")),
        },
        partitions={
            "phi": Partition(demand_tag=True, least_class="phi", jurisdiction="eu"),
            "lab": Partition(demand_tag=True, jurisdiction="eu"),
            "us": Partition(jurisdiction="us"),
        },
        hash="ab" * 32,
    )


def make_snapshot() -> Snapshot:
    groups = {EU: Group("phi-eu", frozenset({"alice"})), ALL: Group("researchers", frozenset({"alice", "bob"}))}
    return Snapshot(time.time(), "test", groups)


@pytest.fixture
def policy() -> Policy:
    return make_policy()


@pytest.fixture
def context(policy: Policy) -> Context:
    return Context(policy, make_snapshot())


@pytest.fixture
def signer() -> engine.Signer:
    return engine.Signer("test", Secret(b"k" * 32), frozenset({0, 64030}))


@pytest.fixture
def fields() -> Fields:
    """A tagged batch job of alice's that is allowed."""
    return {
        "verb": b"submit",
        "submit_uid": b"1001",
        "user_id": b"1001",
        "user_name": b"alice",
        "extra": EXTRA.encode(),
        "partition": b"phi",
        "has_script": b"1",
        "alloc_node": b"login1",
        "default_partition": b"open",
        "demand_nodes": b"phi=n[1-2]",
        "name": b"job",
        "work_dir": b"/home/alice",
    }


@pytest.fixture
def plain() -> Fields:
    """An untagged job of bob's that is allowed."""
    return {
        "verb": b"submit",
        "submit_uid": b"1002",
        "user_id": b"1002",
        "user_name": b"bob",
        "has_script": b"1",
        "alloc_node": b"login1",
        "default_partition": b"open",
        "demand_nodes": b"phi=n[1-2]",
    }


@pytest.fixture
def submit(context: Context, signer: engine.Signer) -> Decide:
    def decide(fields: Fields, *, given: Context | None = None, **more: bytes | None) -> engine.Decision:
        merged = {**fields, **{name.replace("__", "."): value for name, value in more.items()}}
        return engine.decide_submit(
            {name: value for name, value in merged.items() if value is not None}, given or context, signer
        )

    return decide


@pytest.fixture
def stored(signer: engine.Signer, policy: Policy) -> Fields:
    """The stored, tagged job of alice's as ``rec.*`` fields."""
    signed = record.sign(
        record.Record("test", 1001, "alice", "phi", "eu", 2**30, policy.hash[:16], record.new_nonce(), record.now()),
        signer.key,
    )
    return {
        "verb": b"modify",
        "modify_uid": b"1001",
        "rec.user_id": b"1001",
        "rec.user_name": b"alice",
        "rec.job_id": b"7",
        "rec.job_state": b"0",
        "rec.extra": EXTRA.encode(),
        "rec.admin_comment": signed.encode(),
        "rec.partition": b"phi",
        "rec.features": b"big&eu",
    }


@pytest.fixture
def modify(context: Context, signer: engine.Signer) -> Decide:
    def decide(fields: Fields, *, given: Context | None = None, **more: bytes | None) -> engine.Decision:
        merged = {**fields, **{name.replace("__", "."): value for name, value in more.items()}}
        return engine.decide_modify(
            {name: value for name, value in merged.items() if value is not None}, given or context, signer
        )

    return decide
