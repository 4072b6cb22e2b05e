"""Our rules about custom actions: that ours are there, on every kind of node, at the right moment, and what they get.

On a compute node ``OnNodeConfigured`` comes after the mounts and before slurmd, on the head node ``OnNodeStart`` comes
before slurmctld (aws-parallelcluster-cookbook, ``init``, ``config`` and ``finalize``).
"""

from __future__ import annotations

import base64
import binascii
import re
from fnmatch import fnmatchcase
from typing import NamedTuple

from admin.parallelcluster import facts
from admin.parallelcluster.aws import PUBLIC_KEY_BYTES
from admin.parallelcluster.look import Findings, Look, Rule, below, error, text, warning
from conf.quote import quote
from conf.rawchecks import Raw, items, section
from conf.yamlmarks import Where

ARCHIVE = re.compile(r"s3://[^/]+/(?:.+/)?secure-slurm-([0-9][^/]*)\.tar\.gz")
"""The address of a bundle, with its version."""
_SITE = re.compile(r"s3://[^/]+/(?:.+/)?site(?:-[1-9][0-9]*)?\.tar\.gz")


class Action(NamedTuple):
    """One script of a node's actions. ``last``: nothing comes after it at that moment."""

    moment: str
    script: str
    args: list[object]
    where: Where
    last: bool

    @property
    def ours(self) -> bool:
        """Whether it is the suite's, by the name of its file."""
        return self.script.rpartition("/")[2] == facts.ACTION


class Place(NamedTuple):
    """A kind of node that has custom actions. ``role``: what ours is told that it is."""

    role: str
    raw: Raw
    where: Where
    name: str

    def actions(self) -> list[Action]:
        """Every script, moment by moment."""
        found = []
        for moment, raw in section(self.raw, "CustomActions").items():
            if not isinstance(raw, dict):
                continue
            where = (*self.where, "CustomActions", moment)
            scripts = items(raw, "Sequence")
            if "Script" in raw:
                found.append(Action(moment, text(raw, "Script"), items(raw, "Args"), where, last=True))
            for index, each in enumerate(scripts):
                if isinstance(each, dict):
                    last = index == len(scripts) - 1
                    at = (*where, "Sequence", index)
                    found.append(Action(moment, text(each, "Script"), items(each, "Args"), at, last=last))
        return found

    def ours(self, moment: str) -> Action | None:
        """The suite's action at that moment."""
        return next((each for each in self.actions() if each.moment == moment and each.ours), None)


def places(look: Look) -> list[Place]:
    """The head node, the pools of login nodes, and the queues."""
    found = []
    if isinstance(look.raw.get("HeadNode"), dict):
        found.append(Place("head", section(look.raw, "HeadNode"), ("HeadNode",), "the head node"))
    for raw, where in look.pools():
        found.append(Place("login", raw, where, f"the login nodes {quote(text(raw, 'Name'))}"))
    for queue in look.queues():
        found.append(Place("compute", queue.raw, queue.where, f"the nodes of the queue {quote(queue.name)}"))
    return found


def present(look: Look) -> Findings:
    """Ours, where it has to be; and not where it would come too early or too late."""
    for place in places(look):
        configured = place.ours("OnNodeConfigured")
        where = (*place.where, "CustomActions")
        if place.role == "compute" and configured is None:
            yield from _no_compute_action(place, where)
        elif place.role == "login" and configured is None:
            yield warning(
                "action-missing",
                where,
                f"{place.name} get no secure-sbatch: there is no action of ours in OnNodeConfigured",
                f"add to it: CustomActions: OnNodeConfigured: Script: s3://.../actions/{facts.ACTION}",
            )
        elif place.role == "head":
            yield from _head(look, place, where)
            yield from _updated(place, where)
        if configured is not None and not configured.last:
            yield error(
                "action-not-last",
                configured.where,
                f"on {place.name} other scripts come after ours, which is to look at what they have done",
                "put ours at the end of the Sequence",
            )


def _updated(place: Place, where: Where) -> Findings:
    if place.ours("OnNodeConfigured") is not None and place.ours("OnNodeUpdated") is None:
        yield warning(
            "action-missing",
            where,
            "an update of the cluster could not bring the head node a new version, nor new links in prolog.d",
            f"add to HeadNode: CustomActions: OnNodeUpdated: Script: s3://.../actions/{facts.ACTION}",
        )


def _no_compute_action(place: Place, where: Where) -> Findings:
    early = place.ours("OnNodeStart")
    if early is not None:
        yield error(
            "action-order",
            early.where,
            f"on {place.name} ours runs in OnNodeStart: nothing is mounted yet, and the node does not know its name",
            "move it to OnNodeConfigured, which still comes before slurmd",
        )
        return
    yield error(
        "action-missing",
        where,
        f"{place.name} are not set up: the hooks in prolog.d are missing there, and the first job drains each of them",
        f"add to it: CustomActions: OnNodeConfigured: Script: s3://.../actions/{facts.ACTION}",
    )


def _head(look: Look, place: Place, where: Where) -> Findings:
    start, configured = place.ours("OnNodeStart"), place.ours("OnNodeConfigured")
    if start is None and look.setting("JobSubmitPlugins") is not None:
        late = "; OnNodeConfigured is too late" if configured is not None else ""
        yield error(
            "action-order" if configured is not None else "action-missing",
            configured.where if configured is not None else where,
            f"JobSubmitPlugins needs job_submit.lua before slurmctld starts, and nothing puts it there{late}",
            f"add to HeadNode: CustomActions: OnNodeStart: Script: s3://.../actions/{facts.ACTION}, "
            "Args: [head, start, ...]",
        )
    if configured is None:
        yield error(
            "action-missing",
            where,
            "the head node's daemons are not started: there is no action of ours in OnNodeConfigured",
            f"add to HeadNode: CustomActions: OnNodeConfigured: Script: s3://.../actions/{facts.ACTION}, "
            "Args: [head, configured, ...]",
        )


