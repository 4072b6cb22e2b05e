"""The text of a ParallelCluster configuration, with comments that say why each line is there. Pure.

Every value comes from a checked file, whose forms let nothing through that would need more than quotes in YAML. Tabs,
anchors, tags and null never occur, so that both ParallelCluster's reader (YAML 1.1) and ours (1.2) see the same.
The part about Slurm is in :mod:`admin.parallelcluster.queues`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from admin.parallelcluster.parts import (
    GIB,
    Sources,
    action,
    gib,
    iam,
    indented,
    networking,
    session_manager,
    starting,
    yaml,
)
from admin.parallelcluster.queues import scheduling

if TYPE_CHECKING:
    from admin.parallelcluster.answers import Storage


def document(sources: Sources) -> str:
    """The whole file."""
    parts = (_opening, _head_node, _login_nodes, _shared, _directory, scheduling, _closing)
    return "\n".join(text for text in (part(sources) for part in parts) if text)


def _opening(sources: Sources) -> str:
    answers, name = sources.answers, sources.site.cluster.name
    image = f"  CustomAmi: {answers.custom_ami}\n" if answers.custom_ami else ""
    return f"""\
# Cluster {name}: AWS ParallelCluster {answers.parallelcluster}, Slurm {sources.slurm}, secure-slurm, no internet.
# Made by 'secure-slurm parallelcluster render' from secure-slurm.yaml, policy.yaml and the answers file: change those,
# render again, and then
#
#   secure-slurm parallelcluster check {name}.yaml
#   export AWS_STS_REGIONAL_ENDPOINTS=regional
#   pcluster create-cluster --cluster-name {name} --cluster-configuration {name}.yaml \\
#     --suppress-validators type:AdditionalIamPolicyValidator --rollback-on-failure false
#
# That validator asks IAM, which has no endpoint in this region. Suppress no other: without
# CustomSlurmSettingsValidator a setting could replace ParallelCluster's own Prolog, and ours with it.
Region: {answers.region}    # in the jurisdiction {sources.jurisdiction} of policy.yaml
Image:
  Os: {answers.os}
{image}# Instance metadata by version 2 only (a token first), on every node.
Imds:
  ImdsSupport: v2.0
# Seen in bills, and by policies of the organisation that forbid a tag to leave its regions.
Tags:
  - Key: secure-slurm-jurisdiction
    Value: {yaml(sources.jurisdiction)}
"""


def _head_node(sources: Sources) -> str:
    answers, bundle, head = sources.answers, sources.answers.bundle, sources.answers.head
    internal = """\
  # What all nodes share of the head node (/opt/slurm, /home) on EFS; its default is not encrypted.
  SharedStorageType: Efs
  SharedStorageEfsSettings: {Encrypted: true}
"""
    return f"""\
HeadNode:
  InstanceType: {head.instance_type}
{indented(networking(answers.network.subnet, answers.network.head_groups, many=False), 2)}\
  Ssh:
    KeyName: {yaml(answers.key_name)}
  # The metadata service answers root and ParallelCluster's own account only. On login nodes that holds as well. On
  # compute nodes it does not: there secure-slurm-imds does it (the action 'compute configured').
  Imds:
    Secured: true
  LocalStorage:
    # with the account's own key for EBS: no other can be named for a root volume
    RootVolume: {{Size: {gib(head.root_size)}, VolumeType: gp3, Encrypted: true}}
{internal if head.internal == "efs" else ""}\
  Iam:
{indented(iam(bundle, session=sources.has_shell), 4)}\
  CustomActions:
    # Before ParallelCluster starts slurmctld, which does not start, and the stack fails, as long as the filter, what it
    # is told, LuaSocket or one of the hooks that are named below is not there. Puts all of them in place.
    OnNodeStart:
{indented(action(bundle, "head", "start", bundle.created_with), 6)}\
    # After it: accounts, folders, daemons, and the links 99_secure_slurm in prolog.d and epilog.d. Slurm runs what is
    # there in reverse order and stops at the first failure: 99_ comes before ParallelCluster's own 90_, so that nothing
    # of theirs can keep our Epilog from running.
    OnNodeConfigured:
{indented(action(bundle, "head", "configured", bundle.created_with), 6)}\
    # At 'pcluster update-cluster'. An update can change this action and none of the two above: after an upgrade this
    # one names bundle.version, those bundle.created_with.
    OnNodeUpdated:
{indented(action(bundle, "head", "configured", bundle.version), 6)}"""


def _login_nodes(sources: Sources) -> str:
    network, bundle, login = sources.answers.network, sources.answers.bundle, sources.answers.login
    early = starting(sources, "login", login.created_with or bundle.created_with, 8)
    shell = f"          - Policy: {session_manager(bundle)}\n" if sources.has_shell else ""
    return f"""\
