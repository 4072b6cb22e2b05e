"""The server by itself: whom it serves, what it refuses to start with, and that warming up changes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from conf.errors import BackendUnavailable, ConfigError, SecureSlurmError
from keys import process
from slurm_hooks import hookd, hookslot, hookwarm


@pytest.mark.parametrize(
    "words", [[], ["--node"], ["--node", ""], ["--node", "../x"], ["--node", "a b"], ["n1"]], ids=str
)
def test_it_starts_for_a_node_and_nothing_else(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hookd, "read_hook_config", lambda **_: pytest.fail("asked"))
    assert hookd.main(words) == ConfigError.exit_code


def test_it_needs_a_rendered_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> dict[str, Any]:
        raise ConfigError("there is none", advice="render it")

    monkeypatch.setattr(hookd, "read_hook_config", missing)
    assert hookd.main(["--node", "n1"]) == ConfigError.exit_code


def test_the_door_is_nobody_elses(tmp_path: Path) -> None:
    os.close(hookd.open_door(str(tmp_path)))
    door = tmp_path / "hookd"
    door.chmod(0o750)
    with pytest.raises(SecureSlurmError):
        hookd.open_door(str(tmp_path))
    door.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    door.symlink_to(tmp_path / "other")
    with pytest.raises(SecureSlurmError):
        hookd.open_door(str(tmp_path))


def test_one_server_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hookd, "LOCKED", 0.1)
    door = hookd.open_door(str(tmp_path))
    held = hookd.lock(door)
    with pytest.raises(BackendUnavailable):
        hookd.lock(door)
    os.close(held)
    os.close(hookd.lock(door))


def test_the_files_that_it_was_loaded_from_are_known() -> None:
    known = hookslot.sources()
    for module in (hookslot, process):
        assert module.__file__ in known
    assert all(known.values())
    assert not hookslot.is_stale(known)
    assert hookslot.is_stale({**known, "/nowhere/module.py": (1, 2, 3, 4)})


def test_warming_up_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, trail, scratch = (tmp_path / name for name in ("run", "trail", "scratch"))
    for folder in (run_dir, trail / "node-n1", scratch):
        folder.mkdir(parents=True, mode=0o700)
    config = {
        "node": {"run_dir": str(run_dir), "state_dir": str(tmp_path / "state")},
        "audit": {"directory": str(trail)},
        "scratch": {
            "backing": "file", "directory": str(scratch), "mount_root": str(tmp_path / "mounts"), "volume_group": "",
            "device": "",
        },
    }  # fmt: skip
    looked: list[str] = []
    monkeypatch.setattr(hookwarm, "read_hook_config", lambda **_: json.loads(json.dumps(config)))
    monkeypatch.setattr(hookwarm, "check_sources", lambda *_: None)
    monkeypatch.setattr(hookwarm, "verify_gone", lambda names: looked.append(names.mapper))
    before = sorted(tmp_path.rglob("*"))
    hookwarm.warm("n1")
    # to its last step, or it warms nothing
    assert looked == [f"secure-n1-{hookwarm.JOB}"] * hookwarm.ROUNDS
    assert sorted(tmp_path.rglob("*")) == before
    assert process.program.cache_info().currsize == 0


def test_warming_up_survives_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> dict[str, Any]:
        raise ConfigError("there is none")

    monkeypatch.setattr(hookwarm, "read_hook_config", missing)
    hookwarm.warm("n1")
