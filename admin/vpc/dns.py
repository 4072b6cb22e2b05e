"""Ways out that names take: a VPC's resolver asks any name server in the world, and a name can carry data. Pure.

So a VPC needs a DNS firewall of this template whose last rule blocks every name, and which lets pass only names that
nobody but AWS is asked about: services of the region, hosts of the VPC, private zones, reverse names of private
addresses. Other name servers would not pass that firewall. Source: Route 53 developer guide, Resolver DNS Firewall.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from admin.vpc.template import Finding, Node, Template, referred
from conf.quote import one_of, quote

_OF_AWS = re.compile(r"(?:\*\.)?(?:[a-z0-9-]+\.)*(?:s3|\$\{AWS::Region\})\.\$\{AWS::URLSuffix\}")
_OF_VPC = re.compile(r"\*\.(?:ec2\.internal|\$\{AWS::Region\}\.compute\.internal)")
_REVERSE = re.compile(r"\*\.(?:10|168\.192|(?:1[6-9]|2[0-9]|3[01])\.172)\.in-addr\.arpa")
_RECORDS = {"A", "CNAME", "PTR", "SRV", "TXT"}
_TIME = {"169.254.169.123"}
_RULE_WORDS = {
    *("Action", "BlockResponse", "FirewallDomainListId", "FirewallDomainRedirectionAction", "Priority", "Qtype"),
    *("BlockOverrideDnsType", "BlockOverrideDomain", "BlockOverrideTtl"),
}


def names_of_vpc(template: Template, name: str) -> Iterator[Finding]:
    """Whether the names that are asked for in a VPC are filtered."""
    for each in template.named("AWS::Route53Resolver::FirewallRuleGroupAssociation"):
        node = template.properties(each)
        vpcs = [text for text, _ in template.texts_of(node, "VpcId")]
        groups = [referred(text) for text, _ in template.texts_of(node, "FirewallRuleGroupId")]
        unconditional = "Condition" not in template.resources[each]
        known = all(template.type_of(group) == "AWS::Route53Resolver::FirewallRuleGroup" for group in groups)
        if vpcs == [f"${{{name}}}"] and groups and known and unconditional:
            return
    yield Finding(
        "vpc.dns",
        ("Resources", name),
        f"the names that are asked for in {quote(name)} are not filtered: data can leave in them, to any name server",
        "associate a DNS firewall that blocks all but the names of AWS and of the VPC, as in isolated-vpc.yaml",
    )


def firewall(template: Template, name: str) -> Iterator[Finding]:
    """A DNS firewall: the last rule blocks all names, those before it let pass only names that stay."""
    node = template.properties(name)
    rules = template.items(node, "FirewallRules")
    for rule in rules:
        for key in template.keys(rule):
            if key.value not in _RULE_WORDS:
                yield Finding(
                    "vpc.dns", key.where, f"a rule by {key.value}, which this check does not know", "use lists"
                )
        for text, where in template.texts_of(rule, "BlockOverrideDomain"):
            if not _stays(template, text):
                yield Finding(
                    "vpc.dns",
                    where,
                    f"who asks for what this rule blocks is sent to {quote(text)}",
                    "write BlockResponse: NXDOMAIN, and leave BlockOverrideDomain out",
                )
        actions = {text for text, _ in template.texts_of(rule, "Action")}
        if actions != {"BLOCK"}:
            yield from _let_pass(template, rule)
    if not rules or not _blocks_all(template, max(rules, key=lambda rule: _priority(template, rule))):
        yield Finding(
            "vpc.dns",
            node.where,
            f"the last rule of {quote(name)} does not block all names: what no rule names is answered",
            'end with Action: BLOCK, BlockResponse: NXDOMAIN, for a list of the one domain "*"',
        )


def _priority(template: Template, rule: Node) -> int:
    texts = [text for text, _ in template.texts_of(rule, "Priority")]
    # a number that is not written out could be any
    return int(texts[0]) if len(texts) == 1 and texts[0].isdecimal() and len(texts[0]) < 9 else 1 << 31


def _blocks_all(template: Template, rule: Node) -> bool:
    responses = {text for text, _ in template.texts_of(rule, "BlockResponse")}
    domains = list(_domains(template, rule))
    return (
        not template.conditional(rule)
        and not any("Fn::If" in node.where for _, node in domains)
        and template.always(rule, ("Action",), "BLOCK")
        and responses <= {"NXDOMAIN", "NODATA"}
        and template.lacks(rule, "Qtype")
        and {domain for domain, _ in domains} == {"*"}
    )


def _domains(template: Template, rule: Node) -> Iterator[tuple[str, Node]]:
    for text, where in template.texts_of(rule, "FirewallDomainListId"):
        if template.type_of(referred(text)) != "AWS::Route53Resolver::FirewallDomainList":
            yield text, Node(text, where)
            continue
        for domain, place in template.texts_of(template.properties(referred(text)), "Domains"):
            yield domain, Node(domain, place)


def _let_pass(template: Template, rule: Node) -> Iterator[Finding]:
    for domain, node in _domains(template, rule):
        if not _stays(template, domain):
            yield Finding(
                "vpc.dns",
                node.where,
                f"questions for {quote(domain)} are let through: whoever serves that name learns them",
                "let pass names of AWS's services in this region, of this VPC, and of this template's private zones",
            )


def _stays(template: Template, domain: str) -> bool:
    """Whether nobody but AWS is asked for a name, or for the names of a pattern."""
    plain, own = domain.removesuffix("."), _private_names(template)
    if plain in own or plain.removeprefix("*.") in own or any(plain.endswith(f".{each}") for each in own):
        return True
    return any(pattern.fullmatch(plain) for pattern in (_OF_AWS, _OF_VPC, _REVERSE))


def _private_names(template: Template) -> set[str]:
    """Names that exist in every VPC of this template, and whatever happens: where a zone is not, the world is asked."""
    wanted = {f"${{{vpc}}}" for vpc in template.named("AWS::EC2::VPC")}
    found = set()
    for zone_name in template.named("AWS::Route53::HostedZone"):
        node = template.properties(zone_name)
        inside = {text for each in template.items(node, "VPCs") for text, _ in template.texts_of(each, "VPCId")}
        if "Condition" not in template.resources[zone_name] and inside and wanted <= inside:
            found |= {text.removesuffix(".") for text, _ in template.texts_of(node, "Name")}
    return found


def zone(template: Template, name: str) -> Iterator[Finding]:
    """A zone of names must be one that exists in VPCs of this template alone; without VPCs it is a public one."""
    node = template.properties(name)
    if template.lacks(node, "VPCs"):
        yield Finding("vpc.zone", ("Resources", name), f"the zone {quote(name)} is public", "write VPCs, with this VPC")
    for each in template.items(node, "VPCs"):
        for text, where in template.texts_of(each, "VPCId"):
            if not _own_vpc(template, text):
                yield Finding(
                    "vpc.zone", where, f"a zone for {quote(text)}, no VPC of this template", "refer to its VPC"
                )


def _own_vpc(template: Template, text: str) -> bool:
    name = referred(text)
    if template.parameter_type(name) == "AWS::EC2::VPC::Id":
        template.assumed[name] = "a VPC that passed this check"
        return True
    return template.type_of(name) == "AWS::EC2::VPC"


def record(template: Template, name: str) -> Iterator[Finding]:
    """A name must be in a private zone."""
    node = template.properties(name)
    for text, where in template.texts_of(node, "HostedZoneId"):
        zone_name = referred(text)
        if template.type_of(zone_name) == "AWS::Route53::HostedZone":
            continue
        if template.parameter_type(zone_name) == "AWS::Route53::HostedZone::Id":
            template.assumed[zone_name] = "a private zone of a VPC that passed this check"
        else:
            yield Finding("vpc.zone", where, f"a name in {quote(text)}, no zone of this template", "refer to its zone")
    if template.lacks(node, "HostedZoneId"):
        yield Finding("vpc.zone", node.where, "a name in a zone that is not named by its id", "write HostedZoneId")


def answered(template: Template, name: str) -> Iterator[Finding]:
    """What a name stands for must be of this VPC too, and no other name server."""
    node = template.properties(name)
    for text, where in template.texts_of(node, "Type"):
        if text not in _RECORDS:
            yield Finding(
                "vpc.zone",
                where,
                f"a record of the type {quote(text)}, which may send questions to another name server",
                f"write {one_of(sorted(_RECORDS))}",
            )
    if "CNAME" in {text for text, _ in template.texts_of(node, "Type")}:
        for text, where in template.texts_of(node, "ResourceRecords"):
            if not _stays(template, text):
                yield Finding(
                    "vpc.zone",
                    where,
                    f"an alias of {quote(text)}: whoever serves that name learns that somebody asks, and answers",
                    "write a name of this zone or of AWS's services in this region",
                )
    for target in template.children(node, "AliasTarget"):
        for text, where in template.texts_of(target, "DNSName"):
            if not template.type_of(referred(text).partition(".")[0]) and not _stays(template, text):
                yield Finding(
                    "vpc.zone", where, f"an alias of {quote(text)}, nothing of this template", "refer to its balancer"
                )


def dhcp(template: Template, name: str) -> Iterator[Finding]:
    """Machines ask the VPC's resolver for names and the hypervisor for the time, nobody else."""
    node = template.properties(name)
    for text, where in template.texts_of(node, "DomainNameServers"):
        if text != "AmazonProvidedDNS":
            yield Finding(
                "vpc.dns",
                where,
                f"the name server {quote(text)}, behind which no DNS firewall stands",
                "write AmazonProvidedDNS",
            )
    for text, where in template.texts_of(node, "NtpServers"):
        if text not in _TIME:
            yield Finding(
                "vpc.rule", where, f"the time of {quote(text)}", "write 169.254.169.123, which needs no route"
            )
