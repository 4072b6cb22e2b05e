"""Where data lies: encrypted, tied to no bucket that nobody has looked at, and no password in the template. Pure.

FSx copies between Lustre and a bucket by itself, past the VPC's endpoints and their policies: a file system with an
ExportPath is a way out for whoever may write a file.
"""

from __future__ import annotations

from collections.abc import Iterator

from admin.vpc.machines import named_groups, unknown
from admin.vpc.network import only
from admin.vpc.template import Finding, Template, referred
from admin.vpc.things import unlike_default
from admin.vpc.types import words
from conf.quote import quote

_OF_KIND = {
    "LustreConfiguration": words(
        "AutomaticBackupRetentionDays CopyTagsToBackups DailyAutomaticBackupStartTime DataCompressionType",
        "DataReadCacheConfiguration DeploymentType DriveCacheType EfaEnabled MetadataConfiguration",
        "PerUnitStorageThroughput ThroughputCapacity WeeklyMaintenanceStartTime",
    ),
    "OpenZFSConfiguration": words(
        "AutomaticBackupRetentionDays CopyTagsToBackups CopyTagsToVolumes DailyAutomaticBackupStartTime DeploymentType",
        "DiskIopsConfiguration Options ReadCacheConfiguration RootVolumeConfiguration ThroughputCapacity",
        "WeeklyMaintenanceStartTime",
    ),
}


def volume(template: Template, name: str) -> Iterator[Finding]:
    """A disk must be encrypted, whatever the account's default is."""
    yield from only(template, template.properties(name), "Encrypted", "true", "vpc.property", or_absent=False)


def file_system(template: Template, name: str) -> Iterator[Finding]:
    """A shared file system must be encrypted (EFS's default is not), have IPv4 only, and be tied to no bucket."""
    node = template.properties(name)
    yield from only(template, node, "NetworkType", "IPV4", "vpc.address", or_absent=True)
    if template.type_of(name) == "AWS::EFS::FileSystem":
        yield from only(template, node, "Encrypted", "true", "vpc.property", or_absent=False)
        return
    yield from named_groups(template, node)
    yield from unlike_default(template, node, ("SecurityGroupIds",), quote(name))
    for kind, known in _OF_KIND.items():
        for settings in template.children(node, kind):
            for key in template.keys(settings):
                if key.value not in known:
                    yield unknown(key, kind)


def secret(template: Template, name: str) -> Iterator[Finding]:
    """A secret must not be written into the template."""
    yield from _unwritten(template, name, "SecretString")


def password(template: Template, name: str) -> Iterator[Finding]:
    """Nor must a directory's password."""
    yield from _unwritten(template, name, "Password")


def _unwritten(template: Template, name: str, key: str) -> Iterator[Finding]:
    for text, where in template.texts_of(template.properties(name), key):
        hidden = str(template.parameter(referred(text)).get("NoEcho")).lower() == "true"
        if not hidden and not text.startswith("{{resolve:secretsmanager:"):
            yield Finding(
                "vpc.property",
                where,
                "a secret in the template, or in a parameter that is shown",
                "GenerateSecretString, {{resolve:secretsmanager:...}}, or a parameter with NoEcho",
            )
