"""Ways out that packets take: subnets, routes, security groups, network ACLs and endpoints. Pure.

A group may talk to groups of this template (or to one that is given by a parameter of the type SecurityGroup::Id), to
AWS's prefix lists of the gateway endpoints, and to the addresses of this VPC or of its subnets by reference. An address
that is written out passes only inside the VPC's own, when those are written out too.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from admin.vpc.endpoints import endpoint_policy
from admin.vpc.template import Finding, Node, Template, referred
from admin.vpc.types import GATEWAYS, SERVICES
from conf.quote import one_of, quote

NOWHERE = "127.0.0.1/32"
"""The usual text for an egress rule that lets nothing out: without any rule CloudFormation makes one to 0.0.0.0/0."""
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
"""RFC 1918."""
_SERVICE = "com.amazonaws.${AWS::Region}."
_PREFIX_LIST = re.compile(r"\^?pl-\[[0-9a-fA-F-]+\](?:\+|\{[0-9,]+\})\$?")
"""An AllowedPattern that lets the ids of prefix lists through, and nothing else."""
_GROUP_TYPES = {"AWS::EC2::SecurityGroup::Id", "List<AWS::EC2::SecurityGroup::Id>"}


def subnet(template: Template, name: str) -> Iterator[Finding]:
    """No public address for what is started in it."""
    yield from only(template, template.properties(name), "MapPublicIpOnLaunch", "false", "vpc.address", or_absent=True)


def vpc(template: Template, name: str) -> Iterator[Finding]:
    """A VPC has its names filtered (:mod:`admin.vpc.dns`); what else could be wrong has no property here."""
    if template.lacks(template.properties(name), "CidrBlock"):
        yield Finding(
            "vpc.property",
            ("Resources", name),
            "addresses of a VPC from a pool",
            "write CidrBlock: a pool may hold public or another network's addresses",
        )
    for text, where in template.texts_of(template.properties(name), "CidrBlock"):
        if not referred(text) and not _private(text):
            yield Finding(
                "vpc.property",
                where,
                f"{quote(text)} are no private addresses: rules to them would be rules to other people's machines",
                "write a network of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
            )


def _private(text: str) -> bool:
    try:
        asked = ipaddress.IPv4Network(text)
    except ValueError:
        return False
    return any(asked.subnet_of(each) for each in _PRIVATE)


def table_of_subnet(template: Template, name: str) -> Iterator[Finding]:
    """A subnet's routes must be those of a table that is looked at here."""
    for text, where in template.texts_of(template.properties(name), "RouteTableId"):
        if template.type_of(referred(text)) != "AWS::EC2::RouteTable":
            yield Finding(
                "vpc.route",
                where,
                f"the routes of {quote(text)}, which is no table of this template",
                "make the route table in this template, and refer to it",
            )


def block_public_access(template: Template, name: str) -> Iterator[Finding]:
    """The account's own switch; whoever sets it must not open it."""
    node = template.properties(name)
    yield from only(template, node, "InternetGatewayBlockMode", "block-bidirectional", "vpc.gateway", or_absent=False)


def interface(template: Template, name: str) -> Iterator[Finding]:
    """A network interface keeps to its own addresses."""
    yield from only(template, template.properties(name), "SourceDestCheck", "true", "vpc.route", or_absent=True)


def group(template: Template, name: str) -> Iterator[Finding]:
    """A security group: its own rules, and that it has egress rules at all."""
    node = template.properties(name)
    if template.lacks(node, "SecurityGroupEgress"):
        yield Finding(
            "vpc.egress-default",
            ("Resources", name),
            f"the group {quote(name)} has no SecurityGroupEgress, so that it gets a rule to 0.0.0.0/0",
            f"write one rule to {NOWHERE}, and others as resources of their own",
        )
    for key in ("SecurityGroupEgress", "SecurityGroupIngress"):
        for rule in template.items(node, key):
            yield from _rule(template, rule, egress=key == "SecurityGroupEgress")


