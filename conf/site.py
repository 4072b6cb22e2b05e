"""``secure-slurm.yaml``: where everything is on this cluster. Paths are absolute and plain ``str``, times are seconds.

A section that is left out has the values shown here; ``cluster``, ``vault`` and ``ldap`` have no default that could be
right. Source of the limits: the comments at the checks in :func:`conf.checks.check_site`.
"""

from __future__ import annotations

from typing import Literal

import attrs

from conf import forms
from conf.load import load
from conf.slurmnames import for_node

DEFAULT_PATH = "/etc/secure-slurm/secure-slurm.yaml"


@attrs.frozen(kw_only=True)
class Cluster:
    """The Slurm cluster. ``head_nodes``: every SlurmctldHost, the primary first."""

    name: forms.ClusterName
    head_nodes: tuple[forms.NodeName, ...]
    slurm_bin: forms.Path = "/usr/bin"
    slurm_user: forms.UserName = "slurm"


@attrs.frozen(kw_only=True)
class Controller:
    """job_submit and the decision daemon. ``deadline``: seconds for the exchange, while slurmctld waits.

    ``untagged`` ``local``: job_submit.lua lets a job without any trace of a tag pass by itself and tells the daemon.
    ``break_glass_socket``: where people ask for break-glass and approve it; ``break_glass_dir``: where its daemon keeps
    what they said.
    """

    socket: forms.Path = "/run/secure-slurm/decision/decide.sock"
    deadline: forms.Duration = 0.2
    untagged: Literal["ask", "local"] = "local"
    untagged_when_down: Literal["refuse", "allow"] = "refuse"
    record_key: forms.Path = "/etc/secure-slurm/record.key"
    break_glass_socket: forms.Path = "/run/secure-slurm/glass/glass.sock"
    break_glass_dir: forms.Path = "/var/lib/secure-slurm/break-glass"


@attrs.frozen(kw_only=True)
class Lifecycle:
    """The lifecycle daemon. ``start_deadline``: seconds that PrologSlurmctld may wait for keys and grants."""

    socket: forms.Path = "/run/secure-slurm/lifecycle/lifecycle.sock"
    start_deadline: forms.Duration = 60.0
    state_dir: forms.Path = "/var/lib/secure-slurm/lifecycle"

    @property
    def ended_dir(self) -> str:
        """Where EpilogSlurmctld leaves a note of every ended job."""
        return f"{self.state_dir}/ended"

    @property
    def running_dir(self) -> str:
        """Where the lifecycle daemon says on which nodes tagged jobs run."""
        return f"{self.state_dir}/running"


@attrs.frozen(kw_only=True)
class Ec2Proof:
    """``node.proof: ec2``. ``certificates``: a folder with one ``<region id>.pem`` for each region.

    ``account``: the AWS account that the instances must belong to ("": any). ``oldest``: seconds since the launch of an
    instance, above which its document is refused.
    """

    certificates: forms.Path = "/etc/secure-slurm/ec2"
    instance_file: forms.NodePath = "/etc/secure-slurm/instance-%n"
    account: forms.AwsAccount = ""
    oldest: forms.Duration = 365 * 86400.0
    endpoint: forms.MetadataUrl = "http://169.254.169.254"


@attrs.frozen(kw_only=True)
class ManifestProof:
    """``node.proof: manifest``. ``public_key``: the site's Ed25519 key, PEM."""

    file: forms.NodePath = "/etc/secure-slurm/node-%n.manifest"
    public_key: forms.Path = "/etc/secure-slurm/manifest.pub"


@attrs.frozen(kw_only=True)
class Node:
    """A compute node. ``%n`` in a path is the node's Slurm name; ``prolog_deadline``: seconds, below 60.

    ``proof``: how a node proves the region of its place file; ``none`` proves nothing, and every tagged job is refused.
    ``proof_lifetime``: seconds that a verdict on an EC2 document is used again, an hour at most. ``metadata_users``:
    who besides root and the node daemon may reach the metadata service once it is closed.
    """

    run_dir: forms.NodePath = "/run/secure-slurm/node-%n"
    place_file: forms.Path = "/etc/secure-slurm/place"
    prolog_deadline: forms.Duration = 45.0
    proof: Literal["none", "file", "manifest", "ec2"] = "none"
    proof_lifetime: forms.Duration = 60.0
    ec2: Ec2Proof = Ec2Proof()
    manifest: ManifestProof = ManifestProof()
    metadata_users: tuple[forms.UserName, ...] = ()


