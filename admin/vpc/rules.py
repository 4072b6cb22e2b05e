"""All findings of a template: each resource by the judge of its type, then the template as a whole. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from admin.vpc import balancers, dns, machines, network, policy, storage, things
from admin.vpc.template import Finding, Node, Template, walk
from admin.vpc.types import KNOWN, worse
from conf.quote import did_you_mean, quote

Judge = Callable[[Template, str], Iterator[Finding]]

JUDGES: dict[str, tuple[Judge, ...]] = {
    "AWS::DirectoryService::MicrosoftAD": (machines.directory, storage.password),
    "AWS::EC2::DHCPOptions": (dns.dhcp,),
    "AWS::EC2::Instance": (machines.instance,),
    "AWS::EC2::LaunchTemplate": (machines.launch_template,),
    "AWS::EC2::NetworkAclEntry": (network.acl_entry,),
    "AWS::EC2::NetworkInterface": (network.interface, machines.own_groups),
    "AWS::EC2::SecurityGroup": (network.group,),
    "AWS::EC2::SecurityGroupEgress": (network.group_egress,),
    "AWS::EC2::SecurityGroupIngress": (network.group_ingress,),
    "AWS::EC2::Subnet": (network.subnet, things.table_of_its_own),
    "AWS::EC2::SubnetRouteTableAssociation": (network.table_of_subnet,),
    "AWS::EC2::VPC": (network.vpc, dns.names_of_vpc),
    "AWS::EC2::VPCBlockPublicAccessOptions": (network.block_public_access,),
    "AWS::EC2::VPCEndpoint": (network.endpoint,),
    "AWS::EC2::Volume": (storage.volume,),
    "AWS::EFS::FileSystem": (storage.file_system,),
    "AWS::EFS::MountTarget": (machines.own_groups,),
    "AWS::ElasticLoadBalancingV2::Listener": (balancers.listener,),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": (balancers.balancer,),
    "AWS::ElasticLoadBalancingV2::TargetGroup": (balancers.targets,),
    "AWS::FSx::FileSystem": (storage.file_system,),
    "AWS::IAM::ManagedPolicy": (policy.role,),
    "AWS::IAM::Policy": (policy.role,),
    "AWS::IAM::Role": (policy.trust, policy.role),
    "AWS::KMS::Key": (policy.trust,),
    "AWS::Route53::HostedZone": (dns.zone,),
    "AWS::Route53::RecordSet": (dns.record, dns.answered),
    "AWS::Route53Resolver::FirewallRuleGroup": (dns.firewall,),
    "AWS::S3::Bucket": (policy.bucket,),
    "AWS::S3::BucketPolicy": (policy.bucket_policy,),
    "AWS::SecretsManager::Secret": (storage.secret,),
}
_PARTITION = re.compile(r"\barn:aws[a-z-]*:")


def findings(template: Template) -> list[Finding]:
    """Every finding, in the order of the file."""
    found = [*_whole(template)]
    for name in template.resources:
        # what is wrong with all of a resource is told at its name
        found += [
            each._replace(where=each.where[:2]) if len(each.where) == 3 and each.where[2] == "Properties" else each
            for each in _resource(template, name)
        ]
    return sorted(dict.fromkeys(found), key=lambda each: template.mark(each.where))


def _resource(template: Template, name: str) -> Iterator[Finding]:
    type_ = template.type_of(name)
    if type_ not in KNOWN:
        rule, words = worse(type_)
        hint = did_you_mean(type_, KNOWN)
        yield Finding(
            rule,
            ("Resources", name),
            f"{quote(name)} ({quote(type_) if type_ else 'no type'}): {words}{hint}",
            "leave it out; what is known to stay inside is listed in admin/vpc/types.py",
        )
        return
    for key in template.keys(template.properties(name)):
        if key.value not in KNOWN[type_]:
            # every address of IPv6 is a public one
            rule = "vpc.address" if "Ipv6" in key.value else "vpc.property"
            yield Finding(
                rule,
                key.where,
                f"{key.value} of {type_} is not known to stay inside",
                "leave it out, or ask what it does",
            )
    for judge in (*JUDGES.get(type_, ()), things.tied):
        yield from judge(template, name)


def _whole(template: Template) -> Iterator[Finding]:
    things.assumed(template)
    for key in ("Transform", "Hooks"):
        if key in template.data:
            yield Finding("vpc.nested", (key,), f"{key}: the stack is not what stands here", "write all of it out")
    for node in walk(Node(template.data, ())):
        if isinstance(node.value, str) and _PARTITION.search(node.value):
            yield Finding(
                "vpc.partition",
                node.where,
                "an ARN with the partition written out: GovCloud and others have another",
                'write !Sub "arn:${AWS::Partition}:..."',
            )
        if isinstance(node.value, dict) and any(key.startswith(("Fn::Transform", "Fn::ForEach")) for key in node.value):
            yield Finding("vpc.nested", node.where, "a macro: the stack is not what stands here", "write it out")
