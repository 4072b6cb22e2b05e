"""Our rules about ways out and ways in: names, addresses, the metadata service, ARNs, endpoints."""

from __future__ import annotations

import ipaddress
import re

from admin.parallelcluster import aws, facts
from admin.parallelcluster.look import SETTINGS, Findings, Look, Rule, below, error, scalars, text, warning
from conf.quote import quote
from conf.rawchecks import Raw, items, section
from conf.yamlmarks import Where

_FEW = 16
_PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
# AWS's own policies, by their names
_WIDE = re.compile(r"(?:[A-Za-z0-9_-]*(?:FullAccess|Administrator)|AdministratorAccess[A-Za-z-]*|PowerUserAccess)")


def _networks(look: Look) -> list[tuple[Raw, Where, str]]:
    """Each ``Networking``, where it is, and whose."""
    head: Where = ("HeadNode", "Networking")
    found: list[tuple[Raw, Where, str]] = [(below(look.raw, head), head, "the head node")]
    found += [(section(raw, "Networking"), (*where, "Networking"), "login nodes") for raw, where in look.pools()]
    for queue in look.queues():
        name = f"the nodes of the queue {quote(queue.name)}"
        found.append((section(queue.raw, "Networking"), (*queue.where, "Networking"), name))
    return found


def names(look: Look) -> Findings:
    """DNS that works without Route 53."""
    dns = below(look.raw, (*SETTINGS, "Dns"))
    where = (*SETTINGS, "Dns")
    if "HostedZoneId" in dns:
        yield error(
            "dns-zone",
            (*where, "HostedZoneId"),
            "a hosted zone needs Route 53, which has no endpoint: the head node could name no node",
            "leave it out, and write DisableManagedDns: true and UseEc2Hostnames: true",
        )
    for key, why in (
        ("DisableManagedDns", "ParallelCluster asks Route 53, which has no endpoint: no node would ever come up"),
        ("UseEc2Hostnames", "nodes would look for names that nobody answers"),
    ):
        if dns.get(key) is not True:
            yield error("dns-managed", (*where, key), f"without {key}: true {why}", f"write Dns: {{{key}: true}}")


def ways_out(look: Look) -> Findings:
    """Addresses of the internet, and proxies."""
    for raw, where, whose in _networks(look):
        if raw.get("AssignPublicIp") is True:
            yield error(
                "public-address",
                (*where, "AssignPublicIp"),
                f"{whose} would have an address of the internet",
                "leave AssignPublicIp out",
            )
        if raw.get("ElasticIp") not in {None, False}:
            yield error(
                "public-address",
                (*where, "ElasticIp"),
                f"{whose} would have an address of the internet",
                "leave ElasticIp out; reach it by Session Manager",
            )
        if "Proxy" in raw:
            yield error(
                "proxy",
                (*where, "Proxy"),
                f"{whose} would reach the internet through a proxy, and so would every job",
                "leave Proxy out; AWS's services are reached by their endpoints",
            )


def ways_in(look: Look) -> Findings:
    """Who may connect, where ParallelCluster makes the security group."""
    head = section(look.raw, "HeadNode")
    networking = section(head, "Networking")
    allowed = text(section(head, "Ssh"), "AllowedIps")
    if head and "SecurityGroups" not in networking and not _narrow(allowed):
        yield warning(
            "ssh-open",
            ("HeadNode", "Ssh", "AllowedIps"),
            "SSH to the head node is open to every address that can reach the subnet",
            "name SecurityGroups of the site's, or write AllowedIps with the network of the admins",
        )
    for raw, where, whose in (
        (head, ("HeadNode",), "the head node"),
        *((*each, "login nodes") for each in look.pools()),
    ):
        dcv = section(raw, "Dcv")
        if dcv.get("Enabled") is True and not _narrow(text(dcv, "AllowedIps")):
            yield warning(
                "dcv-open",
                (*where, "Dcv"),
                f"the desktops of {whose} are open to every address that can reach the subnet",
                "write AllowedIps with the network of the users, or leave Dcv out",
            )


