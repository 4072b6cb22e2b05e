"""Pieces that several parts of a rendered configuration have: a custom action, what may be read from S3, a scalar."""

from __future__ import annotations

import json
import re
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from admin.parallelcluster import facts

if TYPE_CHECKING:
    from admin.parallelcluster.answers import Answers, Bundle
    from conf.policy import Policy
    from conf.site import Site

GIB = 1024**3
# plain in YAML 1.1 and in 1.2: no indicator, no number
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*")
_TRUTH = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})


class Sources(NamedTuple):
    """What a configuration is made from. ``jurisdiction``: that of the region; ``slurm``: the release, as ``25.11``."""

    answers: Answers
    site: Site
    policy: Policy
    jurisdiction: str
    slurm: str

    @property
    def has_shell(self) -> bool:
        """Whether the VPC has what Session Manager needs."""
        return "ssmmessages" in self.answers.network.endpoints


def yaml(text: str) -> str:
    """A text as a YAML scalar: plain where nobody could read it as anything else, in double quotes otherwise."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in _TRUTH
    return text if plain else json.dumps(text)


def indented(text: str, spaces: int) -> str:
    """Every line of it, further to the right."""
    return textwrap.indent(text, " " * spaces)


def networking(subnet: str, groups: tuple[str, ...], *, many: bool = True) -> str:
    """Where a kind of node is; the head node has one subnet, the others a list of them."""
    where = f"SubnetIds: [{subnet}]" if many else f"SubnetId: {subnet}"
    return f"Networking:\n  {where}\n  SecurityGroups: [{', '.join(groups)}]\n"


def gib(size: int) -> int:
    """Bytes as whole GiB, upwards: ParallelCluster knows no smaller unit."""
    return -(-size // GIB)


def action(bundle: Bundle, role: str, stage: str, version: str) -> str:
    """One custom action: the script, and what it is told. It verifies the archives' signatures before it runs them."""
    base = f"s3://{bundle.bucket}/{bundle.prefix}"
    site = "site.tar.gz" if bundle.site is None else f"site-{bundle.site}.tar.gz"
    words = (role, stage, f"{base}/secure-slurm-{version}.tar.gz", bundle.public_key, f"{base}/{site}")
    lines = [f"Script: {yaml(f'{base}/actions/{facts.ACTION}')}", "Args:", *(f"  - {yaml(word)}" for word in words)]
    return "".join(f"{line}\n" for line in lines)


def starting(sources: Sources, role: str, version: str, spaces: int) -> str:
    """The action before ParallelCluster configures a node; needed only where that makes it ask a directory."""
    if sources.answers.directory is None:
        return ""
    head = "# The CA of the directory, without which sssd finds nobody.\nOnNodeStart:\n"
    return indented(head + indented(action(sources.answers.bundle, role, "start", version), 2), spaces)


def iam(bundle: Bundle, *, session: bool) -> str:
    """What an instance may do beside what ParallelCluster gives it."""
    managed = f"""\
AdditionalIamPolicies:
  - Policy: {session_manager(bundle)}    # a shell by Session Manager
"""
    return f"""\
{managed if session else ""}\
# to read the bundle, and never to write it: root runs what is in there
S3Access:
  - BucketName: {yaml(bundle.bucket)}
    KeyName: {yaml(bundle.prefix + "/*")}
"""


def session_manager(bundle: Bundle) -> str:
    """The ARN of AWS's own policy for Session Manager, in the partition of the site's policy."""
    return f"arn:{bundle.read_policy.split(':')[1]}:iam::aws:policy/AmazonSSMManagedInstanceCore"
