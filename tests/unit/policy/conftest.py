"""The policy of an invented site that uses all of the model, and the real engine to judge its jobs."""

from __future__ import annotations

import datetime

import pytest

from conf.policy import Policy, load_policy
from keys.secret import Secret
from slurm_hooks import engine
from slurm_hooks.filters.verdict import Context
from tests.unit.policy.people import JOBS, NOW, SITE, Decide, snapshot


@pytest.fixture(scope="session")
def site() -> Policy:
    return load_policy(str(SITE))


@pytest.fixture(scope="session")
def context(site: Policy) -> Context:
    return Context(site, snapshot(), now=NOW)


@pytest.fixture(scope="session")
def signer() -> engine.Signer:
    return engine.Signer("test", Secret(b"k" * 32), frozenset({0, 64030}))


@pytest.fixture(scope="session")
def decide(context: Context, signer: engine.Signer) -> Decide:
    """Submit one of :data:`JOBS` with changes; ``__`` in a name stands for a dot, None takes a field away."""

    def submit(job: str, *, given: Context | None = None, **changes: bytes | None) -> engine.Decision:
        merged = {**JOBS[job], **{name.replace("__", "."): value for name, value in changes.items()}}
        fields = {name: value for name, value in merged.items() if value is not None}
        return engine.decide_submit(fields, given or context, signer)

    return submit


@pytest.fixture(scope="session")
def decide_on(decide: Decide, context: Context) -> Decide:
    """As ``decide``, on the day ``now`` if one is named."""

    def submit(job: str, **changes: bytes | None) -> engine.Decision:
        day = changes.pop("now", None)
        if day is None:
            return decide(job, **changes)
        # the last minute of that day, in UTC
        late = datetime.datetime.fromisoformat(f"{day.decode()}T23:59:59+00:00").timestamp()
        return decide(job, given=context._replace(now=late), **changes)

    return submit
