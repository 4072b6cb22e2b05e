"""Our rules about instance store: whether it is there, where it is mounted, and what scratch lies on."""

from __future__ import annotations

from admin.parallelcluster import facts
from admin.parallelcluster.look import Findings, Look, Queue, Rule, below, error, text, warning
from conf.quote import quote
from conf.rawchecks import items
from conf.yamlmarks import Where


def instance_store(look: Look) -> Findings:
    """Where encrypted scratch lies, and what is mounted there."""
    for queue in look.queues():
        local = ("ComputeSettings", "LocalStorage", "EphemeralVolume")
        volume = below(queue.raw, local)
        mount = text(volume, "MountDir") or facts.EPHEMERAL
        where = (*queue.where, *local, "MountDir")
        types = list(_types(queue))
        with_store = [each for each, _ in types if facts.has_instance_store(each)]
        if with_store or volume:
            yield from _mounts(look, queue, mount, where)
        if look.site is None:
            continue
        yield from _scratch(look, queue, types, bool(volume), mount)


def _types(queue: Queue) -> list[tuple[str, Where]]:
    found = []
    for raw, where in queue.resources():
        if single := text(raw, "InstanceType"):
            found.append((single, (*where, "InstanceType")))
        for index, each in enumerate(items(raw, "Instances")):
            if isinstance(each, dict) and (one := text(each, "InstanceType")):
                found.append((one, (*where, "Instances", index, "InstanceType")))
    return found


def _mounts(look: Look, queue: Queue, mount: str, where: Where) -> Findings:
    for storage, at in look.storages():
        shared = text(storage, "MountDir")
        if shared and (facts.lies_in(shared, [mount]) or facts.lies_in(mount, [shared])):
            yield error(
                "scratch-covered",
                (*at, "MountDir"),
                f"the shared {quote(shared)} and the instance store of the queue {quote(queue.name)} ({mount}) lie in "
                "each other: ParallelCluster then leaves the instance store alone",
                "give the EphemeralVolume of that queue another MountDir, and scratch.directory with it",
            )
    root = look.site.scratch.mount_root if look.site else ""
    if root and (facts.lies_in(root, [mount]) or facts.lies_in(mount, [root])):
        yield error(
            "scratch-covered",
            where,
            f"the instance store's {mount} is where the scratch of jobs is mounted (scratch.mount_root, {root})",
            "choose another of the two",
        )


def _scratch(look: Look, queue: Queue, types: list[tuple[str, Where]], volume: bool, mount: str) -> Findings:
    if look.site is None or not _has_scratch(look, queue.name):
        return
    scratch = look.site.scratch
    takes = scratch.backing == "lvm" or (scratch.backing == "auto" and bool(scratch.volume_group))
    if scratch.backing == "block":
        yield error(
            "scratch-block",
            (*queue.where, "Name"),
            "scratch.backing is block, but ParallelCluster makes one volume of all drives of a node",
            f"set scratch.backing: file with a directory below {mount}, or lvm with volume_group: {facts.VOLUME_GROUP}",
        )
    elif takes and scratch.volume_group != facts.VOLUME_GROUP:
        yield error(
            "scratch-group",
            (*queue.where, "Name"),
            f"scratch.volume_group is {quote(scratch.volume_group)}, but ParallelCluster's is {facts.VOLUME_GROUP}",
            f"set scratch.volume_group: {facts.VOLUME_GROUP}",
        )
    elif takes and not scratch.take_over:
        yield error(
            "scratch-held",
            (*queue.where, "Name"),
            f"ParallelCluster's own volume has all of {facts.VOLUME_GROUP}, and nothing says that it may be removed",
            "set scratch.take_over: lv_ephemeral in secure-slurm.yaml",
        )
    in_folder = scratch.backing != "lvm" and facts.lies_in(scratch.directory, [mount]) is not None
    on_store = takes or (scratch.backing in ("file", "block", "auto") and in_folder)
    if scratch.backing == "file" and not on_store and any(facts.has_instance_store(each) for each, _ in types):
        yield warning(
            "scratch-elsewhere",
            (*queue.where, "Name"),
            f"scratch.directory ({scratch.directory}) is not below {mount}: scratch of these nodes lies on the root "
            "volume, and their instance store is not used",
            f"set scratch.directory in secure-slurm.yaml to a folder below {mount}",
        )
    if not on_store:
        return
    with_store = [each for each, _ in types if facts.has_instance_store(each)]
    if not volume and (with_store or scratch.backing != "auto"):
        yield error(
            "scratch-unnamed",
            (*queue.where, "Name"),
            f"scratch of the queue {quote(queue.name)} lies on instance store, which the queue does not name",
            f"add to it: ComputeSettings: {{LocalStorage: {{EphemeralVolume: {{MountDir: {mount}}}}}}}",
        )
    # where 'auto' finds neither the group nor this volume it may still have another volume, or memory
    elsewhere = scratch.backing == "auto" and (scratch.diskless == "memory" or (bool(scratch.volume) and not in_folder))
    for each, where in types:
        if not facts.has_instance_store(each) and not elsewhere:
            yield error(
                "scratch-no-store",
                where,
                f"{each} has no instance store, by its name, and the scratch of these nodes would lie on it",
                "choose a type that has one (m6id instead of m6i), or put scratch on the root volume",
            )


def _has_scratch(look: Look, queue: str) -> bool:
    """Whether jobs come to a queue that may have encrypted scratch; where a tag is demanded, that is."""
    if look.policy is None or not look.demands(queue):
        return False
    least = look.policy.class_rank(look.policy.partition(queue).least_class or "") or 0
    return any(each.max_scratch is not None for each in look.policy.classes[least:])


RULES: tuple[Rule, ...] = (instance_store,)
