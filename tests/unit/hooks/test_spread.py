"""How nodes of one job are spread over time before they log in to Vault."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import Refused
from conf.policy import Policy
from conf.site import Site
from keys.vault_node import VaultNode
from slurm_hooks import noded, spread
from slurm_hooks.noded import NodeDaemon


@given(nodes=st.integers(0, 10_000), deadline=st.floats(1, 59))
def test_never_long(nodes: int, deadline: float) -> None:
    wait = spread.pause(nodes, deadline)

    assert 0.0 <= wait <= min(spread.MOST, deadline / 5)
    assert nodes > spread.FEW or not wait


def test_a_hundred_are_spread_over_four_seconds() -> None:
    waits = sorted(spread.pause(100, 45.0) for _ in range(2000))

    assert waits[0] < 0.5
    assert 3.5 < waits[-1] <= 4.0
    # in no tenth of the time more than a sixth of them
    assert max(sum(each <= wait < each + 0.4 for wait in waits) for each in waits) < 2000 / 6


@pytest.mark.parametrize("asked", [(100, False, [4.0]), (100, True, []), (8, False, [])])
def test_only_who_has_to_log_in_waits(
    site: Site, policy: Policy, monkeypatch: pytest.MonkeyPatch, asked: tuple[int, bool, list[float]]
) -> None:
    count, token, waits = asked
    vault = SimpleNamespace(session=SimpleNamespace(has_token=token), read_grant=lambda _job: None)
    monkeypatch.setattr(VaultNode, "from_site", lambda *_: vault)
    slept: list[float] = []
    monkeypatch.setattr(noded, "time", SimpleNamespace(sleep=slept.append))
    monkeypatch.setattr(spread, "random", SimpleNamespace(uniform=lambda _low, high: high))
    fields: dict[str, Any] = {"job": b"17", "node": b"n1", "nodes": ",".join(f"n{n}" for n in range(count)).encode()}

    with pytest.raises(Refused, match="no grant"):
        NodeDaemon(site, policy, "n1")._open(fields)
    assert slept == waits
