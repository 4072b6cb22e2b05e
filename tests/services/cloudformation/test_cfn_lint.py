"""The templates by AWS's own linter and its schemas of each region, GovCloud's too; and our lists by the same schemas.

cfn-lint has an environment of its own at /venv/cloudformation (tests/testbed/venv.sh); it asks nobody.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from admin.vpc.rules import findings
from admin.vpc.template import Template
from admin.vpc.types import KNOWN
from conf.yamlmarks import parse
from tests.testbed.need import need

VENV = Path("/venv/cloudformation/bin")
TEMPLATES = sorted((Path(__file__).parents[3] / "conf/cloudformation").glob("*.yaml"))
REGIONS = ("eu-central-1", "us-east-1", "us-gov-east-1", "us-gov-west-1")
# what may be set of each type, and what is only to be read
SCHEMAS = """
import json, sys
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER as schemas
found = {}
for type_ in schemas.get_resource_types(sys.argv[1]):
    schema = schemas.get_resource_schema(sys.argv[1], type_).schema
    read = {each.split("/")[2] for each in schema.get("readOnlyProperties", []) if each.count("/") == 2}
    found[type_] = sorted(set(schema["properties"]) - read)
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def _venv() -> None:
    need(str(VENV / "cfn-lint"))


def lint(*paths: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [VENV / "cfn-lint", "--regions", *REGIONS, "--include-checks", "I", "--format", "json", "--template", *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr == ""
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    assert bool(found) == (done.returncode != 0)
    return found


@cache
def schemas(region: str) -> dict[str, list[str]]:
    done = subprocess.run(
        [VENV / "python", "-c", SCHEMAS, region], capture_output=True, text=True, check=True, timeout=300
    )
    known: dict[str, list[str]] = json.loads(done.stdout)
    return known


def test_there_are_three_templates() -> None:
    assert [path.name for path in TEMPLATES] == ["isolated-vpc-ad.yaml", "isolated-vpc.yaml", "vault-place.yaml"]


def test_the_linter_finds_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(TEMPLATES[1].read_text().replace("EnableDnsSupport: true", "EnableDnsSupport: perhaps", 1))
    assert [(each["Level"], each["Rule"]["Id"]) for each in lint(file)] == [("Error", "E3012")]


def test_the_linter_finds_nothing_in_the_templates() -> None:
    assert lint(*TEMPLATES) == []


def test_what_is_known_to_stay_inside_is_what_can_be_set() -> None:
    there = schemas("us-east-1")
    for type_, properties in KNOWN.items():
        assert properties <= set(there[type_]), type_


@pytest.mark.parametrize("region", [region for region in REGIONS if region.startswith("us-gov")])
def test_every_type_that_the_templates_use_is_in_govcloud(region: str) -> None:
    used = set()
    for path in TEMPLATES:
        text = path.read_text(encoding="utf-8")
        used |= {
            line.split()[1] for line in text.split("\n") if line.startswith("    Type: AWS::") and "Id" not in line
        }
    used = {type_ for type_ in used if type_.count("::") == 2 and not type_.endswith("::Name")}
    assert len(used) > 25
    assert used <= schemas(region).keys()


def test_every_other_type_that_there_is_is_a_finding() -> None:
    others = sorted(schemas("us-east-1").keys() - KNOWN.keys())
    assert len(others) > 1500
    text = "Resources:\n" + "".join(f"  R{number}: {{Type: '{type_}'}}\n" for number, type_ in enumerate(others))
    template = Template(parse(text.encode()))
    assert {each.where[1] for each in findings(template)} == template.resources.keys()


def test_every_property_that_is_not_known_is_a_finding() -> None:
    there = schemas("us-east-1")
    for type_, known in KNOWN.items():
        for name in sorted(set(there[type_]) - known):
            template = Template(parse(f"Resources: {{R: {{Type: '{type_}', Properties: {{{name}: x}}}}}}".encode()))
            places = [each.where for each in findings(template)]
            assert ("Resources", "R", "Properties", name) in places, (type_, name)
