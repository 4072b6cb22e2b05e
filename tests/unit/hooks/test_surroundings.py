"""What a node makes of its own mounts and a job's paths, and the untagged job that finds protected data beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conf import hookconf
from conf.errors import BackendUnavailable, InternalError, Refused
from keys.process import Completed
from slurm_hooks import clear, mounts, protected, resolve, surroundings
from slurm_hooks.hookenv import HookJob, read_job
from slurm_hooks.mounts import Mount
from slurm_hooks.prolog import NODE_FAULTS

HOME = Mount("/home", "nfs4", "srv:/home", writable=True)
DATA = Mount("/data/phi", "lustre", "10.0.0.1@tcp:/fs", writable=True)
ENVIRON = {"SLURM_JOB_WORK_DIR": "/data/phi", "SLURM_JOB_STDIN": "/dev/null"}


def job(extra: str = "secure-slurm:class=phi;residency=eu") -> HookJob:
    names = {"SLURM_JOB_ID": "17", "SLURM_JOB_UID": "1001", "SLURMD_NODENAME": "n1", "SLURM_JOB_USER": "alice"}
    return read_job(names | {"SLURM_JOB_EXTRA": extra})


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    place = tmp_path / "place"
    place.write_text("us-east-1\n")
    place.chmod(0o644)
    return {
        "cluster": {"slurm_bin": "/usr/bin"},
        "audit": {"directory": str(tmp_path)},
        "node": {"place_file": str(place)},
        "regions": {"eu-central-1": "eu", "us-east-1": "us"},
        "mounts": {
            "file_systems": {"eu": ["/home"], "us": ["/home", "10.0.0.1@tcp:/fs"]},
            "datasets": {"/data/phi": "heart"},
            "owned": {},
            "classes": {"phi": {"work": None, "output": None}},
            "shadow": {},
        },
    }


@pytest.fixture(autouse=True)
def _a_node_that_keeps_nothing_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine does with swap, core dumps and /tmp is another test's (test_clear.py)."""
    monkeypatch.setattr(clear, "faults", lambda *_: iter(()))


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def these(*found: Mount) -> None:
        monkeypatch.setattr(mounts, "read", lambda: list(found))

    return these


def test_a_writable_file_system_that_is_not_listed_holds_the_job(
    config: dict[str, Any], mounted: Callable[..., None]
) -> None:
    mounted(HOME, DATA)
    with pytest.raises(Refused) as caught:
        surroundings.judge(config, job(), ENVIRON)
    assert caught.value.rule == "node.file-system"
    assert "/data/phi (10.0.0.1@tcp:/fs, lustre)" in str(caught.value)
    assert "/home" not in str(caught.value)
    # a user can have an automounter mount something: that must not cost a node
    assert caught.value.rule not in NODE_FAULTS


def test_many_are_counted(config: dict[str, Any], mounted: Callable[..., None]) -> None:
    mounted(*(Mount(f"/m{number}", "nfs", "s:/x", writable=True) for number in range(9)))
    with pytest.raises(Refused, match="and 6 more"):
        surroundings.judge(config, job(), ENVIRON)


def test_listed_is_by_the_jobs_jurisdiction_and_without_one_by_the_nodes_own(
    config: dict[str, Any], mounted: Callable[..., None]
) -> None:
    mounted(HOME, DATA)
    assert surroundings.judge(config, job("secure-slurm:class=phi;residency=us"), ENVIRON) == ()
    assert surroundings.judge(config, job("secure-slurm:class=phi"), ENVIRON) == ()
    Path(config["node"]["place_file"]).write_text("eu-central-1\n")
    with pytest.raises(Refused, match="for 'eu'"):
        surroundings.judge(config, job("secure-slurm:class=phi"), ENVIRON)


@pytest.mark.parametrize("extra", ["secure-slurm:class=phi;residency=mars", "secure-slurm:class=phi"])
def test_for_an_unknown_place_nothing_is_listed(
    config: dict[str, Any], mounted: Callable[..., None], extra: str
) -> None:
    mounted(HOME)
    Path(config["node"]["place_file"]).write_text("mars\n")
    with pytest.raises(Refused):
        surroundings.judge(config, job(extra), ENVIRON)


def test_a_configuration_of_an_older_version_holds_the_job(
    config: dict[str, Any], mounted: Callable[..., None]
) -> None:
    mounted()
    del config["mounts"]
    with pytest.raises(BackendUnavailable) as caught:
        surroundings.judge(config, job(), ENVIRON)
    assert "conf render" in caught.value.advice


def test_mounts_that_cannot_be_told_hold_the_job(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "read", lambda: mounts.parse(b""))
    with pytest.raises(BackendUnavailable):
        surroundings.judge(config, job(), ENVIRON)


def test_a_tag_that_cannot_be_read_is_left_to_the_comparison_with_the_grant(config: dict[str, Any]) -> None:
    assert surroundings.judge(config, job("secure-slurm"), ENVIRON) == ()


@pytest.mark.parametrize(
    ("until", "enforced"),
    [({}, True), ({"path.work-dir": "2020-01-01"}, True), ({"path.output": "9999-12-31"}, True)],
)
def test_a_path_that_leads_away_refuses_unless_its_rule_is_in_shadow(
    config: dict[str, Any],
    mounted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    until: dict[str, str],
    enforced: bool,
) -> None:
    mounted(HOME)
    refused = [Refused("path.work-dir", "leads away")]
    monkeypatch.setattr(resolve, "refusals", lambda *_: iter(refused))
    config["mounts"]["shadow"] = until
    with pytest.raises(Refused, match="leads away"):
        surroundings.judge(config, job(), ENVIRON)
    config["mounts"]["shadow"] = {"path.work-dir": "9999-12-31"}
    assert surroundings.judge(config, job(), ENVIRON) == ("path.work-dir",)
    refused.append(Refused("path.output", "leads away too"))
    with pytest.raises(Refused, match="too"):
        surroundings.judge(config, job(), ENVIRON)


