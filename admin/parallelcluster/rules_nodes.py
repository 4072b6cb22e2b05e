"""Our rules about queues and nodes: where they are by law, what sets them up, and when."""

from __future__ import annotations

from admin.parallelcluster import facts
from admin.parallelcluster.look import QUEUES, Findings, Look, Queue, Rule, error, text, warning
from admin.parallelcluster.queues import needs_whole_nodes
from conf.quote import did_you_mean, quote
from conf.rawchecks import Raw, section


def place(look: Look) -> Findings:
    """The region, which must be one that the policy knows."""
    if not look.region:
        yield error(
            "region-missing",
            (),
            "no Region: ParallelCluster takes the one of whoever creates the cluster",
            "write it, such as 'Region: eu-central-1'",
        )
    elif look.policy is not None and look.jurisdiction is None:
        yield error(
            "region-unknown",
            ("Region",),
            f"the region {quote(look.region)} is in no jurisdiction of the policy: no job with a residency would run",
            "add it to a jurisdiction's regions in policy.yaml, if it lies there",
        )


def queues(look: Look) -> Findings:
    """Queues and the policy's partitions."""
    if look.policy is None:
        return
    names = [each.name for each in look.queues()]
    for name, demands in look.policy.partitions.items():
        if demands.demand_tag and name not in names:
            yield error(
                "queue-missing",
                QUEUES,
                f"the policy's partition {quote(name)}, which demands a tag, is no queue{did_you_mean(name, names)}",
                "give the queue that name, or take the partition out of policy.yaml",
            )
    for queue in look.queues():
        demands = look.policy.partition(queue.name)
        where = (*queue.where, "Name")
        if demands.jurisdiction not in {None, look.jurisdiction} and look.jurisdiction is not None:
            yield error(
                "queue-elsewhere",
                where,
                f"the policy says that the queue {quote(queue.name)} is in {quote(demands.jurisdiction)}, but "
                f"{look.region} is in {quote(look.jurisdiction)}",
                "a cluster is in one region: correct the region, or the partition in policy.yaml",
            )
        exclusive = needs_whole_nodes(look.policy, queue.name)
        if exclusive and queue.raw.get("JobExclusiveAllocation") is not True:
            yield error(
                "queue-shared",
                where,
                f"jobs of the queue {quote(queue.name)} need whole nodes, and it does not give them by itself",
                "add to it: JobExclusiveAllocation: true",
            )


def denied(look: Look) -> Findings:
    """ParallelCluster's own settings of queues and nodes."""
    for queue in look.queues():
        yield from _denied(queue)


def _denied(queue: Queue) -> Findings:
    for settings, where, names in (
        (section(queue.raw, "CustomSlurmSettings"), (*queue.where, "CustomSlurmSettings"), facts.DENIED_IN_QUEUE),
        *(
            (section(raw, "CustomSlurmSettings"), (*place, "CustomSlurmSettings"), facts.DENIED_IN_RESOURCE)
            for raw, place in queue.resources()
        ),
    ):
        for key in settings:
            if key.lower() in names:
                yield error("setting-denied", (*where, key), f"{key} is set by ParallelCluster itself", "leave it out")


def features(look: Look) -> Findings:
    """The feature of the jurisdiction, on every node of every queue; and none of another."""
    if look.policy is None or look.jurisdiction is None:
        return
    wanted = look.policy.jurisdictions[look.jurisdiction].feature
    foreign = look.policy.features() - {wanted}
    for queue in look.queues():
        for raw, where in queue.resources():
            settings = section(raw, "CustomSlurmSettings")
            key = next((each for each in settings if each.lower() in {"feature", "features"}), "Feature")
            has = {each.strip() for each in str(settings.get(key, "")).split(",")}
            at = (*where, "CustomSlurmSettings", key)
            name = f"the nodes {quote(text(raw, 'Name'))} of the queue {quote(queue.name)}"
            if wanted not in has:
                yield error(
                    "feature-missing",
                    at,
                    f"{name} lack the feature {quote(wanted)} of {quote(look.jurisdiction)}: no job with that "
                    "residency would ever start there",
                    f"add to it: CustomSlurmSettings: {{Feature: {wanted}}}",
                )
            for other in sorted(has & foreign):
                yield error(
                    "feature-foreign",
                    at,
                    f"{name} have the feature {quote(other)} of {quote(look.policy.jurisdiction_of_feature(other))}, "
                    f"but are in {look.region}",
                    f"write CustomSlurmSettings: {{Feature: {wanted}}}",
                )


def image(look: Look) -> Findings:
    """Whether the nodes have a Python that the suite runs on."""
    raw = section(look.raw, "Image")
    own = text(raw, "Os")
    if own in facts.OLD_PYTHON and "CustomAmi" not in raw:
        yield warning(
            "image-python",
            ("Image", "Os"),
            f"{own} comes with Python {facts.OLD_PYTHON[own]}, and secure-slurm needs 3.11: no node would be set up",
            "name an image with Python 3.11 or later as CustomAmi ('pcluster build-image'), or use ubuntu2404",
        )


def login_nodes(look: Look) -> Findings:
    """Somewhere for users to submit from."""
    if not look.pools() and isinstance(look.raw.get("Scheduling"), dict):
        yield warning(
            "login-none",
            (),
            "no login nodes: users would log in to the head node, where the record key and Vault's login are",
            "add LoginNodes with a pool",
        )


def login_key(look: Look) -> Findings:
    """``KeyName`` of login nodes, which ParallelCluster has no longer."""
    for raw, where in look.pools():
        if "KeyName" in section(raw, "Ssh"):
            yield error(
                "login-key",
                (*where, "Ssh", "KeyName"),
                "login nodes have no KeyName from ParallelCluster 3.15 on",
                "leave it out: they take that of the head node",
            )


def head_disk(look: Look) -> Findings:
    """Old names that some configurations still carry."""
    raw: Raw = section(look.raw, "HeadNode")
    if "SharedStorageEfsSettings" in raw and text(raw, "SharedStorageType") != "Efs":
        yield error(
            "head-storage",
            ("HeadNode", "SharedStorageEfsSettings"),
            "SharedStorageEfsSettings without SharedStorageType: Efs says nothing",
            "add SharedStorageType: Efs, or leave it out",
        )


RULES: tuple[Rule, ...] = (place, queues, denied, features, image, login_nodes, login_key, head_disk)
