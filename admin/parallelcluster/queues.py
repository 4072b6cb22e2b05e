"""The part of a rendered configuration that is about Slurm: its settings, its queues and their nodes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from admin.parallelcluster import facts
from admin.parallelcluster.parts import Sources, action, gib, iam, indented, networking, starting, yaml
from conf.budget import ROOM

if TYPE_CHECKING:
    from admin.parallelcluster.answers import Bundle, Queue, Resource
    from conf.policy import Policy

# Prolog and Epilog wipe and unmount within it (conf/slurm/slurm.conf.snippet)
_LEAST_TIMEOUT = 120


def scheduling(sources: Sources) -> str:
    """``Scheduling``: settings, and queues."""
    queues = "".join(_queue(sources, queue) for queue in sources.answers.queues)
    return f"""\
Scheduling:
  Scheduler: slurm
  SlurmSettings:
    # What runs goes on; the nodes of a changed queue are replaced once they are idle.
    QueueUpdateStrategy: DRAIN
    # Route 53 has no endpoint. A node's name in Slurm (phi-dy-cpu-1) is not its host name (ip-10-0-0-17) then, and does
    # not resolve: certificates and the node's daemon go by the first.
    Dns:
      DisableManagedDns: true
      UseEc2Hostnames: true
    # One key in each entry: where there are more, ParallelCluster compares none of them with its list of forbidden
    # ones. They come last in slurm.conf, so each replaces what ParallelCluster says. These of its own must stay:
    # SchedulerParameters=nohold_on_prolog_fail, MessageTimeout=60, BatchStartTimeout=180, AuthInfo=cred_expire=70.
    CustomSlurmSettings:
{indented(_settings(sources), 6)}  SlurmQueues:
{queues}"""


def _settings(sources: Sources) -> str:
    deadline = sources.site.lifecycle.start_deadline
    private = ""
    if wants_private_tmp(sources.policy):
        key, plugin = container_plugin(sources.slurm)
        private = f"""\
# Each job has its own /tmp, /var/tmp and /dev/shm, on its encrypted scratch.
- {key}: {plugin}
"""
    return f"""\
# The filter, by which every submission is judged. HeadNode/CustomActions/OnNodeStart puts it in place.
- JobSubmitPlugins: lua
# The Prolog runs on all nodes of an allocation, at once, and the batch script waits for all of them.
- PrologFlags: {"Contain" if private else "Alloc"},DeferBatch
{private}\
# On the head node, as slurm: judges the job as it now is and has its keys made, before any node is touched.
- PrologSlurmctld: {facts.HOOKS}/prolog_slurmctld
- EpilogSlurmctld: {facts.HOOKS}/epilog_slurmctld
# As the user, before each task: says where its scratch is.
- TaskProlog: {facts.HOOKS}/task_prolog
# For ever, if it is not said. {ROOM:g} s and more above lifecycle.start_deadline ({deadline:g} s).
- PrologEpilogTimeout: {max(_LEAST_TIMEOUT, int(deadline + ROOM))}
# Nobody sees other people's jobs.
- PrivateData: {private_data(sources.slurm)}
"""


def container_plugin(slurm: str) -> tuple[str, str]:
    """The setting by which a job gets its own /tmp, and its value; another one from Slurm 25.11 on."""
    if slurm >= "25.11":
        return "NamespaceType", "namespace/tmpfs"
    return "JobContainerType", "job_container/tmpfs"


def private_data(slurm: str) -> str:
    """What nobody sees of others. ParallelCluster's own word, ``cloud``, is none to Slurm 24.11 and later: they drop it
    without a complaint, and show nodes that are switched off. Release not known: as to these.
    """
    return "cloud,jobs,usage" if "" < slurm < "24.11" else "jobs,usage"


def wants_private_tmp(policy: Policy) -> bool:
    """Whether any class of the policy wants /tmp of its jobs elsewhere."""
    return any(each.tmp != "none" for each in policy.classes)


def needs_whole_nodes(policy: Policy, partition: str) -> bool:
    """Whether every job of a partition carries a tag, and some of them must not share a node."""
    demands = policy.partition(partition)
    rank = policy.class_rank(demands.least_class) if demands.least_class else 0
    return demands.demand_tag and any(each.exclusive_nodes for each in policy.classes[rank or 0 :])


def _queue(sources: Sources, queue: Queue) -> str:
    network, policy = sources.answers.network, sources.policy
    demands = policy.partition(queue.name)
    about = "Open: a job needs no tag. Nothing that is protected is mounted on these nodes."
    if demands.demand_tag:
        least = demands.least_class or policy.classes[0].name
        about = f"Every job here carries a tag, of the class {least} or a stronger one ('partitions' of policy.yaml)."
    exclusive = """\
      # Whole nodes: on a shared one another job of the same user could read the mounted scratch.
      JobExclusiveAllocation: true
"""
    groups = f"""\
      # A second layer, by the groups that the head node sees; policy.yaml decides.
      CustomSlurmSettings: {{AllowGroups: {yaml(",".join(queue.groups))}}}
"""
    store = """\
          # Instance store: one volume over all drives, which ParallelCluster does not encrypt. secure-slurm makes an
          # encrypted scratch for each job on it, and its key ends with the job.
"""
    taken = """\
          # Instance store, which ParallelCluster does not encrypt. Its one volume is removed when the node is set up
          # (scratch.take_over), and each job gets an encrypted one of its own, whose key ends with the job.
"""
    ephemeral = f"""\
{taken if sources.site.scratch.take_over else store}\
          EphemeralVolume: {{MountDir: {facts.EPHEMERAL}}}
"""
    feature = policy.jurisdictions[sources.jurisdiction].feature
    return f"""\
    # {about}
    - Name: {queue.name}
{indented(networking(network.compute_subnet or network.subnet, network.compute_groups), 6)}\
{exclusive if needs_whole_nodes(policy, queue.name) else ""}\
{groups if queue.groups else ""}\
      ComputeSettings:
        LocalStorage:
          RootVolume: {{Size: {gib(queue.root_size)}, VolumeType: gp3, Encrypted: true}}
{ephemeral if queue.scratch == "instance-store" else ""}\
      Iam:
{indented(iam(sources.answers.bundle, session=False), 8)}\
      # Before slurmd starts: a node on which this fails never takes a job. Installs, closes the metadata service to
      # jobs, enrols the node, and looks at everything once.
      CustomActions:
{starting(sources, "compute", sources.answers.bundle.version, 8)}\
        OnNodeConfigured:
{indented(_actions(sources.answers.bundle, queue), 10)}\
      ComputeResources:
{"".join(_resource(each, feature) for each in queue.resources)}"""


def _actions(bundle: Bundle, queue: Queue) -> str:
    ours = action(bundle, "compute", "configured", bundle.version)
    if not queue.before:
        return ours
    scripts = "".join(f"  - Script: {yaml(script)}\n" for script in queue.before)
    return (
        f"# ours last: it looks at what the others have mounted\nSequence:\n{scripts}  - {indented(ours, 4).lstrip()}"
    )


def _resource(resource: Resource, feature: str) -> str:
    efa = """\
          Efa: {Enabled: true}
          Networking: {PlacementGroup: {Enabled: true}}
"""
    return f"""\
        - Name: {resource.name}
          InstanceType: {resource.instance_type}
          MinCount: {resource.min}
          MaxCount: {resource.max}
{efa if resource.efa else ""}\
          # Where the node is, by law; forced upon every job with that residency.
          CustomSlurmSettings: {{Feature: {yaml(feature)}}}
"""
