"""The table of changes against a real slurmctld, filter and decision daemon: what is refused leaves nothing behind.

Slurm applies an update field by field and never takes one back, so after each refusal the whole job is compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.slurm.controller import run, until
from tests.services.slurm.filtered import TAG, Filtered, rule
from tests.services.slurm.modify_table import ALLOW, NONE, RUNNING, SLURM, TABLE, UNSEEN, Row

PEOPLE = ("bob", "alice", "oper", "root")
HELD, LATER = ("--hold", "--wrap=sleep 3600"), ("--begin=now+1hour", "--wrap=sleep 3600")
# what slurmctld's scheduler changes by itself
RESTLESS = {"LastSchedEval", "Scheduler", "RunTime", "Reason", "Priority", "AccrueTime", "SchedNodeList"}
PLANNED = {"StartTime", "EndTime", "NodeList"}
BY_ITSELF = "Job resizing not supported for job arrays"  # scontrol, before it sends anything

Facts = list[dict[str, str]]


@pytest.fixture(scope="module")
def slurm(throw_away_root: None) -> Iterator[Filtered]:
    Path("/data/phi/sub").mkdir(parents=True, exist_ok=True)
    with Filtered() as controller:
        print(f"Slurm {controller.release}")
        yield controller


@pytest.fixture(scope="module")
def kept(slurm: Filtered) -> dict[str, str]:
    """Jobs that run, for as long as the tests do, and those without a tag, which nothing is compared of."""
    jobs = {"running": slurm.submit(LATER[1]), "mixed array": slurm.submit("--array=1-3%1", LATER[1])}
    for job in jobs.values():
        until(lambda j=job: "RUNNING" in {each["JobState"] for each in slurm.facts(j)}, f"job {job} to run")  # type: ignore[misc]
    return {
        **jobs,
        "another's": run("runuser", "-u", "bob", "--", "sbatch", "--parsable", "--chdir=/tmp", *HELD).strip(),
        "untagged": slurm.submit(*HELD, extra=""),
        "untagged array": slurm.submit("--array=1-3", *LATER, extra=""),
        "component": slurm.submit("--hold", ":", HELD[1], extra="") + "+1",
    }


@pytest.fixture
def job(slurm: Filtered, kept: dict[str, str], state: str) -> str:
    """A job in the state that the test names; a new one, but for those that run."""
    makers: dict[str, Callable[[], str]] = {
        "held": lambda: slurm.submit(*HELD),
        "pending": lambda: slurm.submit(*LATER),
        "array": lambda: slurm.submit("--array=1-3", *LATER),
        "task": lambda: _split(slurm, slurm.submit("--array=1-3", *LATER) + "_2"),
    }
    return kept[state] if state in kept else makers[state]()


def _split(slurm: Filtered, task: str) -> str:
    # slurmctld makes a record of its own for it before it looks who asks
    slurm.people["bob"].says(f"update JobId={task} Nice=1")
    return task


def stable(facts: Facts) -> Facts:
    """What nobody but an update changes."""
    return [
        {
            key: value
            for key, value in each.items()
            if key not in RESTLESS and (key not in PLANNED or each["JobState"] == "RUNNING")
        }
        for each in facts
    ]


def marks(facts: Facts) -> set[tuple[str, str]]:
    """Tag and record of a job: its text has words of its own, and its MAC is over all of them."""
    return {(each["Extra"], each["mac"]) for each in facts}


@pytest.mark.parametrize("row", TABLE, ids=[row.change for row in TABLE])
@pytest.mark.parametrize("state", ["held", "pending", "array", "task", "running", "mixed array"])
def test_a_job_with_a_tag(slurm: Filtered, kept: dict[str, str], job: str, state: str, row: Row) -> None:
    row = row.of(slurm.release)
    before = slurm.facts(job)
    # to anybody else slurmctld says the same whatever the state
    for who in PEOPLE if state == "held" else PEOPLE[1:]:
        answer = slurm.people[who].says(f"update JobId={job} {row.change}")
        after = slurm.facts(job)
        if BY_ITSELF in answer:
            continue
        expected = SLURM if who == "bob" else row.expected(who, running=state in kept)
        told = f"{who} {row.change} on a job that is {state}: {answer}"
        wanted = {"" if expected in {ALLOW, SLURM, NONE} else expected}
        if "array" in state and expected == ALLOW:
            # what it asks about the next record of an array is what its work on the first one has left of the request
            wanted |= {UNSEEN, RUNNING}
        assert rule(answer) in wanted, told
        if expected in {SLURM, NONE}:
            assert answer, told
            assert ("not supported: " in answer) == (row.owner == NONE), told
        elif expected == ALLOW and state in {"held", "pending", "task"} and who[0] in row.taken:
            assert not answer, told
        if expected != ALLOW:
            assert stable(after) == stable(before), told
        assert marks(after) == marks(before) == {(TAG, before[0]["mac"])}, told
        assert all(_bound(each["Features"]) for each in after), told
        before = after


def test_a_class_with_a_limit_of_nodes_gives_a_job_no_more_than_it_needs(slurm: Filtered, kept: dict[str, str]) -> None:
    assert slurm.facts(kept["running"])[0]["NumNodes"] == "1"


def _bound(features: str) -> bool:
    return features == "eu" or features.endswith("&eu")


@pytest.mark.parametrize("row", TABLE, ids=[row.change for row in TABLE])
@pytest.mark.parametrize("state", ["untagged", "untagged array", "component"])
def test_a_job_without_a_tag_gets_none(slurm: Filtered, job: str, row: Row) -> None:
    expected = {"Partition=phi": "tag.missing", "Dependency=expand:1": "route.dependency-expand"}.get(row.change, "")
    if row.change.startswith("Extra=secure-slurm"):
        expected = "modify.tag"
    for who in ("alice", "oper", "root"):
        answer = slurm.people[who].says(f"update JobId={job} {row.change}")
        if BY_ITSELF in answer:
            continue
        mine = "record.foreign" if row.change.startswith("AdminComment='secure") and who == "root" else expected
        assert rule(answer) == mine, f"{who} {row.change}: {answer}"
        for each in slurm.facts(job):
            assert not each.get("Extra", "").startswith("secure-slurm")
            assert "mac" not in each
            assert each["Partition"] != "phi"


@pytest.mark.parametrize("state", ["held", "pending", "running", "array", "task", "mixed array"])
@pytest.mark.parametrize("who", ["alice", "oper", "root"])
@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("Comment=half Extra=nothing", "modify.tag"),
        ("Extra=nothing Comment=half", "modify.tag"),
        ("Nice=7 Partition=us", "residency.partition"),
        ("Comment=half a_field_of_tomorrow=1", ""),
    ],
)
def test_half_of_a_change_is_none(slurm: Filtered, job: str, who: str, change: str, refused: str) -> None:
    before = slurm.facts(job)

    answer = slurm.people[who].says(f"update JobId={job} {change}")

    assert answer
    assert rule(answer) in ({refused} if who != "oper" else {refused, "identity.modify-uid"}), answer
    assert stable(slurm.facts(job)) == stable(before)


@pytest.mark.parametrize("state", ["held", "pending", "running", "array"])
@pytest.mark.parametrize("hidden", ["Deadline=now+1day", "SiteFactor=5", "NumNodes=1,3"])
def test_what_no_filter_sees_moves_nothing_when_it_comes_with_something_else(
    slurm: Filtered, job: str, hidden: str
) -> None:
    before = slurm.facts(job)
    for who in ("alice", "oper", "root"):
        slurm.people[who].says(f"update JobId={job} Nice=5 {hidden}")
    after = slurm.facts(job)

    assert marks(after) == marks(before)
    for field in ("Partition", "Features", "UserId", "WorkDir", "ReqNodeList", "OverSubscribe"):
        assert {each.get(field) for each in after} == {each.get(field) for each in before}, field


@pytest.mark.parametrize("state", ["held", "pending", "array", "task"])
def test_everything_but_an_update_keeps_tag_and_record(slurm: Filtered, job: str) -> None:
    before = marks(slurm.facts(job))
    for who in PEOPLE:
        for command in ("hold", "uhold", "release", "suspend", "resume", "top", "requeue", "requeuehold", "hold"):
            answer = slurm.people[who].says(f"{command} {job}")
            assert not rule(answer), (who, command, answer)
            assert marks(slurm.facts(job)) == before
    assert slurm.people["bob"].says(f"write batch_script {job.partition('_')[0]} -")


@pytest.mark.parametrize("state", ["held"])
def test_hold_and_release(slurm: Filtered, job: str) -> None:
    assert slurm.people["bob"].says(f"release {job}")
    assert slurm.facts(job)[0]["Priority"] == "0"
    for who in ("alice", "oper", "root"):
        assert not slurm.people[who].says(f"uhold {job}")
        assert slurm.facts(job)[0]["Priority"] == "0"
        assert not slurm.people[who].says(f"update JobId={job} StartTime=now+1hour") or who == "oper"
        assert not slurm.people[who].says(f"release {job}")
        assert slurm.facts(job)[0]["Priority"] != "0"


@pytest.mark.parametrize("state", ["held", "pending", "running", "array", "task"])
@pytest.mark.parametrize("who", ["alice", "root"])
def test_a_job_waits_for_nobody_elses(slurm: Filtered, kept: dict[str, str], job: str, who: str) -> None:
    other = kept["another's"]
    answer = slurm.people[who].says(f"update JobId={job} Dependency=afterany:{other}")

    assert rule(answer) == "route.dependency-other", answer


def test_the_table_has_every_field_that_scontrol_knows(slurm: Filtered) -> None:
    """Each word in scontrol's own file is offered to its parser, which takes the beginnings of a field's name too."""
    words = set(re.findall(rb"[A-Za-z][A-Za-z-]{0,24}[A-Za-z]", Path("/usr/bin/scontrol").read_bytes()))
    # the compiler keeps a text that is the end of another one once
    words |= {word[at:] for word in words for at in range(1, len(word)) if word[at : at + 1].isupper()}
    names = {row.field for row in TABLE if row.of(slurm.release).owner != NONE} | {"JobId", "UserID"}
    asks = slurm.people["bob"].says

    def taken(name: str) -> bool:
        both = (asks(f"update JobId=4000000 {name}=x"), asks(f"update JobId=4000000 {name}"))
        return any("not supported" not in answer and "Invalid input" not in answer for answer in both)

    known = {word.decode() for word in words if taken(word.decode())}
    strangers = {word for word in known if not any(name.lower().startswith(word.lower()) for name in names)}

    assert strangers == set()
    assert {name for name in names if not taken(name)} == set()
    print(f"{len(words)} words, {len(known)} taken, {len(names)} fields")
