from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import UsageError
from slurm_hooks.hostlist import contains, expand


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,m2", ["n1", "m2"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[01-03,7]", ["n01", "n02", "n03", "n7"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("r[1-2]n[1,3],x", ["r1n1", "r1n3", "r2n1", "r2n3", "x"]),
        ("q-st-c5-[1-2]", ["q-st-c5-1", "q-st-c5-2"]),
        ("n[1-2]-ib", ["n1-ib", "n2-ib"]),
        ("[1-2]", ["1", "2"]),
    ],
)
def test_expand(text: str, nodes: list[str]) -> None:
    assert expand(text) == nodes
    assert all(contains(text, node) for node in nodes)


@pytest.mark.parametrize(
    "text",
    [
        *("n[", "n]", "n[]", "n[1-]", "n[-1]", "n[3-1]", "n[1-2", "n[[1]]", "n[a-b]", "n 1", "n1,", ",n1", "n1,,n2"),
        *("n1\n", "n[1-2-3]", "ñ", "n[1,]", "n{1,2}", "\x00", "n[0-9999999999999999999]"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        expand(text)
    with pytest.raises(UsageError):
        contains(text, "n1")


@given(st.text(alphabet="n0123456789[]-,.", max_size=40) | st.text(max_size=20), st.text(max_size=10))
def test_hostile_lists_are_only_ever_a_usage_error(text: str, node: str) -> None:
    try:
        nodes = expand(text, limit=500)
        found = contains(text, node)
    except UsageError:
        return
    assert found == (node in nodes)
    assert all(contains(text, each) for each in nodes[:20])


@pytest.mark.parametrize("node", ["n0", "n4", "n01", "n1x", "xn1", "n", "", "N1", "n1,n2", "n²"])
def test_not_contained(node: str) -> None:
    assert not contains("n[1-3]", node)


def test_the_limit() -> None:
    assert len(expand("n[1-4]", limit=4)) == 4
    for text in ("n[1-5]", "n[1-3],m[1-2]", "n[1-999999999999]", "a[1-9]b[1-9]c[1-9]"):
        with pytest.raises(UsageError, match="more than 4"):
            expand(text, limit=4)
    assert contains("n[1-999999999999]", "n123456789")