LoginNodes:
  Pools:
    - Name: {login.name}
      InstanceType: {login.instance_type}
      Count: {login.count}
{indented(networking(network.login_subnet or network.subnet, network.login_groups), 6)}\
      # There is no S3Access for login nodes: a policy of the site's lets them read the bundle.
      Iam:
        AdditionalIamPolicies:
{shell}          - Policy: {bundle.read_policy}
      # secure-sbatch, secure-srun and secure-salloc; no key and no daemon. An update cannot change the first of these:
      # an upgrade gives the pool another name.
      CustomActions:
{early}        OnNodeConfigured:
{indented(action(bundle, "login", "configured", login.created_with or bundle.created_with), 10)}\
        OnNodeUpdated:
{indented(action(bundle, "login", "configured", bundle.version), 10)}"""


def _shared(sources: Sources) -> str:
    if not sources.answers.shared:
        return ""
    head = """\
# Every node mounts all of these, whatever its queue. Data that one queue alone may see is mounted by a script of that
# queue instead (queues[].before). policy.yaml lists each of these in 'file_systems', or nodes would hold tagged jobs.
SharedStorage:
"""
    return head + "".join(_storage(each, sources.answers.encryption_key) for each in sources.answers.shared)


def _storage(storage: Storage, key: str | None) -> str:
    kms = f"      KmsKeyId: {yaml(key)}\n" if key and storage.id is None else ""
    size = gib(storage.size or GIB)
    head = f"  - Name: {storage.name}\n    MountDir: {yaml(storage.mount)}\n"
    if storage.type == "ebs":
        return f"""\
{head}    StorageType: Ebs
    EbsSettings:
      Size: {size}
      VolumeType: gp3
      Encrypted: true
{kms}      DeletionPolicy: Snapshot    # the data outlives the cluster
"""
    if storage.type == "efs":
        new = f"""\
      Encrypted: true    # ParallelCluster's default is false
{kms}      DeletionPolicy: Retain    # the data outlives the cluster
"""
        there = f"      FileSystemId: {storage.id}    # whether it is encrypted was said when it was made\n"
        return f"""\
{head}    StorageType: Efs
    EfsSettings:
{there if storage.id else new}\
      EncryptionInTransit: true    # by TLS; without it NFS is in clear
"""
    if storage.id:
        return f"{head}    StorageType: FsxLustre\n    FsxLustreSettings:\n      FileSystemId: {storage.id}\n"
    return f"""\
{head}    StorageType: FsxLustre
    FsxLustreSettings:
      StorageCapacity: {size}
      DeploymentType: PERSISTENT_2    # always encrypted; in transit too, where the instance type can
      PerUnitStorageThroughput: 125
{kms}      DeletionPolicy: Retain    # the data outlives the cluster
"""


def _directory(sources: Sources) -> str:
    directory = sources.answers.directory
    if directory is None:
        return ""
    allowed = f"  LdapAccessFilter: {yaml(directory.access_filter)}\n" if directory.access_filter else ""
    return f"""\
# Accounts on the nodes. secure-slurm reads the same directory by itself ('ldap' in secure-slurm.yaml): what sssd keeps
# may be old, and a lost role has to count within a minute.
DirectoryService:
  DomainName: {directory.domain}
  DomainAddr: {yaml(directory.address)}
  PasswordSecretArn: {yaml(directory.password_secret)}
  DomainReadOnlyUser: {yaml(directory.read_only_user)}
  # From the site's archive, on every node. With 'hard' no certificate is taken that this CA has not signed.
  LdapTlsCaCert: {yaml(directory.ca_file or sources.site.ldap.ca_file)}
  LdapTlsReqCert: hard
{allowed}  GenerateSshKeysForUsers: true
  AdditionalSssdConfigs:
    # Who has left the directory is not let in by a cache: no old passwords, and five minutes instead of ninety.
    cache_credentials: false
    entry_cache_timeout: 300
"""


def _closing(sources: Sources) -> str:
    network = sources.answers.network
    functions = f"""\
# ParallelCluster's own functions (they end what a deleted cluster leaves) run in the VPC as well.
DeploymentSettings:
  LambdaFunctionsVpcConfig:
    SubnetIds: [{network.subnet}]
    SecurityGroupIds: [{network.functions_group}]
"""
    logs = """\
# Logs leave a node at once, for an instance that is ended takes its disk along. They hold user names, and no key.
Monitoring:
  Logs:
    CloudWatch: {Enabled: true, RetentionInDays: 3653, DeletionPolicy: Retain}
  Dashboards:
    CloudWatch: {Enabled: false}
"""
    return logs + functions if network.functions_group else logs
