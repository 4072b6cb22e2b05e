"""Ways out of a closed VPC, each as an edit of a shipped template, with the rule that must see it.

``edits``: pairs of a text that is in the template and what takes its place; an empty first text stands for a new
resource.
``line``: a text of the line that the finding must name.
"""

from __future__ import annotations

from typing import NamedTuple

BASE = "isolated-vpc.yaml"
AD = "isolated-vpc-ad.yaml"
VAULT = "vault-place.yaml"


class Tamper(NamedTuple):
    """One way out."""

    name: str
    rule: str
    line: str
    edits: tuple[tuple[str, str], ...]
    template: str = BASE


def resource(name: str, type_: str, *properties: str) -> tuple[tuple[str, str], ...]:
    """One resource more."""
    lines = [f"  {name}:", f"    Type: {type_}", "    Properties:", *(f"      {each}" for each in properties)]
    return (("", "\n".join(lines) + "\n"),)


def new(name: str, rule: str, type_: str, *properties: str) -> Tamper:
    """A resource that must not be there at all."""
    return Tamper(name, rule, "  Way:", resource("Way", type_, *properties))


def edit(name: str, rule: str, old: str, changed: str, line: str = "") -> Tamper:
    """One text in the place of another; the finding is on the line of ``line`` (default: what was changed)."""
    return Tamper(name, rule, line or changed.strip().partition("\n")[0], ((old, changed),))


TO_DYNAMODB = "DestinationPrefixListId: !Ref DynamoDbPrefixList, Description: DynamoDB}"
HEAD_FROM = "SourceSecurityGroupId: !Ref AdminGroup, Description: ssh}\n  LoginFromAdmin"
OURS = 'Condition: {StringEquals: {"aws:PrincipalAccount": !Ref "AWS::AccountId"}}'
GROUP = "GroupDescription: head nodes\n      VpcId: !Ref Vpc"
EGRESS = (
    f'{GROUP}\n      SecurityGroupEgress: [{{IpProtocol: "-1", CidrIp: 127.0.0.1/32, '
    "Description: none but the rules of their own}]"
)
BOTH = """                aws:PrincipalAccount: !Ref "AWS::AccountId"
                aws:ResourceAccount: !Ref "AWS::AccountId"
          # cfn-signal"""
SUBNET = "CidrBlock: !Select [0, !Cidr [!GetAtt Vpc.CidrBlock, 6, 12]]\n      MapPublicIpOnLaunch: false"

