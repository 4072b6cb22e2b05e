"""secure-slurm doctor and the real Slurm: its settings are understood, and hooks run in the order that is said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from admin.doctor import doors_slurm, judge_slurm
from admin.doctor.facts import Filter, HookFile, Slurm, Wanted
from admin.doctor.scene import Scene
from conf.policy import load_policy
from conf.site import load_site
from tests.services.slurm.controller import Controller, run, until
from tests.unit.hooks.conftest import POLICY, SITE

FOLDER, RAN = Path("/etc/slurm/prolog.d"), Path("/run/slurm/prologs-ran")
NAMES = ("10_first", "50_middle", "90_vendor", "99_secure")
WANTED = Wanted("test", 45.0, 60.0)
LINES = f"""\
Prolog={FOLDER}/*
Epilog=/etc/slurm/epilog
PrologFlags=Alloc,DeferBatch
PrologEpilogTimeout=120
BatchStartTimeout=90
AccountingStoreFlags=job_comment,job_script
PrivateData=jobs,usage
"""


class WithHooks(Controller):
    """With a folder of Prologs, of which each says that it ran."""

    def more(self) -> str:
        FOLDER.mkdir(exist_ok=True)
        for name in NAMES:
            script(FOLDER / name, f"echo {name} >> {RAN}")
        script(Path("/etc/slurm/epilog"), "exit 0")
        return LINES


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def slurm(throw_away_root: None) -> Iterator[Controller]:
    with WithHooks() as controller:
        yield controller


@pytest.fixture
def scene(slurm: Controller, tmp_path: Path) -> Scene:
    tmp_path.chmod(0o755)
    path = tmp_path / "secure-slurm.yaml"
    path.write_text(SITE.format(user="root", folder=tmp_path))
    path.chmod(0o644)
    return Scene(frozenset({"head"}), False, "e1", str(path), "", load_site(str(path)), None)


@pytest.fixture
def seen(scene: Scene) -> Slurm:
    return doors_slurm.slurm(scene)


def test_what_is_wrong(seen: Slurm) -> None:
    assert "scripts" in judge_slurm.accounting(seen).seen
    assert judge_slurm.private_data(seen, ()).state == "warn"
    assert judge_slurm.job_submit(seen, Filter("/x", True, True, "5.1", "/y")).state == "fail"
    found = judge_slurm.hooks(seen)
    assert found.state == "fail"
    for name in ("Prolog", "Epilog", "PrologSlurmctld", "EpilogSlurmctld"):
        assert f"{name}=" in found.seen


def test_what_is_right(seen: Slurm, slurm: Controller) -> None:
    assert judge_slurm.answers(seen, WANTED).state == "ok"
    assert judge_slurm.version(seen) == ("ok", f"Slurm {slurm.version()}", "")
    assert judge_slurm.prolog_flags(seen).state == "ok"
    assert judge_slurm.identity(seen).state == "ok", judge_slurm.identity(seen)
    assert judge_slurm.timeouts(seen, WANTED).state == "ok"


def test_the_filters_lua_is_the_one_that_the_plugin_loads(scene: Scene) -> None:
    found = doors_slurm.filter_(scene)
    assert (found.path, found.there) == ("/etc/slurm/job_submit.lua", False)
    # Debian builds Slurm with Lua 5.1, for which the test bed has LuaSocket
    assert judge_slurm.lua_socket(found).state == "ok", found
    assert found.lua == "5.1"


def test_hooks_are_run_in_the_order_that_is_said_and_the_first_failure_ends_it(slurm: Controller, seen: Slurm) -> None:
    said = [Path(each.path).name for each in seen.hooks["Prolog"]]
    assert said == sorted(NAMES, reverse=True)
    run("sbatch", "-w", "e1", "-o", "/dev/null", "--wrap=true")
    until(lambda: RAN.exists() and len(RAN.read_text().split()) == len(NAMES), "the Prologs to have run")
    assert RAN.read_text().split() == said
    # so ours, at the end of the alphabet, runs whatever a vendor's does; before it nothing that could skip it
    assert judge_slurm.order(with_ours(seen, "99_secure")).state == "ok"
    assert judge_slurm.order(with_ours(seen, "50_middle")).state == "fail"
    until(lambda: "e1" in slurm._idle(), "the node to be free")
    RAN.unlink()
    script(FOLDER / "90_vendor", f"echo 90_vendor >> {RAN}; exit 1")
    run("sbatch", "-w", "e1", "-o", "/dev/null", "--wrap=true")
    until(lambda: "drain" in run("sinfo", "-h", "-n", "e1", "-o", "%T"), "the node to be drained")
    assert RAN.read_text().split() == ["99_secure", "90_vendor"]


def with_ours(seen: Slurm, name: str) -> Slurm:
    files = tuple(HookFile(each.path, each.path.endswith(name), True) for each in seen.hooks["Prolog"])
    return seen._replace(hooks={"Prolog": files})


def test_a_node_that_was_drained(scene: Scene) -> None:
    run("scontrol", "update", "NodeName=e2", "State=DRAIN", "Reason=secure-slurm: [node.swap] in clear")
    found = judge_slurm.node(doors_slurm.node(scene._replace(node="e2")))
    assert (found.state, "secure-slurm: [node.swap] in clear" in found.seen) == ("warn", True)
    assert judge_slurm.node(doors_slurm.node(scene._replace(node="e3"))).state == "ok"


def test_the_partitions_of_a_node_that_demand_a_tag(scene: Scene, tmp_path: Path) -> None:
    names = run("scontrol", "--oneliner", "show", "node", "e1").partition("Partitions=")[2].split()[0].split(",")
    # without a policy all of them may
    assert doors_slurm.node(scene).demanding == tuple(names)
    path = tmp_path / "policy.yaml"
    for demanding in ((), (names[0],)):
        lines = "".join(f"  {name}: {{demand_tag: true}}\n" for name in demanding) or "  other: {jurisdiction: eu}\n"
        path.write_text(POLICY.partition("\npartitions:")[0] + f"\npartitions:\n{lines}")
        path.chmod(0o644)
        assert doors_slurm.node(scene._replace(policy=load_policy(str(path)))).demanding == demanding
