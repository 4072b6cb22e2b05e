"""secure-slurm doctor, on Slurm: each setting that would undo a promise is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from admin.doctor import doors_slurm
from admin.doctor.facts import Daemon, Filter, HookFile, Slurm, SlurmNode, Wanted
from admin.doctor.judge_slurm import (
    HOOKS,
    TASK,
    accounting,
    answers,
    hooks,
    identity,
    job_submit,
    lua_socket,
    node,
    order,
    parse,
    private_data,
    prolog_flags,
    timeouts,
    version,
)

# of Slurm 24.11's scontrol show config; from 23.11 on these hooks are lists
PRINTED = """\
Configuration data as of 2026-11-22T05:00:00
AccountingStoreFlags    = (null)
AuthInfo                = cred_expire=120
AuthType                = auth/munge
BatchStartTimeout       = 90 sec
ClusterName             = test
CredType                = cred/munge
EpilogSlurmctld[0]      = /opt/secure-slurm/hooks/epilog_slurmctld
JobSubmitPlugins        = lua
MCSParameters           = (null)
MessageTimeout          = 60 sec
PluginDir               = /usr/lib/x86_64-linux-gnu/slurm-wlm
PrivateData             = none
Prolog[0]               = /a/first
Prolog[1]               = /b/*
PrologEpilogTimeout     = 120 sec
PrologFlags             = Alloc,Contain,DeferBatch
SLURM_CONF              = /etc/slurm/slurm.conf
SLURM_VERSION           = 24.11.5
SlurmdUser              = root(0)
"""
OURS = HookFile("/opt/secure-slurm/hooks/x", ours=True, runnable=True)
VENDORS = HookFile("/opt/slurm/etc/scripts/prolog.d/90_pcluster_health_check_manager", ours=False, runnable=True)
SLURM = Slurm(parse(PRINTED), dict.fromkeys((*HOOKS, TASK), (OURS,)))
WANTED = Wanted("test", 45.0, 60.0)
FILTER = Filter("/etc/slurm/job_submit.lua", there=True, same=True, lua="5.1", socket="/usr/lib/lua/5.1/socket/unix.so")


def with_(**settings: str) -> Slurm:
    return SLURM._replace(settings={**SLURM.settings, **settings})


def hooked(setting: str, *files: HookFile) -> Slurm:
    return SLURM._replace(hooks={**SLURM.hooks, setting: files})


def test_what_scontrol_prints() -> None:
    assert SLURM.settings["Prolog"] == "/a/first,/b/*"
    assert SLURM.settings["MessageTimeout"] == "60 sec"
    assert SLURM.words("AccountingStoreFlags") == SLURM.words("PrivateData") == SLURM.words("NoSuch") == []


def test_another_cluster() -> None:
    assert answers(with_(ClusterName="other"), WANTED).state == "fail"
    assert answers(Slurm({}, {}), WANTED).state == "fail"
    assert answers(SLURM, WANTED).state == "ok"


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("", "fail"),
        ("22.05.8", "fail"),
        ("23.11.10", "fail"),
        ("24.05.7", "warn"),
        ("26.11.0", "warn"),
        ("25.11.8", "ok"),
    ],
)
def test_versions(told: str, state: str) -> None:
    assert version(with_(SLURM_VERSION=told)).state == state


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ("(null)", "fail"),
        ("DeferBatch", "fail"),
        ("Alloc,RunInJob", "fail"),
        ("Contain", "warn"),
        ("Alloc,DeferBatch", "ok"),
        ("Contain,DeferBatch", "ok"),
    ],
)
def test_prolog_flags(flags: str, state: str) -> None:
    assert prolog_flags(with_(PrologFlags=flags)).state == state


@pytest.mark.parametrize("plugins", ["(null)", "require_timelimit", "lua,other"])
def test_a_filter_that_is_not_asked_or_not_last(plugins: str) -> None:
    assert job_submit(with_(JobSubmitPlugins=plugins), FILTER).state == "fail"


def test_the_filters_file() -> None:
    assert job_submit(SLURM, FILTER._replace(there=False)).state == "fail"
    assert job_submit(SLURM, FILTER._replace(same=False)).state == "fail"
    assert job_submit(with_(JobSubmitPlugins="other,lua"), FILTER).state == "ok"


def test_lua_socket() -> None:
    assert lua_socket(FILTER._replace(problem="there is no job_submit_lua.so")).state == "fail"
    found = lua_socket(FILTER._replace(socket="", lua="5.4"))
    assert (found.state, "Lua 5.4" in found.seen) == ("fail", True)
    assert lua_socket(FILTER).state == "ok"


@pytest.mark.parametrize("setting", HOOKS)
def test_a_hook_that_does_not_lead_to_ours(setting: str) -> None:
    for files in ((), (VENDORS,)):
        found = hooks(hooked(setting, *files))
        assert found.state == "fail"
        assert f"{setting}=" in found.seen


@pytest.mark.parametrize("setting", HOOKS)
def test_a_hook_that_cannot_be_run(setting: str) -> None:
    found = hooks(hooked(setting, OURS, VENDORS._replace(runnable=False)))
    assert (found.state, VENDORS.path in found.seen) == ("fail", True)


def test_hooks_as_they_should_be() -> None:
    assert hooks(hooked(TASK)).state == "warn"
    assert hooks(SLURM).state == "ok"


@pytest.mark.parametrize("setting", ["Prolog", "Epilog"])
def test_somebody_elses_before_ours(setting: str) -> None:
    found = order(hooked(setting, VENDORS, OURS))
    assert (found.state, "99_secure_slurm" in found.fix) == ("fail", True)
    assert order(hooked(setting, OURS, VENDORS)).state == "ok"


@pytest.mark.parametrize(
    "short",
    [
        {"AuthInfo": "cred_expire=12"},
        {"MessageTimeout": "10 sec"},
        {"BatchStartTimeout": "10 sec"},
        {"PrologEpilogTimeout": "60 sec"},
        {"PrologTimeout": "60"},
    ],
)
def test_limits_that_are_too_short(short: dict[str, str]) -> None:
    found = timeouts(with_(**short), WANTED)
    assert (found.state, next(iter(short)) in found.seen or "cred_expire" in found.seen) == ("fail", True)
    assert timeouts(SLURM, WANTED).state == "ok"


@pytest.mark.parametrize("away", [(), (Daemon("requeued", "failed", 1),), (Daemon("lifecycled", "active", 1),)])
def test_hidden_jobs_that_nobody_sees(away: tuple[Daemon, ...]) -> None:
    found = private_data(with_(PrivateData="accounts,jobs"), away)
    assert (found.state, "requeued" in found.fix) == ("warn", True)
    assert private_data(with_(PrivateData="cloud"), away).state == "ok"


@pytest.mark.parametrize("there", [Daemon("requeued", "active", 1), Daemon("requeued", "", 1)])
def test_hidden_jobs_that_slurmuser_sees(there: Daemon) -> None:
    assert private_data(with_(PrivateData="jobs,usage"), (there,)).state == "ok"
    # a label is not looked through
    found = private_data(with_(PrivateData="jobs", MCSParameters="ondemand,select,privatedata:grp"), (there,))
    assert (found.state, "MCSParameters" in found.seen) == ("warn", True)


@pytest.mark.parametrize("flags", ["job_env", "job_comment,job_script", "JOB_ENV,JOB_SCRIPT"])
def test_what_the_accounting_would_keep(flags: str) -> None:
    assert accounting(with_(AccountingStoreFlags=flags)).state == "fail"
    assert accounting(with_(AccountingStoreFlags="job_comment,job_extra")).state == "ok"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("AuthType", "auth/none"), ("CredType", "cred/none"), ("SlurmdUser", "slurm(64030)"), ("AuthType", "")],
)
def test_who_somebody_is_must_be_known(setting: str, value: str) -> None:
    found = identity(with_(**{setting: value}))
    assert (found.state, setting in found.seen) == ("fail", True)
    assert identity(SLURM).state == "ok"


@pytest.mark.parametrize("state", ["IDLE+DRAIN", "DOWN*", "DOWN+NOT_RESPONDING", "UNKNOWN"])
def test_a_node_that_gets_no_jobs_is_no_fault_of_its_own(state: str) -> None:
    found = node(SlurmNode(state, "secure-slurm: [node.swap]"))
    assert (found.state, "[node.swap]" in found.seen) == ("warn", True)
    assert node(SlurmNode("IDLE+CLOUD", "")).state == "ok"


class TestTheDoor:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A prolog.d with a vendor's scripts, and our hook elsewhere."""
        (tmp_path / "hooks").mkdir()
        (tmp_path / "prolog.d").mkdir()
        for path in ("hooks/prolog", "prolog.d/10_first", "prolog.d/90_vendor"):
            (tmp_path / path).write_text(f"#!/bin/sh\n# {path}\n")
            (tmp_path / path).chmod(0o755)
        monkeypatch.setattr(doors_slurm, "HOOKS_DIR", str(tmp_path / "hooks"))
        return tmp_path

    def look(self, folder: Path, value: str) -> list[tuple[str, bool, bool]]:
        found = doors_slurm.hook_files(value, "prolog", str(folder))
        return [(Path(each.path).name, each.ours, each.runnable) for each in found]

    def test_a_folder_is_run_in_reverse_order(self, folder: Path) -> None:
        (folder / "prolog.d/99_secure").symlink_to(folder / "hooks/prolog")
        names = ["99_secure", "90_vendor", "10_first"]
        assert self.look(folder, f"{folder}/prolog.d/*") == [(name, name == "99_secure", True) for name in names]

    def test_a_copy_is_ours_and_an_older_one_is_not(self, folder: Path) -> None:
        (folder / "prolog.d/50_copy").write_bytes((folder / "hooks/prolog").read_bytes())
        assert self.look(folder, f"{folder}/prolog.d/50_*") == [("50_copy", True, False)]
        (folder / "prolog.d/50_copy").write_text("#!/bin/sh\n")
        assert self.look(folder, f"{folder}/prolog.d/50_*") == [("50_copy", False, False)]

    def test_what_is_not_there(self, folder: Path) -> None:
        assert self.look(folder, f"{folder}/none.d/*") == [("*", False, False)]
        assert self.look(folder, "(null)") == self.look(folder, "") == []

    def test_a_relative_name_and_a_list(self, folder: Path) -> None:
        assert [name for name, _, _ in self.look(folder, "hooks/prolog,prolog.d/10_first")] == ["prolog", "10_first"]

    def test_slurm_conf_is_beside_slurms_own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/slurm.conf").touch()
        monkeypatch.delenv("SLURM_CONF", raising=False)
        assert doors_slurm.slurm_conf(f"{tmp_path}/bin") == f"{tmp_path}/etc/slurm.conf"
        monkeypatch.setenv("SLURM_CONF", "/elsewhere/slurm.conf")
        assert doors_slurm.slurm_conf(f"{tmp_path}/bin") == "/elsewhere/slurm.conf"

    @pytest.mark.parametrize(
        ("needs", "version"),
        [
            (b"\0liblua5.1.so.0\0", "5.1"),
            (b"\0liblua-5.4.so\0", "5.4"),
            (b"\0liblua5.3-c++.so.0\0", "5.3"),
            (b"libc.so.6", ""),
        ],
    )
    def test_the_lua_of_a_plugin(self, tmp_path: Path, needs: bytes, version: str) -> None:
        (tmp_path / "job_submit_lua.so").write_bytes(b"\x7fELF" + needs)
        assert doors_slurm.linked_lua(tmp_path / "job_submit_lua.so") == version
