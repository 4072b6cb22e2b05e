"""What a resource is tied to: things of this template, or such as whoever makes the stack names. Pure.

A subnet, an interface or a launch template that is written out by its id was looked at by nobody: an interface in
another VPC's subnet makes a machine a bridge between the two, and a launch template can give it a public address. So
each of these is a resource of this template, or a parameter of the type that AWS has for it, which is told as assumed.
"""

from __future__ import annotations

from collections.abc import Iterator

from admin.vpc.template import Finding, Node, Template, referred, walk
from conf.quote import quote

_SUBNET = "AWS::EC2::Subnet"
_TYPES = {
    "DhcpOptionsId": "AWS::EC2::DHCPOptions",
    "FirewallRuleGroupId": "AWS::Route53Resolver::FirewallRuleGroup",
    "InstanceId": "AWS::EC2::Instance",
    "LaunchTemplateId": "AWS::EC2::LaunchTemplate",
    "LaunchTemplateName": "AWS::EC2::LaunchTemplate",
    "LoadBalancerArn": "AWS::ElasticLoadBalancingV2::LoadBalancer",
    "NetworkInterfaceId": "AWS::EC2::NetworkInterface",
    "SubnetId": _SUBNET,
    "SubnetIds": _SUBNET,
    "Subnets": _SUBNET,
    "TargetGroupARNs": "AWS::ElasticLoadBalancingV2::TargetGroup",
    "TargetGroupArn": "AWS::ElasticLoadBalancingV2::TargetGroup",
    "VPCZoneIdentifier": _SUBNET,
    "VpcId": "AWS::EC2::VPC",
}
"""Which type of resource a key names, wherever it stands in a resource's properties."""
_WORDS = {
    "AWS::EC2::Subnet::Id": "a subnet of a VPC that passed this check",
    "List<AWS::EC2::Subnet::Id>": "subnets of a VPC that passed this check",
    "AWS::EC2::VPC::Id": "a VPC that passed this check",
}
_GIVEN = {_SUBNET: {"AWS::EC2::Subnet::Id", "List<AWS::EC2::Subnet::Id>"}, "AWS::EC2::VPC": {"AWS::EC2::VPC::Id"}}


def assumed(template: Template) -> None:
    """Tell what is assumed of parameters that name a part of a network."""
    for name in template.parameters:
        if (kind := template.parameter_type(name)) in _WORDS:
            template.assumed[name] = _WORDS[kind]


def tied(template: Template, name: str) -> Iterator[Finding]:
    """Each thing that a resource is tied to."""
    for node in walk(template.properties(name)):
        if not isinstance(node.value, dict):
            continue
        for key in node.value.keys() & _TYPES.keys():
            for text, where in template.texts_of(node, key):
                if not _known(template, _TYPES[key], text):
                    yield Finding(
                        "vpc.elsewhere",
                        where,
                        f"{key} is {quote(text)}, which is none of this template: nobody has looked at it",
                        f"refer to a resource of the type {_TYPES[key]}{_or_parameter(_TYPES[key])}",
                    )


def _known(template: Template, type_: str, text: str) -> bool:
    name = referred(text)
    return template.type_of(name.partition(".")[0]) == type_ or template.parameter_type(name) in _GIVEN.get(type_, ())


def _or_parameter(type_: str) -> str:
    return f", or to a parameter of the type {sorted(_GIVEN[type_])[0]}" if type_ in _GIVEN else ""


def table_of_its_own(template: Template, name: str) -> Iterator[Finding]:
    """A subnet must have a route table of this template: the VPC's main one is not written in any."""
    for each in template.named("AWS::EC2::SubnetRouteTableAssociation"):
        subnets = [text for text, _ in template.texts_of(template.properties(each), "SubnetId")]
        condition = template.resources[each].get("Condition")
        if subnets == [f"${{{name}}}"] and condition in {None, template.resources[name].get("Condition")}:
            return
    yield Finding(
        "vpc.route",
        ("Resources", name),
        f"the subnet {quote(name)} has the VPC's main route table, which no template has in its hands",
        "add an AWS::EC2::SubnetRouteTableAssociation with a route table of this template",
    )


def unlike_default(template: Template, node: Node, keys: tuple[str, ...], what: str) -> Iterator[Finding]:
    """Groups are named; without any it is the VPC's default one, which lets everything out."""
    if all(template.lacks(node, key) for key in keys):
        yield Finding(
            "vpc.egress-default",
            node.where,
            f"{what} without groups gets the VPC's default one, which has a rule to 0.0.0.0/0",
            f"write {keys[0]}, with a group of this template",
        )
