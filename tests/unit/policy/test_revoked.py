"""What is revoked is refused, by every way of naming it; nothing that the policy says takes that back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import attrs
import pytest

from conf.errors import BackendUnavailable
from conf.policy import Policy
from conf.tag import Tag
from slurm_hooks import engine, revoked
from slurm_hooks.filters.judge_revoked import roles_behind, verdict
from slurm_hooks.filters.verdict import ALLOW, Context, Deny
from slurm_hooks.revoked import JOB_FOR, Revocation, Revoked, Subject
from tests.unit.policy.people import NOW, Decide

ID = "0123456789abcdef"
SUBJECT = Subject(
    uid=1001,
    tag=Tag("phi", "eu", None, ("ukb",)),
    job=17,
    nodes=("n1", "n2"),
    roles=frozenset({"phi-eu"}),
    places=frozenset({"eu"}),
)


def made(kind: str, value: str, **more: object) -> Revocation:
    return Revocation(**{"id": ID, "kind": kind, "value": value, "at": NOW, **more})


@pytest.mark.parametrize(
    ("kind", "value", "other"),
    [
        ("job", "17", "18"),
        ("job", "17", "1"),
        ("role", "phi-eu", "phi"),
        ("dataset", "ukb", "uk"),
        ("node", "n1", "n"),
        ("jurisdiction", "eu", "us"),
    ],
)
def test_by_every_name(kind: str, value: str, other: str) -> None:
    refused = verdict((made(kind, other), made(kind, value)), SUBJECT, NOW)
    assert isinstance(refused, Deny)
    assert refused.rule == f"revoked.{kind}"
    assert verdict((made(kind, other),), SUBJECT, NOW) is ALLOW


def test_a_user_is_a_uid() -> None:
    assert isinstance(verdict((made("user", "alice", uid=1001),), SUBJECT, NOW), Deny)
    assert verdict((made("user", "1001", uid=1002),), SUBJECT, NOW) is ALLOW


def test_a_job_that_is_not_known_yet_is_no_job() -> None:
    assert verdict((made("job", "None"),), attrs.evolve(SUBJECT, job=None), NOW) is ALLOW


def test_one_job_stays_revoked_for_a_month_and_everything_else_for_ever() -> None:
    later = NOW + JOB_FOR
    assert isinstance(verdict((made("job", "17"),), SUBJECT, later - 1), Deny)
    assert verdict((made("job", "17"),), SUBJECT, later) is ALLOW
    assert isinstance(verdict((made("node", "n1"),), SUBJECT, later * 2), Deny)


class TestSubmission:
    @pytest.mark.parametrize(
        ("kind", "value", "uid"),
        [("user", "bea", 1001), ("role", "phi-eu", None), ("jurisdiction", "eu", None)],
    )
    def test_refused(self, decide: Decide, context: Context, kind: str, value: str, uid: int | None) -> None:
        given = context._replace(revoked=(made(kind, value, uid=uid),))
        assert decide("phi").allowed
        assert decide("phi", given=given).rule == f"revoked.{kind}"

    @pytest.mark.parametrize(
        ("kind", "value", "uid"),
        [("user", "ann", 1002), ("role", "export", None), ("jurisdiction", "uk", None), ("job", "17", None)],
    )
    def test_others_are_not(self, decide: Decide, context: Context, kind: str, value: str, uid: int | None) -> None:
        assert decide("phi", given=context._replace(revoked=(made(kind, value, uid=uid),))).allowed

    def test_no_shadow_helps(self, decide: Decide, context: Context) -> None:
        given = context._replace(revoked=(made("user", "bea", uid=1001),))
        assert not any(given.shadows(rule) for rule in revoked.RULES.values())

    def test_a_file_that_cannot_be_read_refuses_everything(self, decide: Decide, context: Context) -> None:
        given = context._replace(revoked=(made("", "x.json"),))
        assert decide("phi", given=given).rule == "revoked.unreadable"
        untagged: engine.Decision = decide("open", given=given, extra=None)
        assert untagged.allowed


def test_whoever_has_no_role_any_more_may_have_had_each(site: Policy) -> None:
    tag, places = Tag("phi", "eu", None, ()), frozenset({"eu"})
    mine = roles_behind(site, tag, places, frozenset({"cn=phi-eu,dc=example"}), NOW)
    lost = roles_behind(site, tag, places, frozenset(), NOW)
    assert mine == {"phi-eu"}
    assert mine <= lost
    assert all("eu" in site.roles[name].jurisdictions for name in lost)


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "revoked").mkdir(mode=0o750)
        return tmp_path / "revoked"

    def test_what_is_written_is_read(self, folder: Path) -> None:
        one = made("user", "alice", uid=1001, reason="ü\n", jobs={17: ("n1", "n2")}, done=3.5)
        revoked.write(str(folder), one)
        revoked.write(str(folder), attrs.evolve(one, id="0" * 16, at=1.0, kind="node", value="n1", uid=None))
        assert [each.kind for each in revoked.read(str(folder), os.geteuid())] == ["node", "user"]
        assert revoked.read(str(folder), os.geteuid())[1] == one
        revoked.remove(str(folder), ID)
        revoked.remove(str(folder), ID)
        assert len(revoked.read(str(folder), os.geteuid())) == 1

    def test_no_folder_is_no_revocation(self, folder: Path) -> None:
        assert revoked.read(f"{folder}/none", os.geteuid()) == ()
        with pytest.raises(BackendUnavailable, match="cannot be written"):
            revoked.write(f"{folder}/none", made("job", "17"))

    def test_a_folder_that_others_can_write_to_is_not_believed(self, folder: Path) -> None:
        reader = Revoked(str(folder), os.geteuid())
        revoked.write(str(folder), made("job", "17"))
        reader.look()
        before = reader.all
        folder.chmod(0o770)
        with pytest.raises(BackendUnavailable):
            reader.look()
        assert reader.all is before

    def test_the_same_again_is_the_very_same(self, folder: Path) -> None:
        reader = Revoked(str(folder), os.geteuid())
        revoked.write(str(folder), made("job", "17"))
        reader.look()
        before = reader.all
        reader.look()
        assert reader.all is before

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "what"}, {"kind": ""}, {"kind": 1}, {"value": ""}, {"value": "a b"}, {"value": None}, {"id": "x"},
            {"jobs": []}, {"jobs": {"x": []}}, {"at": "now"}, {"kind": "user", "uid": None},
            {"kind": "user", "uid": "0"},
        ],
    )  # fmt: skip
    def test_a_broken_one_refuses_everything(self, folder: Path, change: dict[str, object]) -> None:
        revoked.write(str(folder), made("job", "17"))
        path = folder / f"{ID}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        (found,) = revoked.read(str(folder), os.geteuid())
        assert isinstance(verdict((found,), attrs.evolve(SUBJECT, job=99), NOW), Deny)

    @pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000])
    def test_what_is_no_json_refuses_everything(self, folder: Path, text: str) -> None:
        (folder / "x.json").write_text(text)
        (found,) = revoked.read(str(folder), os.geteuid())
        assert found.kind == ""

    def test_somebody_elses_file_and_half_written_ones_are_left_aside(self, folder: Path) -> None:
        revoked.write(str(folder), made("job", "17"))
        (folder / f".{ID}").write_text("half")
        (folder / "pipe.json").mkdir()
        assert [one.value for one in revoked.read(str(folder), os.geteuid()) if one.kind] == ["17"]
        if os.geteuid() == 0:
            os.chown(folder / f"{ID}.json", 12345, -1)
            assert [one for one in revoked.read(str(folder), os.geteuid()) if one.kind] == []
