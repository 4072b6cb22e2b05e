"""Our rules about disks, shared file systems and the directory: encrypted, verified, and where they may be seen."""

from __future__ import annotations

from urllib.parse import urlsplit

from admin.findings import Finding
from admin.parallelcluster import facts
from admin.parallelcluster.look import Findings, Look, Rule, below, error, text, warning
from conf.quote import quote
from conf.rawchecks import Raw, section
from conf.surroundings import dataset_paths, owned_file_systems
from conf.yamlmarks import Where

_ADDRESSES = frozenset({"ldap_uri", "ldap_backup_uri", "ldap_chpass_uri", "ldap_chpass_backup_uri"})
"""Of sssd-ldap(5): where it asks."""


def disks(look: Look) -> Findings:
    """Root volumes, and what ParallelCluster shares of the head node."""
    local = ("LocalStorage", "RootVolume")
    places: list[tuple[Raw, Where, str]] = [
        (below(look.raw, ("HeadNode", *local)), ("HeadNode", *local), "the head node's")
    ]
    for queue in look.queues():
        raw = below(queue.raw, ("ComputeSettings", *local))
        places.append((raw, (*queue.where, "ComputeSettings", *local), f"the queue {quote(queue.name)}'s"))
    for raw, where, whose in places:
        if raw.get("Encrypted") is False:
            yield error(
                "disk-clear",
                (*where, "Encrypted"),
                f"{whose} root volume would not be encrypted",
                "write Encrypted: true, or leave it out",
            )
    head = section(look.raw, "HeadNode")
    settings = section(head, "SharedStorageEfsSettings")
    if text(head, "SharedStorageType") == "Efs" and settings.get("Encrypted") is not True:
        yield error(
            "storage-clear",
            ("HeadNode", "SharedStorageEfsSettings" if settings else "SharedStorageType"),
            "/opt/slurm and /home would lie on EFS in clear, which is ParallelCluster's default",
            "add SharedStorageEfsSettings: {Encrypted: true}",
        )


def shared(look: Look) -> Findings:
    """Shared file systems, at rest and on the wire."""
    for raw, where in look.storages():
        name = quote(text(raw, "Name"))
        ebs, efs = section(raw, "EbsSettings"), section(raw, "EfsSettings")
        if ebs.get("Encrypted") is False:
            yield error(
                "storage-clear",
                (*where, "EbsSettings", "Encrypted"),
                f"the shared volume {name} would not be encrypted",
                "write Encrypted: true",
            )
        if text(raw, "StorageType") == "Efs":
            if "FileSystemId" not in efs and efs.get("Encrypted") is not True:
                yield error(
                    "storage-clear",
                    (*where, "EfsSettings", "Encrypted"),
                    f"the file system {name} would lie on EFS in clear, which is ParallelCluster's default",
                    "write EfsSettings: {Encrypted: true}",
                )
            if efs.get("EncryptionInTransit") is not True:
                yield error(
                    "storage-transit",
                    (*where, "EfsSettings", "EncryptionInTransit"),
                    f"the file system {name} would be mounted without TLS",
                    "write EncryptionInTransit: true",
                )
        yield from _outlives(raw, where)
        if text(section(raw, "FsxLustreSettings"), "DeploymentType") == "SCRATCH_1":
            yield error(
                "storage-transit",
                (*where, "FsxLustreSettings", "DeploymentType"),
                f"the file system {name} is of a type that is never encrypted in transit",
                "write DeploymentType: PERSISTENT_2 or SCRATCH_2",
            )