def arguments(look: Look) -> Findings:
    """What ours is told: role, stage, archive, public key, site archive."""
    for place in places(look):
        for action in place.actions():
            if action.ours:
                yield from _arguments(place, action)


def _arguments(place: Place, action: Action) -> Findings:
    where = (*action.where, "Args")
    words = [each if isinstance(each, str) else "" for each in action.args]
    stage = "start" if action.moment == "OnNodeStart" else "configured"
    if len(words) != facts.ACTION_WORDS:
        yield error(
            "action-args",
            where,
            f"on {place.name} ours gets {len(words)} arguments instead of {facts.ACTION_WORDS}",
            f"write Args: [{place.role}, {stage}, the bundle's address, the public key, the site archive's address]",
        )
        return
    role, said, archive, key, site = words
    for index, (word, wanted, what) in enumerate(((role, place.role, "role"), (said, stage, "stage"))):
        if word != wanted:
            yield error(
                "action-args",
                (*where, index),
                f"on {place.name} in {action.moment} the {what} is {quote(word)}",
                f"write {wanted}",
            )
    if not ARCHIVE.fullmatch(archive):
        yield error(
            "action-args",
            (*where, 2),
            f"{quote(archive)} is not the address of a bundle",
            "write s3://BUCKET/PREFIX/secure-slurm-VERSION.tar.gz",
        )
    if not _SITE.fullmatch(site):
        yield error(
            "action-args",
            (*where, 4),
            f"{quote(site)} is not the address of a site archive",
            "write s3://BUCKET/PREFIX/site.tar.gz, or site-NUMBER.tar.gz",
        )
    if not _is_key(key):
        yield error(
            "action-key",
            (*where, 3),
            f"{quote(key)} is no Ed25519 public key: no signature could be verified, and no node would start",
            "write the key's 32 bytes in base64 (44 characters)",
        )


def _is_key(text_: str) -> bool:
    try:
        return len(base64.b64decode(text_, validate=True)) == PUBLIC_KEY_BYTES
    except (binascii.Error, ValueError):
        return False


def alike(look: Look) -> Findings:
    """One key for all, and one version for all nodes of the queues."""
    seen: dict[str, str] = {}
    for place in places(look):
        for action in place.actions():
            if not action.ours or len(action.args) != facts.ACTION_WORDS:
                continue
            key = str(action.args[3])
            if _is_key(key) and seen.setdefault("key", key) != key:
                yield error(
                    "action-key",
                    (*action.where, "Args", 3),
                    f"on {place.name} the public key is another one than above",
                    "write the same key everywhere: one key signs the bundle",
                )
            version = ARCHIVE.fullmatch(str(action.args[2]))
            if place.role == "compute" and version and seen.setdefault("version", version[1]) != version[1]:
                yield error(
                    "action-version",
                    (*action.where, "Args", 2),
                    f"on {place.name} the version is {version[1]}, and {seen['version']} on others",
                    "write one version for all queues",
                )


def sources(look: Look) -> Findings:
    """Where scripts come from, and that a node may read them, and not write them."""
    for place in places(look):
        for action in place.actions():
            if action.script.startswith(("https://", "http://")):
                yield error(
                    "action-source",
                    (*action.where, "Script"),
                    f"on {place.name} a script comes from {quote(action.script)}, which needs the internet",
                    "put it into S3 and name it by s3://",
                )
            elif action.script.startswith("s3://"):
                yield from _access(place, action)


def _access(place: Place, action: Action) -> Findings:
    bucket, _, key = action.script.removeprefix("s3://").partition("/")
    iam = below(place.raw, ("Iam",))
    found = [(index, each) for index, each in enumerate(items(iam, "S3Access")) if isinstance(each, dict)]
    access = [(index, each) for index, each in found if text(each, "BucketName") in {bucket, "*"}]
    granted = any(fnmatchcase(key, text(each, "KeyName") or "*") for _, each in access)
    # what a policy of the site's gives is not known here; AWS's own give nothing of this bucket
    policies = [text(each, "Policy") for each in items(iam, "AdditionalIamPolicies") if isinstance(each, dict)]
    elsewhere = bool({"InstanceRole", "InstanceProfile"} & iam.keys()) or any(
        ":iam::aws:" not in each for each in policies
    )
    if not granted and not elsewhere:
        way = "AdditionalIamPolicies" if place.role == "login" else f"S3Access: [{{BucketName: {bucket}}}]"
        yield error(
            "action-access",
            (*place.where, "Iam"),
            f"{place.name} may not read {quote(action.script)}, by which they are set up: they would not start",
            f"add to it: Iam: {way}",
        )
    for index, each in access:
        if each.get("EnableWriteAccess") is True:
            yield error(
                "action-writable",
                (*place.where, "Iam", "S3Access", index, "EnableWriteAccess"),
                f"{place.name} may write to {quote(bucket)}, from which root's scripts on every node come",
                "leave EnableWriteAccess out",
            )


RULES: tuple[Rule, ...] = (present, arguments, alike, sources)
