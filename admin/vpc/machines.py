"""Machines and directories: no address outside, groups of their own, metadata with a token, encrypted disks. Pure.

The traps are defaults: a machine without MetadataOptions hands its role to whatever makes one request for another, and
one without groups gets the VPC's own, which lets everything out.
"""

from __future__ import annotations

from collections.abc import Iterator

from admin.vpc.network import known_group, only
from admin.vpc.template import Finding, Node, Template
from admin.vpc.things import unlike_default
from admin.vpc.types import words
from conf.quote import quote

_LAUNCH = words(
    "BlockDeviceMappings CpuOptions DisableApiStop DisableApiTermination EbsOptimized EnclaveOptions ImageId",
    "IamInstanceProfile InstanceInitiatedShutdownBehavior InstanceType KeyName MaintenanceOptions MetadataOptions",
    "Monitoring NetworkInterfaces Placement SecurityGroupIds TagSpecifications UserData",
)
_INTERFACE = words(
    "AssociatePublicIpAddress DeleteOnTermination Description DeviceIndex GroupSet Groups InterfaceType",
    "NetworkCardIndex NetworkInterfaceId PrivateIpAddress SubnetId",
)
_GROUP_KEYS = ("SecurityGroupIds", "SecurityGroups", "GroupSet", "Groups")


def instance(template: Template, name: str) -> Iterator[Finding]:
    """A machine by itself."""
    node = template.properties(name)
    yield from _machine(template, node)
    if template.lacks(node, "LaunchTemplate"):
        yield from _metadata(template, node)
    if template.lacks(node, "SubnetId") and template.lacks(node, "NetworkInterfaces"):
        yield Finding(
            "vpc.elsewhere",
            node.where,
            f"the machine {quote(name)} has no subnet: it gets one of the default VPC, which has the internet",
            "write SubnetId, with a subnet of this template",
        )


def launch_template(template: Template, name: str) -> Iterator[Finding]:
    """What machines are started from."""
    for data in template.children(template.properties(name), "LaunchTemplateData"):
        for key in template.keys(data):
            if key.value not in _LAUNCH:
                yield unknown(key, "LaunchTemplateData")
        yield from _machine(template, data)
        yield from _metadata(template, data)


def own_groups(template: Template, name: str) -> Iterator[Finding]:
    """The security groups of a mount target or an interface: there are some, and no others than known ones."""
    node = template.properties(name)
    yield from named_groups(template, node)
    yield from unlike_default(template, node, ("GroupSet", "SecurityGroups"), quote(name))


def _machine(template: Template, node: Node) -> Iterator[Finding]:
    yield from named_groups(template, node)
    if template.lacks(node, "LaunchTemplate"):
        yield from unlike_default(template, node, ("SecurityGroupIds", "NetworkInterfaces"), "a machine")
    for mapping in template.items(node, "BlockDeviceMappings"):
        for disk in template.children(mapping, "Ebs"):
            yield from only(template, disk, "Encrypted", "true", "vpc.property", or_absent=False)
    for interface in template.items(node, "NetworkInterfaces"):
        yield from unlike_default(template, interface, ("Groups", "GroupSet", "NetworkInterfaceId"), "an interface")
        for key in template.keys(interface):
            if key.value not in _INTERFACE:
                yield unknown(key, "NetworkInterfaces")
        yield from only(template, interface, "AssociatePublicIpAddress", "false", "vpc.address", or_absent=True)
        yield from named_groups(template, interface)


def named_groups(template: Template, node: Node) -> Iterator[Finding]:
    """Each group that is named is one of the template's, or one that whoever makes the stack names."""
    for key in _GROUP_KEYS:
        for text, where in template.texts_of(node, key):
            if not known_group(template, text):
                yield Finding(
                    "vpc.rule", where, f"the group {quote(text)}, none of this template", "refer to its group"
                )


def _metadata(template: Template, node: Node) -> Iterator[Finding]:
    if not template.always(node, ("MetadataOptions", "HttpTokens"), "required"):
        yield Finding(
            "vpc.machine",
            node.where,
            "a machine whose metadata service answers without a token",
            "write MetadataOptions: {HttpTokens: required}",
        )


def unknown(key: Node, of: str) -> Finding:
    """What is told of a key that is on no list."""
    rule = "vpc.address" if "Ipv6" in key.value else "vpc.property"
    return Finding(rule, key.where, f"{key.value} of {of} is not known to stay inside", "leave it out")


def directory(template: Template, name: str) -> Iterator[Finding]:
    """A directory must have no address on the internet (CreateAlias makes one)."""
    node = template.properties(name)
    yield from only(template, node, "CreateAlias", "false", "vpc.address", or_absent=True)
    yield from only(template, node, "EnableSso", "false", "vpc.address", or_absent=True)
