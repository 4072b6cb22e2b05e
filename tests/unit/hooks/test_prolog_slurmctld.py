"""PrologSlurmctld: what it waits for, how long, and what it does with a job in the end. Slurm and daemon are fakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from slurm_hooks import prolog_slurmctld as hook
from slurm_hooks.blame import OUTAGE, SERVICES, TRIAL

Answer = Mapping[str, bytes] | SecureSlurmError
ALLOW: Answer = {"verdict": b"allow"}


def no(rule: str) -> Answer:
    return {"verdict": b"refuse", "rule": rule.encode(), "message": b"no"}


class World:
    """A clock that only sleeping moves, and what the hook did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.slept: list[float] = []
        self.asked: list[dict[str, Any]] = []
        self.done: list[tuple[Any, ...]] = []
        self.answers: Callable[[int], Answer] = lambda _: ALLOW
        self.gave_up: Answer = {"verdict": b"allow", "outage": b"0"}
        self.facts: dict[str, Any] = {"job_state": ["RUNNING", "CONFIGURING"], "user_id": 1001}
        self.config: SecureSlurmError | None = None
        self.end = "requeued"
        self.noted = [True]
        config = {
            "cluster": {"slurm_bin": "/usr/bin"},
            "lifecycle": {"socket": "/nowhere", "start_deadline": 60.0},
        }

        def read(*, check_sources: bool = True) -> dict[str, Any]:
            if check_sources and self.config:
                raise self.config
            return config

        monkeypatch.setattr(hook, "read_hook_config", read)
        monkeypatch.setattr(hook.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(hook.time, "sleep", self._sleep)
        monkeypatch.setattr(hook.wire, "exchange", self._exchange)
        monkeypatch.setattr(hook, "job_facts", lambda *_: self.facts)
        monkeypatch.setattr(hook, "hold", lambda _bin, job, why: self._did("hold", job, why, end="held"))
        monkeypatch.setattr(hook, "note", lambda _bin, *what: self._did("note", *what) or self.noted.pop())
        monkeypatch.setattr(
            hook, "put_back", lambda _bin, job, why, **how: self._did("put back", job, why, how, end=self.end)
        )
        monkeypatch.setenv("SLURM_JOB_ID", "17")
        monkeypatch.setenv("SLURM_JOB_UID", "1001")
        monkeypatch.setenv("SLURM_JOB_NODELIST", "n1")

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def _exchange(self, _path: str, request: dict[str, Any], *, timeout: float) -> Mapping[str, bytes]:
        self.asked.append({**request, "timeout": timeout})
        starts = [one for one in self.asked if one["verb"] == "start"]
        answer = self.gave_up if request["verb"] == "gave-up" else self.answers(len(starts))
        if isinstance(answer, SecureSlurmError):
            raise answer
        return answer

    def _did(self, *what: Any, end: str = "") -> str:
        self.done.append(what)
        return end


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_job_that_may_start(world: World) -> None:
    assert hook.main() == 0
    assert (world.done, world.slept) == ([], [])


@pytest.mark.parametrize("rule", ["rbac.role", "record.mac", "start.tag", "revoked.user", "grant.missing", "what.ever"])
def test_the_jobs_own_fault_holds_it_at_once(world: World, rule: str) -> None:
    world.answers = lambda _: no(rule)
    assert hook.main() == 0
    assert world.done == [("hold", 17, f"[{rule}] no")]
    assert world.slept == []


@pytest.mark.parametrize("rule", sorted(SERVICES - {OUTAGE}))
def test_a_service_is_waited_for_and_then_the_job_starts(world: World, rule: str) -> None:
    world.answers = lambda n: no(rule) if n < 6 else ALLOW
    assert hook.main() == 0
    assert len(world.slept) == 5
    # why it waits is written once, and nothing else happens to it
    assert world.done == [("note", 17, f"[{rule}] no")]


def test_a_reason_that_could_not_be_written_is_written_the_next_time(world: World) -> None:
    world.noted = [True, False]
    world.answers = lambda n: no("vault.denied") if n < 6 else ALLOW
    assert hook.main() == 0
    assert world.done == [("note", 17, "[vault.denied] no")] * 2


@pytest.mark.parametrize(
    ("said", "outage"),
    [
        ({"verdict": b"allow", "outage": b"0"}, False),
        ({"verdict": b"allow", "outage": b"1"}, True),
        ({"verdict": b"refuse", "rule": b"engine.error"}, True),
        (BackendUnavailable("away"), True),
    ],
)
def test_in_vain_it_goes_back(world: World, said: Answer, outage: bool) -> None:
    world.answers = lambda _: no("backend.unavailable")
    world.gave_up = said
    assert hook.main() == 0
    assert world.done[-1] == ("put back", 17, "[backend.unavailable] no", {"tried": True, "outage": outage})
    assert world.asked[-1]["verb"] == "gave-up"
    assert 60 - hook.MOST_WAIT - hook.LAST_TRY <= world.now - 100 <= 60 - hook.LAST_TRY
    # it asks again sooner at first, never all at the same time, and never longer than what is left
    assert all(wait <= hook.MOST_WAIT for wait in world.slept)
    assert len(set(world.slept)) == len(world.slept)
    assert all(one["timeout"] <= 160 - 100 for one in world.asked)


@pytest.mark.parametrize("failure", [BackendUnavailable("no daemon"), SecureSlurmError("slurmctld is away")])
def test_a_daemon_that_is_away_is_waited_for_too(world: World, failure: SecureSlurmError) -> None:
    world.answers = lambda n: failure if n < 4 else ALLOW
    assert hook.main() == 0
    assert len(world.slept) == 3


def test_an_admin_in_the_middle_of_a_change(world: World) -> None:
    world.config = ConfigError("hooks.json is older than policy.yaml")
    assert hook.main() == 0
    assert world.done[-1][:2] == ("put back", 17)
    assert [one["verb"] for one in world.asked] == ["gave-up"]


def test_while_the_breaker_is_open_nothing_is_waited_for(world: World) -> None:
    world.answers = lambda _: no(OUTAGE)
    assert hook.main() == 0
    assert world.done == [("put back", 17, f"[{OUTAGE}] no", {"tried": False, "outage": True})]
    assert world.slept == []


def test_a_breaker_that_opens_while_it_waits(world: World) -> None:
    world.answers = lambda n: no("backend.unavailable") if n < 3 else no(OUTAGE)
    assert hook.main() == 0
    assert world.done[-1][-1] == {"tried": True, "outage": True}


def test_it_waits_for_another_jobs_trial_and_is_not_counted(world: World) -> None:
    world.answers = lambda _: no(TRIAL)
    assert hook.main() == 0
    assert world.done[-1][-1] == {"tried": False, "outage": True}
    # nothing to count: the daemon is not told
    assert "gave-up" not in [one["verb"] for one in world.asked]


@pytest.mark.parametrize("states", [["PENDING"], ["CANCELLED"], ["RUNNING", "COMPLETING"]])
def test_a_job_that_has_ended_meanwhile_is_not_started(world: World, states: list[str]) -> None:
    def answer(_: int) -> Answer:
        world.facts = {"job_state": states}
        return no("backend.unavailable")

    world.answers = answer
    assert hook.main() == 0
    assert len([one for one in world.asked if one["verb"] == "start"]) == 1
    assert world.done[-1][0] == "hold"
    assert "lifecycle.ended" in world.done[-1][2]


def test_an_interactive_job_is_told_by_the_exit_code(world: World) -> None:
    world.answers = lambda _: no(OUTAGE)
    world.end = "cancelled"
    assert hook.main() == 1
