"""What ParallelCluster 3.13 to 3.16 does by itself, as far as a configuration has to fit it. Pure.

Sources: the templates of aws-parallelcluster-cookbook (slurm.conf.erb, slurm_parallelcluster.conf), the validators of
aws-parallelcluster 3.16.1, the user guide ("AWS ParallelCluster in a single subnet with no internet access").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

HOOKS = "/opt/secure-slurm/hooks"
SLURM_BIN = "/opt/slurm/bin"
ADMIN_USER = "pcluster-admin"
"""The account of ParallelCluster's own daemons on a node; the metadata service has to answer it."""
ACTION = "secure-slurm-action.sh"
ROLES = ("head", "login", "compute")
STAGES = ("start", "configured")
ACTION_WORDS = 5
"""Arguments of ours: role, stage, archive, public key, site archive."""

# slurm.conf.erb; what CustomSlurmSettings say comes after it, and the last value of a key wins
SLURM_CONF = {
    "AuthInfo": "cred_expire=70",
    "BatchStartTimeout": "180",
    "MessageTimeout": "60",
    "PrivateData": "cloud",
    "SchedulerParameters": "nohold_on_prolog_fail",
}
# pcluster/validators/slurm_settings_validator.py, SLURM_SETTINGS_DENY_LIST; the same in 3.13 to 3.16
DENIED = frozenset(
    re.split(
        r" +",
        "epilog grestypes launchparameters prolog reconfigflags resumefailprogram resumeprogram resumetimeout "
        "slurmctldhost slurmctldlogfile slurmctldparameters slurmdlogfile slurmuser suspendexcnodes suspendprogram "
        "suspendtime taskplugin treewidth",
    )
)
DENIED_IN_QUEUE = frozenset(["nodes", "partitionname", "resumetimeout", "state", "suspendtime", "oversubscribe"])
DENIED_IN_RESOURCE = frozenset(["cpus", "gres", "nodeaddr", "nodehostname", "nodename", "state", "weight"])
# CustomSlurmSettings of more than one key may define these, and ParallelCluster then looks at none of the keys
DEFINITIONS = frozenset({"nodename", "partitionname", "nodeset", "downnodes"})

# what 'python3' is there; other versions are packages that are not in the image
OLD_PYTHON = {
    "alinux2": "3.7",
    "alinux2023": "3.9",
    "ubuntu2004": "3.8",
    "ubuntu2204": "3.10",
    "rhel8": "3.6",
    "rocky8": "3.6",
    "rhel9": "3.9",
    "rocky9": "3.9",
}
# exported by the head node to every node beside what SharedStorage names
EXPORTED = ("/home", "/opt/slurm", "/opt/parallelcluster/shared")
# where ParallelCluster mounts instance store, when the configuration does not say
EPHEMERAL = "/scratch"
VOLUME_GROUP = "vg.01"
OURS = ("/opt/secure-slurm", "/etc/secure-slurm", "/run/secure-slurm", "/var/lib/secure-slurm", "/var/log/secure-slurm")
"""What the suite has on a node's own disk."""


class Endpoint(NamedTuple):
    """A service that nodes of an isolated cluster have to reach, and what for."""

    service: str
    what: str


_ALWAYS = (
    Endpoint("logs", "every node writes its logs to CloudWatch"),
    Endpoint("cloudformation", "nodes signal their start, and the head node reads the stack"),
    Endpoint("ec2", "the head node launches and ends instances"),
    Endpoint("s3", "custom actions, the bundle and ParallelCluster's own files (a gateway)"),
    Endpoint("dynamodb", "the map of Slurm's node names to instances (a gateway)"),
)
_SSM = ("ssm", "ssmmessages", "ec2messages")


def endpoints(
    *, login: bool, munge: bool, secret: bool, parameter: bool, session: bool, metrics: bool, unseal: bool, sts: bool
) -> tuple[Endpoint, ...]:
    """The endpoints that a cluster needs. ``munge``: a munge key of the site's, which is rotated; ``secret``: a secret
    of Secrets Manager, ``parameter``: one that is a parameter of SSM; ``session``: Session Manager; ``metrics``:
    detailed monitoring; ``unseal``, ``sts``: Vault in the VPC asks KMS for its unseal key, and STS who a node is.
    """
    found = list(_ALWAYS)
    if login:
        found.append(Endpoint("autoscaling", "login nodes end their life cycle action with it"))
    if login and munge:
        found.append(
            Endpoint("elasticloadbalancing", "a munge key is rotated only while no login node runs, which is asked")
        )
    if secret:
        found.append(Endpoint("secretsmanager", "the head node reads a password from it"))
    if parameter and not session:
        found.append(Endpoint("ssm", "the head node reads a password from its parameter store"))
    if session:
        found += [Endpoint(each, "the policy for Session Manager is given, and nothing else logs in") for each in _SSM]
    if metrics:
        found.append(Endpoint("monitoring", "detailed monitoring"))
    if unseal:
        found.append(
            Endpoint("kms", "Vault in the VPC asks KMS to unseal it: without, it stays sealed after a restart")
        )
    if sts:
        found.append(Endpoint("sts", "Vault in the VPC asks it who a node is: no node could log in"))
    return tuple(found)


# EC2, "Instance store volumes": after the generation the letter d; and families that always have one
_FAMILY = re.compile(r"([a-z]+)([0-9]*)([a-z0-9-]*)\.")
_ALWAYS_STORE = frozenset(
    re.split(
        r" +",
        "d2 d3 d3en dl1 f1 f2 g2 g4ad g4dn g5 g6 g6e gr6 h1 hpc6id i2 i3 i3en i4g i4i i7i i7ie i8g im4gn is4gen "
        "p3dn p4d p4de p5 p5e p5en p6-b200 p6-b300 trn1 trn1n trn2 x1 x1e z1d",
    )
)


def has_instance_store(instance_type: str) -> bool:
    """Whether an instance type has instance store, told from its name (``m6id.large``: yes, ``m6i.large``: no)."""
    family = instance_type.partition(".")[0]
    if family in _ALWAYS_STORE:
        return True
    match = _FAMILY.match(instance_type)
    return match is not None and "d" in match[3]


def lies_in(path: str, folders: Iterable[str]) -> str | None:
    """The folder that a path is or lies in, or None."""
    return next((each for each in folders if path == each or path.startswith(each.rstrip("/") + "/")), None)
