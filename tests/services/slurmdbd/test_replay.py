"""secure-slurm policy replay on a real accounting database: exactly the jobs that another policy decides otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.services.slurmdbd.conftest import World
from tests.testbed import settings

POLICY = Path(settings.ETC) / "policy.yaml"


def policy(tmp_path: Path, *changes: tuple[str, str]) -> str:
    text = settings.POLICY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / f"{abs(hash(changes))}.yaml"
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


def replay(world: World, *words: str, code: int = 1) -> dict[str, Any]:
    done = world.accounting.tool("policy", "replay", "--json", *words, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def changes(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        each["job"]: (each["change"], each["before" if each["change"] == "newly allowed" else "after"])
        for each in found["changes"]
    }


def jobs(world: World, **kinds: tuple[str, str]) -> dict[str, tuple[str, str]]:
    return {name: why for kind, why in kinds.items() for name in world.jobs[kind]}


STRICTER = (
    ("partitions:\n", "partitions:\n  main: {demand_tag: true, least_class: internal}\n"),
    ("scratch: required, ", "scratch: required, max_time: 5m, max_gpus: 1, "),
    ("jurisdictions: [us]\npartitions", "jurisdictions: [eu]\npartitions"),
)


@pytest.fixture
def stricter(tmp_path: Path) -> str:
    return policy(tmp_path, *STRICTER)


@pytest.fixture
def expected(world: World) -> dict[str, tuple[str, str]]:
    missing, late = ("newly refused", "tag.missing"), ("newly refused", "limit.time")
    found = jobs(world, plain=missing, hostile=missing, phi=late, waiting=late, array=("newly refused", "rbac.role"))
    found |= jobs(world, gpus=("newly refused", "limit.gpus"))
    # the other component is in a partition that demands nothing
    return {**found, world.jobs["het"][0]: missing}


def test_the_policy_in_use_decides_as_it_did(world: World) -> None:
    found = replay(world, code=0)
    assert found["changes"] == []
    assert found["counts"]["judged"] == found["counts"]["unchanged"] == sum(map(len, world.jobs.values()))
    assert found["counts"]["unreadable"] == 0


def test_under_which_policy_they_were_accepted(world: World) -> None:
    found = replay(world, code=0)
    under = {each["policy"]: each["jobs"] for each in found["accepted_under"]}
    tagged = ("phi", "internal", "gpus", "array", "deleted")
    # bob's have no tag, and a waiting one has no record yet
    assert under == {found["policy"]["hash"][:16]: sum(len(world.jobs[each]) for each in tagged), "": 5}


def test_a_stricter_policy_refuses_exactly_these(world: World, stricter: str, expected: dict[str, Any]) -> None:
    found = replay(world, stricter, "--days", "1")
    assert changes(found) == expected
    assert found["counts"]["newly_refused"] == len(expected)
    users = {(each["rule"], each["user"]): each["jobs"] for each in found["groups"]}
    assert users == {
        ("tag.missing", "bob"): 3,
        ("limit.time", "alice"): 2,
        ("limit.gpus", "alice"): 1,
        ("rbac.role", "carol"): 2,
    }


def test_a_saved_answer_and_other_days_say_the_same(world: World, stricter: str, tmp_path: Path) -> None:
    saved = tmp_path / "jobs.json"
    saved.write_text(world.accounting.sacct("--json=v0.0.42"), encoding="utf-8", errors="surrogateescape")
    found = [replay(world, stricter, *words) for words in (("--days=1",), ("--days=3",), (f"--jobs={saved}",))]
    for each in found:
        del each["jobs_from"]
        each["changes"].sort(key=lambda change: change["job"])
    assert found[0] == found[1] == found[2]


def test_every_form_of_the_json_is_read(world: World, stricter: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    asked = world.accounting.command(["sacct", "--json=list"], check=False)
    forms = sorted(word.rpartition("/")[2] for word in (asked.stdout + asked.stderr).split() if "data_parser/" in word)
    assert len(forms) > 2
    for form in forms:
        saved = tmp_path / f"{form}.json"
        saved.write_text(world.accounting.sacct(f"--json={form}"), encoding="utf-8", errors="surrogateescape")
        assert changes(replay(world, stricter, f"--jobs={saved}")) == expected, form


def test_newly_allowed_against_an_older_policy(world: World, tmp_path: Path) -> None:
    old = policy(
        tmp_path, ("classes: [internal, phi]\n    jurisdictions: [eu]", "classes: [phi]\n    jurisdictions: [eu]")
    )
    found = replay(world, "--against", old)
    assert changes(found) == jobs(world, internal=("newly allowed", "rbac.role"))
    assert found["counts"]["newly_refused"] == 0


def test_both_ways_at_once(world: World, stricter: str, tmp_path: Path, expected: dict[str, Any]) -> None:
    old = policy(
        tmp_path, ("classes: [internal, phi]\n    jurisdictions: [eu]", "classes: [phi]\n    jurisdictions: [eu]")
    )
    found = replay(world, stricter, "--against", old)
    assert changes(found) == {**expected, **jobs(world, internal=("newly allowed", "rbac.role"))}


def test_a_default_that_was_put_in_is_not_what_the_user_asked(world: World, tmp_path: Path) -> None:
    # the record says 64M, of which alice never spoke
    smaller = policy(tmp_path, ("default_scratch: 64M, max_scratch: 200G", "default_scratch: 32M, max_scratch: 48M"))
    assert replay(world, smaller, code=0)["changes"] == []


def test_in_words(world: World, stricter: str) -> None:
    done = world.accounting.tool("policy", "replay", stricter, "--days=1", "--list", check=False)
    assert done.returncode == 1
    assert f"job {world.jobs['phi'][0]} of alice (limit.time)" in done.stdout
    assert "MAC was not checked" in done.stdout
    assert "\x1b" not in done.stdout


def test_no_accounting_is_exit_4(world: World) -> None:
    conf = (
        Path("/etc/slurm/slurm.conf").read_text().replace("AccountingStorageHost=head", "AccountingStorageHost=nowhere")
    )
    other = world.accounting.directory / "other.conf"
    other.write_text(conf)
    done = world.accounting.command(
        [f"{settings.PREFIX}/bin/secure-slurm", "policy", "replay"], check=False, env={"SLURM_CONF": str(other)}
    )
    assert done.returncode == 4
    assert "accounting" in done.stderr
