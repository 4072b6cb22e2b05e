"""Ways out that requests take through an endpoint: its policy must keep them in this account. Pure.

A packet that may go to S3 may go to anybody's bucket: what keeps it at home is the endpoint's policy. It must name
whose credentials and whose things; and deny what would give a thing of this account to another one, for a bucket that
is opened afterwards is a way out as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from admin.vpc.policy import OWN_ARN, condition, denies, matches, ours, principals, statements
from admin.vpc.template import Finding, Node, Template
from admin.vpc.types import OWN_RESOURCES
from conf.quote import quote

_S3 = "arn:${AWS::Partition}:s3:::"
AWS_BUCKETS = {
    # CloudFormation's own: signed addresses, so nobody's credentials can be asked for
    f"{_S3}cloudformation-waitcondition-${{AWS::Region}}/*": (frozenset({"s3:PutObject"}), False),
    f"{_S3}cloudformation-custom-resource-response-${{?region without dashes}}/*": (frozenset({"s3:PutObject"}), False),
    # packages, to read
    f"{_S3}${{AWS::Region}}-aws-parallelcluster/*": (frozenset({"s3:GetObject"}), True),
    f"{_S3}al2023-repos-${{AWS::Region}}-de612dc2/*": (frozenset({"s3:GetObject"}), True),
    f"{_S3}dcv-license.${{AWS::Region}}/*": (frozenset({"s3:GetObject"}), True),
}
"""Buckets of AWS that a cluster needs: which actions, and whether with this account's credentials only."""


SHARING = {
    "dynamodb": ("dynamodb:ExportTableToPointInTime", "dynamodb:PutResourcePolicy"),
    "ec2": (
        *("ec2:AttachInternetGateway", "ec2:CreateRoute", "ec2:CreateVpcPeeringConnection"),
        *("ec2:ModifyImageAttribute", "ec2:ModifySnapshotAttribute"),
    ),
    "logs": ("logs:CreateExportTask", "logs:PutDestinationPolicy", "logs:PutSubscriptionFilter"),
    "s3": ("s3:PutBucketAcl", "s3:PutInventoryConfiguration", "s3:PutReplicationConfiguration"),
    "secretsmanager": ("secretsmanager:PutResourcePolicy",),
    "ssm": ("ssm:ModifyDocumentPermission", "ssm:PutResourcePolicy", "ssm:StartAutomationExecution"),
}
"""Actions, by the endpoint's service, that open a thing of this account to others, or that AWS itself acts on."""


def endpoint_policy(template: Template, name: str, services: set[str]) -> Iterator[Finding]:
    """The policy of an endpoint: there is one, and whatever it allows stays in this account."""
    node = template.properties(name)
    if template.lacks(node, "PolicyDocument"):
        yield Finding(
            "vpc.endpoint-policy",
            ("Resources", name),
            f"the endpoint {quote(name)} has no policy: it takes anybody's credentials to anybody's things",
            "write a PolicyDocument with aws:PrincipalAccount, and aws:ResourceAccount where the service has it",
        )
    found = list(statements(template, node, "PolicyDocument"))
    denials = [each for each in found if denies(template, each)]
    allowed = [each for each in found if not denies(template, each)]
    for statement in allowed:
        yield from _allowed(template, statement, services)
    if not template.lacks(node, "PolicyDocument"):
        yield from _shared(template, name, services, allowed, denials)


def _shared(
    template: Template, name: str, services: set[str], allowed: list[Node], denials: list[Node]
) -> Iterator[Finding]:
    """What gives a thing of this account to others, or has AWS carry it there, must be allowed by nothing."""
    for action in sorted(action for service in services for action in SHARING.get(service, ())):
        may = any(_names(template, each, action, unknown=True) for each in allowed)
        if may and not any(
            _denies_all(template, each) and _names(template, each, action, unknown=False) for each in denials
        ):
            yield Finding(
                "vpc.endpoint-policy",
                ("Resources", name),
                f"{action} is not denied: a thing of this account could be given to another one by it, and read there",
                f"allow less; or add a statement: Effect: Deny, Principal: '*', Action: {action}, Resource: '*'",
            )


def _names(template: Template, statement: Node, action: str, *, unknown: bool) -> bool:
    """``unknown``: what a text counts for that is known only when the stack is made."""
    patterns = [text for text, _ in template.texts_of(statement, "Action")]
    return any(unknown if "${" in each else matches(action.lower(), each.lower()) for each in patterns)


def _denies_all(template: Template, statement: Node) -> bool:
    """Whether a denial is for everybody and everything, without a condition or an Fn::If."""
    resources = {text for text, _ in template.texts_of(statement, "Resource")}
    return (
        not template.conditional(statement)
        and "Condition" not in statement.value
        and [text for _, text, _ in principals(template, statement)] == ["*"]
        and resources == {"*"}
    )


def _allowed(template: Template, statement: Node, services: set[str]) -> Iterator[Finding]:
    for key in template.keys(statement):
        if key.value in {"NotAction", "NotResource", "NotPrincipal"}:
            yield Finding(
                "vpc.endpoint-policy", key.where, f"{key.value} allows what is not named", "name what is allowed"
            )
            return
    resources = [text for text, _ in template.texts_of(statement, "Resource")]
    by_ours = condition(template, statement, "aws:principalaccount") or _principals_are_ours(template, statement)
    if resources and all(resource in AWS_BUCKETS for resource in resources):
        actions = {text for text, _ in template.texts_of(statement, "Action")}
        for resource in resources:
            known, needs_ours = AWS_BUCKETS[resource]
            if not actions or not actions <= known or (needs_ours and not by_ours):
                yield Finding(
                    "vpc.endpoint-policy",
                    statement.where,
                    f"more than is needed at the bucket of AWS {quote(resource)}",
                    f"allow {', '.join(sorted(known))} only{', with aws:PrincipalAccount' if needs_ours else ''}",
                )
        return
    in_ours = bool(resources) and all(OWN_ARN.fullmatch(resource) for resource in resources)
    if services & OWN_RESOURCES and not (in_ours or condition(template, statement, "aws:resourceaccount")):
        yield Finding(
            "vpc.endpoint-policy",
            statement.where,
            "a statement that reaches things of other accounts: data could be written there",
            'add the condition StringEquals aws:ResourceAccount: !Ref "AWS::AccountId"',
        )
    elif not (by_ours or in_ours):
        yield Finding(
            "vpc.endpoint-policy",
            statement.where,
            "a statement for credentials of any account",
            'add the condition StringEquals aws:PrincipalAccount: !Ref "AWS::AccountId"',
        )
    if "sts" in services and not in_ours and _assumes(template, statement):
        yield Finding(
            "vpc.endpoint-policy",
            statement.where,
            "a statement by which one can become a role of another account",
            "name the Resource arn:${AWS::Partition}:iam::${AWS::AccountId}:role/*",
        )


def _assumes(template: Template, statement: Node) -> bool:
    actions = [text for text, _ in template.texts_of(statement, "Action")]
    return any(action != "sts:GetCallerIdentity" for action in actions)


def _principals_are_ours(template: Template, statement: Node) -> bool:
    found = list(principals(template, statement))
    # a service of AWS acts for any account
    return bool(found) and all(kind == "AWS" and ours(template, kind, text) for kind, text, _ in found)