def group_egress(template: Template, name: str) -> Iterator[Finding]:
    """An egress rule by itself."""
    yield from _rule(template, template.properties(name), egress=True)


def group_ingress(template: Template, name: str) -> Iterator[Finding]:
    """An ingress rule by itself."""
    yield from _rule(template, template.properties(name), egress=False)


_PEERS = {
    True: ("CidrIp", "DestinationSecurityGroupId", "DestinationPrefixListId"),
    False: ("CidrIp", "SourceSecurityGroupId"),
}
_OTHER_WORDS = {"IpProtocol", "FromPort", "ToPort", "Description", "GroupId"}


def _rule(template: Template, rule: Node, *, egress: bool) -> Iterator[Finding]:
    towards = "to" if egress else "from"
    for key in template.keys(rule):
        if "Ipv6" in key.value:
            yield Finding("vpc.address", key.where, f"a rule {towards} IPv6 addresses", "name a group of this template")
        elif key.value not in {*_PEERS[egress], *_OTHER_WORDS}:
            yield Finding(
                "vpc.rule",
                key.where,
                f"a rule {towards} something that this check does not know: {key.value}",
                f"use one of {one_of(_PEERS[egress])}",
            )
    if all(template.lacks(rule, key) for key in _PEERS[egress]):
        yield Finding("vpc.rule", rule.where, f"a rule {towards} nobody in particular", "name a group of this template")
    for peer in _PEERS[egress]:
        for text, where in template.texts_of(rule, peer):
            yield from _peer(template, peer, Node(text, where), towards)


def _peer(template: Template, kind: str, node: Node, towards: str) -> Iterator[Finding]:
    if kind == "CidrIp":
        if not _inside(template, node.value):
            yield Finding(
                "vpc.rule",
                node.where,
                f"a rule {towards} the addresses {quote(node.value)}, which are not known to be in this VPC",
                "name a group of this template; or !GetAtt of the VPC's or a subnet's CidrBlock",
            )
    elif kind == "DestinationPrefixListId":
        yield from _prefix_list(template, node)
    elif not known_group(template, node.value):
        yield Finding(
            "vpc.rule",
            node.where,
            f"a rule {towards} {quote(node.value)}, which is no group of this template",
            "refer to a group, or to a parameter of the type AWS::EC2::SecurityGroup::Id",
        )


def known_group(template: Template, text: str) -> bool:
    """Whether a text is a security group of this template, or one that whoever makes the stack names."""
    name = referred(text)
    thing = name.removesuffix(".GroupId")
    if template.type_of(thing) == "AWS::EC2::SecurityGroup":
        return True
    if template.parameter_type(name) in _GROUP_TYPES:
        template.assumed[name] = "a security group of a VPC that passed this check"
        return True
    return False


def _prefix_list(template: Template, node: Node) -> Iterator[Finding]:
    name = referred(node.value)
    pattern = template.parameter(name).get("AllowedPattern")
    if isinstance(pattern, str) and _PREFIX_LIST.fullmatch(pattern):
        template.assumed[name] = "AWS's own prefix list of S3 or DynamoDB in this region, see docs/cloudformation.md"
        return
    yield Finding(
        "vpc.prefix-list",
        node.where,
        f"a rule to the prefix list {quote(node.value)}: nobody knows what is in it",
        "a parameter with AllowedPattern pl-[0-9a-f]+, given AWS's own list of S3 or DynamoDB",
    )


def _inside(template: Template, text: str) -> bool:
    if text == NOWHERE:
        return True
    thing, _, attribute = referred(text).partition(".")
    if attribute == "CidrBlock":
        return template.type_of(thing) in {"AWS::EC2::VPC", "AWS::EC2::Subnet"}
    blocks = [each for name in template.named("AWS::EC2::VPC") for each in _blocks(template, name)]
    if not blocks:
        return False
    if referred(text):
        return all(block == text for block in blocks)
    try:
        asked = ipaddress.IPv4Network(text)
        return all(asked.subnet_of(ipaddress.IPv4Network(block)) for block in blocks)
    except ValueError:
        return False


