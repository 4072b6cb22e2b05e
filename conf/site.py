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

    @property
    def revoked_dir(self) -> str:
        """Where the lifecycle daemon keeps the revocations that are in force."""
        return f"{self.state_dir}/revoked"


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
    who besides root and the node daemon may reach the metadata service once it is closed. ``swap``, ``core_dumps``:
    whether tagged jobs may start where these reach a disk in clear.
    """

    run_dir: forms.NodePath = "/run/secure-slurm/node-%n"
    state_dir: forms.NodePath = "/var/lib/secure-slurm/node-%n"
    place_file: forms.Path = "/etc/secure-slurm/place"
    prolog_deadline: forms.Duration = 45.0
    proof: Literal["none", "file", "manifest", "ec2"] = "none"
    proof_lifetime: forms.Duration = 60.0
    ec2: Ec2Proof = Ec2Proof()
    manifest: ManifestProof = ManifestProof()
    metadata_users: tuple[forms.UserName, ...] = ()
    swap: Literal["refuse", "allow"] = "refuse"
    core_dumps: Literal["refuse", "allow"] = "refuse"


@attrs.frozen(kw_only=True)
class VaultHead:
    """How the lifecycle daemon logs in: AppRole, both halves in files of their own."""

    approle_mount: forms.Mount = "approle"
    role_id_file: forms.Path = "/etc/secure-slurm/vault-role-id"
    secret_id_file: forms.Path = "/etc/secure-slurm/vault-secret-id"  # noqa: S105 - a path


@attrs.frozen(kw_only=True)
class VaultNode:
    """How a node daemon logs in: by a TLS certificate that names the node, or by something else that says who it is.

    ``method`` ``jwt``: a token that the head node signs; ``aws``: the role of the instance. Both need ``enrol``.
    """

    method: Literal["cert", "jwt", "aws"] = "cert"
    cert_mount: forms.Mount = "cert"
    cert_role: forms.VaultRole = "secure-slurm-node"
    jwt_mount: forms.Mount = "secure-slurm-jwt"
    jwt_role: forms.VaultRole = "secure-slurm-node"
    aws_mount: forms.Mount = "aws"
    aws_role: forms.VaultRole = "secure-slurm-node"
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
    """Encrypted scratch on a node. ``file`` needs ``directory``, ``lvm`` ``volume_group``, ``block`` ``device``,
    ``memory`` ``limit``; ``auto`` (docs/decisions/0038-instance-store.md) ``volume_group`` or ``volume``.

    ``overcommit``: back it with a sparse file, which may fill up under a job that was promised the space. ``limit``:
    bytes that all jobs of a node may have together, for ``file`` and ``memory``; none: no limit. ``volume``: the mount
    point that ``directory`` must be on. ``take_over``: the one volume of ``volume_group`` that may be destroyed.
    ``diskless``: what ``auto`` does on a node that has neither.
    """

    backing: Literal["file", "lvm", "block", "memory", "auto"] = "file"
    directory: forms.OptionalPath = "/var/lib/secure-slurm/scratch"
    overcommit: bool = False
    volume_group: forms.VolumeGroup = ""
    device: forms.OptionalPath = ""
    mount_root: forms.Path = "/secure-scratch"
    filesystem: Literal["ext4", "xfs"] = "ext4"
    limit: forms.OptionalSize = 0
    volume: forms.OptionalPath = ""
    take_over: Literal["", "lv_ephemeral"] = ""
    diskless: Literal["refuse", "memory"] = "refuse"


@attrs.frozen(kw_only=True)
class Retention:
    """How long audit lines about one data class are kept, seconds."""

    name: forms.Name
    keep: forms.Duration


@attrs.frozen(kw_only=True)
class Audit:
    """Where the audit chains are written, and how long lines are kept, in seconds.

    ``keep``: those that nothing below is about; ``keep_untagged``: decisions about jobs without a tag;
    ``keep_classes``: lines about jobs of a data class. Nothing is ever deleted but by ``secure-slurm audit prune``.
    """

    directory: forms.Path = "/var/log/secure-slurm"
    keep: forms.Duration = 1095 * 86400.0
    keep_untagged: forms.Duration = 365 * 86400.0
    keep_classes: tuple[Retention, ...] = ()


@attrs.frozen(kw_only=True)
class Link:
    """The connection that each node holds to the head node (docs/decisions/0023-revocation.md), TLS on both sides.

    ``listen``: host and port on the head node; "": no connection, and nothing can be revoked. ``head``: where the nodes
    connect to; empty: every one of ``cluster.head_nodes``, at that port. ``certificate`` and ``private_key``: the head
    node's; a node has its own of ``vault.node``. ``ca_file``: who signed both.
    """

    listen: forms.OptionalEndpoint = ""
    head: tuple[forms.Endpoint, ...] = ()
    certificate: forms.Path = "/etc/secure-slurm/link.crt"
    private_key: forms.Path = "/etc/secure-slurm/link.key"
    ca_file: forms.Path = "/etc/secure-slurm/link-ca.crt"


@attrs.frozen(kw_only=True)
class Revocation:
    """Ending jobs that run. ``confirm_within``: seconds that ``secure-slurm revoke`` waits for nodes and Vault.

    ``offline_grace``: seconds without a word from the head node, after which a node stops its secured jobs by itself.
    ``role_loss``: what becomes of a running job whose user has lost the role that let it in.
    """

    confirm_within: forms.Duration = 10.0
    offline_grace: forms.Duration = 900.0
    role_loss: Literal["none", "freeze", "revoke"] = "none"


@attrs.frozen(kw_only=True)
class Doctor:
    """What ``secure-slurm doctor`` holds a machine to.

    ``outside``: places to which there must be no way, ``host:port``; port 123 is NTP's, over UDP, every other TCP's.
    ``endpoints``: places that must answer; empty: on AWS what a node needs there, elsewhere none. ``fips``: whether
    the kernel must be in FIPS mode.
    """

    outside: tuple[forms.Endpoint, ...] = (
        *("1.1.1.1:53", "9.9.9.9:53", "1.1.1.1:443", "[2606:4700:4700::1111]:443"),
        *("example.com:80", "162.159.200.1:123"),
    )
    endpoints: tuple[forms.Endpoint, ...] = ()
    fips: Literal["any", "required"] = "any"


@attrs.frozen(kw_only=True)
class Enrol:
    """How nodes come by the certificates of ``vault.node`` (docs/decisions/0034-node-identity.md).

    ``listen``: host and port of the enrolment daemon on the head node; "": the site issues them by itself. ``head``:
    where nodes connect to; empty: every one of ``cluster.head_nodes``, at that port. ``ca_file``: who signed the
    daemon's certificate, and the CA of the nodes. ``regions``: those of the cluster's nodes. ``oldest``: seconds since
    an instance's launch within which it must enrol for the first time. ``lifetime``: of a certificate, seconds.
    ``source``: what says, beside the node, which instance a node is. ``instance_roles``: the IAM roles of the nodes.
    """

    listen: forms.OptionalEndpoint = ""
    head: tuple[forms.Endpoint, ...] = ()
    certificate: forms.Path = "/etc/secure-slurm/enrol.crt"
    private_key: forms.Path = "/etc/secure-slurm/enrol.key"
    ca_file: forms.Path = "/etc/secure-slurm/link-ca.crt"
    role_id_file: forms.Path = "/etc/secure-slurm/enrol-role-id"
    secret_id_file: forms.Path = "/etc/secure-slurm/enrol-secret-id"  # noqa: S105 - a path
    token_key: forms.Path = "/etc/secure-slurm/enrol-token.key"  # noqa: S105 - a path
    pki_mount: forms.Mount = "secure-slurm-pki"
    pki_role: forms.VaultRole = "secure-slurm-node"
    lifetime: forms.Duration = 86400.0
    regions: tuple[forms.Region, ...] = ()
    oldest: forms.Duration = 3600.0
    source: Literal["slurm", "file", "command"] = "slurm"
    instances: forms.Path = "/etc/secure-slurm/instances"
    command: forms.OptionalPath = ""
    instance_roles: tuple[forms.AwsRole, ...] = ()


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
    link: Link = Link()
    revocation: Revocation = Revocation()
    doctor: Doctor = Doctor()
    enrol: Enrol = Enrol()
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
