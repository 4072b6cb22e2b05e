"""Ways out by what a template does not show: things that it names by their ids, and defaults that nobody wrote."""

from __future__ import annotations

from .vpc_tampers import AD, OURS, VAULT, Tamper, edit, resource

_MACHINE = ("ImageId: ami-0123456789abcdef0", "MetadataOptions: {HttpTokens: required}")
_OURS = '- {DeviceIndex: "0", SubnetId: !Ref ClusterSubnet, GroupSet: [!Ref AdminGroup]}'
_CLUSTER = "Properties: {SubnetId: !Ref ClusterSubnet, RouteTableId: !Ref Routes}"


def more(name: str, rule: str, line: str, type_: str, *properties: str) -> Tamper:
    """A resource that may be there, but not like this."""
    return Tamper(name, rule, line, resource("Way", type_, *properties))


MORE = (
    # bridges: a machine that is in two networks
    more(
        "an interface of somewhere else",
        "vpc.elsewhere",
        "NetworkInterfaceId: eni-0123456789abcdef0",
        "AWS::EC2::Instance",
        *_MACHINE,
        "NetworkInterfaces:",
        f"  {_OURS}",
        '  - {DeviceIndex: "1", NetworkInterfaceId: eni-0123456789abcdef0}',
    ),
    more(
        "an interface in another VPC",
        "vpc.elsewhere",
        "SubnetId: subnet-0123456789abcdef0",
        "AWS::EC2::Instance",
        *_MACHINE,
        "NetworkInterfaces:",
        f"  {_OURS}",
        '  - {DeviceIndex: "1", SubnetId: subnet-0123456789abcdef0, GroupSet: [!Ref AdminGroup]}',
    ),
    more(
        "an interface by itself in another VPC",
        "vpc.elsewhere",
        "SubnetId: subnet-0123456789abcdef0",
        "AWS::EC2::NetworkInterface",
        "SubnetId: subnet-0123456789abcdef0",
        "GroupSet: [!Ref AdminGroup]",
    ),
    more(
        "an interface that is attached later",
        "vpc.elsewhere",
        "NetworkInterfaceId: eni-0123456789abcdef0",
        "AWS::EC2::NetworkInterfaceAttachment",
        'DeviceIndex: "1"',
        "InstanceId: !Ref Machine",
        "NetworkInterfaceId: eni-0123456789abcdef0",
    ),
    edit(
        "a subnet of another VPC",
        "vpc.elsewhere",
        "VpcId: !Ref Vpc\n      AvailabilityZone: !Ref ZoneA",
        "VpcId: vpc-0123456789abcdef0\n      AvailabilityZone: !Ref ZoneA",
    ),
    Tamper(
        "a subnet in a text parameter",
        "vpc.elsewhere",
        "SubnetId: !Ref",
        ((_CLUSTER, _CLUSTER.replace("ClusterSubnet", "PrivateZoneName")),),
    ),
    edit(
        "a subnet with the main route table",
        "vpc.route",
        _CLUSTER,
        "Properties: {SubnetId: !Ref VaultSubnetA, RouteTableId: !Ref Routes}",
        "  ClusterSubnet:",
    ),
    Tamper(
        "a subnet whose table is there at times",
        "vpc.route",
        "  ClusterSubnet:",
        ((f"    {_CLUSTER}", f"    Condition: HasKms\n    {_CLUSTER}"),),
    ),
    more(
        "file system in another VPC",
        "vpc.elsewhere",
        "SubnetId: subnet-0123456789abcdef0",
        "AWS::EFS::MountTarget",
        "FileSystemId: !Ref Files",
        "SubnetId: subnet-0123456789abcdef0",
        "SecurityGroups: [!Ref ClusterGroup]",
    ),
    Tamper(
        "Vault's machines in another VPC",
        "vpc.elsewhere",
        "VPCZoneIdentifier",
        (("VPCZoneIdentifier: [!Ref SubnetA,", "VPCZoneIdentifier: [subnet-0123456789abcdef0,"),),
        VAULT,
    ),
    Tamper(
        "Vault's balancer in another VPC",
        "vpc.elsewhere",
        "Subnets: [",
        (("Subnets: [!Ref SubnetA,", "Subnets: [subnet-0123456789abcdef0,"),),
        VAULT,
    ),
    Tamper(
        "the directory in another VPC",
        "vpc.elsewhere",
        "SubnetIds:",
        (
            (
                "SubnetIds: [!Ref DirectorySubnetA, !Ref DirectorySubnetB]",
                "SubnetIds: [subnet-0123456789abcdef0, !Ref DirectorySubnetB]",
            ),
        ),
        AD,
    ),
    Tamper(
        "what a balancer hands to, elsewhere",
        "vpc.elsewhere",
        "TargetGroupArn",
        (("TargetGroupArn: !Ref Active", "TargetGroupArn: !Ref TransitKey"),),
        VAULT,
    ),
    # what was made elsewhere, and says how
    Tamper(
        "Vault's machines from another launch template",
        "vpc.elsewhere",
        "LaunchTemplateId",
        (("LaunchTemplateId: !Ref Launch,", "LaunchTemplateId: lt-0123456789abcdef0,"),),
        VAULT,
    ),
    more(
        "a machine from another launch template",
        "vpc.elsewhere",
        "LaunchTemplateName: x",
        "AWS::EC2::Instance",
        "SubnetId: !Ref ClusterSubnet",
        "SecurityGroupIds: [!Ref AdminGroup]",
        'LaunchTemplate: {LaunchTemplateName: x, Version: "1"}',
    ),
    edit(
        "name servers by an id",
        "vpc.elsewhere",
        "DhcpOptionsId: !Ref DhcpOptions",
        "DhcpOptionsId: dopt-0123456789abcdef0",
    ),
    more(
        "another DNS firewall before it",
        "vpc.elsewhere",
        "FirewallRuleGroupId: rslvr-frg-0123",
        "AWS::Route53Resolver::FirewallRuleGroupAssociation",
        "FirewallRuleGroupId: rslvr-frg-0123",
        "VpcId: !Ref Vpc",
        "Priority: 100",
    ),
    edit(
        "sent on by a rule that blocks",
        "vpc.dns",
        "          Action: ALLOW\n",
        "          Action: BLOCK\n          BlockResponse: OVERRIDE\n          BlockOverrideDomain: a.example.com\n",
        "BlockOverrideDomain",
    ),
    more(
        "a private name of somebody else's",
        "vpc.zone",
        "ResourceRecords: [a.example.com]",
        "AWS::Route53::RecordSet",
        "HostedZoneId: !Ref PrivateZone",
        "Name: x",
        "Type: CNAME",
        "ResourceRecords: [a.example.com]",
    ),
    more(
        "private names from another server",
        "vpc.zone",
        "Type: NS",
        "AWS::Route53::RecordSet",
        "HostedZoneId: !Ref PrivateZone",
        "Name: x",
        "Type: NS",
        "ResourceRecords: [ns.example.com]",
    ),
    # the VPC's default group, with its rule to everywhere
    more(
        "a machine without groups",
        "vpc.egress-default",
        "  Way:",
        "AWS::EC2::Instance",
        *_MACHINE,
        "SubnetId: !Ref ClusterSubnet",
    ),
    more(
        "an interface without groups",
        "vpc.egress-default",
        '- {DeviceIndex: "0"',
        "AWS::EC2::Instance",
        *_MACHINE,
        "NetworkInterfaces:",
        '  - {DeviceIndex: "0", SubnetId: !Ref ClusterSubnet}',
    ),
    more(
        "an interface by itself without groups",
        "vpc.egress-default",
        "  Way:",
        "AWS::EC2::NetworkInterface",
        "SubnetId: !Ref ClusterSubnet",
    ),
    more(
        "a file system without groups",
        "vpc.egress-default",
        "  Way:",
        "AWS::FSx::FileSystem",
        "FileSystemType: LUSTRE",
        "SubnetIds: [!Ref ClusterSubnet]",
    ),
    Tamper(
        "Vault's machines without groups",
        "vpc.egress-default",
        "LaunchTemplateData:",
        (("        SecurityGroupIds: [!Ref SecurityGroup]\n", ""),),
        VAULT,
    ),
    # data that AWS carries out by itself
    more(
        "a file system that copies into a bucket",
        "vpc.property",
        "ExportPath",
        "AWS::FSx::FileSystem",
        "FileSystemType: LUSTRE",
        "SubnetIds: [!Ref ClusterSubnet]",
        "SecurityGroupIds: [!Ref ClusterGroup]",
        "LustreConfiguration: {DeploymentType: SCRATCH_2, ExportPath: 's3://somebody'}",
    ),
    Tamper(
        "a balancer's log in a bucket",
        "vpc.balancer",
        "access_logs.s3.bucket",
        (
            (
                '        - {Key: load_balancing.cross_zone.enabled, Value: "true"}\n',
                "        - {Key: access_logs.s3.bucket, Value: somebody}\n",
            ),
        ),
        VAULT,
    ),
    more(
        "a function behind a balancer",
        "vpc.balancer",
        "TargetType: lambda",
        "AWS::ElasticLoadBalancingV2::TargetGroup",
        "TargetType: lambda",
    ),
    more(
        "a target that is picked",
        "vpc.balancer",
        "!Select",
        "AWS::ElasticLoadBalancingV2::TargetGroup",
        "TargetType: ip",
        "VpcId: !Ref Vpc",
        "Targets: [{Id: !Select [0, [192.0.2.1, 10.0.0.1]]}]",
    ),
    more(
        "a target in a parameter",
        "vpc.balancer",
        "!Ref PrivateZoneName",
        "AWS::ElasticLoadBalancingV2::TargetGroup",
        "TargetType: ip",
        "VpcId: !Ref Vpc",
        "Targets: [{Id: !Ref PrivateZoneName}]",
    ),
    edit(
        "an endpoint for services of AWS",
        "vpc.endpoint-policy",
        f'Principal: "*"\n            Action: "cloudwatch:*"\n            Resource: "*"\n            {OURS}',
        'Principal: {Service: "*"}\n            Action: "cloudwatch:*"\n            Resource: "*"',
        "- Sid: ThisAccount",
    ),
    edit("a VPC with other people's addresses", "vpc.property", "CidrBlock: !Ref VpcCidr", "CidrBlock: 52.94.0.0/16"),
    edit("a VPC with all addresses", "vpc.property", "CidrBlock: !Ref VpcCidr", "CidrBlock: 0.0.0.0/0"),
    # in clear
    more("a disk in clear", "vpc.property", "  Way:", "AWS::EC2::Volume", "AvailabilityZone: !Ref ZoneA", "Size: 1"),
    Tamper(
        "Vault's disks in clear",
        "vpc.property",
        "Encrypted: false",
        (("Encrypted: true,", "Encrypted: false,"),),
        VAULT,
    ),
    Tamper(
        "the directory's password in the template",
        "vpc.property",
        "Password: hunter2",
        (('Password: !Sub "{{resolve:secretsmanager:${DirectoryAdminPassword}:SecretString}}"', "Password: hunter2"),),
        AD,
    ),
    more(
        "a secret that is shown",
        "vpc.property",
        "SecretString: !Ref PrivateZoneName",
        "AWS::SecretsManager::Secret",
        "SecretString: !Ref PrivateZoneName",
    ),
    # given to others afterwards
    *(
        edit(f"{action} through an endpoint", "vpc.endpoint-policy", f"              - {action}\n", "", endpoint)
        for action, endpoint in (
            ("s3:PutReplicationConfiguration", "  S3Endpoint:"),
            ("dynamodb:PutResourcePolicy", "  DynamoDbEndpoint:"),
            ("secretsmanager:PutResourcePolicy", "  SecretsManagerEndpoint:"),
            ("ssm:StartAutomationExecution", "  SsmEndpoint:"),
            ("logs:PutSubscriptionFilter", "  LogsEndpoint:"),
            ("ec2:CreateRoute", "  Ec2Endpoint:"),
        )
    ),
    edit(
        "denied to somebody only",
        "vpc.endpoint-policy",
        'Effect: Deny\n            Principal: "*"\n            Action:\n              - secretsmanager',
        "Effect: Deny\n            Principal: {AWS: x}\n            Action:\n              - secretsmanager",
        "  SecretsManagerEndpoint:",
    ),
    edit(
        "denied under a condition",
        "vpc.endpoint-policy",
        "          - Sid: NoSharing\n            Effect: Deny\n",
        "          - Sid: NoSharing\n            Condition: {Bool: {x: true}}\n            Effect: Deny\n",
        "  S3Endpoint:",
    ),
    # what a role may do
    Tamper(
        "a role for everything",
        "vpc.role",
        "AdministratorAccess",
        (("policy/AmazonSSMManagedInstanceCore", "policy/AdministratorAccess"),),
        VAULT,
    ),
    Tamper(
        "a role that makes stacks",
        "vpc.role",
        "- Sid: Program",
        (("Action: s3:GetObject", "Action: 'cloudformation:*'"),),
        VAULT,
    ),
    Tamper(
        "a role for all but",
        "vpc.role",
        "- Sid: Program",
        (("Action: s3:GetObject", "NotAction: s3:GetObject"),),
        VAULT,
    ),
    more(
        "a policy that makes routes",
        "vpc.role",
        "Statement:",
        "AWS::IAM::ManagedPolicy",
        "PolicyDocument:",
        "  Statement: {Effect: Allow, Action: 'ec2:Create*', Resource: '*'}",
    ),
    # and what is left
    more(
        "a machine without a subnet",
        "vpc.elsewhere",
        "  Way:",
        "AWS::EC2::Instance",
        *_MACHINE,
        "SecurityGroupIds: [!Ref AdminGroup]",
    ),
    edit(
        "a private zone that is there at times",
        "vpc.dns",
        "    Type: AWS::Route53::HostedZone\n",
        "    Type: AWS::Route53::HostedZone\n    Condition: HasKms\n",
        "- !Ref PrivateZoneName",
    ),
    Tamper(
        "a private zone of another VPC alone",
        "vpc.dns",
        "- !Ref PrivateZoneName",
        (
            ("VPCs: [{VPCId: !Ref Vpc,", "VPCs: [{VPCId: !Ref Other,"),
            ("\nParameters:\n", "\nParameters:\n  Other: {Type: AWS::EC2::VPC::Id}\n"),
        ),
    ),
    edit(
        "a prefix list of any form",
        "vpc.prefix-list",
        'AllowedPattern: "pl-[0-9a-f]+"\n    Description: The id of AWS\'s managed prefix list com.amazonaws.REGION.s3',
        'AllowedPattern: "pl-[0-9a-f]+|.*"\n    Description: x',
        "DestinationPrefixListId: !Ref S3PrefixList",
    ),
    more(
        "an alias of something outside",
        "vpc.zone",
        "DNSName: a.example.com",
        "AWS::Route53::RecordSet",
        "HostedZoneId: !Ref PrivateZone",
        "Name: x",
        "Type: A",
        "AliasTarget: {DNSName: a.example.com, HostedZoneId: Z2FDTNDATAQYW2}",
    ),
)
