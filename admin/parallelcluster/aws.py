"""What AWS's and ParallelCluster's names look like, and what follows from a name alone.

The forms are those of ParallelCluster's own schema and validators (``pcluster/schemas/common_schema.py``,
``pcluster/validators/cluster_validators.py``, 3.16.1).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal

from conf import forms
from conf.quote import quote

PUBLIC_KEY_BYTES = 32
"""Of an Ed25519 public key (RFC 8032)."""


def _matching(pattern: str, what: str) -> forms.Form:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: object) -> str:
        text = forms.text_of(value, what)
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {what}, not {quote(text)}")
        return text

    return forms.Form(check)


def _public_key(value: object) -> str:
    what = "an Ed25519 public key in base64 (44 characters)"
    text = forms.text_of(value, what)
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"must be {what}, not {quote(text)}") from None
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ValueError(f"must be {what}; this one has {len(raw)} bytes instead of {PUBLIC_KEY_BYTES}")
    return text


def _at_least_zero(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"must be a whole number from 0, not {forms.kind(value)}")
    return value


_ARN = r"arn:aws(?:-[a-z]+)*:"
_ID = r"(?:[0-9a-f]{8}|[0-9a-f]{17})"
Subnet = Annotated[str, _matching(rf"subnet-{_ID}", "a subnet id (subnet- and 8 or 17 hexadecimal digits)")]
Group = Annotated[str, _matching(rf"sg-{_ID}", "a security group id (sg- and 8 or 17 hexadecimal digits)")]
FileSystemId = Annotated[str, _matching(rf"fs-{_ID}", "a file system id (fs- and 8 or 17 hexadecimal digits)")]
InstanceType = Annotated[
    str, _matching(r"[a-z][a-z0-9-]{0,20}\.[a-z0-9-]{1,20}", "an instance type such as m6id.8xlarge")
]
Bucket = Annotated[str, _matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "the name of an S3 bucket")]
Prefix = Annotated[
    str, _matching(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*", "a prefix in the bucket, without slashes at its ends")
]
Release = Annotated[str, _matching(r"[0-9]+\.[0-9]+\.[0-9]+[a-z0-9.+-]*", "a version such as 0.5.0")]
ParallelCluster = Annotated[str, _matching(r"3\.(?:13|14|15|16)\.[0-9]{1,2}", "a version from 3.13.0 to 3.16.x")]
SlurmRelease = Annotated[str, _matching(r"2[4-9]\.(?:05|11)", "a release of Slurm such as 25.11")]
Image = Annotated[str, _matching(rf"ami-{_ID}", "an image id (ami- and 8 or 17 hexadecimal digits)")]
KeyName = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9._ @+-]{0,254}", "the name of an EC2 key pair")]
KmsKey = Annotated[
    str, _matching(rf"{_ARN}kms:[a-z0-9-]+:[0-9]{{12}}:key/[A-Za-z0-9-]+", "the ARN of a KMS key (arn:...:key/...)")
]
IamPolicy = Annotated[
    str, _matching(rf"{_ARN}iam::(?:[0-9]{{12}}|aws):policy/[A-Za-z0-9+=,.@_/-]+", "the ARN of an IAM policy")
]
Secret = Annotated[
    str,
    _matching(
        rf"{_ARN}secretsmanager:[a-z0-9-]+:[0-9]{{12}}:secret:[A-Za-z0-9/_+=.@-]+",
        "the ARN of a secret in Secrets Manager",
    ),
]
# pcluster/validators/cluster_validators.py, NameValidator: 25 characters, of a-z, 0-9 and '-'
ShortName = Annotated[str, _matching(r"[a-z][a-z0-9-]{0,24}", "a name of a-z, 0-9 and '-', at most 25, a letter first")]
Domain = Annotated[str, _matching(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+", "a domain such as corp.example.org")]
LdapFilter = Annotated[str, _matching(r"\(.{1,500}\)", "an LDAP filter in parentheses")]
Script = Annotated[
    str, _matching(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[A-Za-z0-9._/-]+", "the s3:// address of a script")
]
PublicKey = Annotated[str, forms.Form(_public_key)]
Service = Literal[
    "autoscaling",
    "cloudformation",
    "dynamodb",
    "ebs",
    "ec2",
    "ec2messages",
    "ecr.api",
    "ecr.dkr",
    "elasticfilesystem",
    "elasticloadbalancing",
    "fsx",
    "kms",
    "logs",
    "monitoring",
    "s3",
    "secretsmanager",
    "ssm",
    "ssmmessages",
    "sts",
]
FromZero = Annotated[int, forms.Form(_at_least_zero)]

# release notes; 3.15's is not known to us, and 3.16.1 has 25.11.8
_SLURM = {"3.13": "24.05", "3.14": "24.11", "3.16": "25.11"}


def slurm_of(parallelcluster: str) -> str | None:
    """The release of Slurm in a version of ParallelCluster, or None: not known."""
    return _SLURM.get(".".join(parallelcluster.split(".")[:2]))


def partition_of(region: str) -> str:
    """The AWS partition of a region, by its prefix (botocore, endpoints.json)."""
    for prefix, partition in (
        ("us-gov-", "aws-us-gov"),
        ("cn-", "aws-cn"),
        ("eusc-", "aws-eusc"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("us-iso-", "aws-iso"),
        ("eu-isoe-", "aws-iso-e"),
    ):
        if region.startswith(prefix):
            return partition
    return "aws"


def arn_elsewhere(arn: str, region: str) -> str:
    """What is wrong with an ARN in a cluster of that region, or nothing."""
    parts = arn.split(":")
    if len(parts) < 6:
        return ""
    partition = partition_of(region)
    if parts[1] != partition:
        return f"an ARN of the partition {quote(parts[1])}, but {region} is in {quote(partition)}"
    if parts[3] not in {"", region}:
        return f"an ARN of {quote(parts[3])}, but the cluster is in {region}, whose endpoints reach no other region"
    return ""
