"""docs/install.md says what the commands, the snippet and the shipped files say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from admin.main import COMMANDS, main

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/install.md").read_text()
SNIPPET = ROOT / "conf/slurm/slurm.conf.snippet"
# "secure-slurm word [word]" and what follows it on the line or in the code span; not paths, units or sentences
CALLS = sorted(
    {
        (*call[1].split(), *re.findall(r"--[a-z-]+", call[2]))
        for call in re.finditer(r"(?<![/\w-])secure-slurm ((?:[a-z]+ ?){1,2})([^`#\n&]*)", TEXT)
        if call[1].split()[0] in COMMANDS
    }
)


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_commands_are_what_help_says(call: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in call if not word.startswith("-")]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: secure-slurm {' '.join(words)} [")
    for option in set(call) - set(words):
        assert option in shown


def test_there_are_commands() -> None:
    named = {" ".join(word for word in call if not word.startswith("-")) for call in CALLS}
    assert {"conf check", "conf render", "vault init", "node status", "node clean", "why", "audit show"} <= named


def test_the_snippet_is_repeated_whole() -> None:
    lines = [line for line in SNIPPET.read_text().splitlines() if line and not line.startswith("#")]
    start = TEXT.index(f"    {lines[0]}\n")
    assert TEXT[start:].startswith("".join(f"    {line}\n" for line in lines))


def test_files_are_those_of_the_shipped_site_file() -> None:
    site = (ROOT / "conf/secure-slurm.yaml").read_text()
    named = {name.replace("%n", "<name>") for name in re.findall(r"/etc/secure-slurm/([\w.%-]+)", site)}
    for name in named:
        assert f"`{name}`" in TEXT or f"/etc/secure-slurm/{name}`" in TEXT, name


@pytest.mark.parametrize("option", ["--role head", "--role compute", "--role login", "--node", "--offline"])
def test_options_of_the_installer(option: str) -> None:
    assert option in TEXT
    assert option.split(maxsplit=1)[0] in (ROOT / "install.sh").read_text()
