"""Which types of resources a template for a closed VPC may have, with which properties, and why others may not be.

A closed list: AWS has more than 1,800 types and adds some each week, and a property that did not exist when this was
written must not be let through (an endpoint's ServiceRegion is such a one). Whatever is not named here is a finding.
Types and properties as in CloudFormation's resource specification.
"""

from __future__ import annotations


def words(*lines: str) -> frozenset[str]:
    """A set of words, written as lines of words."""
    return frozenset(" ".join(lines).split())


KNOWN: dict[str, frozenset[str]] = {
    "AWS::AutoScaling::AutoScalingGroup": words(
        "AutoScalingGroupName CapacityRebalance Cooldown DefaultInstanceWarmup DesiredCapacity",
        "HealthCheckGracePeriod HealthCheckType InstanceMaintenancePolicy LaunchTemplate MaxInstanceLifetime",
        "MaxSize MinSize NewInstancesProtectedFromScaleIn Tags TargetGroupARNs TerminationPolicies",
        "VPCZoneIdentifier",
    ),
    "AWS::DirectoryService::MicrosoftAD": words("CreateAlias Edition EnableSso Name Password ShortName VpcSettings"),
    "AWS::EC2::DHCPOptions": words("DomainName DomainNameServers NetbiosNodeType NtpServers Tags"),
    "AWS::EC2::Instance": words(
        "AvailabilityZone BlockDeviceMappings DisableApiTermination EbsOptimized IamInstanceProfile ImageId",
        "InstanceInitiatedShutdownBehavior InstanceType KeyName LaunchTemplate MetadataOptions Monitoring",
        "NetworkInterfaces PrivateIpAddress SecurityGroupIds SubnetId Tags UserData",
    ),
    "AWS::EC2::KeyPair": words("KeyFormat KeyName KeyType PublicKeyMaterial Tags"),
    "AWS::EC2::LaunchTemplate": words("LaunchTemplateData LaunchTemplateName TagSpecifications VersionDescription"),
    "AWS::EC2::NetworkAcl": words("Tags VpcId"),
    "AWS::EC2::NetworkAclEntry": words("CidrBlock Egress Icmp NetworkAclId PortRange Protocol RuleAction RuleNumber"),
    "AWS::EC2::NetworkInterface": words(
        "Description GroupSet InterfaceType PrivateIpAddress PrivateIpAddresses",
        "SecondaryPrivateIpAddressCount SourceDestCheck SubnetId Tags",
    ),
    "AWS::EC2::NetworkInterfaceAttachment": words("DeleteOnTermination DeviceIndex InstanceId NetworkInterfaceId"),
    "AWS::EC2::PlacementGroup": words("PartitionCount SpreadLevel Strategy Tags"),
    "AWS::EC2::RouteTable": words("Tags VpcId"),
    "AWS::EC2::SecurityGroup": words("GroupDescription GroupName SecurityGroupEgress SecurityGroupIngress Tags VpcId"),
    "AWS::EC2::SecurityGroupEgress": words(
        "CidrIp Description DestinationPrefixListId DestinationSecurityGroupId FromPort GroupId IpProtocol",
        "ToPort",
    ),
    "AWS::EC2::SecurityGroupIngress": words(
        "CidrIp Description FromPort GroupId IpProtocol SourceSecurityGroupId ToPort",
    ),
    "AWS::EC2::Subnet": words(
        "AvailabilityZone AvailabilityZoneId CidrBlock MapPublicIpOnLaunch PrivateDnsNameOptionsOnLaunch Tags",
        "VpcId",
    ),
    "AWS::EC2::SubnetNetworkAclAssociation": words("NetworkAclId SubnetId"),
    "AWS::EC2::SubnetRouteTableAssociation": words("RouteTableId SubnetId"),
    "AWS::EC2::VPC": words("CidrBlock EnableDnsHostnames EnableDnsSupport InstanceTenancy Tags"),
    "AWS::EC2::VPCBlockPublicAccessOptions": words("InternetGatewayBlockMode"),
    "AWS::EC2::VPCDHCPOptionsAssociation": words("DhcpOptionsId VpcId"),
    "AWS::EC2::VPCEndpoint": words(
        "IpAddressType PolicyDocument PrivateDnsEnabled RouteTableIds SecurityGroupIds ServiceName SubnetIds",
        "Tags VpcEndpointType VpcId",
    ),
    "AWS::EC2::Volume": words("AutoEnableIO AvailabilityZone Encrypted Iops KmsKeyId Size Tags Throughput VolumeType"),
    "AWS::EC2::VolumeAttachment": words("Device InstanceId VolumeId"),
    "AWS::EFS::FileSystem": words(
        "AvailabilityZoneName BackupPolicy Encrypted FileSystemTags KmsKeyId LifecyclePolicies",
        "PerformanceMode ProvisionedThroughputInMibps ThroughputMode",
    ),
    "AWS::EFS::MountTarget": words("FileSystemId IpAddress SecurityGroups SubnetId"),
    "AWS::ElasticLoadBalancingV2::Listener": words(
        "AlpnPolicy Certificates DefaultActions ListenerAttributes LoadBalancerArn Port Protocol SslPolicy",
    ),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": words(
        "EnforceSecurityGroupInboundRulesOnPrivateLinkTraffic IpAddressType LoadBalancerAttributes Name",
        "Scheme SecurityGroups SubnetMappings Subnets Tags Type",
    ),
    "AWS::ElasticLoadBalancingV2::TargetGroup": words(
        "HealthCheckEnabled HealthCheckIntervalSeconds HealthCheckPath HealthCheckPort HealthCheckProtocol",
        "HealthCheckTimeoutSeconds HealthyThresholdCount IpAddressType Matcher Name Port Protocol Tags",
        "TargetGroupAttributes TargetType Targets UnhealthyThresholdCount VpcId",
    ),
    "AWS::FSx::FileSystem": words(
        "FileSystemType FileSystemTypeVersion KmsKeyId LustreConfiguration NetworkType OpenZFSConfiguration",
        "SecurityGroupIds StorageCapacity StorageType SubnetIds Tags",
    ),
    "AWS::IAM::InstanceProfile": words("InstanceProfileName Path Roles"),
    "AWS::IAM::ManagedPolicy": words("Description Groups ManagedPolicyName Path PolicyDocument Roles"),
    "AWS::IAM::Policy": words("Groups PolicyDocument PolicyName Roles"),
    "AWS::IAM::Role": words(
        "AssumeRolePolicyDocument Description ManagedPolicyArns MaxSessionDuration Path PermissionsBoundary",
        "Policies RoleName Tags",
    ),
    "AWS::KMS::Alias": words("AliasName TargetKeyId"),
    "AWS::KMS::Key": words(
        "Description EnableKeyRotation Enabled KeyPolicy KeySpec KeyUsage Origin PendingWindowInDays",
        "RotationPeriodInDays Tags",
    ),
    "AWS::Logs::LogGroup": words("DeletionProtectionEnabled KmsKeyId LogGroupClass LogGroupName RetentionInDays Tags"),
    "AWS::Route53::HostedZone": words("HostedZoneConfig HostedZoneTags Name VPCs"),
    "AWS::Route53::RecordSet": words("AliasTarget Comment HostedZoneId Name ResourceRecords TTL Type"),
    "AWS::Route53Resolver::FirewallDomainList": words("Domains Name Tags"),
    "AWS::Route53Resolver::FirewallRuleGroup": words("FirewallRules Name Tags"),
    "AWS::Route53Resolver::FirewallRuleGroupAssociation": words(
        "FirewallRuleGroupId MutationProtection Name Priority Tags VpcId",
    ),
    "AWS::S3::Bucket": words(
        "AccelerateConfiguration BucketEncryption BucketName IntelligentTieringConfigurations",
        "LifecycleConfiguration ObjectLockConfiguration ObjectLockEnabled OwnershipControls",
        "PublicAccessBlockConfiguration Tags VersioningConfiguration",
    ),
    "AWS::S3::BucketPolicy": words("Bucket PolicyDocument"),
    "AWS::SecretsManager::Secret": words("Description GenerateSecretString KmsKeyId Name SecretString Tags"),
}

