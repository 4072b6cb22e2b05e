from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conf import hookconf, store
from conf.errors import ConfigError
from conf.hookconf import read_hook_config
from conf.render import LIBRARY, render

Write = Callable[..., str]


@pytest.fixture
def rendered(written: Write, room: Path, site_text: str, policy_text: str) -> Path:
    """A directory with both YAML files and what was made of them."""
    written(site_text, "secure-slurm.yaml")
    written(policy_text, "policy.yaml")
    render(str(room / "secure-slurm.yaml"), str(room / "policy.yaml"), str(room))
    return room


@pytest.mark.parametrize("source", ["secure-slurm.yaml", "policy.yaml"])
def test_a_stale_file_is_refused(rendered: Path, source: str) -> None:
    with (rendered / source).open("a") as file:
        file.write("# a comment is a change, too\n")
    with pytest.raises(ConfigError, match="has changed") as caught:
        read_hook_config(str(rendered / "hooks.json"))
    assert caught.value.advice == "run: secure-slurm conf render"
    assert read_hook_config(str(rendered / "hooks.json"), check_sources=False)["cluster"]["name"] == "test"


@pytest.mark.parametrize("source", ["secure-slurm.yaml", "policy.yaml"])
def test_a_missing_source_is_refused(rendered: Path, source: str) -> None:
    (rendered / source).unlink()
    with pytest.raises(ConfigError, match="does not exist"):
        read_hook_config(str(rendered / "hooks.json"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "another version"),
        (b"{}", "another version"),
        (b'{"format": 2}', "another version"),
        (b'{"format": 1}', "has no cluster"),
        (b'{"format": 1, "cluster": []}', "has no cluster"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_broken_file_is_refused(written: Write, content: bytes, part: str, check: bool) -> None:
    with pytest.raises(ConfigError, match=part):
        read_hook_config(written(content, "hooks.json"), check_sources=check)


@pytest.mark.parametrize("section", hookconf.SECTIONS)
def test_no_section_may_be_missing(rendered: Path, section: str) -> None:
    path = rendered / "hooks.json"
    config = json.loads(path.read_text())
    config[section] = {}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"has no {section}"):
        read_hook_config(str(path))


def test_an_unsafe_file_is_refused(rendered: Path) -> None:
    path = rendered / "hooks.json"
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="can be written"):
        read_hook_config(str(path))
    path.unlink()
    path.symlink_to("policy.yaml")
    with pytest.raises(ConfigError, match="symbolic link"):
        read_hook_config(str(path))


@pytest.mark.parametrize("broken", ["secure-slurm.yaml", "policy.yaml"])
def test_nothing_is_written_for_a_broken_file(rendered: Path, broken: str) -> None:
    before = {path.name: path.read_bytes() for path in rendered.iterdir() if path.name != broken}
    (rendered / broken).write_text("version: 2\n")
    with pytest.raises(ConfigError):
        render(str(rendered / "secure-slurm.yaml"), str(rendered / "policy.yaml"), str(rendered))
    assert {path.name: path.read_bytes() for path in rendered.iterdir() if path.name != broken} == before


def test_a_directory_that_others_can_write_is_refused(rendered: Path, room: Path) -> None:
    out = room / "out"
    out.mkdir()
    out.chmod(0o777)
    with pytest.raises(ConfigError, match="can be written"):
        render(str(room / "secure-slurm.yaml"), str(room / "policy.yaml"), str(out))
    assert list(out.iterdir()) == []


