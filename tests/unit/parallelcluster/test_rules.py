"""Our own rules: silent about every shipped example; each way to break one is told, on its line and with its fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs
import pytest

from admin.parallelcluster import check as checking
from admin.parallelcluster.check import Told
from admin.parallelcluster.look import Look
from tests.testbed.pcluster_examples import NAMES, Broken, Example
from tests.unit.parallelcluster.broken import BROKEN as FIRST
from tests.unit.parallelcluster.broken_more import MORE

Examples = Callable[[str], Example]
BROKEN = (*FIRST, *MORE)


def told_of(example: Example) -> list[Told]:
    look, missing = checking.look_from(str(example.site), str(example.policy), str(example.answers))
    assert missing == []
    return checking.ours(example.cluster.read_bytes(), look)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_example_has_nothing_to_find(example: Examples, name: str) -> None:
    assert told_of(example(name)) == []


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_a_broken_one_is_told_on_its_line(example: Examples, broken: Broken) -> None:
    files = example(broken.example)
    for which, old, new in broken.edits:
        files.edit(which, old, new)
    found = [each for each in told_of(files) if each.check == broken.check and broken.says in each.message]
    assert found, [f"{each.check}: {each.message}" for each in told_of(files)]
    lines = files.cluster.read_text().splitlines()
    assert broken.at in lines[found[0].mark.line - 1]
    assert broken.fix in found[0].advice


@pytest.mark.parametrize(
    "scratch",
    [
        # memory, where the node has no disk; another volume of the site's
        "diskless: memory\n  limit: 20G",
        "volume: /data\n  directory: /data/secure-slurm",
    ],
)
def test_what_auto_may_choose_instead_of_instance_store_will_do(example: Examples, scratch: str) -> None:
    files = example("hipaa-and-open")
    files.edit("site", "^  take_over: lv_ephemeral", f"  take_over: lv_ephemeral\n  {scratch}")
    files.edit("cluster", "m6id.16xlarge", "m6i.16xlarge")
    assert told_of(files) == []


def test_the_table_is_large_enough_and_names_are_unique() -> None:
    assert len(BROKEN) >= 40
    assert max(Counter(broken.name for broken in BROKEN).values()) == 1


def test_every_check_of_ours_is_in_the_table() -> None:
    import re
    from pathlib import Path

    rules = Path(checking.__file__).parent
    source = "".join(path.read_text() for path in rules.glob("rules_*.py"))
    known = set(re.findall(r'(?:error|warning)\(\s*"([a-z-]+)"', source)) | set(
        re.findall(r'_missing\(\s*"([a-z-]+)"', source)
    )
    assert {broken.check for broken in BROKEN} - {"yaml"} == known


def test_nodes_that_log_in_as_a_role_need_sts(example: Examples) -> None:
    files = example("isolated")
    look, _ = checking.look_from(str(files.site), str(files.policy), str(files.answers))
    assert look.site is not None
    vault = attrs.evolve(look.site.vault, node=attrs.evolve(look.site.vault.node, method="aws"))
    look = look._replace(site=attrs.evolve(look.site, vault=vault))
    (told,) = checking.ours(files.cluster.read_bytes(), look)
    assert (told.check, "sts" in told.message) == ("endpoint-missing", True)


def test_without_anything_to_compare_with_it_judges_what_it_can(example: Examples) -> None:
    files = example("isolated")
    assert checking.ours(files.cluster.read_bytes(), Look({})) == []
    files.edit("cluster", "- JobSubmitPlugins: lua", "- {Prolog: /x, Foo: 1}")
    assert {each.check for each in checking.ours(files.cluster.read_bytes(), Look({}))} >= {"setting-denied"}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"a",
        b"Scheduling: []",
        b"Scheduling: {SlurmQueues: {}, SlurmSettings: [], Scheduler: 1}",
        b"Scheduling: {SlurmQueues: [1, {Name: 1}, {Name: q, ComputeResources: 5}]}",
        b"HeadNode: []\nLoginNodes: {Pools: [1]}\nSharedStorage: [1, {MountDir: 1}]\nDirectoryService: 1",
        b"Scheduling: {SlurmSettings: {CustomSlurmSettings: [1, {Prolog: {a: b}}, {}]}}",
        b"Scheduling: {SlurmQueues: [{Name: q, Iam: 1, CustomActions: {OnNodeStart: 1, X: {Sequence: [1]}}}]}",
        b"Scheduling: {SlurmQueues: [{Name: q, ComputeResources: [{Instances: 1}, {Instances: [1]}]}]}",
        b"HeadNode: {CustomActions: {OnNodeStart: {Script: s3://b/secure-slurm-action.sh, Args: [1, {}, [], '']}}}",
        b"\xff",
    ],
)
def test_odd_shapes_are_passed_over(example: Examples, text: bytes) -> None:
    files = example("hipaa-and-open")
    look, _ = checking.look_from(str(files.site), str(files.policy), str(files.answers))
    checking.ours(text, look)
