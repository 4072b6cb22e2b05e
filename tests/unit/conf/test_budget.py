"""Slurm's limits against the hooks' deadlines, in the words of scontrol."""

from __future__ import annotations

import pytest

from conf.budget import complaints

# scontrol show config, 24.11
GOOD = """\
Configuration data as of 2026-11-22T02:00:00
AuthInfo                = cred_expire=70
BatchStartTimeout       = 90 sec
MessageTimeout          = 60 sec
PrologEpilogTimeout     = 120
SchedulerParameters     = (null)
"""


def said(**changes: str) -> list[str]:
    lines = GOOD.splitlines()
    for name, value in changes.items():
        lines = [line for line in lines if not line.startswith(name)] + [f"{name}  = {value}"]
    return complaints("\n".join(lines), 45.0, 60.0)


def test_what_the_shipped_snippet_sets_is_enough() -> None:
    assert said() == []


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("AuthInfo", "cred_expire=45", "cred_expire"),
        ("AuthInfo", "socket=/run/munge/munge.socket.2,cred_expire=12", "cred_expire"),
        ("MessageTimeout", "10 sec", "MessageTimeout"),
        ("BatchStartTimeout", "45 sec", "BatchStartTimeout"),
        ("PrologEpilogTimeout", "99", "PrologEpilogTimeout"),
        ("PrologTimeout", "60", "PrologTimeout"),
        ("PrologTimeout", "60 sec", "PrologTimeout"),
    ],
)
def test_what_is_too_short_is_told(name: str, value: str, word: str) -> None:
    (line,) = said(**{name: value})
    assert line.startswith(f"slurm.conf: {word}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AuthInfo", "(null)"),
        ("PrologEpilogTimeout", "65534"),
        ("PrologEpilogTimeout", "100"),
        ("PrologTimeout", "4294967294"),
        ("MessageTimeout", "nonsense"),
    ],
)
def test_defaults_that_are_long_enough_and_what_cannot_be_read(name: str, value: str) -> None:
    assert said(**{name: value}) == []


def test_all_at_once() -> None:
    assert len(said(AuthInfo="cred_expire=1", MessageTimeout="1 sec", BatchStartTimeout="1 sec")) == 3
