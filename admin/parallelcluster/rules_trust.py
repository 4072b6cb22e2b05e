"""Our rules about what all others stand on: who says who somebody is, whose program root runs, who gets the records."""

from __future__ import annotations

import re

from admin.parallelcluster import facts
from admin.parallelcluster.look import CUSTOM, SETTINGS, Findings, Look, Rule, below, error, text, warning
from conf.quote import one_of, quote
from conf.rawchecks import Raw, items, section
from conf.yamlmarks import Where

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# slurm.conf(5): a line of a node or partition has several settings, any other one; '#' begins a comment, and a
# backslash at the end goes on
_SECOND = re.compile(r"#|\\|\s\S*=")
_KEPT = {
    "authtype": (("auth/munge", "auth/slurm"), "whoever reaches slurmctld could say that they are anybody"),
    "credtype": (("cred/munge", "cred/slurm"), "whoever reaches a slurmd could make it run anything"),
    "slurmduser": (("root",), "the Prolog could make no encrypted scratch, and the Epilog destroy none"),
    "proctracktype": (("proctrack/cgroup",), "what a job leaves running would go on reading its scratch"),
}
"""Settings that ParallelCluster does not forbid, the values that they must keep, and what else would follow."""
_RUN = frozenset(
    re.split(
        r" +",
        "healthcheckprogram jobcomploc mailprog plugindir plugstackconfig "
        "rebootprogram slurmctldprimaryoffprog slurmctldprimaryonprog statesavelocation unkillablestepprogram",
    )
)
"""Settings that name a file or folder whose owner is as good as root or as slurm."""
_WRITABLE = ("/home", "/tmp", "/var/tmp", "/dev/shm", facts.EPHEMERAL)  # noqa: S108 - nothing is written there
_SENDING = frozenset({"jobcomp/elasticsearch", "jobcomp/kafka"})
_HOSTS = frozenset({"accountingstorageexternalhost", "accountingstoragehost", "accountingstoragebackuphost"})


def words(look: Look) -> Findings:
    """One setting is one key and one value: no second one hides in it, of which nobody would see the name."""
    entries: list[tuple[Raw, Where]] = [
        (each, (*CUSTOM, index))
        for index, each in enumerate(items(below(look.raw, SETTINGS), "CustomSlurmSettings"))
        if isinstance(each, dict)
    ]
    for queue in look.queues():
        places = [(queue.raw, queue.where), *queue.resources()]
        entries += [(section(raw, "CustomSlurmSettings"), (*at, "CustomSlurmSettings")) for raw, at in places]
    for entry, where in entries:
        seen: set[str] = set()
        for key, value in entry.items():
            if not _KEY.fullmatch(key):
                yield error(
                    "setting-hidden",
                    (*where, key),
                    f"{quote(key)} is no name of a setting: in slurm.conf it may be an Include, or more than one "
                    "setting, that nobody has compared with ParallelCluster's list",
                    "write the name alone, such as JobSubmitPlugins",
                )
            if key.lower() in seen:
                yield error(
                    "setting-hidden", (*where, key), f"{key} stands there twice: the last one counts", "write one"
                )
            seen.add(key.lower())
            if isinstance(value, str) and _SECOND.search(value):
                yield error(
                    "setting-hidden",
                    (*where, key),
                    f"the value {quote(value)} of {key} would be more than one setting, or less, in slurm.conf: it "
                    "cannot be read, or says what nobody has compared with ParallelCluster's list",
                    "write one value, and an entry of its own for each setting",
                )


