"""parallelcluster vpc-check: each way out is seen, by its rule and on its line; the shipped templates have none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admin.doctor.doors_far import AWS_ENDPOINTS
from admin.main import main
from admin.vpc.rules import JUDGES, findings
from admin.vpc.template import MAX_TEMPLATE, Node, Template, load_template, walk
from admin.vpc.types import KNOWN, SERVICES, WORSE, worse
from conf.errors import ConfigError

from .vpc_tampers import AD, AD_TAMPERS, BASE, TAMPERS, VAULT, Tamper
from .vpc_tampers_more import MORE

SHIPPED = Path(__file__).parents[3] / "conf/cloudformation"
TEMPLATES = sorted(SHIPPED.glob("*.yaml"))


def text_of(name: str = BASE) -> str:
    return (SHIPPED / name).read_text(encoding="utf-8")


def tampered(tamper: Tamper) -> str:
    text = text_of(tamper.template)
    for old, new in tamper.edits:
        place = old or "\nResources:\n"
        assert place in text, f"{place!r} is not in {tamper.template}"
        text = text.replace(place, new if old else place + new, 1)
    # a third of a template is comments, and of the time to read it; the lines keep their numbers
    return re.sub(r"^ *#.*$", "", text, flags=re.MULTILINE)


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    code = main(["parallelcluster", "vpc-check", *argv])
    return code, capsys.readouterr().out


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "template.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def small(tmp_path: Path, text: str) -> Template:
    return load_template(written(tmp_path, text))


def rules(tmp_path: Path, text: str) -> set[str]:
    return {each.rule for each in findings(small(tmp_path, text))}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_nothing_leads_out_of_a_shipped_template(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, str(path))
    assert told.endswith("\n0 findings\n")
    assert code == 0


@pytest.mark.parametrize("tamper", [*TAMPERS, *AD_TAMPERS, *MORE], ids=lambda tamper: tamper.name)
def test_a_way_out_is_seen(tamper: Tamper, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tampered(tamper)
    code, told = run(capsys, written(tmp_path, text), "--json")
    assert code == 1
    lines = text.split("\n")
    seen = [(each["rule"], lines[each["line"] - 1]) for each in json.loads(told)["files"][0]["findings"]]
    assert any(rule == tamper.rule and tamper.line in line for rule, line in seen), seen


def test_there_are_enough_ways_out_and_each_has_a_name() -> None:
    names = {each.name for each in (*TAMPERS, *AD_TAMPERS, *MORE)}
    assert len(names) == len(TAMPERS) + len(AD_TAMPERS) + len(MORE) >= 25


def test_each_finding_says_what_and_where_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tamper = next(each for each in TAMPERS if each.name == "egress to everywhere")
    file = written(tmp_path, tampered(tamper))
    line = tampered(tamper)[: tampered(tamper).index("CidrIp: 0.0.0.0/0")].count("\n") + 1
    code, told = run(capsys, file)
    assert code == 1
    assert re.search(
        rf"^{re.escape(file)}:{line}:\d+: a rule to the addresses '0\.0\.0\.0/0'.* \(vpc\.rule\)$", told, re.M
    )
    assert "\n    name a group of this template" in told
    assert told.endswith("\n1 finding\n")
    document = json.loads(run(capsys, file, "--json")[1])
    assert document["findings"] == 1
    (found,) = document["files"][0]["findings"]
    assert (found["rule"], found["line"], found["resource"]) == ("vpc.rule", line, "ClusterToDynamoDb")
    assert document["files"][0]["assumed"].keys() == {"S3PrefixList", "UploadRoleArn"} | {"DynamoDbPrefixList"}


# ---- what may be said in other words, and is not a way out ---------------------------------------------------------

VPC = """
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.1.0.0/16, EnableDnsSupport: true}}
  Group:
    Type: AWS::EC2::SecurityGroup
    Properties:
      GroupDescription: x
      VpcId: {Ref: Vpc}
      SecurityGroupEgress:
        - %s
