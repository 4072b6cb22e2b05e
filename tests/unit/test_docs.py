"""The pages say what the source says: every rule, event, exit code, command and configuration key, and no other."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from admin import main
from audit.events import EVENTS
from conf import errors
from conf.policy import BreakGlass, DataClass, Dataset, Jurisdiction, Partition, Role
from conf.site import Site

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
ROOMS = ("admin", "audit", "conf", "keys", "slurm_hooks", "submit")
RULE = re.compile(r"[a-z]+\.[a-z]+(?:[-_][a-z]+)*")
# the two vocabularies share a form; these words are in both
RULES_AND_EVENTS = {"vault.login"}
# of the same form and neither: files and programs, and fields of a request
NO_RULES = {"mkfs.xfs", "cgroup.procs", "hooks.json", "hooks.sh", "policy.yaml", "head.hcl", "node.hcl"}
NO_RULES |= {"enrol.hcl", "amazonaws.com", "amazonaws.eu"}
NO_RULES |= {"hand.sock", "hand.json", "slurmstepd.scope", "ecr.api", "ecr.dkr", "child.py"}
FIELDS = ("rec.", "env.", "job.")


def literals(path: Path) -> Iterator[str]:
    """Every text in a module's source that is no docstring and no part of another text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def rules_in_source() -> set[str]:
    found: set[str] = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            if path.name != "events.py":
                found.update(text for text in literals(path) if RULE.fullmatch(text) and not is_module(text))
    found = {text for text in found if not text.startswith(FIELDS)}
    found -= (EVENTS.keys() - RULES_AND_EVENTS) | NO_RULES
    found.update(re.findall(r'refuse\("([a-z.-]+)"', (ROOT / "slurm_hooks/job_submit.lua").read_text()))
    # the one rule that is put together: f"grant.{what}"
    found.update(f"grant.{what}" for what in re.findall(r'_same\("(\w+)"', (ROOT / "keys/grant.py").read_text()))
    return found


def first_cells(page: Path, section: str = "") -> set[str]:
    """The words in backquotes in the first column of the tables of a page, or of one section of it."""
    text = page.read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\|(.*?)(?<!\\)\|", text, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_every_rule_is_explained_and_no_other() -> None:
    assert rules_in_source() == first_cells(DOCS / "rules.md")


def test_the_search_for_rules_finds_what_is_there() -> None:
    assert {
        "rbac.role",
        "grant.restarts",
        "names.node",
        "vault.tls",
        "daemon.down",
        "node.job-runs",
    } <= rules_in_source()


def test_a_user_meets_only_rules_that_there_are() -> None:
    known = rules_in_source() | {f"{rule.partition('.')[0]}.*" for rule in rules_in_source()}
    named = {word for word in first_cells(DOCS / "user.md") if RULE.fullmatch(word) or word.endswith(".*")}
    assert named <= known
    assert len(named) > 30


def test_every_event_is_explained_and_no_other() -> None:
    assert first_cells(DOCS / "audit.md", "Events") == EVENTS.keys()


def test_every_exit_code_is_explained() -> None:
    codes = {name: value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    codes["EXIT_INTERRUPTED"] = main.EXIT_INTERRUPTED
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (\d+) \| `(EXIT_\w+)` \|", page, re.MULTILINE))
    assert {name: int(value) for value, name in told.items()} == codes


def keys_of(shape: Any, before: str) -> Iterator[str]:
    for field in attrs.fields(attrs.resolve_types(shape)):
        if not field.metadata.get("in_file", True):
            continue
        if isinstance(field.type, type) and attrs.has(field.type):
            yield from keys_of(field.type, f"{before}{field.name}.")
        else:
            yield f"{before}{field.metadata.get('key', field.name)}"


def test_every_configuration_key_is_explained_and_no_other() -> None:
    known = {*keys_of(Site, ""), "shadow.RULE"}
    for shape, before in (
        (Jurisdiction, "jurisdictions.NAME."),
        (DataClass, "classes[]."),
        (Role, "roles.NAME."),
        (Dataset, "datasets.NAME."),
        (Partition, "partitions.NAME."),
        (BreakGlass, "break_glass."),
    ):
        known |= set(keys_of(shape, before))
    assert first_cells(DOCS / "admin.md", "Configuration") == known


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_command_is_named(name: str) -> None:
    assert f"secure-slurm {name}" in (DOCS / "admin.md").read_text(encoding="utf-8")


def commands_in(page: Path) -> Iterator[list[str]]:
    """The words after each ``secure-slurm`` that a page has somebody type, in a block or between backquotes."""
    text = page.read_text(encoding="utf-8")
    blocks = "".join(line for line in text.splitlines(keepends=True) if line.startswith("    "))
    blocks = re.sub(r"\\\n\s*", " ", blocks)
    # a usage line is argparse's own, and goes on behind its brackets
    typed = [line for line in blocks.splitlines() if "usage: " not in line]
    typed += [each.replace("\n", " ") for each in re.findall(r"`(secure-slurm [^`]+)`", text)]
    for line in typed:
        for part in re.split(r"&&|\|\||[;|]| #| →|\$\(", line):
            found = re.match(r"\s*(?:\w*[#$] )?(?:\S*/)?secure-slurm (?=[a-z-])(.*)", part)
            if found and not found[1].startswith("certificate of destruction"):
                yield found[1].replace("'", " ").replace('"', " ").split()


def judged(words: list[str]) -> str:
    """Why the command as it is has no such words; empty: it has."""
    parser = main._parser(words)
    while words:
        word, *words = words
        name = word.partition("=")[0]
        if name.startswith("-") and name != "--":
            action = parser._option_string_actions.get(name)
            if action is None:
                return f"{parser.prog} has no {name}"
            if action.nargs != 0 and "=" not in word:
                words = words[1:]
            continue
        chooser = next((each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)
        if chooser is None:
            # what comes behind a command of its own (explain -- …) is not ours to judge
            words = [] if word == "--" else words
        elif word in chooser.choices:
            parser = chooser.choices[word]
        else:
            return f"{parser.prog} has no {word}" if re.fullmatch(r"[a-z][a-z-]+", word) else ""
    return ""


# what a changelog tells of is as it was then
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_that_a_page_tells_is_there_with_its_options(page: Path) -> None:
    wrong = {f"secure-slurm {' '.join(words)}": why for words in commands_in(page) if (why := judged(list(words)))}
    assert not wrong


def test_the_search_for_commands_finds_them_and_what_is_wrong_with_them() -> None:
    assert len(list(commands_in(DOCS / "parallelcluster.md"))) > 12
    assert judged(["node", "enroll"])
    assert judged(["node", "enrol", "--for", "1"])
    assert judged(["vpc-check", "x.yaml"])
    assert not judged(["--config", "x.yaml", "parallelcluster", "check", "y.yaml", "--strict"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


def test_what_the_source_refers_to_is_there() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for name in re.findall(r"docs/[a-z0-9/-]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / name).is_file(), f"{path}: {name}"
