"""The short answers file of ``secure-slurm parallelcluster render``: what only the AWS account knows.

Everything else comes from ``secure-slurm.yaml`` and ``policy.yaml``. It is read as those two are: unknown keys, wrong
forms and contradictions are told all at once, on the admin's own lines. The forms of AWS's names are those that
ParallelCluster's own schema has (``pcluster/schemas``, 3.16.1); sizes are in GiB there, and in words here.
"""

from __future__ import annotations

from typing import Literal

import attrs

from admin.parallelcluster import aws
from conf import forms
from conf.load import load
from conf.quote import quote
from conf.rawchecks import Findings, Raw, items, section
from conf.version import __version__
from conf.yamlmarks import Where


@attrs.frozen(kw_only=True)
class Bundle:
    """Where the signed bundle lies. ``created_with``: the version that the cluster was created with, after an upgrade.

    ``read_policy``: an IAM policy that lets read the bundle; login nodes have no other way to be given that. ``site``:
    the serial number of the site's archive, to which the cluster is tied then; None: whichever lies there.
    """

    bucket: aws.Bucket
    public_key: aws.PublicKey
    read_policy: aws.IamPolicy
    prefix: aws.Prefix = "secure-slurm"
    version: aws.Release = __version__
    created_with: aws.Release = attrs.Factory(lambda self: self.version, takes_self=True)
    site: forms.Count | None = None


@attrs.frozen(kw_only=True)
class Network:
    """The isolated VPC. ``subnet``: of everything that has none of its own; ``*_groups``: security groups.

    ``functions_group``: for ParallelCluster's own Lambda functions, which are outside of the VPC without.
    ``endpoints``: the services that it has an endpoint for. ``vault_unseal``, ``vault_login``: whether Vault lies in
    this VPC and asks KMS for its unseal key, and STS who a node is.
    """

    subnet: aws.Subnet
    head_groups: tuple[aws.Group, ...]
    login_groups: tuple[aws.Group, ...]
    compute_groups: tuple[aws.Group, ...]
    endpoints: tuple[aws.Service, ...]
    login_subnet: aws.Subnet | None = None
    compute_subnet: aws.Subnet | None = None
    functions_group: aws.Group | None = None
    vault_unseal: Literal["kms", "other"] = "other"
    vault_login: Literal["cert", "aws", "jwt"] = "cert"


@attrs.frozen(kw_only=True)
class Head:
    """The head node. ``internal``: where ParallelCluster keeps what all nodes share of it (/opt/slurm, /home)."""

    instance_type: aws.InstanceType
    root_size: forms.Size = 100 * 1024**3
    internal: Literal["ebs", "efs"] = "ebs"


@attrs.frozen(kw_only=True)
class Login:
    """The login nodes. ``created_with``: the version that this pool was created with, where not the cluster's."""

    instance_type: aws.InstanceType
    count: forms.Count
    name: aws.ShortName = "login"
    created_with: aws.Release | None = None


@attrs.frozen(kw_only=True)
class Directory:
    """Active Directory for the accounts on the nodes. ``ca_file``: its CA, if not that of ``ldap``."""

    domain: aws.Domain
    address: forms.LdapsUrl
    password_secret: aws.Secret
    read_only_user: forms.DistinguishedName
    access_filter: aws.LdapFilter = ""
    ca_file: forms.Path | None = None


@attrs.frozen(kw_only=True)
class Storage:
    """A shared file system: a new one of ``size``, or with ``id`` one that is there. All nodes mount it."""

    name: aws.ShortName
    type: Literal["ebs", "efs", "fsx-lustre"]
    mount: forms.Path
    id: aws.FileSystemId | None = None
    size: forms.Size | None = None


@attrs.frozen(kw_only=True)
class Resource:
    """Nodes of one instance type. ``min``: those that always run; ``max``: those that there may be."""

    name: aws.ShortName
    instance_type: aws.InstanceType
    max: forms.Count
    min: aws.FromZero = 0
    efa: bool = False


@attrs.frozen(kw_only=True)
class Queue:
    """A queue, which is a partition to Slurm; what it demands is in policy.yaml under its name.

    ``scratch``: what encrypted scratch lies on. ``groups``: Linux groups that may submit (a second layer).
    ``before``: scripts of the site's that run on each node before ours, to mount what this queue alone may have.
    """

    name: aws.ShortName
    resources: tuple[Resource, ...]
    scratch: Literal["instance-store", "root-volume", "none"] = "none"
    root_size: forms.Size = 100 * 1024**3
    groups: tuple[forms.SlurmWord, ...] = ()
    before: tuple[aws.Script, ...] = ()