@attrs.frozen(kw_only=True)
class VaultHead:
    """How the lifecycle daemon logs in: AppRole, both halves in files of their own."""

    approle_mount: forms.Mount = "approle"
    role_id_file: forms.Path = "/etc/secure-slurm/vault-role-id"
    secret_id_file: forms.Path = "/etc/secure-slurm/vault-secret-id"  # noqa: S105 - a path


@attrs.frozen(kw_only=True)
class VaultNode:
    """How a node daemon logs in: a TLS certificate that names the node."""

    cert_mount: forms.Mount = "cert"
    cert_role: forms.VaultRole = "secure-slurm-node"
    certificate: forms.NodePath = "/etc/secure-slurm/node-%n.crt"
    private_key: forms.NodePath = "/etc/secure-slurm/node-%n.key"


@attrs.frozen(kw_only=True)
class Vault:
    """Vault or OpenBao. ``timeout``: seconds for one request."""

    address: forms.HttpsUrl
    ca_file: forms.Path
    transit_mount: forms.Mount = "secure-slurm-transit"
    grants_mount: forms.Mount = "secure-slurm-grants"
    timeout: forms.Duration = 5.0
    head: VaultHead = VaultHead()
    node: VaultNode = VaultNode()


def _user_attribute(ldap: Ldap) -> str:
    return "sAMAccountName" if ldap.flavour == "active-directory" else "uid"


@attrs.frozen(kw_only=True)
class Ldap:
    """The directory. ``refresh``: seconds between readings; older than ``max_age``, the members count as unknown."""

    flavour: Literal["openldap", "active-directory"]
    uris: tuple[forms.LdapsUrl, ...]
    ca_file: forms.Path
    bind_dn: forms.DistinguishedName
    bind_password_file: forms.Path
    base: forms.DistinguishedName
    user_attribute: forms.LdapAttribute = attrs.Factory(_user_attribute, takes_self=True)
    refresh: forms.Duration = 30.0
    max_age: forms.Duration = 600.0
    snapshot: forms.Path = "/run/secure-slurm/snapshot/members.json"


@attrs.frozen(kw_only=True)
class Scratch:
    """Encrypted scratch on a node. ``file`` needs ``directory``, ``lvm`` ``volume_group``, ``block`` ``device``.

    ``overcommit``: back it with a sparse file, which may fill up under a job that was promised the space.
    """

    backing: Literal["file", "lvm", "block"] = "file"
    directory: forms.OptionalPath = "/var/lib/secure-slurm/scratch"
    overcommit: bool = False
    volume_group: forms.VolumeGroup = ""
    device: forms.OptionalPath = ""
    mount_root: forms.Path = "/secure-scratch"
    filesystem: Literal["ext4", "xfs"] = "ext4"


@attrs.frozen(kw_only=True)
class Audit:
    """Where the audit chains are written."""

    directory: forms.Path = "/var/log/secure-slurm"


@attrs.frozen(kw_only=True)
class Site:
    """The whole file; ``sha256`` (hex) is of its bytes."""

    version: Literal[1]
    cluster: Cluster
    vault: Vault
    ldap: Ldap
    controller: Controller = Controller()
    lifecycle: Lifecycle = Lifecycle()
    node: Node = Node()
    scratch: Scratch = Scratch()
    audit: Audit = Audit()
    sha256: str = attrs.field(default="", metadata={"in_file": False})


def load_site(path: str = DEFAULT_PATH, *, owner: int | None = None) -> Site:
    """The checked site file.

    Raises ConfigError with every mistake in it, one a line. ``owner``: the one uid besides root that may own the file
    (default: who runs this).
    """
    from conf.checks import check_site  # noqa: PLC0415 - only who loads needs it

    site, digest = load(path, Site, check_site, owner=owner)
    return attrs.evolve(site, sha256=digest)


__all__ = ["DEFAULT_PATH", "Site", "for_node", "load_site"]