def test_a_missing_directory_is_a_config_error(rendered: Path, room: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        render(str(room / "secure-slurm.yaml"), str(room / "policy.yaml"), str(room / "none"))


def test_a_link_in_the_place_of_a_file_is_replaced_not_followed(rendered: Path, room: Path) -> None:
    (room / "victim").write_text("untouched")
    (room / "hooks.sh").unlink()
    (room / "hooks.sh").symlink_to("victim")
    render(str(room / "secure-slurm.yaml"), str(room / "policy.yaml"), str(room))
    assert (room / "victim").read_text() == "untouched"
    assert not (room / "hooks.sh").is_symlink()


def test_what_is_written(rendered: Path) -> None:
    for name in ("hooks.json", "hooks.sh", "job_submit.conf.lua"):
        assert (rendered / name).stat().st_mode & 0o7777 == 0o644
    config = read_hook_config(str(rendered / "hooks.json"))
    assert config["lifecycle"]["start_deadline"] == 60.0
    assert config["regions"] == {"eu-central-1": "eu", "eu-west-1": "eu", "us-east-1": "us"}
    assert config["secure_partitions"] == ["phi"]
    assert config["node"]["run_dir"] == "/run/secure-slurm/node-%n"
    assert set(config["scratch"]) == {
        "backing", "directory", "overcommit", "volume_group", "device", "mount_root", "filesystem",
        "limit", "volume", "take_over", "diskless", "chosen",
    }  # fmt: skip
    assert len(list(rendered.iterdir())) == 5


def test_auto_is_what_was_chosen_here_and_nothing_else(
    written: Write, room: Path, site_text: str, policy_text: str
) -> None:
    written(f"{site_text}scratch: {{backing: auto, volume_group: vg.01}}\n", "s.yaml")
    written(policy_text, "p.yaml")

    def scratch() -> dict[str, object]:
        render(str(room / "s.yaml"), str(room / "p.yaml"), str(room))
        part: dict[str, object] = read_hook_config(str(room / "hooks.json"))["scratch"]
        return part

    assert (scratch()["backing"], scratch()["chosen"]) == ("auto", "")
    choice = room / store.NAME
    choice.write_text(store.text("lvm", "volume group vg.01 of 2 instance store drives"))
    choice.chmod(0o644)
    found = scratch()
    assert (found["backing"], found["chosen"]) == ("lvm", "auto: volume group vg.01 of 2 instance store drives")
    assert read_hook_config(str(room / "hooks.json"))["sources"]
    written(site_text, "s.yaml")
    assert (scratch()["backing"], scratch()["chosen"]) == ("file", "")


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "lvm", '{"backing": "block", "why": ""}', '{"backing": "lvm"}', '{"backing": "lvm", "why": 1}'],
)
def test_a_choice_that_is_none(written: Write, room: Path, site_text: str, policy_text: str, text: str) -> None:
    written(f"{site_text}scratch: {{backing: auto, volume_group: vg.01}}\n", "s.yaml")
    written(policy_text, "p.yaml")
    (room / store.NAME).write_text(text)
    (room / store.NAME).chmod(0o644)
    with pytest.raises(ConfigError, match="holds no choice"):
        render(str(room / "s.yaml"), str(room / "p.yaml"), str(room))
    assert not (room / "hooks.json").exists()


def test_a_choice_that_others_may_write(written: Write, room: Path, site_text: str, policy_text: str) -> None:
    written(f"{site_text}scratch: {{backing: auto, volume_group: vg.01}}\n", "s.yaml")
    written(policy_text, "p.yaml")
    (room / store.NAME).write_text(store.text("memory", ""))
    (room / store.NAME).chmod(0o666)
    with pytest.raises(ConfigError):
        render(str(room / "s.yaml"), str(room / "p.yaml"), str(room))


def test_rendering_twice_gives_the_same_bytes(rendered: Path) -> None:
    before = (rendered / "hooks.json").read_bytes()
    render(str(rendered / "secure-slurm.yaml"), str(rendered / "policy.yaml"), str(rendered))
    assert (rendered / "hooks.json").read_bytes() == before


def test_sh_reads_hooks_sh(rendered: Path) -> None:
    script = '. "$1"; printf "%s\\n" "$SECURE_PARTITIONS" "$MOUNT_ROOT" "$RUN_DIR" "$HOOKS"'
    said = subprocess.run(
        ["/bin/sh", "-euc", script, "sh", str(rendered / "hooks.sh")],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    assert said.stdout.split("\n") == ["|phi|", "/secure-scratch", "/run/secure-slurm/node-%n", LIBRARY, ""]


def test_a_job_without_a_partition_matches_no_demand(
    written: Write, room: Path, site_text: str, policy_text: str
) -> None:
    written(site_text, "s.yaml")
    written(policy_text.replace("demand_tag: true, ", ""), "p.yaml")
    render(str(room / "s.yaml"), str(room / "p.yaml"), str(room))
    assert "SECURE_PARTITIONS='|'\n" in (room / "hooks.sh").read_text()
    assert "demand={}," in (room / "job_submit.conf.lua").read_text()


def test_lua_reads_its_file(rendered: Path) -> None:
    text = (rendered / "job_submit.conf.lua").read_text()
    assert 'socket="/run/secure-slurm/decision/decide.sock"' in text
    assert "deadline=0.2," in text
    assert 'demand={["phi"]=true}' in text
    lua = shutil.which("lua5.1") or shutil.which("lua5.3") or shutil.which("lua5.4") or shutil.which("lua")
    if lua is None:
        assert not os.environ.get("CI"), "CI must have lua"
        return
    check = (
        f"c=dofile('{rendered}/job_submit.conf.lua') assert(c.demand.phi==true and c.deadline==0.2) io.write(c.socket)"
    )
    said = subprocess.run([lua, "-e", check], capture_output=True, text=True, check=True)
    assert said.stdout == "/run/secure-slurm/decision/decide.sock"


def test_a_root_hook_reads_it_with_the_standard_library_alone(rendered: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from conf.hookconf import read_hook_config;"
        "import conf.tag, conf.units; print(read_hook_config(sys.argv[2])['cluster']['name']);"
        "heavy = {'yaml', 'attr', 'attrs', 'cattrs', 'asyncio', 'logging', 'dataclasses', 'pathlib', 'difflib'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    said = subprocess.run(
        [sys.executable, "-IS", "-c", program, LIBRARY, str(rendered / "hooks.json")],
        capture_output=True, text=True, check=False, env={},
    )  # fmt: skip
    assert (said.returncode, said.stderr, said.stdout) == (0, "", "test\n")
