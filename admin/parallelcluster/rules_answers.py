"""Our rules about what the answers file says: this key, this bucket, these subnets and groups, and this account."""

from __future__ import annotations

from admin.parallelcluster import facts
from admin.parallelcluster.answers import Answers
from admin.parallelcluster.look import Findings, Look, Rule, error, scalars, text, warning
from admin.parallelcluster.rules_actions import ARCHIVE, places
from conf.quote import one_of, quote
from conf.rawchecks import Raw, items, section
from conf.yamlmarks import Where

_ACCOUNT = 12


def actions(look: Look) -> Findings:
    """What root runs is from the bundle's bucket, signed with the key of the answers, and of a version in them."""
    if look.answers is None:
        return
    bundle = look.answers.bundle
    versions = {bundle.version, bundle.created_with, look.answers.login.created_with} - {None}
    for place in places(look):
        for action in place.actions():
            words = [action.script, *(each for each in action.args if isinstance(each, str))]
            for address in (each for each in words if each.startswith("s3://")):
                bucket = address.removeprefix("s3://").partition("/")[0]
                if bucket != bundle.bucket:
                    yield error(
                        "answers-bucket",
                        action.where,
                        f"on {place.name} {quote(address)} is not in the bundle's bucket {quote(bundle.bucket)}: who "
                        "may write there has root here",
                        "put it into the bundle's bucket, which nodes may only read",
                    )
            if not action.ours or len(action.args) != facts.ACTION_WORDS:
                continue
            if action.args[3] != bundle.public_key:
                yield error(
                    "answers-key",
                    (*action.where, "Args", 3),
                    f"on {place.name} the public key is not bundle.public_key of the answers: whoever has its other "
                    "half has root here",
                    f"write {bundle.public_key}",
                )
            version = ARCHIVE.fullmatch(str(action.args[2]))
            if version and version[1] not in versions:
                yield error(
                    "answers-version",
                    (*action.where, "Args", 2),
                    f"on {place.name} the version is {version[1]}, which the answers do not name",
                    f"write {one_of(sorted(map(str, versions)))}",
                )


def network(look: Look) -> Findings:
    """Subnets and groups: others may lie in another VPC, or let a login node reach Vault."""
    if look.answers is None:
        return
    given = look.answers.network
    subnets = {given.subnet, given.login_subnet, given.compute_subnet}
    groups = {"head": given.head_groups, "login": given.login_groups, "compute": given.compute_groups}
    for place in places(look):
        raw = section(place.raw, "Networking")
        for each, where in _listed(raw, (*place.where, "Networking"), ("SubnetId", "SubnetIds")):
            if each not in subnets:
                yield warning(
                    "answers-network",
                    where,
                    f"{place.name} are in {quote(each)}, which is no subnet of the answers: whether it has a way out "
                    "is not known",
                    "name a subnet of the VPC that passed vpc-check",
                )
        names = ("SecurityGroups", "AdditionalSecurityGroups")
        for each, where in _listed(raw, (*place.where, "Networking"), names):
            if each not in groups[place.role]:
                yield warning(
                    "answers-network",
                    where,
                    f"{place.name} carry the group {quote(each)}, which the answers do not give them",
                    f"write those of network.{place.role}_groups",
                )


def _listed(raw: Raw, where: Where, keys: tuple[str, ...]) -> list[tuple[str, Where]]:
    found: list[tuple[str, Where]] = []
    for key in keys:
        if one := text(raw, key):
            found.append((one, (*where, key)))
        found += [(each, (*where, key, at)) for at, each in enumerate(items(raw, key)) if isinstance(each, str)]
    return found


def functions(look: Look) -> Findings:
    """ParallelCluster's functions in the VPC, where the answers have a group for them."""
    answers: Answers | None = look.answers
    if answers is not None and answers.network.functions_group and not _functions(look):
        yield warning(
            "functions-outside",
            ("DeploymentSettings",),
            "ParallelCluster's own functions would run outside the VPC, and network.functions_group is for nothing",
            "add DeploymentSettings: LambdaFunctionsVpcConfig, as 'parallelcluster render' writes it",
        )


def _functions(look: Look) -> Raw:
    return section(section(look.raw, "DeploymentSettings"), "LambdaFunctionsVpcConfig")


def account(look: Look) -> Findings:
    """Keys and secrets of this account: the endpoints let no request to another's through."""
    own = look.site.node.ec2.account if look.site else ""
    if not own:
        return
    for where, value in scalars(look.raw):
        parts = value.split(":")
        found = parts[4] if value.startswith("arn:") and len(parts) > 5 else ""
        if len(found) == _ACCOUNT and found.isdecimal() and found != own:
            yield error(
                "arn-account",
                where,
                f"an ARN of the account {found}, but node.ec2.account in secure-slurm.yaml is {own}",
                "name the one of this account: the endpoints' policies let no other through",
            )


RULES: tuple[Rule, ...] = (actions, network, functions, account)