def covered(look: Look) -> Findings:
    """Nothing is mounted over what root runs or keeps here."""
    places: list[tuple[str, Where]] = [(text(raw, "MountDir"), (*where, "MountDir")) for raw, where in look.storages()]
    local = ("ComputeSettings", "LocalStorage", "EphemeralVolume")
    for queue in look.queues():
        places.append((text(below(queue.raw, local), "MountDir"), (*queue.where, *local, "MountDir")))
    for mount, where in places:
        path = mount if mount.startswith("/") else f"/{mount}"
        own = next((each for each in facts.OURS if facts.lies_in(path, [each]) or facts.lies_in(each, [path])), "")
        if mount and own:
            yield error(
                "storage-covers",
                where,
                f"{path} would lie over or in {own}: whoever may write to it has root here, or our secrets",
                "choose another MountDir, such as /data",
            )


def copied(look: Look) -> Findings:
    """File systems that FSx copies between itself and a bucket, past every endpoint and its policy."""
    for raw, where in look.storages():
        lustre = section(raw, "FsxLustreSettings")
        for key in ("AutoImportPolicy", "DataRepositoryAssociations", "ExportPath", "ImportPath"):
            if key in lustre:
                yield error(
                    "storage-copied",
                    (*where, "FsxLustreSettings", key),
                    f"FSx itself copies between {quote(text(raw, 'Name'))} and a bucket, past the endpoint's policy: "
                    "who writes a file there sends it",
                    f"leave {key} out; copy with 'aws s3' on a node, through the endpoint",
                )
        if text(raw, "StorageType") == "FileCache":
            yield error(
                "storage-copied",
                (*where, "StorageType"),
                "a file cache is a copy of files that lie elsewhere, and writes changes back there by itself",
                "mount a file system of this VPC",
            )


def _outlives(raw: Raw, where: Where) -> Findings:
    """Of a file system that the cluster makes: whether it is still there when the cluster is not."""
    for key, one in (
        ("EbsSettings", "VolumeId"),
        ("EfsSettings", "FileSystemId"),
        ("FsxLustreSettings", "FileSystemId"),
    ):
        if text(raw, "StorageType") != key.removesuffix("Settings"):
            continue
        settings = section(raw, key)
        if one not in settings and text(settings, "DeletionPolicy") in {"", "Delete"}:
            yield warning(
                "storage-deleted",
                (*where, key, "DeletionPolicy"),
                f"the data in {quote(text(raw, 'Name'))} is deleted with the cluster, or once it is not in this file",
                f"write {key}: {{DeletionPolicy: {'Snapshot' if key == 'EbsSettings' else 'Retain'}}}",
            )


def everywhere(look: Look) -> Findings:
    """ParallelCluster mounts a shared file system on every node, those of open queues too."""
    if look.policy is None:
        return
    protected = [*dataset_paths(look.policy), *owned_file_systems(look.policy)]
    open_queues = [each.name for each in look.queues() if not look.demands(each.name)]
    listed = look.policy.jurisdictions[look.jurisdiction].file_systems if look.jurisdiction else None
    for raw, where in look.storages():
        mount = text(raw, "MountDir")
        path = mount if mount.startswith("/") else f"/{mount}"
        at = (*where, "MountDir")
        inside = [each for each in protected if facts.lies_in(each, [path]) or facts.lies_in(path, [each])]
        if inside and open_queues:
            yield error(
                "storage-everywhere",
                at,
                f"{path} has what the policy protects ({inside[0]}), and is mounted on the nodes of "
                f"{quote(open_queues[0])} too, which take jobs without a tag: each of these nodes would drain",
                "take it out of SharedStorage, and mount it by a script of the queue that demands a tag",
            )
        if listed is not None and path not in listed:
            yield _unlisted(at, path, look)
    if listed is not None and look.queues():
        for path in facts.EXPORTED:
            if path not in listed:
                yield _unlisted(("Region",), path, look)


def _unlisted(where: Where, path: str, look: Look) -> Finding:
    return error(
        "storage-unlisted",
        where,
        f"{path} is mounted on every node, and is none of the file_systems of {quote(look.jurisdiction)} in "
        "policy.yaml: nodes would hold every tagged job",
        f"add {path} to jurisdictions.{look.jurisdiction}.file_systems",
    )


