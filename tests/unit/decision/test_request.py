"""What is tried without slurmctld is asked as slurmctld asks: compared with the real filter's own messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm_hooks import request
from slurm_hooks.filters import job
from slurm_hooks.request import Submission

from .test_job_submit_lua import LUAS, SOURCE, Daemon, Filter


def lua_names(text: str) -> set[str]:
    return set(re.findall(r'"(\w+)"', text))


def lua_list(name: str) -> set[str]:
    found = re.search(rf"local {name} = (\{{.*?\n?\}})\n", SOURCE.read_text(), re.DOTALL)
    assert found, name
    return lua_names(found[1])


TEXT_FIELDS = lua_list("STRINGS")
NUMBER_FIELDS = lua_list("NUMBERS") | lua_list("NUMBERS_NOT_ZERO")


def test_the_limits_are_the_filters() -> None:
    source = SOURCE.read_text()
    for name in ("VALUE_LIMIT", "NODES_LIMIT", "LINES_LIMIT"):
        assert f"local {name} = {getattr(request, name)}" in source
    assert lua_list("NUMBERS_NOT_ZERO") == request.NOT_ZERO
    assert lua_list("ENVIRONMENT") == request.VARIABLES
    assert lua_list("SESSION") == request.SESSION
    assert set(re.findall(r'"(#\w+)"', source)) >= {word.decode() for word in (*request.STAGING, request.DIRECTIVE)}
    assert f"dependency = {request.LIMITS['dependency']}" in source


def test_every_text_that_a_filter_can_see_is_sent() -> None:
    assert set(job.STRINGS) <= TEXT_FIELDS


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    server = Daemon(tmp_path / "decide.sock")
    yield server
    server.stop()


@pytest.fixture
def lua(tmp_path: Path, daemon: Daemon) -> Iterator[Filter]:
    made = Filter(LUAS[0], tmp_path, daemon.path).start()
    yield made
    made.stop()


def quoted(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{quoted(key)}] = {quoted(each)}" for key, each in value.items()) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value.encode())
    return '"' + "".join(f"\\{byte:03d}" for byte in value) + '"' if isinstance(value, bytes) else str(value)


DEMAND = {"phi": "p[01-04],q-st-[1-2],solo"}
PLAIN: dict[str, Any] = {"uid": 1001, "user": "alice", "host": "login1", "script": None, "environment": None}
SCRIPT = b"#!/bin/sh\n#SECURE --class=phi\n#SECURITY\n #SECURE no\ntrue #SECURE\n#SECURE --residency=eu"
JOBS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"submitter": 0}, {}),
    ({"script": b""}, {"script": b""}),
    ({"script": SCRIPT}, {"script": SCRIPT}),
    ({"script": b"#SECURE a\n" * 64}, {"script": b"#SECURE a\n" * 64}),
    ({"script": b"#SECURE a\n" * 65}, {"script": b"#SECURE a\n" * 65}),
    ({"script": b"#SECURE " + b"a" * 8200}, {"script": b"#SECURE " + b"a" * 8200}),
    ({"script": b"#SECURE a\n#SECURE " + b"a" * 8177}, {"script": b"#SECURE a\n#SECURE " + b"a" * 8177}),
    (
        {"script": b"#!/bin/sh\n", "environment": {"SECURE_CLASS": "phi", "SECURE_RESIDENCY": "", "HOME": "/x"}},
        {"script": b"#!/bin/sh\n", "environment": {"SECURE_CLASS": "phi", "SECURE_RESIDENCY": "", "HOME": "/x"}},
    ),
    *(
        ({"script": text, "environment": dict(said)}, {"script": text, "environment": dict(said)})
        for text in (b"#BB create", b"#!/bin/sh\n#DW x", b"#!/bin/sh\n #DW x\ntrue #BB")
        for said in ({"PATH": "/bin"}, {"LD_PRELOAD": ""}, {"SLURM_GET_USER_ENV": "1"}, {"EDITOR": "vi"})
    ),
    # srun sends no environment
    ({"environment": {"SECURE_CLASS": "phi"}}, {"environment": {"SECURE_CLASS": "phi"}}),
    (
        {"environment": {"SECURE_CLASS": "phi"}, "numbers": {"het_job_offset": 0}},
        {"environment": {"SECURE_CLASS": "phi"}, "het_job_offset": 0},
    ),
    (
        {"texts": {"features": "a\tb", "name": "", "dependency": "x" * 9000, "comment": "ü" * 5000, "prefer": None}},
        {"features": "a\tb", "name": "", "dependency": "x" * 9000, "comment": "ü" * 5000},
    ),
    (
        {"texts": dict.fromkeys(sorted(TEXT_FIELDS - {"user_name", "alloc_node", "partition"}), "v")},
        dict.fromkeys(sorted(TEXT_FIELDS - {"user_name", "alloc_node", "partition"}), "v"),
    ),
    (
        {"numbers": dict.fromkeys(sorted(NUMBER_FIELDS - {"user_id"}), 7)},
        dict.fromkeys(sorted(NUMBER_FIELDS - {"user_id"}), 7),
    ),
    (
        {"numbers": {**dict.fromkeys(sorted(NUMBER_FIELDS - {"user_id"}), 0), "min_nodes": None}},
        dict.fromkeys(sorted(NUMBER_FIELDS - {"user_id", "min_nodes"}), 0),
    ),
    ({"numbers": {"time_limit": 4294967295}}, {"time_limit": 4294967295}),
    ({"cron": True}, {"cron_job": True}),
    ({"texts": {"dependency": "singleton"}}, {"dependency": "singleton"}),
    # there is no slurm.jobs here: whose job 7 is cannot be told
    ({"texts": {"dependency": "afterok:7_1"}, "dependency_uids": ("?",)}, {"dependency": "afterok:7_1"}),
    (
        {"texts": {"partition": "force,open,none"}, "forced_sharing": ("force", "none")},
        {"partition": "force,open,none"},
    ),
]


@pytest.mark.parametrize(("said", "job_of_slurm"), JOBS)
def test_the_fields_are_those_that_the_filter_sends(
    said: dict[str, Any], job_of_slurm: dict[str, Any], lua: Filter, daemon: Daemon
) -> None:
    ours = Submission(**{**PLAIN, "default_partition": "open", "demand_nodes": DEMAND, **said}).fields()
    values = ", ".join(f"{name} = {quoted(value)}" for name, value in job_of_slurm.items())
    result = lua.submit(values, uid=str(said.get("submitter", 1001)))
    assert result.allowed, result
    theirs = daemon.requests[-1]
    del theirs["nonce"]
    assert theirs == ours
