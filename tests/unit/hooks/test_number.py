"""Numbers as Slurm's JSON writes them."""

from __future__ import annotations

import pytest

from slurm_hooks.blame import number


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (0, 0),
        (7, 7),
        ({"set": True, "infinite": False, "number": 7}, 7),
        ({"set": True, "number": 0}, 0),
        # what is not set, endless, or no number at all is the default, whatever stands beside it
        ({"set": False, "infinite": False, "number": 7}, -1),
        ({"set": True, "infinite": True, "number": 7}, -1),
        ({"set": True}, -1),
        ({"number": 7}, -1),
        ({"set": True, "number": "7"}, -1),
        ({"set": True, "number": True}, -1),
        ({"set": True, "number": {"number": 7}}, -1),
        ({}, -1),
        *((value, -1) for value in (None, True, False, "7", 7.0, [7])),
    ],
)
def test_number(value: object, found: int) -> None:
    assert number(value, -1) == found
