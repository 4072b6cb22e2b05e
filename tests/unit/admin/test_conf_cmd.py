"""secure-slurm conf, on the files that are shipped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from admin.main import main

SHIPPED = Path(__file__).parents[3] / "conf"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("admin.conf_cmd.HOOKS_JSON", str(tmp_path / "hooks.json"))
    for name in ("secure-slurm.yaml", "policy.yaml"):
        shutil.copy(SHIPPED / name, tmp_path / name)
        (tmp_path / name).chmod(0o644)
    site = tmp_path / "secure-slurm.yaml"
    # what an admin has to choose
    site.write_text(site.read_text().replace("  proof: none", "  proof: ec2"))
    return site


def both(site: Path) -> list[str]:
    return ["--policy", str(site.with_name("policy.yaml"))]


def test_that_no_node_can_prove_its_place_is_noted(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(site), "conf", "check", *both(site)]
    assert main(argv) == 0
    assert "node.proof" not in capsys.readouterr().out
    site.write_text(site.read_text().replace("  proof: ec2", "  proof: none"))
    assert main(argv) == 0
    assert "note: node.proof is none: every tagged job is refused" in capsys.readouterr().out


def test_every_mistake_of_both_files_is_told(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = site.with_name("policy.yaml")
    site.write_text(
        site.read_text().replace("timeout: 5s", "timeuot: 5s").replace("filesystem: ext4", "filesystem: fat")
    )
    policy.write_text(policy.read_text().replace("classes: [phi]", "classes: [phy]"))
    assert main(["--config", str(site), "conf", "check", *both(site)]) == 3
    shown = capsys.readouterr().out
    for word in ("'timeuot'", "'timeout'", "'fat'", "'phy'"):
        assert word in shown
    assert shown.count(f"{site}:") == 2
    assert main(["--config", str(site), "conf", "check", "--json", *both(site)]) == 3
    mistakes = json.loads(capsys.readouterr().out)["mistakes"]
    assert {mistake["file"] for mistake in mistakes} == {str(site), str(policy)}
    assert all(mistake["line"] > 1 for mistake in mistakes)


def test_the_kind_of_a_named_file_is_seen_in_it(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = site.with_name("odd.yaml")
    shutil.copy(site.with_name("policy.yaml"), odd)
    odd.chmod(0o644)
    assert main(["conf", "check", str(odd), str(site)]) == 0
    assert capsys.readouterr().out == f"no mistake in {odd}, {site}\n"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b"nothing: here\n"])
def test_a_file_of_neither_kind_is_a_mistake(content: bytes, site: Path) -> None:
    site.write_bytes(content)
    assert main(["conf", "check", str(site)]) == 3


def test_a_missing_file_is_exit_3(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conf", "check", str(site.with_name("none.yaml"))]) == 3
    assert main(["--config", str(site.with_name("none.yaml")), "conf", "show"]) == 3
    assert "none.yaml" in capsys.readouterr().err


def test_show_says_where_each_setting_comes_from(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(site), "conf", "show", "--json"]) == 0
    settings = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    line = next(n for n, text in enumerate(site.read_text().splitlines(), 1) if "prolog_deadline:" in text)
    assert settings["node.prolog_deadline"] == {
        "name": "node.prolog_deadline",
        "value": "45s",
        "origin": f"{site}:{line}",
    }
    assert settings["controller.deadline"]["value"] == "200ms"
    assert settings["controller.deadline"]["origin"] == "default"
    assert settings["cluster.head_nodes"]["value"] == "head"
    assert not any("sha256" in name for name in settings)
    assert main(["--config", str(site), "conf", "show"]) == 0
    assert "vault.node.cert_role" in capsys.readouterr().out


def test_render_writes_and_a_later_change_is_noted(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", str(site), "conf"]
    assert main([*argv, "render", *both(site), "--directory", str(site.parent), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    assert {Path(path).name for path in written} == {"hooks.json", "hooks.sh", "job_submit.conf.lua"}
    assert main([*argv, "check", *both(site)]) == 0
    assert "note:" not in capsys.readouterr().out
    site.write_text(site.read_text() + "\n# changed\n")
    assert main([*argv, "check", *both(site)]) == 0
    assert "run: secure-slurm conf render" in capsys.readouterr().out


def test_render_writes_nothing_when_there_is_a_mistake(site: Path) -> None:
    site.write_text(site.read_text().replace("ext4", "fat"))
    assert main(["--config", str(site), "conf", "render", *both(site), "--directory", str(site.parent)]) == 3
    assert not site.with_name("hooks.json").exists()
