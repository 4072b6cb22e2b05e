from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from conf.errors import ConfigError
from conf.policy import Policy, load_policy

Write = Callable[..., str]
SHIPPED = Path(__file__).parents[3] / "conf" / "policy.yaml"


def mistakes(path: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    lines = str(caught.value).split("\n")
    assert all(line.isprintable() for line in lines)
    return [line.removeprefix(path) for line in lines]


ROLE = "    jurisdictions: [eu]\n"
BROKEN = [
    ("version: 1", "version: 3", ":1:10: ", "must be 1"),
    ("feature: us", "feature: eu", ":4:17: ", "the feature 'eu' already stands for 'eu'"),
    ("feature: us", "feature: us&eu", ":4:17: ", "jurisdictions.us.feature must be a feature"),
    ("regions: [us-east-1]", "regions: [us-east-1, eu-west-1]", ":4:42: ", "the region 'eu-west-1' is already in 'eu'"),
    ("regions: [us-east-1]", "regions: [us-east-1, us-east-1]", ":4:30: ", "names 'us-east-1' twice"),
    ("regions: [us-east-1]", "regions: []", ":4:30: ", "empty list"),
    ("regions: [us-east-1]", "regions: us-*", ":4:30: ", "must be a list"),
    ("regions: [us-east-1]", "regions: ['us-*']", ":4:31: ", "must be a region id"),
    ("  us: {feature", "  US: {feature", ":4:3: ", "jurisdictions.US: the key must be a name"),
    ("name: phi,", "name: internal,", ":7:12: ", "the class 'internal' is defined twice"),
    ("name: phi,", "nmae: phi,", ":7:6: ", "did you mean 'name'?"),
    (", max_scratch: 1T", "", ":7:5: ", "the class 'phi' requires scratch and needs 'max_scratch'"),
    (
        "scratch: optional,",
        "scratch: optional, default_scratch: 1G,",
        ":6:79: ",
        "default_scratch without 'max_scratch'",
    ),
    ("max_scratch: 1T", "max_scratch: 100M", ":7:74: ", "default_scratch is larger than max_scratch"),
    ("max_scratch: 1T", "max_scratch: 1000", ":7:91: ", "1000 has no unit"),
    ("max_scratch: 1T", "max_scratch: 10TB", ":7:91: ", "ambiguous"),
    ("max_scratch: 1T", "max_scratch: 0G", ":7:91: ", "size of zero"),
    ("max_scratch: 1T", "max_scratch: ~", ":7:91: ", "a value is missing"),
    (
        "residency: required",
        "residency: maybe",
        ":7:28: ",
        "classes[1].residency must be one of 'optional' or 'required'",
    ),
    ("exclusive_nodes: false", "exclusive_nodes: no", ":6:79: ", "must be true or false, not the text 'no'"),
    ("classes: [phi]", "classes: [phy]", ":11:15: ", "unknown class 'phy' (did you mean 'phi'?)"),
    ("classes: [phi]", "classes: []", ":11:14: ", "empty list"),
    (ROLE, "    jurisdictions: [ue]\n", ":12:21: ", "unknown jurisdiction 'ue'"),
    (ROLE, "", ":9:3: ", "'jurisdictions' is missing in roles.phi-eu"),
    (ROLE, ROLE + "    partitions: []\n", ":13:17: ", "empty list"),
    (ROLE, ROLE + "    partitions:\n", ":13:16: ", "a value is missing"),
    (ROLE, ROLE + "    partition: [phi]\n", ":13:5: ", "did you mean 'partitions'?"),
    (ROLE, ROLE + "    partitions: ['a|b']\n", ":13:18: ", "must be a partition name"),
    ('    groups: ["cn=phi-eu,ou=groups,dc=example,dc=org"]\n', "", ":9:3: ", "'groups' is missing in roles.phi-eu"),
    ('["cn=phi-eu,ou=groups,dc=example,dc=org"]', "[]", ":10:13: ", "empty list"),
    ('["cn=phi-eu,ou=groups,dc=example,dc=org"]', "[phi-eu]", ":10:14: ", "must be a distinguished name"),
    (
        "us: {jurisdiction: us}",
        "us: {jurisdiction: uss}",
        ":15:22: ",
        "unknown jurisdiction 'uss' (did you mean 'us'?)",
    ),
    ("us: {jurisdiction: us}", "us: {demand_tags: true}", ":15:8: ", "did you mean 'demand_tag'?"),
    ("us: {jurisdiction: us}", "us: [us]", ":15:7: ", "must be a mapping"),
    ("us: {jurisdiction: us}", '"u\'s": {jurisdiction: us}', ":15:3: ", "the key must be a partition name"),
    ("us: {jurisdiction: us}", "us: {least_class: phi}", ":15:21: ", "least_class without 'demand_tag: true'"),
    (
        "us: {jurisdiction: us}",
        "us: {demand_tag: false, least_class: phi}",
        ":15:40: ",
        "least_class without 'demand_tag: true'",
    ),
    (
        "demand_tag: true",
        "demand_tag: true, least_class: phy",
        ":14:40: ",
        "unknown class 'phy' (did you mean 'phi'?)",
    ),
    ("demand_tag: true", "demand_tag: true, least_class: [phi]", ":14:40: ", "must be a name"),
    ("demand_tag: true", 'demand_tag: "true"', ":14:21: ", "must be true or false, not the text 'true'"),
]


@pytest.mark.parametrize(("change", "place", "part"), [((old, new), place, part) for old, new, place, part in BROKEN])
def test_a_broken_file(written: Write, policy_text: str, change: tuple[str, str], place: str, part: str) -> None:
    assert policy_text.count(change[0]) == 1
    # what refers to a name that is now gone is told as well
    (line,) = [line for line in mistakes(written(policy_text.replace(*change))) if part in line]
    assert line.startswith(place), line


@pytest.mark.parametrize("section", ["jurisdictions", "classes", "roles", "partitions"])
@pytest.mark.parametrize("empty", ["[]", "{}", "", "~"])
def test_a_policy_that_says_nothing(written: Write, policy_text: str, section: str, empty: str) -> None:
    lines = policy_text.split("\n")
    start = lines.index(f"{section}:")
    end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    lines[start:end] = [f"{section}: {empty}"]
    assert any(line.startswith(f":{start + 1}:") for line in mistakes(written("\n".join(lines))))


@pytest.mark.parametrize("section", ["jurisdictions", "classes", "roles"])
def test_a_policy_without_a_section(written: Write, section: str) -> None:
    found = mistakes(written("version: 1\n"))
    assert f":1:1: '{section}' is missing" in found


def test_mistakes_of_every_kind_in_one_report(written: Write, policy_text: str) -> None:
    text = policy_text
    for old, new in [
        ("regions: [us-east-1]", "regions: [us-east-1, eu-west-1]"),
        ("residency: optional", "residency: never"),
        ("max_scratch: 1T", "max_scratch: 1TB"),
        ("classes: [phi]", "classes: [pih]"),
        (ROLE, ROLE + "    partitions: []\n    color: red\n"),
        ("demand_tag: true", "demand_tag: 1"),
        ("us: {jurisdiction: us}", "us: {jurisdiction: xx}"),
    ]:
        text = text.replace(old, new)
    assert [line.split(":")[1] for line in mistakes(written(text))] == ["4", "6", "7", "11", "13", "14", "16", "17"]


def test_a_broken_class_is_not_also_unknown(written: Write, policy_text: str) -> None:
    (line,) = mistakes(written(policy_text.replace("max_scratch: 1T", "max_scratch: x")))
    assert "classes[1].max_scratch 'x' is not a size" in line


QUOTED_GROUP = '"cn=phi-eu,ou=groups,dc=example,dc=org"'


@pytest.mark.parametrize(
    "dn",
    ["", "phi", "cn=", "cn=a,", "cn=a,b", "=a", "cn=a,,dc=b", "2=x", "cn=a\\", "cn=a\\,b\\", "cn=a,dc=" + "b," * 9999],
)
def test_what_is_no_distinguished_name(written: Write, policy_text: str, dn: str) -> None:
    assert "must be a distinguished name" in mistakes(written(policy_text.replace(QUOTED_GROUP, f"'{dn}'")))[0]


@pytest.mark.parametrize("dn", [r"CN=Smith\, John,DC=x", "cn=Gr\u00f6\u00dfe & Co, dc=x", "cn=a+uid=b,dc=x"])
def test_distinguished_names(written: Write, policy_text: str, dn: str) -> None:
    assert load_policy(written(policy_text.replace(QUOTED_GROUP, f"'{dn}'"))).groups() == {dn}


@pytest.fixture
def policy(written: Write, policy_text: str) -> Policy:
    return load_policy(written(policy_text))


def test_the_hash_is_of_the_file(policy: Policy, policy_text: str) -> None:
    assert policy.hash == hashlib.sha256(policy_text.encode()).hexdigest()


def test_what_is_unknown_gives_nothing(policy: Policy) -> None:
    assert policy.class_rank("") is None
    assert policy.data_class("PHI") is None
    assert policy.jurisdiction_of_region("eu-west-2") is None
    assert policy.jurisdiction_of_region("") is None
    assert not policy.at_least("none", "internal")
    assert not policy.at_least("phi", "none")
    assert not policy.partition("other").demand_tag
    assert policy.partition("other").jurisdiction is None


def test_the_order_is_the_strength(policy: Policy) -> None:
    assert (policy.class_rank("internal"), policy.class_rank("phi")) == (0, 1)
    assert policy.at_least("phi", "internal")
    assert policy.at_least("phi", "phi")
    assert not policy.at_least("internal", "phi")


def test_the_tables(policy: Policy) -> None:
    assert policy.jurisdiction_of_region("eu-central-1") == "eu"
    assert policy.features() == {"eu", "us"}
    assert policy.regions() == {"eu-central-1": "eu", "eu-west-1": "eu", "us-east-1": "us"}
    assert policy.groups() == {"cn=phi-eu,ou=groups,dc=example,dc=org"}
    assert policy.demanding_partitions() == ("phi",)
    assert policy.partition("us").jurisdiction == "us"
    assert policy.roles["phi-eu"].partitions is None


def test_the_least_class_of_a_partition(written: Write, policy_text: str, policy: Policy) -> None:
    strict = load_policy(written(policy_text.replace("demand_tag: true", "demand_tag: true, least_class: phi")))

    assert strict.partition("phi").least_class == "phi"
    assert policy.partition("phi").least_class is None
    assert policy.partition("other").least_class is None


def test_the_shipped_partition_for_health_data_takes_no_weaker_class(written: Write) -> None:
    policy = load_policy(written(SHIPPED.read_bytes()))

    assert {name: policy.partition(name).least_class for name in policy.demanding_partitions()} == {"phi": "phi"}


def test_sizes_and_defaults_of_classes(policy: Policy) -> None:
    internal, phi = policy.classes
    assert internal.max_scratch is None
    assert not internal.exclusive_nodes
    assert phi.exclusive_nodes
    assert (phi.default_scratch, phi.max_scratch) == (2**30, 2**40)


def test_the_shipped_file_loads_and_london_and_zurich_are_not_in_the_eu(written: Write) -> None:
    policy = load_policy(written(SHIPPED.read_bytes()))
    assert policy.jurisdiction_of_region("eu-west-2") == "uk"
    assert policy.jurisdiction_of_region("eu-central-2") == "ch"
    assert policy.jurisdiction_of_region("eu-central-1") == "eu"
    assert policy.jurisdiction_of_region("eu-isoe-west-1") is None
    assert policy.jurisdiction_of_region("us-gov-west-1") is None