def kept(look: Look) -> Findings:
    """Settings without which nothing of this holds."""
    for each in look.settings():
        values, lost = _KEPT.get(each.key.lower(), ((), ""))
        if values and str(each.value).strip().lower() not in values:
            yield error(
                "setting-trust",
                each.where,
                f"{each.key} is {quote(each.value)}: {lost}",
                f"leave it out, or write {one_of(values)}",
            )
        if each.key.lower() == "clustername" and look.site and str(each.value).lower() != look.site.cluster.name:
            yield error(
                "setting-trust",
                each.where,
                f"ClusterName is {quote(each.value)}, and cluster.name in secure-slurm.yaml is "
                f"{quote(look.site.cluster.name)}: every record of a decision would be refused",
                "leave it out: ParallelCluster sets it",
            )


def programs(look: Look) -> Findings:
    """What root or slurm runs must not lie where users, or nodes of the cluster, may write."""
    shared = [text(raw, "MountDir") for raw, _ in look.storages()]
    folders = [each if each.startswith("/") else f"/{each}" for each in shared if each]
    for each in look.settings():
        if each.key.lower() not in _RUN or not isinstance(each.value, str):
            continue
        for path in each.value.split(":"):
            folder = facts.lies_in(path, [*folders, *_WRITABLE])
            if folder:
                yield error(
                    "setting-program",
                    each.where,
                    f"{each.key} is {quote(path)}, and users may write in {folder}: they could put there what root or "
                    "slurm then trusts",
                    "name a path in the image, which root alone may write",
                )


def records(look: Look) -> Findings:
    """Who gets what Slurm knows of every job."""
    for each in look.settings():
        if each.key.lower() == "jobcomptype" and str(each.value).lower() in _SENDING:
            yield error(
                "records-sent",
                each.where,
                f"{each.value} sends the record of every job, its script with it, to another program",
                "leave JobCompType out; what was decided is in the audit log",
            )
        if each.key.lower() in _HOSTS:
            yield warning(
                "records-elsewhere",
                each.where,
                f"the accounting of every job (names, users, comments) goes to {quote(each.value)}, without TLS",
                "use SlurmSettings: Database, or a slurmdbd in this VPC",
            )


def unseen(look: Look) -> Findings:
    """Parts of a cluster that come from elsewhere than this file: nobody has looked at them, and root runs them."""
    for key, what, advice in (
        ("DevSettings", "root on every node would run a cookbook or package that nobody signed", "leave it out"),
        (
            "AdditionalResources",
            "the stack would have resources that stand in no file that was looked at",
            "leave it out",
        ),
        ("AdditionalPackages", "they are fetched from the internet: the stack would fail", "put them into the image"),
    ):
        if key in look.raw:
            yield error("part-unseen", (key,), f"{key}: {what}", advice)


def groups(look: Look) -> Findings:
    """Groups of the site's: those that ParallelCluster makes let everything out."""
    head = (section(look.raw, "HeadNode"), ("HeadNode",), "the head node")
    pools = ((raw, where, "login nodes") for raw, where in look.pools())
    queues = ((each.raw, each.where, f"the nodes of the queue {quote(each.name)}") for each in look.queues())
    for raw, where, whose in (head, *pools, *queues):
        if raw and "SecurityGroups" not in section(raw, "Networking"):
            yield warning(
                "groups-open",
                (*where, "Networking"),
                f"{whose} would have a group that ParallelCluster makes, with a rule to everywhere",
                "name SecurityGroups of the VPC that passed vpc-check",
            )


def logs(look: Look) -> Findings:
    """Logs outlive a node, and the cluster."""
    where: Where = ("Monitoring", "Logs", "CloudWatch")
    raw = below(look.raw, where)
    if raw.get("Enabled") is False:
        yield warning(
            "logs-lost",
            (*where, "Enabled"),
            "without CloudWatch a node's logs end with its instance",
            "write Enabled: true, or ship logs and audit yourself",
        )
    if text(raw, "DeletionPolicy") == "Delete":
        yield warning(
            "logs-lost",
            (*where, "DeletionPolicy"),
            "the logs are deleted with the cluster",
            "write DeletionPolicy: Retain",
        )


RULES: tuple[Rule, ...] = (words, kept, programs, records, unseen, groups, logs)
