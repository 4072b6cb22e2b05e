"""Policies: how they are read; those of buckets; who may be a role or use a key, and what roles may do. Pure.

The policies of endpoints are in :mod:`admin.vpc.endpoints`. In all of them ``aws:PrincipalAccount`` says whose
credentials a request has, ``aws:ResourceAccount`` whose thing it is about; both are global condition keys (IAM user
guide). Only ``StringEquals`` counts: ...IfExists and ...Like let something through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from admin.vpc.template import Finding, Node, Template, referred
from conf.quote import quote

ACCOUNT = "${AWS::AccountId}"
OWN_ARN = re.compile(r"arn:\$\{AWS::Partition\}:[a-z0-9-]+:(?:[a-z0-9-]*|\$\{AWS::Region\}):\$\{AWS::AccountId\}:.+")
WIDE = re.compile(r":iam::aws:policy/(?:.*/)?(?:[A-Za-z0-9_-]*(?:FullAccess|Administrator)|Admin\w+|PowerUser\w+)$")
"""AWS's own policies that give more than any machine needs, by their names."""
_MAKERS = (
    *("ec2:CreateRoute", "ec2:AttachInternetGateway", "ec2:CreateVpcPeeringConnection", "ec2:CreateVpcEndpoint"),
    *("ec2:AuthorizeSecurityGroupEgress", "ec2:ModifySnapshotAttribute", "cloudformation:CreateStack"),
    *("iam:AttachRolePolicy", "iam:CreateAccessKey", "iam:PutRolePolicy", "iam:UpdateAssumeRolePolicy"),
    *("s3:PutBucketPolicy", "ssm:ModifyDocumentPermission", "ssm:StartAutomationExecution"),
)
_PUBLIC = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
_CONTENT = (
    "s3:GetObject",
    "s3:GetObjectVersion",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:DeleteObjectVersion",
    "s3:ListBucket",
)


def statements(template: Template, node: Node, key: str) -> Iterator[Node]:
    """The statements of a policy; what is none counts as one."""
    for document in template.children(node, key):
        yield from template.items(document, "Statement") or [document]


def denies(template: Template, statement: Node) -> bool:
    """Whether a statement can only deny."""
    return {text for text, _ in template.texts_of(statement, "Effect")} == {"Deny"}


def condition(template: Template, statement: Node, key: str) -> bool:
    """Whether in every arm of its Condition StringEquals binds ``key`` (in lower case) to this account alone."""
    if template.lacks(statement, "Condition"):
        return False
    conditions = template.children(statement, "Condition")
    if any(template.lacks(condition, "StringEquals") for condition in conditions):
        return False
    return all(
        any(name.value.lower() == key and template.always(operator, (name.value,), ACCOUNT) for name in keys)
        for condition in conditions
        for operator in template.children(condition, "StringEquals")
        for keys in [list(template.keys(operator))]
    )


def principals(template: Template, statement: Node) -> Iterator[tuple[str, str, Node]]:
    """Who a statement is about: the kind (AWS, Service, ...), the text, and its place."""
    for principal in template.children(statement, "Principal"):
        kinds = list(template.keys(principal))
        if not kinds:
            yield from (("AWS", text, Node(text, where)) for text, where in template.texts(principal))
        for kind in kinds:
            for text, where in template.texts_of(principal, kind.value):
                yield kind.value, text, Node(text, where)


def ours(template: Template, kind: str, text: str) -> bool:
    """Whether somebody is of this account, or a service of AWS."""
    if kind != "AWS":
        return kind == "Service"
    thing, _, attribute = referred(text).partition(".")
    return (
        text == ACCOUNT
        or bool(OWN_ARN.fullmatch(text))
        or (attribute == "Arn" and template.type_of(thing) == "AWS::IAM::Role")
    )


def trust(template: Template, name: str) -> Iterator[Finding]:
    """Who may become a role, or use a key: services of AWS and this account, nobody else."""
    node = template.properties(name)
    for key in ("AssumeRolePolicyDocument", "KeyPolicy"):
        for statement in statements(template, node, key):
            if not denies(template, statement):
                yield from _strangers(template, statement)


def _strangers(template: Template, statement: Node) -> Iterator[Finding]:
    for key in template.keys(statement):
        if key.value == "NotPrincipal":
            yield Finding("vpc.principal", key.where, "allowed to all but some", "name who is allowed")
    for kind, text, node in principals(template, statement):
        if not ours(template, kind, text) and not condition(template, statement, "aws:principalaccount"):
            yield Finding(
                "vpc.principal",
                node.where,
                f"{quote(text)} is not of this account",
                "name a service, a role of this template, or arn:${AWS::Partition}:iam::${AWS::AccountId}:root",
            )


def role(template: Template, name: str) -> Iterator[Finding]:
    """What a role may do: nothing by which a way out, another role or a stack is made. Policies by themselves too."""
    node = template.properties(name)
    for text, where in template.texts_of(node, "ManagedPolicyArns"):
        if WIDE.search(text):
            yield Finding(
                "vpc.role", where, f"{quote(text)} lets a machine of the VPC make a way out", "allow what is needed"
            )
    written = [node, *template.items(node, "Policies")]
    for statement in (each for policy in written for each in statements(template, policy, "PolicyDocument")):
        if denies(template, statement) or not statement.value:
            continue
        patterns = [text for text, _ in template.texts_of(statement, "Action")]
        too_much = [
            each for each in _MAKERS if any("${" in text or matches(each.lower(), text.lower()) for text in patterns)
        ]
        if too_much or not template.lacks(statement, "NotAction"):
            yield Finding(
                "vpc.role",
                statement.where,
                f"a role that may {too_much[0] if too_much else 'do all but what is named'}: who has it could make a "
                "way out, or become somebody who can",
                "allow what is needed, action by action",
            )


