"""``secure-slurm node check`` says what the Prolog would, for every class at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from admin import check_cmd
from admin.main import main
from conf.errors import EXIT_OK, EXIT_REFUSED, Refused

LEAK = Refused("node.swap", "swap on /x\x1b[31m is in clear", advice="swapoff it")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> list[Refused]:
    found: list[Refused] = []

    def ask(config: dict[str, Any], name: str, classes: tuple[str, ...], slurm_conf: str) -> Iterator[Refused]:
        assert (name, classes, slurm_conf) == ("n7", ("low", "phi"), "/opt/slurm.conf")
        assert config["node"] == {"swap": "refuse"}
        return iter(found)

    config = {"node": {"swap": "refuse"}, "private_tmp": {"phi": "scratch", "low": "none"}}
    monkeypatch.setattr(check_cmd, "read_hook_config", lambda *_, **__: config)
    monkeypatch.setattr(check_cmd.clear, "faults", ask)
    monkeypatch.setattr(check_cmd.os, "geteuid", lambda: 0)
    monkeypatch.setenv("SLURM_CONF", "/opt/slurm.conf")
    return found


def test_nothing_found(faults: list[Refused], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["node", "check", "--node", "n7"]) == EXIT_OK
    assert "not in clear" in capsys.readouterr().out


def test_a_finding_has_rule_and_advice(faults: list[Refused], capsys: pytest.CaptureFixture[str]) -> None:
    faults.append(LEAK)
    assert main(["node", "check", "--node", "n7"]) == EXIT_REFUSED
    out = capsys.readouterr().out
    assert "[node.swap] swap on /x" in out
    assert "swapoff it" in out
    assert "\x1b" not in out
    assert main(["node", "check", "--node", "n7", "--json"]) == EXIT_REFUSED
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["rule"], found["advice"]) == ("node.swap", "swapoff it")


def test_only_root_sees_all_of_it(
    faults: list[Refused], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check_cmd.os, "geteuid", lambda: 1000)
    assert main(["node", "check", "--node", "n7"]) == EXIT_REFUSED
    assert "only root" in capsys.readouterr().err
