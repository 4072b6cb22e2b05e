"""More ways to break a shipped example: what hides in a setting, what trust stands on, what the answers do not name."""

from __future__ import annotations

from tests.testbed.pcluster_examples import Broken, one

_FIRST = "      - JobSubmitPlugins: lua\n"
_CACHE = "    entry_cache_timeout: 300"


def setting(name: str, line: str, check: str, says: str, fix: str) -> Broken:
    """One entry more in CustomSlurmSettings."""
    return one(name, "isolated", _FIRST, f"{_FIRST}      - {line}\n", check, line[:12], says, fix)


def part(name: str, text: str, check: str, says: str, fix: str) -> Broken:
    """One key more at the top of the file."""
    return one(name, "isolated", "^Image:", f"{text}\nImage:", check, text[:10], says, fix)


def sssd(name: str, line: str, check: str, says: str, fix: str) -> Broken:
    """One line more for sssd."""
    return one(name, "isolated-ad", _CACHE, f"{_CACHE}\n    {line}", check, line[:10], says, fix)


MORE = (
    # what ParallelCluster compares with its list is a key; what slurm.conf gets is a line
    setting("hidden-in-key", "'Foo=1 Prolog': /x", "setting-hidden", "more than one", "the name alone"),
    setting(
        "hidden-in-value", "MCSParameters: 'x Prolog=/x'", "setting-hidden", "more than one setting", "entry of its own"
    ),
    setting("comment-in-value", "MCSParameters: 'x # y'", "setting-hidden", "or less", "entry of its own"),
    setting("include-in-key", "'Include /shared/x': y", "setting-hidden", "no name of a setting", "the name alone"),
    setting("no-value", "KillOnBadExit: ''", "setting-value", "would not start", "as slurm.conf has it"),
    setting(
        "hidden-twice", "{KillOnBadExit: 0, killonbadexit: 1}", "setting-hidden", "stands there twice", "write one"
    ),
    one(
        "hidden-in-feature",
        "isolated",
        r"\{Feature: eu\}",
        "{Feature: eu State=DOWN}",
        "setting-hidden",
        "Feature",
        "more than one",
        "entry of its own",
    ),
    one(
        "feature-twice",
        "isolated",
        r"\{Feature: eu\}",
        "{Feature: eu, feature: uk}",
        "setting-hidden",
        "feature: uk",
        "stands there twice",
        "write one",
    ),
    # what everything stands on
    setting("no-auth", "AuthType: auth/none", "setting-trust", "that they are anybody", "auth/munge"),
    setting("no-cred", "CredType: cred/none", "setting-trust", "run anything", "cred/munge"),
    setting("slurmd-user", "SlurmdUser: slurm", "setting-trust", "no encrypted scratch", "root"),
    setting("no-cgroup", "ProctrackType: proctrack/pgid", "setting-trust", "leaves running", "proctrack/cgroup"),
    setting("cluster-name", "ClusterName: other", "setting-trust", "every record", "leave it out"),
    setting(
        "program-in-home", "HealthCheckProgram: /home/a/check", "setting-program", "users may write", "in the image"
    ),
    setting(
        "plugins-in-shared", "PluginDir: /usr/lib/slurm:/scratch/x", "setting-program", "'/scratch/x'", "in the image"
    ),
    setting("state-in-tmp", "StateSaveLocation: /tmp/state", "setting-program", "users may write", "in the image"),
    setting(
        "records-sent", "JobCompType: jobcomp/elasticsearch", "records-sent", "its script", "leave JobCompType out"
    ),
    setting(
        "records-host", "AccountingStorageExternalHost: a.example.org", "records-elsewhere", "without TLS", "Database"
    ),
    setting("timeout-text", "MessageTimeout: long", "setting-timeout", "no number of seconds", "MessageTimeout: 120"),
    # truth values in other words
    one(
        "text-false",
        "isolated",
        "Encrypted: true",
        "Encrypted: 'false'",
        "yaml",
        "Encrypted",
        "a text here",
        "Encrypted: true",
    ),
    one(
        "number-false", "isolated", "Secured: true", "Secured: 0", "yaml", "Secured: 0", "a text here", "Secured: true"
    ),
    # what comes from elsewhere
    part(
        "cookbook",
        "DevSettings: {Cookbook: {ChefCookbook: 's3://somebody/x.tgz'}}",
        "part-unseen",
        "nobody signed",
        "leave",
    ),
    part("resources", "AdditionalResources: https://a.example/x.yaml", "part-unseen", "no file", "leave it out"),
    part("packages", "AdditionalPackages: {IntelSoftware: {}}", "part-unseen", "from the internet", "into the image"),
    one(
        "bucket-of-somebody",
        "isolated",
        r'Script: "s3://[a-z-]*/',
        'Script: "s3://somebody/',
        "answers-bucket",
        "OnNodeStart",
        "'s3://somebody/",
        "the bundle's bucket",
    ),
    Broken(
        "key-of-somebody",
        "isolated",
        (("answers", "public_key: .*", "public_key: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),),
        "answers-key",
        "cNgwzSdfa4",
        "bundle.public_key",
        "write AAAA",
    ),
    one(
        "old-version",
        "isolated",
        "/secure-slurm-[0-9.]*.tar.gz",
        "/secure-slurm-0.0.1.tar.gz",
        "answers-version",
        "0.0.1",
        "do not name",
        "write ",
    ),
    one(
        "subnet-elsewhere",
        "isolated",
        "SubnetIds: .*",
        "SubnetIds: [subnet-0badbadbadbadbad0]",
        "answers-network",
        "subnet-0bad",
        "no subnet of the answers",
        "vpc-check",
    ),
    one(
        "login-as-head",
        "isolated",
        "sg-0a1b2c3d4e5f60012",
        "sg-0a1b2c3d4e5f60011",
        "answers-network",
        "sg-0a1b2c3d4e5f60011",
        "do not give them",
        "network.login_groups",
    ),
    one(
        "functions",
        "isolated",
        r"^DeploymentSettings:\n(?:  .*\n)*",
        "",
        "functions-outside",
        "# Cluster",
        "outside the VPC",
        "LambdaFunctionsVpcConfig",
    ),
    one(
        "account",
        "isolated-ad",
        r"(:secretsmanager:[a-z0-9-]+:)[0-9]+",
        r"\g<1>999999999999",
        "arn-account",
        "999999999999",
        "999999999999",
        "of this account",
    ),
    one(
        "groups-of-pcluster",
        "isolated",
        "^    SecurityGroups: .*\n",
        "",
        "groups-open",
        "Networking",
        "a rule to everywhere",
        "vpc-check",
    ),
    Broken(
        "parameter",
        "isolated-ad",
        (
            ("cluster", "AmazonSSMManagedInstanceCore", "CloudWatchAgentServerPolicy"),
            ("cluster", "AmazonSSMManagedInstanceCore", "CloudWatchAgentServerPolicy"),
            ("cluster", "PasswordSecretArn: .*", "PasswordSecretArn: arn:aws:ssm:eu-west-1:111122223333:parameter/x"),
            ("answers", ", ssm,", ","),
        ),
        "endpoint-missing",
        "# Cluster",
        "parameter store",
        "add ssm",
    ),
    # logs, copies, the directory
    one(
        "no-logs",
        "isolated",
        r"\{Enabled: true, R",
        "{Enabled: false, R",
        "logs-lost",
        "Enabled: false",
        "end with its",
        "true",
    ),
    one(
        "logs-deleted",
        "isolated",
        "3653, DeletionPolicy: Retain",
        "3653, DeletionPolicy: Delete",
        "logs-lost",
        "Delete",
        "with the cluster",
        "Retain",
    ),
    part(
        "lustre-copies",
        "SharedStorage:\n  - {Name: x, MountDir: /x, StorageType: FsxLustre, FsxLustreSettings: {ExportPath: 's3://x'}}",
        "storage-copied",
        "past the endpoint's policy",
        "leave ExportPath out",
    )._replace(at="ExportPath"),
    part(
        "file-cache",
        "SharedStorage:\n  - {Name: x, MountDir: /x, StorageType: FileCache, FileCacheSettings: {}}",
        "storage-copied",
        "elsewhere",
        "of this VPC",
    )._replace(at="FileCache"),
    sssd("sssd-address", "ldap_backup_uri: ldap://a.example", "directory-clear", "in clear", "ldaps://"),
    sssd("sssd-ca", "ldap_tls_cacert: /home/a/ca.pem", "directory-unverified", "another CA", "LdapTlsCaCert"),
    one(
        "sssd-cache",
        "isolated-ad",
        "cache_credentials: false",
        "cache_credentials: true",
        "directory-cached",
        "cache_cred",
        "kept password",
        "false",
    ),
    one(
        "no-sssd",
        "isolated-ad",
        r"  AdditionalSssdConfigs:\n(?:    .*\n)*",
        "",
        "directory-cached",
        "DirectoryService",
        "default",
        "false",
    ),
    one(
        "no-update",
        "isolated",
        r"    OnNodeUpdated:\n(?:      .*\n)*(?=\nLogin)",
        "",
        "action-missing",
        "CustomActions",
        "a new version",
        "OnNodeUpdated",
    ),
    one(
        "full-access",
        "isolated",
        "AmazonSSMManagedInstanceCore",
        "AmazonSSMFullAccess",
        "role-wide",
        "AmazonSSMFull",
        "anywhere",
        "what the node needs",
    ),
    one(
        "mounted-over-ours",
        "isolated",
        "EphemeralVolume: {MountDir: /scratch}",
        "EphemeralVolume: {MountDir: /opt}",
        "storage-covers",
        "MountDir: /opt",
        "/opt/secure-slurm",
        "another MountDir",
    ),
    part(
        "mounted-in-ours",
        "SharedStorage:\n  - {Name: x, MountDir: etc/secure-slurm/ec2, StorageType: Efs, EfsSettings: {}}",
        "storage-covers",
        "has root here",
        "another MountDir",
    )._replace(at="etc/secure-slurm/ec2"),
    Broken(
        "half-the-world",
        "isolated",
        (
            ("cluster", "^    SecurityGroups: .*\n", ""),
            ("cluster", "^    KeyName:", "    AllowedIps: 0.0.0.0/1\n    KeyName:"),
        ),
        "ssh-open",
        "AllowedIps",
        "every address",
        "network of the admins",
    ),
)
