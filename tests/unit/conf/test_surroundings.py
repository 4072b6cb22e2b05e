"""What of a policy reaches the nodes' hooks: whose file systems are, which paths are protected, which rules wait."""

from __future__ import annotations

import datetime
import json
import shlex
import subprocess
from pathlib import Path

import attrs

from conf import surroundings
from conf.policy import DataClass, Dataset, Jurisdiction, Policy, Role

LIMITLESS = {"work": None, "output": None}
LOW = {"low": LIMITLESS}


def make(file_systems: dict[str, tuple[str, ...]], **more: object) -> Policy:
    policy = Policy(
        version=1,
        jurisdictions={
            name: Jurisdiction(feature=name, regions=(f"{name}-1",), file_systems=entries)
            for name, entries in file_systems.items()
        },
        classes=(DataClass(name="low", residency="optional", scratch="optional"),),
        roles={"r": Role(groups=("cn=g",), classes=("low",), jurisdictions=tuple(file_systems))},
    )
    return attrs.evolve(policy, **more)


def dataset(*paths: str) -> Dataset:
    return Dataset(klass="low", residency=("eu",), roles=("r",), paths=paths)


def test_a_file_system_is_owned_by_the_one_that_lists_it() -> None:
    policy = make({"eu": ("/home", "fs-eu:/"), "us": ("/home", "/us", "/us"), "uk": ("/home",)})
    assert surroundings.owned_file_systems(policy) == {"fs-eu:/": "eu", "/us": "us"}


def test_what_several_list_is_nobodys_and_so_is_all_of_a_single_place() -> None:
    assert surroundings.owned_file_systems(make({"eu": ("/a",), "us": ("/a",), "uk": ()})) == {}
    assert surroundings.owned_file_systems(make({"eu": ("/home", "fs:/")})) == {}


def test_the_paths_of_datasets_are_protected_also_when_the_agreement_has_ended() -> None:
    old = attrs.evolve(dataset("/data/old"), until=datetime.date(2020, 1, 1))
    policy = make({"eu": ()}, datasets={"a": dataset("/data/a", "/data/b"), "b": dataset("/data/b"), "old": old})
    assert surroundings.dataset_paths(policy) == {"/data/a": "a", "/data/b": "a", "/data/old": "old"}


def test_for_a_policy_without_any_of_it_the_stub_looks_at_nothing() -> None:
    assert set(surroundings.for_stub(make({"eu": (), "us": ()})).values()) == {""}
    told = surroundings.for_node(make({"eu": ()}))
    assert told == {"file_systems": {"eu": []}, "datasets": {}, "owned": {}, "classes": LOW, "shadow": {}}


def test_the_stubs_variables() -> None:
    policy = make(
        {"eu": ("fs-eu:/", "/shared/eu/", "//cifs/share", "fsx@tcp:/fsx,x=[1]"), "us": ()},
        datasets={"a": dataset("/data/a")},
    )
    assert surroundings.for_stub(policy) == {
        "PROTECTED": "|/data/a|/shared/eu|",
        "PROTECTED_TOPS": "|/data|/shared|",
        "PROTECTED_SOURCES": "|//cifs/share|/shared/eu|fs-eu:|fsx@tcp:/fsx,x=[1]|",
    }


def test_a_root_that_is_protected_is_not_lost() -> None:
    found = surroundings.in_bars(["/"], [])
    assert (found["PROTECTED"], found["PROTECTED_TOPS"]) == ("|/|", "|/|")


def test_sh_reads_them_as_they_are(tmp_path: Path) -> None:
    policy = make({"eu": ("fsx@tcp:/fsx,x=[1]",), "us": ()})
    words = surroundings.for_stub(policy)
    script = tmp_path / "hooks.sh"
    script.write_text("".join(f"{name}={shlex.quote(value)}\n" for name, value in words.items()))
    done = subprocess.run(
        ["sh", "-c", f'. {script}; printf %s "$PROTECTED_SOURCES"'], capture_output=True, text=True, check=True
    )
    assert done.stdout == "|fsx@tcp:/fsx,x=[1]|"


def test_directories_and_shadow() -> None:
    classes = (
        DataClass(name="low", residency="optional", scratch="optional"),
        DataClass(name="high", residency="optional", scratch="optional", output_dirs=("/data/phi",)),
    )
    shadow = {"path.output": datetime.date(2026, 12, 31), "limit.time": datetime.date(2026, 12, 31)}
    told = surroundings.for_node(make({"eu": ()}, classes=classes, shadow=shadow))
    assert told["classes"] == {"low": LIMITLESS, "high": {"work": None, "output": ["/data/phi"]}}
    assert told["shadow"] == {"path.output": "2026-12-31"}
    assert json.loads(json.dumps(told)) == told
