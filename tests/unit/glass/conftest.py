"""Grants of a small site, with people who exist only here."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import attrs
import pytest

from conf.policy import BreakGlass, DataClass, Jurisdiction, Policy, Role
from slurm_hooks import breakglass_papers as papers
from slurm_hooks.breakglass import Frame, Grant, judge
from slurm_hooks.breakglass_papers import Paper
from slurm_hooks.membership import Group
from slurm_hooks.snapshot import Snapshot

NOW = 1_795_300_000.0
HOUR = 3600
OPERATORS, OFFICERS, PHI = "cn=operators,dc=x", "cn=officers,dc=x", "cn=phi,dc=x"
# ann asks, ben approves, bob gets it; both may both
UIDS = {"root": 0, "ann": 11, "ben": 12, "bob": 13, "both": 14, "alias": 11}


class Everybody:
    """The name service."""

    def __init__(self, **more: int) -> None:
        self._uids = {**UIDS, **more}

    def name_of(self, uid: int) -> str | None:
        return next((name for name, each in self._uids.items() if each == uid), None)

    def uid_of(self, name: str) -> int | None:
        return self._uids.get(name)


def make_policy() -> Policy:
    return Policy(
        version=1,
        jurisdictions={
            "eu": Jurisdiction(feature="eu", regions=("eu-central-1",)),
            "us": Jurisdiction(feature="us", regions=("us-east-1",)),
        },
        classes=(
            DataClass(
                name="internal", residency="optional", scratch="optional", max_scratch=2**30, exclusive_nodes=False
            ),
            DataClass(name="phi", residency="required", scratch="required", default_scratch=2**30, max_scratch=2**40),
        ),
        roles={
            "phi-eu": Role(groups=(PHI,), classes=("phi", "internal"), jurisdictions=("eu", "us")),
            "gone": Role(groups=(PHI,), classes=("phi",), jurisdictions=("eu",), until=datetime.date(2020, 1, 1)),
        },
        break_glass=BreakGlass(requesters=(OPERATORS,), approvers=(OFFICERS,), longest=8.0 * HOUR),
        hash="ab" * 32,
    )


def make_members() -> Snapshot:
    groups = {
        OPERATORS: Group("operators", frozenset({"ann", "both", "root", "alias"})),
        OFFICERS: Group("officers", frozenset({"ben", "both", "bob", "root", "ann"})),
        PHI: Group("phi", frozenset({"zoe"})),
    }
    return Snapshot(NOW - 10, "test", groups)


@pytest.fixture
def frame() -> Frame:
    return Frame(make_policy(), make_members(), Everybody(), NOW)


REQUEST = papers.Request(
    id="g1", by=11, user="bob", role="phi-eu", time=int(NOW) - 60, until=int(NOW) + HOUR, reason="the ward waits"
)

Make = Callable[..., dict[str, Paper]]


def request_paper(owner: int = 11, changed: float = NOW - 60, **changes: object) -> Paper:
    return Paper(owner, papers.dump_request(attrs.evolve(REQUEST, by=owner, **changes)), changed)


def approval_paper(request: Paper, owner: int = 12, changed: float = NOW - 30, name: str = "g1") -> Paper:
    note = papers.Note(name, owner, papers.digest(request.data), "checked by telephone")
    return Paper(owner, papers.dump_note(note), changed)


def end_paper(owner: int) -> Paper:
    return Paper(owner, papers.dump_note(papers.Note("g1", owner, "", "no more needed")), NOW - 5)


@pytest.fixture
def approved() -> dict[str, Paper]:
    asked = request_paper()
    return {"request": asked, "approval": approval_paper(asked)}


@pytest.fixture
def state(frame: Frame) -> Callable[[dict[str, Paper]], Grant]:
    return lambda found: judge("g1", found, frame)