def bucket(template: Template, name: str) -> Iterator[Finding]:
    """A bucket that is not public, keeps its versions, and has a policy."""
    node = template.properties(name)
    for key in _PUBLIC:
        if not template.always(node, ("PublicAccessBlockConfiguration", key), "true"):
            yield Finding(
                "vpc.bucket", node.where, f"{key} of the bucket {quote(name)} is not true", f"write {key}: true"
            )
    if not template.always(node, ("VersioningConfiguration", "Status"), "Enabled"):
        yield Finding("vpc.bucket", node.where, f"the bucket {quote(name)} keeps no versions", "Status: Enabled")
    policies = [
        each
        for each in template.named("AWS::S3::BucketPolicy")
        if [text for text, _ in template.texts_of(template.properties(each), "Bucket")] == [f"${{{name}}}"]
        and "Condition" not in template.resources[each]
    ]
    if not policies:
        yield Finding(
            "vpc.bucket-policy",
            ("Resources", name),
            f"the bucket {quote(name)} has no policy: whoever has the right credentials reads it from anywhere",
            "add an AWS::S3::BucketPolicy as in isolated-vpc.yaml",
        )


def bucket_policy(template: Template, name: str) -> Iterator[Finding]:
    """A bucket's policy: TLS only, from an endpoint of this VPC only, and nothing for other accounts."""
    node = template.properties(name)
    found = list(statements(template, node, "PolicyDocument"))
    denials = [each for each in found if denies(template, each)]
    buckets = [text for text, _ in template.texts_of(node, "Bucket")]
    if not any(_denies_without_tls(template, each, buckets) for each in denials):
        yield Finding(
            "vpc.bucket-policy",
            node.where,
            "requests without TLS are not denied",
            "deny s3:* for aws:SecureTransport false",
        )
    if not any(_denies_elsewhere(template, each, buckets) for each in denials):
        yield Finding(
            "vpc.bucket-policy",
            node.where,
            "requests that do not come through this VPC's endpoint are not denied",
            f"deny {', '.join(_CONTENT)} for StringNotEquals aws:SourceVpce, and no other condition",
        )
    for statement in found:
        if not denies(template, statement):
            yield from _strangers(template, statement)


def _covers(template: Template, statement: Node, buckets: list[str], actions: tuple[str, ...]) -> bool:
    """Whether a denial is for everybody, all of these actions, the bucket and all that is in it, under no Fn::If."""
    without = {key: value for key, value in statement.value.items() if key != "Condition"}
    if template.conditional(statement._replace(value=without)):
        return False
    named = {text for text, _ in template.texts_of(statement, "Resource")}
    things = [bucket.removesuffix("}") for bucket in buckets]
    wanted = {f"{thing}.Arn}}{end}" for thing in things for end in ("", "/*")}
    patterns = [text for text, _ in template.texts_of(statement, "Action")]
    return (
        [text for _, text, _ in principals(template, statement)] == ["*"]
        and (wanted <= named or named == {"*"})
        and all(any(matches(action, pattern) for pattern in patterns) for action in actions)
    )


def matches(action: str, pattern: str) -> bool:
    """Whether an action is one of a pattern."""
    # IAM knows * and ?, and no brackets
    return fnmatchcase(action, pattern.replace("[", "[[]"))


def _denies_without_tls(template: Template, statement: Node, buckets: list[str]) -> bool:
    conditions = template.children(statement, "Condition")
    return (
        bool(conditions)
        and _covers(template, statement, buckets, ("s3:*",))
        and all(_plain(template, each) == {"Bool aws:securetransport": {"false"}} for each in conditions)
    )


def _denies_elsewhere(template: Template, statement: Node, buckets: list[str]) -> bool:
    conditions = template.children(statement, "Condition")
    if not conditions or not _covers(template, statement, buckets, _CONTENT):
        return False
    for condition in conditions:
        found = _plain(template, condition)
        role = found.pop("ArnNotEquals aws:principalarn", set())
        for text in role:
            if referred(text) not in template.parameters:
                return False
            template.assumed[referred(text)] = "the one role that may use the bucket from outside"
        if found.keys() != {"StringNotEquals aws:sourcevpce"}:
            return False
        endpoints = {referred(text) for text in found["StringNotEquals aws:sourcevpce"]}
        if not endpoints or not all(_known_endpoint(template, each) for each in endpoints):
            return False
    return True


def _known_endpoint(template: Template, name: str) -> bool:
    if name in template.parameters:
        template.assumed[name] = "the S3 endpoint of a VPC that passed this check"
        return True
    return template.type_of(name) == "AWS::EC2::VPCEndpoint"


def _plain(template: Template, condition: Node) -> dict[str, set[str]]:
    """A condition as ``{"Bool aws:securetransport": {"false"}}``; what has an Fn::If in it is none that is known."""
    operators = condition.value if isinstance(condition.value, dict) else {}
    if any(template.conditional(Node(value, ())) for value in operators.values()):
        return {"": set()}
    return {
        f"{operator.value} {key.value.lower()}": {text for text, _ in template.texts_of(child, key.value)}
        for operator in template.keys(condition)
        for child in template.children(condition, operator.value)
        for key in template.keys(child)
    }