TAMPERS = (
    # routes and gateways
    new(
        "default route to an internet gateway",
        "vpc.route",
        "AWS::EC2::Route",
        "RouteTableId: !Ref Routes",
        "DestinationCidrBlock: 0.0.0.0/0",
        "GatewayId: igw-0123456789abcdef0",
    ),
    new(
        "route to a network interface",
        "vpc.route",
        "AWS::EC2::Route",
        "RouteTableId: !Ref Routes",
        "DestinationCidrBlock: 192.0.2.0/24",
        "NetworkInterfaceId: eni-0123456789abcdef0",
    ),
    new(
        "IPv6 route",
        "vpc.route",
        "AWS::EC2::Route",
        "RouteTableId: !Ref Routes",
        'DestinationIpv6CidrBlock: "::/0"',
        "EgressOnlyInternetGatewayId: eigw-0123456789abcdef0",
    ),
    new(
        "route under a condition",
        "vpc.route",
        "AWS::EC2::Route",
        "RouteTableId: !Ref Routes",
        "DestinationCidrBlock: !If [HasKms, 0.0.0.0/0, 192.0.2.0/24]",
        "TransitGatewayId: tgw-0123456789abcdef0",
    ),
    new("internet gateway", "vpc.gateway", "AWS::EC2::InternetGateway", "Tags: []"),
    new(
        "gateway attached",
        "vpc.gateway",
        "AWS::EC2::VPCGatewayAttachment",
        "VpcId: !Ref Vpc",
        "InternetGatewayId: igw-0123456789abcdef0",
    ),
    new(
        "NAT gateway",
        "vpc.gateway",
        "AWS::EC2::NatGateway",
        "SubnetId: !Ref ClusterSubnet",
        "AllocationId: eipalloc-0123456789abcdef0",
    ),
    new(
        "private NAT gateway",
        "vpc.gateway",
        "AWS::EC2::NatGateway",
        "SubnetId: !Ref ClusterSubnet",
        "ConnectivityType: private",
    ),
    new("egress-only gateway", "vpc.gateway", "AWS::EC2::EgressOnlyInternetGateway", "VpcId: !Ref Vpc"),
    new("carrier gateway", "vpc.gateway", "AWS::EC2::CarrierGateway", "VpcId: !Ref Vpc"),
    new(
        "exception from blocked public access",
        "vpc.gateway",
        "AWS::EC2::VPCBlockPublicAccessExclusion",
        "VpcId: !Ref Vpc",
        "InternetGatewayExclusionMode: allow-egress",
    ),
    edit(
        "another route table",
        "vpc.route",
        "SubnetId: !Ref ClusterSubnet, RouteTableId: !Ref Routes",
        "SubnetId: !Ref ClusterSubnet, RouteTableId: rtb-0123456789abcdef0",
    ),
    edit(
        "endpoint routes into another table",
        "vpc.route",
        "RouteTableIds: [!Ref Routes]",
        "RouteTableIds: [rtb-0123456789abcdef0]",
    ),
    # other networks
    new(
        "VPC peering",
        "vpc.peering",
        "AWS::EC2::VPCPeeringConnection",
        "VpcId: !Ref Vpc",
        "PeerVpcId: vpc-0123456789abcdef0",
    ),
    new(
        "transit gateway attachment",
        "vpc.peering",
        "AWS::EC2::TransitGatewayVpcAttachment",
        "VpcId: !Ref Vpc",
        "TransitGatewayId: tgw-0123456789abcdef0",
        "SubnetIds: [!Ref ClusterSubnet]",
    ),
    new("service network", "vpc.peering", "AWS::VpcLattice::ServiceNetworkVpcAssociation", "VpcIdentifier: !Ref Vpc"),
    new("traffic mirror", "vpc.peering", "AWS::EC2::TrafficMirrorSession", "SessionNumber: 1"),
    new("VPN gateway", "vpc.tunnel", "AWS::EC2::VPNGateway", "Type: ipsec.1"),
    new("VPN for clients", "vpc.tunnel", "AWS::EC2::ClientVpnEndpoint", "ClientCidrBlock: 10.9.0.0/22"),
    new("shells from outside", "vpc.tunnel", "AWS::EC2::InstanceConnectEndpoint", "SubnetId: !Ref ClusterSubnet"),
    # addresses
    new("elastic address", "vpc.address", "AWS::EC2::EIP", "Domain: vpc"),
    edit(
        "public addresses in a subnet",
        "vpc.address",
        SUBNET,
        SUBNET.replace("Launch: false", "Launch: true"),
        "MapPublicIpOnLaunch: true",
    ),
    edit(
        "public addresses in other words",
        "vpc.address",
        SUBNET,
        SUBNET.replace("Launch: false", 'Launch: "yes"'),
        'MapPublicIpOnLaunch: "yes"',
    ),
    edit(
        "public addresses in one arm",
        "vpc.address",
        SUBNET,
        SUBNET.replace("Launch: false", "Launch: !If [HasKms, false, true]"),
        "MapPublicIpOnLaunch: !If",
    ),
    edit(
        "public addresses by a parameter",
        "vpc.address",
        SUBNET,
        SUBNET.replace("Launch: false", "Launch: !Ref PrivateZoneName"),
        "MapPublicIpOnLaunch: !Ref",
    ),
    Tamper(
        "public address of a machine",
        "vpc.address",
        "AssociatePublicIpAddress: true",
        resource(
            "Way",
            "AWS::EC2::Instance",
            "ImageId: ami-0123456789abcdef0",
            "MetadataOptions: {HttpTokens: required}",
            "NetworkInterfaces:",
            "  - DeviceIndex: '0'",
            "    AssociatePublicIpAddress: true",
            "    SubnetId: !Ref ClusterSubnet",
            "    GroupSet: [!Ref AdminGroup]",
        ),
    ),
    Tamper(
        "public address in a launch template",
        "vpc.address",
        "AssociatePublicIpAddress: true",
        resource(
            "Way",
            "AWS::EC2::LaunchTemplate",
            "LaunchTemplateData:",
            "  MetadataOptions: {HttpTokens: required}",
            "  NetworkInterfaces:",
            "    - AssociatePublicIpAddress: true",
            "      Groups: [!Ref AdminGroup]",
        ),
    ),
    # IPv6
    new(
        "IPv6 for the VPC",
        "vpc.address",
        "AWS::EC2::VPCCidrBlock",
        "VpcId: !Ref Vpc",
        "AmazonProvidedIpv6CidrBlock: true",
    ),
    new(
        "IPv6 for a subnet",
        "vpc.address",
        "AWS::EC2::SubnetCidrBlock",
        "SubnetId: !Ref ClusterSubnet",
        "Ipv6CidrBlock: 2001:db8::/64",
    ),
    edit(
        "IPv6 in the subnet",
        "vpc.address",
        SUBNET,
        SUBNET + "\n      AssignIpv6AddressOnCreation: true",
        "AssignIpv6AddressOnCreation: true",
    ),
    edit("IPv6 rule", "vpc.address", TO_DYNAMODB, 'CidrIpv6: "::/0", Description: DynamoDB}'),
    edit(
        "endpoint with IPv6",
        "vpc.address",
        "      PrivateDnsEnabled: true",
        "      PrivateDnsEnabled: true\n      IpAddressType: dualstack",
        "IpAddressType: dualstack",
    ),
    # rules
    edit("egress to everywhere", "vpc.rule", TO_DYNAMODB, "CidrIp: 0.0.0.0/0, Description: DynamoDB}"),
    edit("egress to half of everywhere", "vpc.rule", TO_DYNAMODB, "CidrIp: 128.0.0.0/1, Description: DynamoDB}"),
    edit("egress to one address outside", "vpc.rule", TO_DYNAMODB, "CidrIp: 192.0.2.1/32, Description: DynamoDB}"),
    edit("egress to a private address outside", "vpc.rule", TO_DYNAMODB, "CidrIp: 172.16.0.0/12, Description: x}"),
    edit(
        "egress to everywhere by Sub",
        "vpc.rule",
        TO_DYNAMODB,
        'CidrIp: !Sub ["${A}.0.0.0/${B}", {A: "0", B: "0"}], Description: DynamoDB}',
    ),
    edit(
        "egress to everywhere by Join",
        "vpc.rule",
        TO_DYNAMODB,
        'CidrIp: !Join ["/", [0.0.0.0, "0"]], Description: DynamoDB}',
    ),
    edit(
        "egress to everywhere in one arm",
        "vpc.rule",
        TO_DYNAMODB,
        "CidrIp: !If [HasKms, !GetAtt Vpc.CidrBlock, 0.0.0.0/0], Description: DynamoDB}",
    ),
    edit("egress by an import", "vpc.rule", TO_DYNAMODB, "CidrIp: !ImportValue elsewhere, Description: DynamoDB}"),
    edit("egress by a parameter", "vpc.rule", TO_DYNAMODB, "CidrIp: !Ref PrivateZoneName, Description: DynamoDB}"),
    edit(
        "egress to nobody in particular",
        "vpc.rule",
        TO_DYNAMODB,
        "Description: DynamoDB}",
        "ClusterToDynamoDb:",
    ),
    edit(
        "egress to another account's group",
        "vpc.rule",
        TO_DYNAMODB,
        "DestinationSecurityGroupId: sg-0123456789abcdef0, Description: DynamoDB}",
    ),
    edit("egress within a group", "vpc.rule", EGRESS, EGRESS.replace("127.0.0.1/32", "0.0.0.0/0"), "CidrIp: 0.0.0.0/0"),
    edit("no egress rule", "vpc.egress-default", EGRESS, GROUP, "  HeadGroup:"),
    edit(
        "no egress rule in one arm",
        "vpc.egress-default",
        EGRESS,
        EGRESS.replace("[{IpProtocol", '!If [HasKms, !Ref "AWS::NoValue", [{IpProtocol') + "]",
        "  HeadGroup:",
    ),
    edit("ingress from everywhere", "vpc.rule", HEAD_FROM, "CidrIp: 0.0.0.0/0, Description: ssh}\n  LoginFromAdmin"),
    edit(
        "ingress from another account's group",
        "vpc.rule",
        HEAD_FROM,
        "SourceSecurityGroupName: a, SourceSecurityGroupOwnerId: '123456789012', Description: ssh}\n  LoginFromAdmin",
    ),
    edit(
        "prefix list written out",
        "vpc.prefix-list",
        TO_DYNAMODB,
        "DestinationPrefixListId: pl-0123456789abcdef0, Description: DynamoDB}",
    ),
    edit(
        "prefix list of one's own",
        "vpc.prefix-list",
        TO_DYNAMODB,
        "DestinationPrefixListId: !Ref PrivateZoneName, Description: DynamoDB}",
    ),
    Tamper(
        "network ACL to everywhere",
        "vpc.acl",
        "CidrBlock: 0.0.0.0/0",
        resource(
            "Way",
            "AWS::EC2::NetworkAclEntry",
            "NetworkAclId: acl-0123456789abcdef0",
            "RuleNumber: 100",
            "Protocol: -1",
            "RuleAction: allow",
            "Egress: true",
            "CidrBlock: 0.0.0.0/0",
        ),
    ),
    # endpoints
    edit(
        "endpoint of another account's service",
        "vpc.endpoint",
        'ServiceName: !Sub "com.amazonaws.${AWS::Region}.ec2"',
        "ServiceName: com.amazonaws.vpce.eu-west-1.vpce-svc-0123456789abcdef0",
    ),
    edit(
        "endpoint of another region",
        "vpc.endpoint",
        'ServiceName: !Sub "com.amazonaws.${AWS::Region}.ec2"',
        "ServiceName: com.amazonaws.us-east-1.ec2",
    ),
    edit(
        "endpoint to another region",
        "vpc.property",
        "      PrivateDnsEnabled: true",
        "      PrivateDnsEnabled: true\n      ServiceRegion: us-east-1",
        "ServiceRegion: us-east-1",
    ),
    edit(
        "endpoint that nothing needs",
        "vpc.endpoint",
        'ServiceName: !Sub "com.amazonaws.${AWS::Region}.ec2"',
        'ServiceName: !Sub "com.amazonaws.${AWS::Region}.execute-api"',
    ),
    edit(
        "endpoint for inspection elsewhere",
        "vpc.endpoint",
        "VpcEndpointType: Interface",
        "VpcEndpointType: GatewayLoadBalancer",
    ),
    edit(
        "endpoint with the default group",
        "vpc.endpoint",
        "      SecurityGroupIds: [!Ref EndpointGroup]\n",
        "",
        "Ec2Endpoint:",
    ),
    new("service for other VPCs", "vpc.endpoint", "AWS::EC2::VPCEndpointService", "AcceptanceRequired: false"),
    # policies of endpoints
    edit(
        "S3 endpoint open to all buckets",
        "vpc.endpoint-policy",
        BOTH,
        BOTH.replace('                aws:ResourceAccount: !Ref "AWS::AccountId"\n', ""),
        "- Sid: ThisAccountInThisAccount",
    ),
    edit(
        "S3 endpoint for two accounts",
        "vpc.endpoint-policy",
        BOTH,
        BOTH.replace(
            'aws:ResourceAccount: !Ref "AWS::AccountId"', 'aws:ResourceAccount: [!Ref "AWS::AccountId", "123456789012"]'
        ),
        "- Sid: ThisAccountInThisAccount",
    ),
    edit(
        "S3 endpoint unless it says otherwise",
        "vpc.endpoint-policy",
        "StringEquals:\n" + BOTH,
        "StringEqualsIfExists:\n" + BOTH,
        "- Sid: ThisAccountInThisAccount",
    ),
    edit(
        "S3 endpoint for a bucket outside",
        "vpc.endpoint-policy",
        '!Sub "arn:${AWS::Partition}:s3:::cloudformation-waitcondition-${AWS::Region}/*"',
        '!Sub "arn:${AWS::Partition}:s3:::somebodys-bucket/*"',
        "- Sid: WaitConditions",
    ),
    edit(
        "S3 endpoint for a bucket like AWS's",
        "vpc.endpoint-policy",
        '!Sub "arn:${AWS::Partition}:s3:::cloudformation-waitcondition-${AWS::Region}/*"',
        '!Sub "arn:${AWS::Partition}:s3:::cloudformation-waitcondition-*"',
        "- Sid: WaitConditions",
    ),
    edit(
        "S3 endpoint writes to AWS's packages",
        "vpc.endpoint-policy",
        'Action: "s3:GetObject"',
        'Action: "s3:*"',
        "- Sid: Packages",
    ),
    edit("endpoint for all but", "vpc.endpoint-policy", 'Action: "ec2:*"', 'NotAction: "iam:*"'),
    edit(
        "endpoint without conditions",
        "vpc.endpoint-policy",
        f'Action: "ec2:*"\n            Resource: "*"\n            {OURS}',
        'Action: "ec2:*"\n            Resource: "*"',
        "- Sid: ThisAccount",
    ),
    edit(
        "roles of other accounts",
        "vpc.endpoint-policy",
        'Resource: !Sub "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/*"',
        'Resource: "*"',
        "- Sid: RolesOfThisAccount",
    ),
    edit(
        "S3 endpoint open in one arm",
        "vpc.endpoint-policy",
        BOTH,
        BOTH.replace(
            '!Ref "AWS::AccountId"\n          #',
            '!If [HasKms, !Ref "AWS::AccountId", !Ref "AWS::NoValue"]\n          #',
        ),
        "- Sid: ThisAccountInThisAccount",
    ),
    edit(
        "S3 endpoint with two conditions to choose from",
        "vpc.endpoint-policy",
        "StringEquals:\n" + BOTH,
        "StringEquals: !If\n                - HasKms\n                - {aws:ResourceAccount: !Ref 'AWS::AccountId'}\n"
        "                - {s3:prefix: x}\n          # cfn-signal",
        "- Sid: ThisAccountInThisAccount",
    ),
    # names
    edit(
        "names not filtered",
        "vpc.dns",
        "      VpcId: !Ref Vpc\n      Priority: 101",
        "      VpcId: vpc-0123456789abcdef0\n      Priority: 101",
        "  Vpc:",
    ),
    edit(
        "names filtered under a condition",
        "vpc.dns",
        "    Type: AWS::Route53Resolver::FirewallRuleGroupAssociation",
        "    Condition: HasKms\n    Type: AWS::Route53Resolver::FirewallRuleGroupAssociation",
        "  Vpc:",
    ),
    edit(
        "names not blocked",
        "vpc.dns",
        "          Action: BLOCK\n          BlockResponse: NXDOMAIN",
        "          Action: ALERT",
        "DnsFirewall:",
    ),
    edit(
        "blocked before allowed",
        "vpc.dns",
        "Priority: 100\n          Action",
        "Priority: 300\n          Action",
        "DnsFirewall:",
    ),
    edit(
        "some questions blocked only",
        "vpc.dns",
        "BlockResponse: NXDOMAIN",
        "BlockResponse: NXDOMAIN\n          Qtype: A",
        "DnsFirewall:",
    ),
    edit(
        "answered by somebody else",
        "vpc.dns",
        "BlockResponse: NXDOMAIN",
        "BlockResponse: OVERRIDE\n          BlockOverrideDomain: example.com",
        "DnsFirewall:",
    ),
    edit(
        "names blocked in one arm",
        "vpc.dns",
        '      Domains: ["*"]',
        '      Domains: [!If [HasKms, "*", !Ref "AWS::NoValue"]]',
        "DnsFirewall:",
    ),
    edit("a name outside let through", "vpc.dns", '- "*.10.in-addr.arpa"', '- "*.example.com"'),
    edit("all names let through", "vpc.dns", '- "*.10.in-addr.arpa"', '- "*"'),
    edit("reverse names of the world", "vpc.dns", '- "*.10.in-addr.arpa"', '- "*.in-addr.arpa"'),
    edit(
        "a list of somebody else",
        "vpc.dns",
        "FirewallDomainListId: !Ref NamesAllowed",
        "FirewallDomainListId: rslvr-fdl-0123456789abcdef",
    ),
    edit(
        "another name server",
        "vpc.dns",
        "DomainNameServers: [AmazonProvidedDNS]",
        "DomainNameServers: [AmazonProvidedDNS, 192.0.2.53]",
    ),
    edit("the time of the internet", "vpc.rule", "NtpServers: [169.254.169.123]", "NtpServers: [192.0.2.123]"),
    new(
        "questions sent elsewhere",
        "vpc.dns",
        "AWS::Route53Resolver::ResolverRule",
        "RuleType: FORWARD",
        "DomainName: example.com",
    ),
    edit(
        "public zone",
        "vpc.zone",
        '      VPCs: [{VPCId: !Ref Vpc, VPCRegion: !Ref "AWS::Region"}]\n',
        "",
        "  PrivateZone:",
    ),
    edit("zone of another VPC", "vpc.zone", "VPCId: !Ref Vpc,", "VPCId: vpc-0123456789abcdef0,"),
    # the bucket
    edit("bucket may be public", "vpc.bucket", "BlockPublicPolicy: true", "BlockPublicPolicy: false", "  Bucket:"),
    edit("bucket without versions", "vpc.bucket", "{Status: Enabled}", "{Status: Suspended}", "  Bucket:"),
    edit(
        "bucket copied elsewhere",
        "vpc.property",
        "      VersioningConfiguration",
        "      ReplicationConfiguration: {Role: x, Rules: []}\n      VersioningConfiguration",
    ),
    edit(
        "bucket without TLS",
        "vpc.bucket-policy",
        '"aws:SecureTransport": "false"',
        '"aws:SecureTransport": "true"',
        "  BucketPolicy:",
    ),
    edit(
        "bucket from anywhere",
        "vpc.bucket-policy",
        '              - StringNotEquals: {"aws:SourceVpce": !Ref S3Endpoint}\n\n',
        '              - Bool: {"aws:SecureTransport": "false"}\n\n',
        "  BucketPolicy:",
    ),
    edit(
        "bucket from another endpoint",
        "vpc.bucket-policy",
        '- StringNotEquals: {"aws:SourceVpce": !Ref S3Endpoint}\n\n',
        '- StringNotEquals: {"aws:SourceVpce": vpce-0123}\n\n',
        "  BucketPolicy:",
    ),
    edit("bucket read from anywhere", "vpc.bucket-policy", "              - s3:GetObject*\n", "", "  BucketPolicy:"),
    edit(
        "bucket for another account",
        "vpc.principal",
        "          - Sid: TlsOnly\n",
        """          - Sid: Partner
            Effect: Allow
            Principal: {AWS: "123456789012"}
            Action: s3:GetObject
            Resource: !Sub "${Bucket.Arn}/*"
          - Sid: TlsOnly
""",
        'Principal: {AWS: "123456789012"}',
    ),
    edit(
        "bucket public in one arm",
        "vpc.bucket",
        "BlockPublicPolicy: true",
        'BlockPublicPolicy: !If [HasKms, true, !Ref "AWS::NoValue"]',
        "  Bucket:",
    ),
    edit(
        "bucket from anywhere in one arm",
        "vpc.bucket-policy",
        "              - s3:GetObject*\n",
        '              - !If [HasKms, s3:GetObject*, !Ref "AWS::NoValue"]\n',
        "  BucketPolicy:",
    ),
    edit(
        "bucket from anywhere under a condition",
        "vpc.bucket-policy",
        "            Condition: !If\n              - HasUploadRole\n",
        "            Condition: !If\n              - HasUploadRole\n              - !Ref AWS::NoValue\n",
        "  BucketPolicy:",
    ),
    # everything else
    Tamper(
        "balancer that faces the internet",
        "vpc.balancer",
        "  Way:",
        resource(
            "Way",
            "AWS::ElasticLoadBalancingV2::LoadBalancer",
            "Type: network",
            "Subnets: [!Ref ClusterSubnet]",
            "SecurityGroups: [!Ref AdminGroup]",
        ),
    ),
    Tamper(
        "balancer that says so",
        "vpc.balancer",
        "Scheme: internet-facing",
        resource(
            "Way",
            "AWS::ElasticLoadBalancingV2::LoadBalancer",
            "Type: network",
            "Subnets: [!Ref ClusterSubnet]",
            "SecurityGroups: [!Ref AdminGroup]",
            "Scheme: internet-facing",
        ),
    ),
    Tamper(
        "balancer to targets outside",
        "vpc.balancer",
        "AvailabilityZone: all",
        resource(
            "Way",
            "AWS::ElasticLoadBalancingV2::TargetGroup",
            "TargetType: ip",
            "VpcId: !Ref Vpc",
            "Targets:",
            "  - Id: 10.0.0.1",
            "    AvailabilityZone: all",
        ),
    ),
    Tamper(
        "metadata without a token",
        "vpc.machine",
        "  Way:",
        resource("Way", "AWS::EC2::Instance", "ImageId: ami-0123456789abcdef0", "SecurityGroupIds: [!Ref AdminGroup]"),
    ),
    Tamper(
        "role for another account",
        "vpc.principal",
        "arn:aws:iam::123456789012:root",
        resource(
            "Way",
            "AWS::IAM::Role",
            "AssumeRolePolicyDocument:",
            "  Statement:",
            "    - Effect: Allow",
            "      Action: sts:AssumeRole",
            "      Principal: {AWS: 'arn:aws:iam::123456789012:root'}",
        ),
    ),
    Tamper(
        "key for everybody",
        "vpc.principal",
        'Principal: "*"}',
        resource(
            "Way",
            "AWS::KMS::Key",
            "KeyPolicy:",
            "  Statement:",
            '    - {Effect: Allow, Action: "kms:*", Resource: "*", Principal: "*"}',
        ),
    ),
    edit(
        "partition written out",
        "vpc.partition",
        '!Sub "arn:${AWS::Partition}:s3:::${AWS::Region}-aws-parallelcluster/*"',
        '!Sub "arn:aws:s3:::${AWS::Region}-aws-parallelcluster/*"',
    ),
    new("nested stack", "vpc.nested", "AWS::CloudFormation::Stack", "TemplateURL: https://example.com/x.yaml"),
    new("custom resource", "vpc.nested", "Custom::Anything", "ServiceToken: x"),
    new("function", "vpc.type", "AWS::Lambda::Function", "Code: {ZipFile: pass}"),
    new("type that nobody knows", "vpc.type", "AWS::Quantum::Tunnel", "VpcId: !Ref Vpc"),
    Tamper(
        "macro",
        "vpc.nested",
        "Transform: Somebody",
        (("Description: secure-slurm", "Transform: Somebody\nDescription: secure-slurm"),),
    ),
    edit(
        "snippet of somebody",
        "vpc.nested",
        "      EnableDnsSupport: true",
        "      Fn::Transform: {Name: AWS::Include, Parameters: {Location: s3://x/y}}\n      EnableDnsSupport: true",
        "Properties:",
    ),
)