def directory(look: Look) -> Findings:
    """Active Directory: by LDAPS, verified, and the one that secure-slurm reads."""
    raw = section(look.raw, "DirectoryService")
    if not raw:
        return
    where = ("DirectoryService",)
    addresses = [each.strip() for each in text(raw, "DomainAddr").split(",") if each.strip()]
    for each in addresses:
        if urlsplit(each).scheme != "ldaps":
            yield error(
                "directory-clear",
                (*where, "DomainAddr"),
                f"{quote(each)} is not ldaps://: passwords would cross the network in clear",
                "write it with ldaps:// in front",
            )
    if text(raw, "LdapTlsReqCert") not in {"", "hard", "demand"}:
        yield error(
            "directory-unverified",
            (*where, "LdapTlsReqCert"),
            f"with LdapTlsReqCert {quote(text(raw, 'LdapTlsReqCert'))} any certificate is taken: whoever answers gets "
            "the passwords",
            "write LdapTlsReqCert: hard",
        )
    if "LdapTlsCaCert" not in raw:
        yield warning(
            "directory-ca",
            where,
            "no LdapTlsCaCert: every CA of the operating system may vouch for the directory",
            "name the CA of the directory's certificate",
        )
    yield from _sssd(section(raw, "AdditionalSssdConfigs"), (*where, "AdditionalSssdConfigs"))
    yield from _same_directory(look, addresses)


def _sssd(extra: Raw, where: Where) -> Findings:
    """What is merged over ParallelCluster's own configuration of sssd, and wins."""
    for key, value in extra.items():
        if key == "ldap_auth_disable_tls_never_use_in_production" and str(value).lower() == "true":
            yield error(
                "directory-clear",
                (*where, key),
                "passwords would cross the network in clear",
                "leave it out",
            )
        if key in _ADDRESSES and any(urlsplit(each.strip()).scheme != "ldaps" for each in str(value).split(",")):
            yield error(
                "directory-clear",
                (*where, key),
                f"{key} replaces or joins DomainAddr, and {quote(value)} is not ldaps://: passwords would cross the "
                "network in clear",
                "leave it out, or write ldaps://",
            )
        if key in {"ldap_tls_cacert", "ldap_tls_cacertdir"}:
            yield error(
                "directory-unverified",
                (*where, key),
                "this replaces LdapTlsCaCert: another CA may vouch for the directory",
                "leave it out, and write LdapTlsCaCert",
            )
        if key == "ldap_tls_reqcert" and str(value).lower() not in {"hard", "demand"}:
            yield error(
                "directory-unverified",
                (*where, key),
                "this replaces LdapTlsReqCert, and any certificate is taken",
                "leave it out",
            )
    if str(extra.get("cache_credentials", "true")).lower() != "false":
        yield warning(
            "directory-cached",
            (*where, "cache_credentials") if "cache_credentials" in extra else where,
            "who has left the directory is let in by a kept password (ParallelCluster's default)",
            "write AdditionalSssdConfigs: {cache_credentials: false}",
        )


def _same_directory(look: Look, addresses: list[str]) -> Findings:
    if look.site is None:
        return
    hosts = {urlsplit(each).hostname for each in addresses}
    ours = {urlsplit(each).hostname for each in look.site.ldap.uris}
    if addresses and not hosts & ours:
        yield warning(
            "directory-other",
            ("DirectoryService", "DomainAddr"),
            f"secure-slurm reads its groups from {', '.join(sorted(map(str, ours)))}, and accounts come from "
            f"{', '.join(sorted(map(str, hosts)))}",
            "let both name the same directory, or make sure that one name is one person in both",
        )
    if look.site.ldap.flavour != "active-directory":
        yield warning(
            "directory-other",
            ("DirectoryService",),
            "ParallelCluster reads Active Directory, but ldap.flavour in secure-slurm.yaml is openldap",
            "write ldap.flavour: active-directory",
        )


RULES: tuple[Rule, ...] = (disks, shared, covered, copied, everywhere, directory)