def _blocks(template: Template, name: str) -> list[str]:
    return [text for text, _ in template.texts_of(template.properties(name), "CidrBlock")]


def acl_entry(template: Template, name: str) -> Iterator[Finding]:
    """An entry of a network ACL that allows something must keep inside the VPC; one that denies may name anything."""
    node = template.properties(name)
    if {text for text, _ in template.texts_of(node, "RuleAction")} == {"deny"}:
        return
    for text, where in template.texts_of(node, "CidrBlock"):
        if not _inside(template, text):
            yield Finding(
                "vpc.acl",
                where,
                f"a network ACL that allows {quote(text)}",
                "allow !GetAtt of the VPC's CidrBlock; or leave network ACLs to the default, groups do the work",
            )


def endpoint(template: Template, name: str) -> Iterator[Finding]:
    """A service that is known, of this region, by the one name that all see, with a group and a policy."""
    node = template.properties(name)
    services = set()
    for text, where in template.texts_of(node, "ServiceName"):
        service = text.removeprefix(_SERVICE)
        services.add(service)
        if service == text:
            yield Finding(
                "vpc.endpoint",
                where,
                f"an endpoint of {quote(text)}, which is not a service of AWS in the stack's own region",
                "write !Sub \"com.amazonaws.${AWS::Region}.NAME\"; another account's or region's service is a way out",
            )
        elif service not in SERVICES:
            yield Finding(
                "vpc.endpoint",
                where,
                f"an endpoint of {quote(service)}, which nothing here needs",
                f"leave it out; known are {one_of(sorted(SERVICES))}",
            )
    kinds = {text for text, _ in template.texts_of(node, "VpcEndpointType")} or {"Gateway"}
    for kind in sorted(kinds - {"Gateway", "Interface"}):
        yield Finding(
            "vpc.endpoint", (*node.where, "VpcEndpointType"), f"an endpoint of the type {quote(kind)}", "Interface"
        )
    if "Gateway" in kinds and not services <= GATEWAYS:
        yield Finding("vpc.endpoint", node.where, "a gateway endpoint of a service that has none", "write Interface")
    if "Interface" in kinds:
        yield from _interface_endpoint(template, node)
    for text, where in template.texts_of(node, "RouteTableIds"):
        if template.type_of(referred(text)) != "AWS::EC2::RouteTable":
            yield Finding(
                "vpc.route", where, f"routes in {quote(text)}, no table of this template", "refer to its table"
            )
    yield from endpoint_policy(template, name, services)


def _interface_endpoint(template: Template, node: Node) -> Iterator[Finding]:
    yield from only(template, node, "IpAddressType", "ipv4", "vpc.address", or_absent=True)
    yield from only(template, node, "PrivateDnsEnabled", "true", "vpc.endpoint", or_absent=False)
    if template.lacks(node, "SecurityGroupIds"):
        yield Finding(
            "vpc.endpoint",
            node.where,
            "an interface endpoint with the VPC's default group",
            "name a group of this template that takes port 443 from those who need it",
        )
    for text, where in template.texts_of(node, "SecurityGroupIds"):
        if not known_group(template, text):
            yield Finding(
                "vpc.endpoint", where, f"an endpoint with the group {quote(text)}", "name one of this template"
            )


def only(template: Template, node: Node, key: str, value: str, rule: str, *, or_absent: bool) -> Iterator[Finding]:
    """A property that has one good value, whatever arm of a condition holds."""
    for text, where in template.texts_of(node, key):
        if text != value:
            yield Finding(rule, where, f"{key} is {quote(text)}", f"write {key}: {value}")
    if not or_absent and template.lacks(node, key):
        yield Finding(rule, node.where, f"{key} is missing", f"write {key}: {value}")