def _narrow(allowed: str) -> bool:
    """Whether AllowedIps are private addresses, or few; what is none of either (a prefix list) is whose list it is."""
    if allowed.startswith("pl-"):
        return True
    try:
        network = ipaddress.IPv4Network(allowed, strict=False)
    except ValueError:
        return False
    return network.prefixlen >= _FEW or any(network.subnet_of(each) for each in _PRIVATE)


def metadata(look: Look) -> Findings:
    """The metadata service, which gives out the instance's role."""
    if text(section(look.raw, "Imds"), "ImdsSupport") == "v1.0":
        yield error(
            "imds-version",
            ("Imds", "ImdsSupport"),
            "version 1 of the metadata service answers a mere GET: whoever makes a server fetch a URL gets its role",
            "write ImdsSupport: v2.0",
        )
    if below(look.raw, ("HeadNode", "Imds")).get("Secured") is False:
        yield error(
            "imds-open",
            ("HeadNode", "Imds", "Secured"),
            "every user of the head node could act with its role, which launches instances",
            "write Secured: true",
        )


def roles(look: Look) -> Findings:
    """Policies that give nodes more than any node needs."""
    head: tuple[Raw, Where] = (section(look.raw, "HeadNode"), ("HeadNode",))
    for raw, where in (head, *look.pools(), *((queue.raw, queue.where) for queue in look.queues())):
        iam = section(raw, "Iam")
        for index, each in enumerate(items(iam, "AdditionalIamPolicies")):
            policy = text(each, "Policy") if isinstance(each, dict) else ""
            if ":iam::aws:" in policy and _WIDE.fullmatch(policy.rpartition("/")[2]):
                yield error(
                    "role-wide",
                    (*where, "Iam", "AdditionalIamPolicies", index, "Policy"),
                    f"{policy.rpartition('/')[2]}: root on such a node could carry data anywhere in the account",
                    "name a policy with what the node needs",
                )
        for index, each in enumerate(items(iam, "S3Access")):
            if isinstance(each, dict) and text(each, "BucketName") == "*":
                yield error(
                    "role-wide",
                    (*where, "Iam", "S3Access", index, "BucketName"),
                    "every bucket of the account, and of others that let it",
                    "name the bucket",
                )


def arns(look: Look) -> Findings:
    """Keys, secrets and policies of this region and partition."""
    if not look.region:
        return
    for where, value in scalars(look.raw):
        if value.startswith("arn:") and (wrong := aws.arn_elsewhere(value, look.region)):
            yield error("arn-elsewhere", where, wrong, "name the one of this region")


def endpoints(look: Look) -> Findings:
    """What the VPC has to have an endpoint for; known from the answers file only."""
    if look.answers is None:
        return
    policies = {each.rpartition("/")[2] for _, each in scalars(look.raw) if ":policy/" in each}
    secrets = any(":secretsmanager:" in each for _, each in scalars(look.raw))
    monitoring = section(look.raw, "Monitoring")
    needed = facts.endpoints(
        login=bool(look.pools()),
        munge="MungeKeySecretArn" in below(look.raw, SETTINGS),
        secret=secrets,
        parameter=any(":ssm:" in each and ":parameter/" in each for _, each in scalars(look.raw)),
        session="AmazonSSMManagedInstanceCore" in policies,
        metrics=monitoring.get("DetailedMonitoring") is True,
        unseal=look.answers.network.vault_unseal == "kms",
        sts=look.answers.network.vault_login == "aws"
        or (look.site is not None and look.site.vault.node.method == "aws"),
    )
    for each in needed:
        if each.service not in look.answers.network.endpoints:
            yield error(
                "endpoint-missing",
                (),
                f"the VPC has no endpoint for {each.service}: {each.what}",
                f"add {each.service} to the VPC, and to network.endpoints of the answers",
            )


RULES: tuple[Rule, ...] = (names, ways_out, ways_in, metadata, roles, arns, endpoints)
