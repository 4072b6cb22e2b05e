"""The index from groups to roles says what going through all roles would say."""

from __future__ import annotations

import datetime

from hypothesis import given
from hypothesis import strategies as st

from conf.policy import Policy, Role, ended

NAMES = [f"r{number}" for number in range(6)]
GROUPS = [f"cn=g{number}" for number in range(4)]
DAYS = [None, datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)]
NOON = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.UTC).timestamp()

roles = st.builds(
    Role,
    groups=st.lists(st.sampled_from(GROUPS), min_size=1, max_size=2, unique=True).map(tuple),
    classes=st.just(("phi",)),
    jurisdictions=st.just(("eu",)),
    until=st.sampled_from(DAYS),
    includes=st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
)


@given(
    st.lists(roles, max_size=len(NAMES)),
    st.frozensets(st.sampled_from([*GROUPS, "cn=foreign"])),
    st.sampled_from([NOON - 86400, NOON, NOON + 86400, 0.0]),
)
def test_the_index_is_the_list(made: list[Role], groups: frozenset[str], now: float) -> None:
    policy = Policy(version=1, jurisdictions={}, classes=(), roles=dict(zip(NAMES, made, strict=False)))

    assert set(policy.held_by(groups, now)) == {
        name
        for name in policy.roles
        if any(not each.groups.isdisjoint(groups) and not ended(each.until, now) for each in policy.holdings(name))
    }
    assert list(policy.held_by(groups, now)) == sorted(policy.held_by(groups, now))


def test_nobody_holds_nothing() -> None:
    assert Policy(version=1, jurisdictions={}, classes=(), roles={}).held_by(frozenset({"cn=g0"}), NOON) == ()