AD_TAMPERS = (
    Tamper(
        "directory with a name outside",
        "vpc.address",
        "CreateAlias",
        (("CreateAlias: false", "CreateAlias: true"),),
        AD,
    ),
    Tamper(
        "directory's balancer outside", "vpc.balancer", "Scheme", (("Scheme: internal", "Scheme: internet-facing"),), AD
    ),
    Tamper(
        "directory's balancer by default",
        "vpc.balancer",
        "  DirectoryBalancer:",
        (("      Scheme: internal\n", ""),),
        AD,
    ),
    Tamper(
        "public address for the balancer",
        "vpc.address",
        "AllocationId",
        (
            (
                "      Subnets: [!Ref DirectorySubnetA, !Ref DirectorySubnetB]\n",
                "      SubnetMappings: [{SubnetId: !Ref DirectorySubnetA, AllocationId: eipalloc-0123}]\n",
            ),
        ),
        AD,
    ),
    Tamper(
        "the directory's name servers",
        "vpc.dns",
        "DomainNameServers",
        (("DomainNameServers: [AmazonProvidedDNS]", "DomainNameServers: !GetAtt Directory.DnsIpAddresses"),),
        AD,
    ),
    Tamper(
        "controllers somewhere else",
        "vpc.rule",
        "CidrIp: 0.0.0.0/0",
        (("CidrIp: !GetAtt DirectorySubnetA.CidrBlock", "CidrIp: 0.0.0.0/0"),),
        AD,
    ),
    Tamper(
        "password in the template",
        "vpc.property",
        "SecretString: hunter2",
        (
            (
                "      Description: password of Admin in the directory\n",
                "      Description: password of Admin in the directory\n      SecretString: hunter2\n",
            ),
        ),
        AD,
    ),
    Tamper(
        "Vault faces the internet", "vpc.balancer", "Scheme", (("Scheme: internal", "Scheme: internet-facing"),), VAULT
    ),
    Tamper(
        "Vault's key for others",
        "vpc.principal",
        "Principal:",
        (('Principal: {AWS: !Sub "arn:${AWS::Partition}:iam::${AWS::AccountId}:root"}', 'Principal: {AWS: "*"}'),),
        VAULT,
    ),
    Tamper(
        "Vault's machines without tokens",
        "vpc.machine",
        "LaunchTemplateData:",
        (("HttpTokens: required", "HttpTokens: optional"),),
        VAULT,
    ),
    Tamper(
        "Vault's name for all",
        "vpc.zone",
        "HostedZoneId",
        (("HostedZoneId: !Ref PrivateZone\n", "HostedZoneId: Z0123\n"),),
        VAULT,
    ),
    Tamper(
        "Vault's group written out",
        "vpc.rule",
        "SecurityGroupIds",
        (("SecurityGroupIds: [!Ref SecurityGroup]", "SecurityGroupIds: [sg-0123]"),),
        VAULT,
    ),
    Tamper(
        "Vault's machines on IPv6",
        "vpc.address",
        "Ipv6AddressCount",
        (("        EbsOptimized: true\n", "        NetworkInterfaces: [{Ipv6AddressCount: 1}]\n"),),
        VAULT,
    ),
)