@attrs.frozen(kw_only=True)
class Answers:
    """The whole file. ``region``: where all of it is; its jurisdiction is that of policy.yaml.

    ``slurm``: the release of Slurm in that ParallelCluster, where this suite does not know it. ``custom_ami``: an image
    of the site's, with Python 3.11 or later where ``os`` has an older one.
    """

    version: Literal[1]
    region: forms.Region
    key_name: aws.KeyName
    bundle: Bundle
    network: Network
    head: Head
    login: Login
    queues: tuple[Queue, ...]
    parallelcluster: aws.ParallelCluster = "3.16.1"
    slurm: aws.SlurmRelease | None = None
    os: Literal["alinux2023", "ubuntu2204", "ubuntu2404", "rhel8", "rocky8", "rhel9", "rocky9"] = "alinux2023"
    custom_ami: aws.Image | None = None
    encryption_key: aws.KmsKey | None = None
    directory: Directory | None = None
    shared: tuple[Storage, ...] = ()


def load_answers(path: str) -> Answers:
    """The checked answers file. Raises ConfigError with every mistake in it, one a line."""
    return load(path, Answers, check_answers)[0]


def check_answers(answers: Raw) -> Findings:
    """Every contradiction in an answers file: the path of the value, and what is wrong with it."""
    yield from _twice(answers, ("queues",))
    yield from _twice(answers, ("shared",))
    for index, queue in enumerate(each for each in items(answers, "queues") if isinstance(each, dict)):
        yield from _twice(queue, ("queues", index, "resources"))
        for number, resource in enumerate(each for each in items(queue, "resources") if isinstance(each, dict)):
            least, most = resource.get("min", 0), resource.get("max")
            if isinstance(least, int) and isinstance(most, int) and least > most:
                yield ("queues", index, "resources", number, "min"), f"min ({least}) is more than max ({most})"
    for index, storage in enumerate(items(answers, "shared")):
        if isinstance(storage, dict) and ("id" in storage) == ("size" in storage) and storage.get("type") != "efs":
            yield ("shared", index), "a file system needs its id (one that is there) or a size (a new one), not both"
        if isinstance(storage, dict) and storage.get("type") == "efs" and "size" in storage:
            yield ("shared", index, "size"), "EFS has no size: leave it out"
        if isinstance(storage, dict) and storage.get("type") == "ebs" and "id" in storage:
            yield ("shared", index, "id"), "an EBS volume is made anew: give its size instead"
    version = answers.get("parallelcluster", "3.16.1")
    if isinstance(version, str) and aws.slurm_of(version) is None and "slurm" not in answers:
        yield (
            ("parallelcluster",),
            f"which Slurm is in ParallelCluster {quote(version)} is not known here: add 'slurm', such as 25.05 "
            "(on a node of it: sinfo --version)",
        )
    if section(answers, "head").get("internal") == "efs" and isinstance(version, str) and version.startswith("3.13."):
        yield (
            ("head", "internal"),
            f"ParallelCluster {version} cannot encrypt the EFS that it makes for the head node: use ebs, or 3.14",
        )
    yield from _arns(answers)


def _twice(raw: Raw, where: Where) -> Findings:
    """Entries of one name in the list that ``where`` ends with."""
    seen: set[str] = set()
    for index, each in enumerate(items(raw, str(where[-1]))):
        name = each.get("name") if isinstance(each, dict) else None
        if isinstance(name, str) and name in seen:
            yield (*where, index, "name"), f"the name {quote(name)} is there twice"
        seen.add(str(name))


def _arns(answers: Raw) -> Findings:
    region = answers.get("region")
    if not isinstance(region, str):
        return
    places = (
        (("encryption_key",), answers.get("encryption_key")),
        (("directory", "password_secret"), section(answers, "directory").get("password_secret")),
        (("bundle", "read_policy"), section(answers, "bundle").get("read_policy")),
    )
    for where, arn in places:
        if isinstance(arn, str) and (wrong := aws.arn_elsewhere(arn, region)):
            yield where, wrong