def test_only_a_class_with_directories_is_asked(
    config: dict[str, Any], mounted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounted(HOME)
    config["mounts"]["classes"]["other"] = {"work": [str(tmp_path)], "output": None}
    monkeypatch.setattr(resolve, "ask", lambda *_: pytest.fail("nothing is to be asked"))
    assert surroundings.judge(config, job(), ENVIRON) == ()


def test_a_class_that_this_node_does_not_know_holds_the_job(
    config: dict[str, Any], mounted: Callable[..., None]
) -> None:
    mounted(HOME)
    del config["mounts"]["classes"]["phi"]
    with pytest.raises(Refused, match="no data class 'phi'") as caught:
        surroundings.judge(config, job(), ENVIRON)
    assert caught.value.rule == "class.unknown"
    assert "conf render" in caught.value.advice
    # the site's policy has come to the head node first: that is not the node's fault
    assert caught.value.rule not in NODE_FAULTS


class Slurm:
    """What the hook tells Slurm; ``failing``: commands that Slurm refuses."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.failing: set[str] = set()

    def run(self, argv: list[str], **_: object) -> Completed:
        self.told.append(list(argv))
        if self.failing & set(argv):
            raise InternalError("no")
        return Completed(0, b"", b"")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> Slurm:
    found = Slurm()
    monkeypatch.setattr(protected, "run", found.run)
    monkeypatch.setattr(protected, "read_hook_config", lambda **_: config)
    for name, value in (("SLURM_JOB_ID", "17"), ("SLURM_JOB_UID", "1001"), ("SLURMD_NODENAME", "n1")):
        monkeypatch.setenv(name, value)
    (Path(config["audit"]["directory"]) / "node-n1").mkdir()
    return found


def test_protected_data_beside_an_untagged_job_drains_the_node_and_sends_the_job_back(
    slurm: Slurm, mounted: Callable[..., None], config: dict[str, Any]
) -> None:
    mounted(HOME, DATA)
    assert protected.main() == 0
    drain, requeue = slurm.told
    assert drain[:4] == ["/usr/bin/scontrol", "update", "NodeName=n1", "State=DRAIN"]
    assert drain[4].startswith("Reason=[node.protected-mount] /data/phi (10.0.0.1@tcp:/fs, dataset heart) is mounted")
    assert requeue == ["/usr/bin/scontrol", "requeue", "17"]
    line = json.loads((Path(config["audit"]["directory"]) / "node-n1" / "n1-node.jsonl").read_text())
    assert (line["event"], line["rule"], line["job"]) == ("start.refused", "node.protected-mount", 17)


def test_where_the_stub_saw_too_much_the_job_starts(slurm: Slurm, mounted: Callable[..., None]) -> None:
    mounted(HOME)
    assert protected.main() == 0
    assert slurm.told == []


@pytest.mark.parametrize(
    ("failing", "code", "commands"),
    [
        # Slurm drains the node itself, and holds the job
        ({"State=DRAIN"}, 1, ["update"]),
        # srun and salloc cannot be requeued
        ({"requeue"}, 0, ["update", "requeue", "17"]),
        ({"requeue", "17"}, 1, ["update", "requeue", "17"]),
    ],
)
def test_when_slurm_refuses(
    slurm: Slurm, mounted: Callable[..., None], failing: set[str], code: int, commands: list[str]
) -> None:
    mounted(DATA)
    slurm.failing = failing
    assert protected.main() == code
    assert [argv[1] for argv in slurm.told] == commands


def test_hostile_names_stay_inside_the_reason(slurm: Slurm, mounted: Callable[..., None]) -> None:
    mounted(Mount("/data/phi/a\n\"b'\\ \udcff State=IDLE", "nfs", "s" * 500, writable=True))
    assert protected.main() == 0
    reason = slurm.told[0][4]
    assert reason.isprintable()
    assert not set("\"'\\") & set(reason)
    assert len(reason) < 300


@pytest.mark.parametrize("broken", ["mounts", "config", "job", "kind"])
def test_what_cannot_be_told_lets_nothing_start(
    slurm: Slurm,
    mounted: Callable[..., None],
    config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    mounted(HOME)
    if broken == "mounts":
        monkeypatch.setattr(mounts, "read", lambda: mounts.parse(b"x"))
    elif broken == "config":
        del config["mounts"]
    elif broken == "kind":
        config["mounts"]["datasets"] = None
    else:
        monkeypatch.setenv("SLURM_JOB_ID", "x")
    assert protected.main() == 1
    assert slurm.told == []


def test_the_real_configuration_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hookconf, "HOOKS_JSON", str(tmp_path / "none"))
    monkeypatch.setattr(protected, "read_hook_config", lambda **more: hookconf.read_hook_config(str(tmp_path), **more))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert protected.main() == 1


def test_a_node_that_cannot_write_its_trail_is_drained_all_the_same(
    slurm: Slurm, mounted: Callable[..., None], config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mounted(DATA)
    (Path(config["audit"]["directory"]) / "node-n1").rmdir()
    assert protected.main() == 0
    assert len(slurm.told) == 2
    assert "no line about it" in capsys.readouterr().err
