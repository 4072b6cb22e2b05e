"""The files of the test cluster: four nodes (two in the EU, two in the US), three partitions, one directory."""

from __future__ import annotations

from tests.testbed.slapd import group, group_dn, person, user

ADDRESS = "10.99.0.1"
NODES = {"n1": "eu-central-1", "n2": "eu-central-1", "n3": "us-east-1", "n4": "us-east-1"}
USERS = ("alice", "bob", "carol", "oper")
GLASS = ("alice", "carol", "oper")  # in the group that may speak to the break-glass daemon
RUN = "/run/secure-slurm"
LOG = "/var/log/secure-slurm"
ETC = "/etc/secure-slurm"
PREFIX = "/opt/secure-slurm"
LDAP_PORT = 636
VAULT_PORT = 8200

SITE = f"""\
version: 1
cluster: {{name: test, head_nodes: [head], slurm_bin: /usr/bin, slurm_user: slurm}}
controller:
  socket: {RUN}/decision/decide.sock
  deadline: 900ms            # a user-mode kernel on a shared machine is slow
  untagged_when_down: @UNTAGGED@
  record_key: {ETC}/record.key
lifecycle:
  socket: {RUN}/lifecycle/lifecycle.sock
  start_deadline: 40s
  state_dir: /var/lib/secure-slurm/lifecycle
node:
  run_dir: {RUN}/node-%n
  place_file: {ETC}/place
  proof: file                # tests/cluster/test_place.py has the others
  prolog_deadline: 45s
vault:
  address: https://{ADDRESS}:{VAULT_PORT}
  ca_file: {ETC}/ca.crt
  transit_mount: secure-slurm-transit
  grants_mount: secure-slurm-grants
  timeout: 10s
  head: {{approle_mount: approle, role_id_file: {ETC}/head/role-id, secret_id_file: {ETC}/head/secret-id}}
  node:
    cert_mount: cert
    cert_role: secure-slurm-node
    certificate: {ETC}/node/%n.crt
    private_key: {ETC}/node/%n.key
ldap:
  flavour: openldap
  uris: ["ldaps://ldap.test:{LDAP_PORT}"]
  ca_file: {ETC}/ca.crt
  bind_dn: cn=reader,dc=example,dc=org
  bind_password_file: {ETC}/ldap/password
  base: dc=example,dc=org
  user_attribute: uid
  refresh: 15s
  max_age: 10m
  snapshot: {RUN}/snapshot/members.json
scratch:
  backing: @BACKING@
  directory: /var/lib/secure-slurm/scratch
  overcommit: @OVERCOMMIT@
  mount_root: /secure-scratch
  filesystem: ext4
audit: {{directory: {LOG}}}
link:
  listen: "{ADDRESS}:6830"
  certificate: {ETC}/head/link.crt
  private_key: {ETC}/head/link.key
  ca_file: {ETC}/ca.crt
revocation: {{confirm_within: 15s, offline_grace: 15m}}
"""

POLICY = """\
version: 1
jurisdictions:
  eu: {feature: eu, regions: [eu-central-1, eu-west-1]}
  us: {feature: us, regions: [us-east-1, us-west-2]}
classes:
  - {name: internal, residency: optional, scratch: optional, max_scratch: 1G, exclusive_nodes: false}
  - {private_tmp: none,
     name: phi, residency: required, scratch: required, default_scratch: 64M, max_scratch: 200G, exclusive_nodes: true}
roles:
  phi-eu:
    groups: ["cn=phi-eu,ou=groups,dc=example,dc=org"]
    classes: [internal, phi]
    jurisdictions: [eu]
  phi-us:
    groups: ["cn=phi-us,ou=groups,dc=example,dc=org"]
    classes: [internal, phi]
    jurisdictions: [us]
partitions:
  phi: {demand_tag: true, jurisdiction: eu}
  us: {jurisdiction: us}
break_glass:
  requesters: ["cn=operators,ou=groups,dc=example,dc=org"]
  approvers: ["cn=officers,ou=groups,dc=example,dc=org"]
  longest: 8h
"""

# alice is in phi-eu only through a nested group, carol in phi-us directly, bob and oper in neither
DIRECTORY = "".join(map(user, USERS)) + "".join(
    (
        group("heart-study", [person("alice")]),
        group("phi-eu", [group_dn("heart-study")]),
        group("phi-us", [person("carol")]),
        group("operators", [person("oper"), person("carol")]),
        group("officers", [person("carol"), person("alice")]),
    )
)

SLURM = f"""\
ClusterName=test
SlurmctldHost=head
SlurmUser=slurm
AuthType=auth/munge
AuthInfo=cred_expire=12
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/lib/slurm/d-%n
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd-%n.log
ProctrackType=@PROCTRACK@
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
MessageTimeout=60
PrologFlags=Alloc,DeferBatch
PrologEpilogTimeout=120
JobSubmitPlugins=lua
PrologSlurmctld={PREFIX}/hooks/prolog_slurmctld
EpilogSlurmctld={PREFIX}/hooks/epilog_slurmctld
Prolog={PREFIX}/hooks/prolog
Epilog={PREFIX}/hooks/epilog
TaskProlog={PREFIX}/hooks/task_prolog
ScronParameters=enable
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=5
KillWait=2
MinJobAge=600
MaxJobCount=50000
NodeName=n[1-2] NodeHostname=head NodeAddr={ADDRESS} Port=[17001-17002] CPUs=1 RealMemory=500 Feature=eu
NodeName=n[3-4] NodeHostname=head NodeAddr={ADDRESS} Port=[17003-17004] CPUs=1 RealMemory=500 Feature=us
PartitionName=main Nodes=ALL Default=YES OverSubscribe=NO MaxTime=60
PartitionName=phi Nodes=n[1-2] OverSubscribe=NO MaxTime=60
PartitionName=us Nodes=n[3-4] OverSubscribe=NO MaxTime=60
"""

# For tests of a job's own /tmp (with_own_tmp): it is on the job's scratch, where it has one. Slurm's plugin needs an
# external step in each job, and other tests are about jobs without any process.
JOB_CONTAINER = f"""\
AutoBasePath=true
BasePath=/var/lib/job-tmp Dirs=/tmp,/var/tmp,/dev/shm InitScript={PREFIX}/hooks/private_tmp
"""

CGROUP = "CgroupPlugin=cgroup/v2\nIgnoreSystemd=yes\n"