"""


@pytest.mark.parametrize(
    "rule",
    [
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 10.1.2.0/24}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 10.1.0.0/16}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: {'Fn::GetAtt': [Vpc, CidrBlock]}}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !GetAtt Vpc.CidrBlock}",
        '{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Sub "${Vpc.CidrBlock}"}',
        '{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Join ["", [10.1.2., 0/24]]}',
        '{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Sub ["10.1.${A}.0/24", {A: 7}]}',
        '{IpProtocol: "-1", DestinationSecurityGroupId: !GetAtt Group.GroupId}',
        '!If [Some, {IpProtocol: "-1", CidrIp: 10.1.2.0/24}, !Ref "AWS::NoValue"]',
    ],
)
def test_a_rule_inside_is_none(rule: str, tmp_path: Path) -> None:
    assert rules(tmp_path, VPC % rule) == {"vpc.dns"}


@pytest.mark.parametrize(
    "rule",
    [
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 10.2.0.0/24}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 10.0.0.0/8}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 10.1.2.3/24}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 010.1.2.0/24}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 10.1.2.0}{",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: 7}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: []}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: [10.1.2.0/24, 0.0.0.0/0]}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: {a: b}}",
        '{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: "${Vpc.CidrBlock}"}',
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !GetAtt Group.CidrBlock}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Ref Nobody}",
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Ref Vpc}",
        '{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Join [",", !Ref Nobody]}',
        "{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !If [Some, 10.1.2.0/24]}",
        '{IpProtocol: "-1", DestinationSecurityGroupId: !Ref Vpc}',
        '!If [Some, {IpProtocol: "-1", CidrIp: 10.1.2.0/24}, {IpProtocol: "-1"}]',
    ],
)
def test_a_rule_that_is_not_known_to_be_inside_is_a_finding(rule: str, tmp_path: Path) -> None:
    if rule.endswith("{"):
        with pytest.raises(ConfigError):
            rules(tmp_path, VPC % rule)
    else:
        assert "vpc.rule" in rules(tmp_path, VPC % rule)


def test_only_what_all_values_of_a_parameter_and_of_a_map_are_is_good(tmp_path: Path) -> None:
    head = (
        "Parameters: {P: {Type: String, AllowedValues: [10.1.1.0/24, %s]}}\n"
        "Mappings: {M: {a: {b: %s}, c: {b: 10.1.3.0/24}}}\n"
    )
    for value in ("!Ref P", "!FindInMap [M, !Ref 'AWS::Region', b]", '!Sub "${P}"'):
        text = VPC % f"{{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: {value}}}"
        assert rules(tmp_path, head % ("10.1.2.0/24", "10.1.2.0/24") + text) == {"vpc.dns"}
        assert "vpc.rule" in rules(tmp_path, head % ("0.0.0.0/0", "0.0.0.0/0") + text)


def test_too_many_texts_are_one_that_nobody_knows(tmp_path: Path) -> None:
    nine = ", ".join(f"'{number}'" for number in range(9))
    head = f"Parameters: {{P: {{Type: String, AllowedValues: [{nine}]}}}}\n"
    text = VPC % '{IpProtocol: tcp, FromPort: 1, ToPort: 2, CidrIp: !Sub ["10.1.${P}.${Q}/32", {Q: !Ref P}]}'
    assert "vpc.rule" in rules(tmp_path, head + text)


def test_json_is_read_like_yaml(tmp_path: Path) -> None:
    group = {"Type": "AWS::EC2::SecurityGroup", "Properties": {"GroupDescription": "x", "VpcId": "vpc-0123"}}
    assert rules(tmp_path, json.dumps({"Resources": {"Group": group}})) == {"vpc.egress-default", "vpc.elsewhere"}


def test_a_name_in_a_private_zone_may_be_asked_for(tmp_path: Path) -> None:
    template = load_template(str(SHIPPED / BASE))
    assert not [each for each in findings(template) if each.rule == "vpc.dns"]
    template.resources["PrivateZone"]["Properties"]["Name"] = "other.internal"
    assert {each.rule for each in findings(template)} == {"vpc.dns"}


# ---- what cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("Parameters: {}\n", 1, "'Resources' is missing"),
        ("Resources:\n  A: !Unknown x\n", 2, "the tag '!Unknown'"),
        ("Resources:\n  A: &a {}\n  B: *a\n", 2, "the anchor"),
        ("Resources:\n  A: !!python/object:os.system x\n", 2, "the tag"),
        ("Resources:\n  A: {}\n  A: {}\n", 3, "already on line 2"),
        ("Resources:\n\tA: {}\n", 2, "a tab"),
        ("Resources:\n  A:\n", 2, "a value is missing"),
        ("Resources: {A: [}\n", 1, "not YAML"),
    ],
)
def test_what_cannot_be_read_is_not_judged(
    text: str, line: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, text)
    assert main(["parallelcluster", "vpc-check", file]) == 3
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{file}:{line}:" in told.err
    assert words in told.err


def test_a_file_that_is_none_and_one_that_is_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parallelcluster", "vpc-check", str(tmp_path / "nothing")]) == 3
    assert main(["parallelcluster", "vpc-check", str(tmp_path)]) == 3
    assert main(["parallelcluster", "vpc-check", written(tmp_path, "#" * (MAX_TEMPLATE + 1))]) == 3
    # one that cannot be read: none of them is judged
    assert main(["parallelcluster", "vpc-check", str(SHIPPED / BASE), str(tmp_path / "nothing")]) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [{}, [], "", 7, {"Type": 7}, {"Type": "AWS::EC2::VPC", "Properties": []}, None])
def test_a_resource_that_is_none_is_a_finding(value: Any, tmp_path: Path) -> None:
    template = small(tmp_path, "Resources: {A: {Type: AWS::EC2::RouteTable}}\n")
    template.resources["A"] = value
    assert findings(template)


# ---- the lists -----------------------------------------------------------------------------------------------------


def test_the_lists_fit_together() -> None:
    assert JUDGES.keys() <= KNOWN.keys()
    known = {rule for _, rule, _ in WORSE}
    assert known <= {
        word for word in re.findall(r"`(vpc\.[a-z-]+)`", (SHIPPED.parents[1] / "docs/rules.md").read_text())
    }
    assert worse("AWS::EC2::Route") == worse("AWS::EC2::RouteServer")
    assert worse("AWS::Something::New")[0] == worse("")[0] == "vpc.type"


def test_every_type_of_the_shipped_templates_with_a_network_has_a_judge() -> None:
    used = {each["Type"] for path in TEMPLATES for each in load_template(str(path)).resources.values()}
    harmless = used - JUDGES.keys()
    assert harmless == {
        "AWS::AutoScaling::AutoScalingGroup",
        "AWS::EC2::RouteTable",
        "AWS::EC2::VPCDHCPOptionsAssociation",
        "AWS::IAM::InstanceProfile",
        "AWS::Route53Resolver::FirewallDomainList",
        "AWS::Route53Resolver::FirewallRuleGroupAssociation",
    }


# ---- the shipped templates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [BASE, AD])
def test_a_comment_at_each_endpoint_says_which_feature_needs_it(name: str) -> None:
    lines = text_of(name).split("\n")
    found = []
    for number, line in enumerate(lines):
        if line.strip() == "Type: AWS::EC2::VPCEndpoint":
            above = number - 2
            while lines[above].startswith("  # "):
                above -= 1
            words = " ".join(each.strip("# ") for each in lines[above + 1 : number - 1])
            assert re.match(r"Needed by (?:every cluster|[A-Z`a-z][^:]{5,}).*\.$", words), (number, words)
            found.append(lines[number - 1].strip(" :"))
    assert len(found) == len(set(found)) == 14


def test_the_endpoints_are_exactly_those_that_a_feature_needs() -> None:
    template = load_template(str(SHIPPED / BASE))
    needed: dict[str, set[str]] = {}
    for name in template.named("AWS::EC2::VPCEndpoint"):
        service = template.resources[name]["Properties"]["ServiceName"]["Fn::Sub"].rpartition(".")[2]
        needed.setdefault(template.resources[name].get("Condition", ""), set()).add(service)
    assert needed == {
        "": {"cloudformation", "dynamodb", "ec2", "logs", "s3"},
        "HasLoginNodes": {"autoscaling"},
        "HasLoginMungeKey": {"elasticloadbalancing"},
        "HasMetrics": {"monitoring"},
        "HasSecrets": {"secretsmanager"},
        "HasSessionManager": {"ssm", "ssmmessages", "ec2messages"},
        "HasKms": {"kms"},
        "HasSts": {"sts"},
    }
    assert {service for services in needed.values() for service in services} <= SERVICES


def test_what_a_node_must_reach_to_be_green_is_there_without_any_parameter() -> None:
    template = load_template(str(SHIPPED / BASE))
    endpoints = {
        template.resources[name]["Properties"]["ServiceName"]["Fn::Sub"].rpartition(".")[2]: name
        for name in template.named("AWS::EC2::VPCEndpoint")
    }
    for service in AWS_ENDPOINTS:
        assert "Condition" not in template.resources[endpoints[service]], service


def test_every_endpoint_is_answered_by_the_dns_firewall() -> None:
    template = load_template(str(SHIPPED / BASE))
    domains = {text for text, _ in template.texts_of(template.properties("NamesAllowed"), "Domains")}
    for name in template.named("AWS::EC2::VPCEndpoint"):
        service = template.resources[name]["Properties"]["ServiceName"]["Fn::Sub"].rpartition(".")[2]
        assert f"{service}.${{AWS::Region}}.${{AWS::URLSuffix}}" in domains


def test_with_a_directory_is_all_that_is_without_one() -> None:
    plain, directory = load_template(str(SHIPPED / BASE)), load_template(str(SHIPPED / AD))
    for part in ("Parameters", "Conditions", "Resources", "Outputs"):
        ours, theirs = dict(plain.data[part]), directory.data[part]
        # a directory's password is a secret, so that this endpoint is there in any case
        ours.pop("Secrets", None)
        ours.pop("HasSecrets", None)
        if part == "Resources":
            ours["SecretsManagerEndpoint"] = {
                key: value for key, value in ours["SecretsManagerEndpoint"].items() if key != "Condition"
            }
        assert {name: theirs[name] for name in ours} == ours


def test_vault_fits_the_vpc() -> None:
    vpc = load_template(str(SHIPPED / BASE))
    outputs, parameters_of_vpc = vpc.data["Outputs"], vpc.parameters
    parameters = load_template(str(SHIPPED / VAULT)).parameters
    for name, parameter in parameters.items():
        for word in re.findall(r"\b(?:VpcId|Vault[A-Z]\w+|Private\w+|BucketName)\b", str(parameter.get("Description"))):
            assert word in outputs or word in parameters_of_vpc, (name, word)


def test_a_list_in_the_place_of_a_mapping_has_no_keys(tmp_path: Path) -> None:
    template = small(tmp_path, "Resources: {A: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.0.0.0/16}}}\n")
    assert template.children(Node([1], ()), "x") == []
    assert template.lacks(Node([1], ()), "x")
    assert list(template.keys(Node([1], ()))) == []


# ---- whatever is written, it is judged -----------------------------------------------------------------------------

LOADED = {path.name: load_template(str(path)) for path in TEMPLATES}
PLACES = [
    (name, node.where)
    for name, template in LOADED.items()
    for part in ("Parameters", "Resources")
    for node in walk(Node(template.data[part], (part,)))
    if len(node.where) > 1
]
WORDS = st.sampled_from(
    ["Vpc", "Routes", "VpcCidr", "AWS::NoValue", "AWS::Region", "10.0.0.0/16", "0.0.0.0/0", "*", ""]
)
VALUES = st.recursive(
    st.one_of(WORDS, st.booleans(), st.integers(-1, 9), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                ["Ref", "Fn::If", "Fn::Sub", "Fn::Join", "Fn::GetAtt", "Fn::FindInMap", "Type", "AWS", "x"]
            ),
            inner,
            max_size=2,
        ),
    ),
    max_leaves=6,
)


def changed(value: Any, where: tuple[str | int, ...], new: object) -> Any:
    """A copy with another value at one place."""
    if not where:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[where[0]] = changed(value[where[0]], where[1:], new)
    return copy


@pytest.mark.parametrize("value", ["x", {"Type": [], "AllowedValues": 7}, {"Type": {}, "AllowedPattern": 7}])
def test_a_parameter_that_is_none_is_not_taken_for_one(value: object) -> None:
    for name, loaded in LOADED.items():
        for parameter in loaded.parameters:
            data = changed(loaded.data, ("Parameters", parameter), value)
            found = findings(Template(loaded.document._replace(data=data)))
            if parameter in {"S3PrefixList", "DynamoDbPrefixList", "SecurityGroup", "PrivateZone"}:
                assert found, (name, parameter)


@pytest.mark.parametrize(
    "name", ["Ref", *(f"Fn::{word}" for word in ("If", "Sub", "Join", "GetAtt", "FindInMap", "Cidr"))]
)
def test_a_function_with_any_argument_is_a_text(name: str) -> None:
    template = LOADED[BASE]
    odd: list[Any] = [7, True, "", "x", [], ["x"], [7], [[]], [{}], {}, {"x": 1}, None, ["x", "y"], ["x", "y", "z"]]
    odd += [["x", {}], ["x", []], [[], []], ["x", {"y": []}], ["${y}", {"y": []}], ["", ["x", {}]], {"Ref": []}]
    for argument in odd:
        node = Node({name: argument}, ("Resources",))
        assert all(isinstance(text, str) for text, _ in template.texts(node)), argument
        assert template.lacks(Node({"key": node.value}, ()), "key") in {True, False}


@settings(max_examples=100, deadline=None)
@given(place=st.sampled_from(PLACES), new=VALUES)
def test_no_value_anywhere_stops_the_judges(place: tuple[str, tuple[str | int, ...]], new: object) -> None:
    name, where = place
    data = changed(LOADED[name].data, where, new)
    for each in findings(Template(LOADED[name].document._replace(data=data))):
        assert each.message.isprintable()
        assert each.advice
