"""What is set on a job: by its datasets, by its class, and what the decision record keeps of it."""

from __future__ import annotations

import datetime
from typing import ClassVar

import attrs
import pytest

from conf.policy import Policy
from slurm_hooks import engine, record
from slurm_hooks.filters.verdict import Context, Exemption
from tests.unit.policy.people import NOW, Changes, Decide

DERIVED: list[tuple[str, Changes, str]] = [
    ("phi", {"extra": b"secure-slurm:datasets=genomes"}, "class=phi;residency=eu;scratch=10737418240;datasets=genomes"),
    (
        "phi",
        {"extra": b"secure-slurm:class=phi;datasets=genomes"},
        "class=phi;residency=eu;scratch=10737418240;datasets=genomes",
    ),
    ("study", {"extra": b"secure-slurm:datasets=ukb"}, "class=phi;residency=uk;scratch=10737418240;datasets=ukb"),
    # in the EU or where the EU finds it adequate, and in the UK: the UK
    (
        "study",
        {"extra": b"secure-slurm:datasets=genomes-shared,ukb;scratch=1G"},
        "class=phi;residency=uk;scratch=1073741824;datasets=genomes-shared,ukb",
    ),
    # mri may be in the EU or the UK, the strictest class is that of the included genomes-shared
    ("study", {"partition": b"phi"}, "class=phi;residency=eu;scratch=10737418240;datasets=joint"),
    (
        "study",
        {"extra": b"secure-slurm:residency=uk;datasets=joint"},
        "class=phi;residency=uk;scratch=10737418240;datasets=joint",
    ),
    ("internal", {"extra": b"secure-slurm:datasets=swiss"}, "class=internal;residency=ch;datasets=swiss"),
    (
        "internal",
        {"extra": b"secure-slurm:datasets=mri", "partition": b"uk"},
        "class=internal;residency=uk;datasets=mri",
    ),
    (
        "internal",
        {"extra": b"secure-slurm:class=internal;residency=uk;datasets=mri"},
        "class=internal;residency=uk;datasets=mri",
    ),
]


@pytest.mark.parametrize(("job", "changes", "tag"), DERIVED)
def test_class_and_place_follow_from_the_datasets(
    job: str, changes: Changes, tag: str, decide: Decide, signer: engine.Signer
) -> None:
    decision = decide(job, **changes)

    assert decision.allowed, decision
    kept = record.verify(decision.changes["admin_comment"], signer.key)
    assert kept.tag.to_extra() == f"secure-slurm:{tag}"
    assert decision.changes.get("extra", changes.get("extra", b"")) in {
        f"secure-slurm:{tag}",
        f"secure-slurm:{tag}".encode(),
    }
    assert decision.changes["features"] == kept.residency


def test_a_stronger_class_than_the_datasets_stays(decide: Decide) -> None:
    decision = decide(
        "study", extra=b"secure-slurm:class=export;residency=eu;datasets=mri", partition=b"batch", account=None
    )

    assert decision.tag is not None
    assert decision.tag.klass == "export"


def test_a_time_limit_where_none_is_named(decide: Decide) -> None:
    assert decide("internal").changes["time_limit"] == "1440"
    assert "time_limit" not in decide("internal", time_limit=b"5").changes
    assert "time_limit" not in decide("open").changes


def test_a_maximum_of_nodes_where_none_is_named(decide: Decide) -> None:
    """Not the class's maximum: slurmctld would give it that many."""
    assert (decide("phi").changes["min_nodes"], decide("phi").changes["max_nodes"]) == ("1", "1")
    assert decide("phi", min_nodes=b"2").changes["max_nodes"] == "2"
    assert decide("phi", num_tasks=b"2").rule == "limit.nodes"
    assert "max_nodes" not in decide("phi", max_nodes=b"3").changes
    assert "max_nodes" not in decide("open").changes


def test_a_dataset_that_went_from_the_policy_refuses_at_the_start_too(decide: Decide, context: Context) -> None:
    policy: Policy = attrs.evolve(context.policy, datasets={})

    assert decide("phi", given=context._replace(policy=policy), extra=b"secure-slurm:datasets=genomes").rule == (
        "dataset.unknown"
    )


@pytest.mark.parametrize("user", [b"cem", b"eva"])
def test_a_role_that_another_includes_is_held_as_well(user: bytes, decide: Decide) -> None:
    decision = decide(
        "phi", user_name=user, extra=b"secure-slurm:class=phi;residency=uk", partition=b"phi-gpu", account=None
    )

    assert decision.rule == "allow.tagged"


def test_including_works_in_one_direction(decide: Decide) -> None:
    assert decide("open", user_name=b"eva", extra=b"secure-slurm:class=open;residency=eu").rule == "allow.tagged"
    # the members of the included role do not get what the other gives
    given = decide("open", user_name=b"fay", extra=b"secure-slurm:class=open;residency=eu")
    assert given.rule == "rbac.role"


def test_a_way_over_a_role_that_has_ended_is_no_way(site: Policy) -> None:
    until = datetime.date(2026, 1, 31)
    roles = {
        **site.roles,
        "mid": attrs.evolve(site.roles["staff"], groups=("cn=mid,dc=example",), includes=("phi-uk",), until=until),
        "chair": attrs.evolve(site.roles["staff"], groups=("cn=chair,dc=example",), includes=("mid",), until=None),
        "other": attrs.evolve(
            site.roles["staff"], groups=("cn=other,dc=example",), includes=("mid", "phi-uk"), until=None
        ),
    }
    policy = attrs.evolve(site, roles=roles)

    assert policy.held_by(frozenset({"cn=chair,dc=example"}), NOW) == ("chair",)
    # of two ways the one that lasts counts
    assert policy.held_by(frozenset({"cn=other,dc=example"}), NOW) == ("other", "phi-uk")


class TestExemption:
    """A break-glass grant gives a role for a while, and nothing else."""

    PHI: ClassVar = {"user_name": b"ann"}

    def given(self, context: Context, **changes: object) -> Context:
        grant = Exemption(id="bg-1", user="ann", role="phi-eu", until=NOW + 60)
        return context._replace(exemptions=(attrs.evolve(grant, **changes),))

    def test_it_gives_the_role(self, decide: Decide, context: Context) -> None:
        assert decide("phi", **self.PHI).rule == "rbac.role"
        assert decide("phi", given=self.given(context), **self.PHI).rule == "allow.tagged"

    @pytest.mark.parametrize(
        "changes",
        [
            {"user": "bea"},
            {"until": NOW},
            {"until": NOW - 1},
            {"role": "phi-uk"},
            {"role": "none"},
            {"role": None, "job": 7},
        ],
    )
    def test_not_to_another_nor_for_longer(self, changes: dict[str, object], decide: Decide, context: Context) -> None:
        assert decide("phi", given=self.given(context, **changes), **self.PHI).rule == "rbac.role"

    @pytest.mark.parametrize(
        ("rule", "changes"),
        [
            ("role.account", {"account": b"other"}),
            ("limit.nodes", {"max_nodes": b"5"}),
            ("class.partition", {"partition": b"batch"}),
            ("identity.submit-uid", {"submit_uid": b"0"}),
        ],
    )
    def test_its_limits_stay(self, rule: str, changes: Changes, decide: Decide, context: Context) -> None:
        assert decide("phi", given=self.given(context), **self.PHI, **changes).rule == rule

    def test_without_members_nobody_is_known(self, decide: Decide, context: Context) -> None:
        blind = self.given(context)._replace(members=None)
        assert decide("phi", given=blind, **self.PHI).rule == "rbac.snapshot"
