"""Load balancers: internal, handing on to things of the VPC, and keeping no log elsewhere. Pure.

The trap is a default: a balancer without Scheme faces the internet. And a log of requests is a way out by itself: AWS
writes it, past every endpoint, into whatever bucket lets it, and who asks for a name or a path says what is in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from admin.vpc.machines import named_groups
from admin.vpc.network import only
from admin.vpc.template import Finding, Template, referred
from conf.quote import one_of, quote

_ATTRIBUTES = frozenset({"deletion_protection.enabled", "load_balancing.cross_zone.enabled"})
_ADDRESSES = ipaddress.IPv4Network("10.0.0.0/8")
"""Those that templates here give a VPC."""
_TARGETS = ("instance", "ip")


def balancer(template: Template, name: str) -> Iterator[Finding]:
    """A balancer must be internal, which is not the default, and have groups."""
    node = template.properties(name)
    yield from only(template, node, "Scheme", "internal", "vpc.balancer", or_absent=False)
    yield from only(template, node, "IpAddressType", "ipv4", "vpc.address", or_absent=True)
    if template.lacks(node, "SecurityGroups"):
        yield Finding(
            "vpc.balancer", node.where, "a balancer without groups takes traffic of anybody", "SecurityGroups"
        )
    for mapping in template.items(node, "SubnetMappings"):
        for key in template.keys(mapping):
            if key.value not in {"SubnetId", "PrivateIPv4Address"}:
                yield Finding("vpc.address", key.where, f"{key.value}: a public address of a balancer", "leave it out")
    for attribute in template.items(node, "LoadBalancerAttributes"):
        for word, where in template.texts_of(attribute, "Key"):
            if word not in _ATTRIBUTES:
                yield Finding(
                    "vpc.balancer",
                    where,
                    f"the attribute {quote(word)} is not known to stay inside: a log goes into anybody's bucket",
                    f"leave it out; known are {one_of(sorted(_ATTRIBUTES))}",
                )
    yield from named_groups(template, node)


def listener(template: Template, name: str) -> Iterator[Finding]:
    """A balancer must hand on, not send elsewhere."""
    for action in template.items(template.properties(name), "DefaultActions"):
        yield from only(template, action, "Type", "forward", "vpc.balancer", or_absent=False)


def targets(template: Template, name: str) -> Iterator[Finding]:
    """What a balancer hands to: things of this VPC. A target outside has the zone "all"."""
    node = template.properties(name)
    yield from only(template, node, "IpAddressType", "ipv4", "vpc.address", or_absent=True)
    for text, where in template.texts_of(node, "TargetType"):
        if text not in _TARGETS:
            yield Finding(
                "vpc.balancer",
                where,
                f"targets of the type {quote(text)}: a function runs outside the VPC",
                f"write {one_of(_TARGETS)}",
            )
    for target in template.items(node, "Targets"):
        for text, where in template.texts_of(target, "AvailabilityZone"):
            yield Finding("vpc.balancer", where, f"a target in the zone {quote(text)}, outside the VPC", "leave it out")
        for text, where in template.texts_of(target, "Id"):
            if not _of_template(template, text) and not _private(text):
                yield Finding("vpc.balancer", where, f"the target {quote(text)}", "refer to something of this template")


def _of_template(template: Template, text: str) -> bool:
    return bool(template.type_of(referred(text).partition(".")[0]))


def _private(text: str) -> bool:
    try:
        return ipaddress.IPv4Address(text) in _ADDRESSES
    except ValueError:
        return False