WORSE: tuple[tuple[str, str, str], ...] = (
    # the beginning of a type, the rule, what it is; the first that fits
    (
        "AWS::EC2::Route",
        "vpc.route",
        "a route of one's own: a closed VPC has none beside its own and its gateway endpoints'",
    ),
    ("AWS::EC2::LocalGateway", "vpc.route", "a way to an Outpost's network"),
    ("AWS::EC2::GatewayRouteTableAssociation", "vpc.gateway", "routes for a gateway"),
    ("AWS::EC2::InternetGateway", "vpc.gateway", "a gateway to the internet"),
    ("AWS::EC2::EgressOnlyInternetGateway", "vpc.gateway", "a gateway to the internet by IPv6"),
    ("AWS::EC2::NatGateway", "vpc.gateway", "a NAT gateway"),
    ("AWS::EC2::CarrierGateway", "vpc.gateway", "a gateway to a mobile network"),
    ("AWS::EC2::VPCGatewayAttachment", "vpc.gateway", "a gateway that is attached to the VPC"),
    ("AWS::EC2::EIP", "vpc.address", "a public address"),
    ("AWS::EC2::VPCPeeringConnection", "vpc.peering", "a peering with another VPC"),
    ("AWS::EC2::TransitGateway", "vpc.peering", "a transit gateway"),
    ("AWS::NetworkManager::", "vpc.peering", "a network across regions"),
    ("AWS::VpcLattice::", "vpc.peering", "a service network across VPCs"),
    ("AWS::EC2::VPNGateway", "vpc.tunnel", "a VPN"),
    ("AWS::EC2::VPN", "vpc.tunnel", "a VPN"),
    ("AWS::EC2::ClientVpn", "vpc.tunnel", "a VPN"),
    ("AWS::EC2::CustomerGateway", "vpc.tunnel", "a VPN's other end"),
    ("AWS::DirectConnect::", "vpc.tunnel", "a line to somewhere else"),
    ("AWS::EC2::InstanceConnectEndpoint", "vpc.tunnel", "a way in for shells from outside"),
    ("AWS::EC2::VerifiedAccess", "vpc.tunnel", "a way in from the internet"),
    ("AWS::EC2::SubnetCidrBlock", "vpc.address", "IPv6 addresses: each is a public one"),
    ("AWS::EC2::VPCCidrBlock", "vpc.address", "more addresses for the VPC, IPv6 or those of another network"),
    ("AWS::EC2::VPCEndpointService", "vpc.endpoint", "a service of this VPC for other VPCs"),
    ("AWS::EC2::VPCEndpointConnectionNotification", "vpc.endpoint", "messages about a service for other VPCs"),
    ("AWS::EC2::VPCBlockPublicAccessExclusion", "vpc.gateway", "an exception from blocked public access"),
    ("AWS::EC2::TrafficMirror", "vpc.peering", "a copy of the traffic"),
    ("AWS::Route53Resolver::", "vpc.dns", "names that are asked for somewhere else"),
    ("AWS::Route53Profiles::", "vpc.dns", "names of another account"),
    (
        "AWS::CloudFormation::Stack",
        "vpc.nested",
        "another template: it has to be looked at by itself, and in one piece",
    ),
    ("AWS::CloudFormation::", "vpc.nested", "something that is made outside this template"),
    ("Custom::", "vpc.nested", "something that a program makes: nobody can say what"),
    ("AWS::RAM::", "vpc.principal", "a share for other accounts"),
    ("AWS::Lambda::", "vpc.type", "a function: it runs outside the VPC unless told otherwise"),
)

OWN_RESOURCES = frozenset({"dynamodb", "kms", "logs", "s3", "secretsmanager"})
"""Endpoints whose policy must name the account of the thing too: the owner of another account's bucket, table, key or
secret can open it to everybody, so that this account's own credentials could write there."""

SERVICES = OWN_RESOURCES | words(
    "autoscaling cloudformation ec2 ec2messages ecr.api ecr.dkr elasticfilesystem elasticloadbalancing fsx monitoring",
    "ssm ssmmessages sts",
)
"""What a ParallelCluster, Vault and secure-slurm ask of AWS, the last word of ``com.amazonaws.REGION.x``."""
GATEWAYS = frozenset({"dynamodb", "s3"})


def worse(type_: str) -> tuple[str, str]:
    """The rule and the words for a type that is not known."""
    for beginning, rule, words in WORSE:
        if type_.startswith(beginning):
            return rule, words
    return "vpc.type", "not a type of which this check knows that it stays inside"
